"""Tiny pipelines, fresh and as after training."""

import copy

import pytest
import torch

from retribooru import RetriBooruPipeline


def _with_weights_for_zeros(pipeline):
    generator = torch.Generator().manual_seed(1)
    for layer in pipeline.unet.retrieval_layers:
        torch.nn.init.normal_(layer.zero_conv.weight, generator=generator)
    return pipeline


@pytest.fixture
def pipeline(stable_diffusion):
    torch.manual_seed(0)  # of what the retrieval layers do not take over from the U-Net
    pipeline = RetriBooruPipeline.from_stable_diffusion(stable_diffusion)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def trained(pipeline):
    """As after training: the zero convolutions are no longer zero."""
    return _with_weights_for_zeros(pipeline)


@pytest.fixture
def trained_like():
    """A function: a pipeline -> its copy as after training."""
    return lambda pipeline: _with_weights_for_zeros(copy.deepcopy(pipeline))
