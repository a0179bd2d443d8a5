"""A training of a few steps with tiny models."""

from contextlib import contextmanager

import pytest
from accelerate.state import AcceleratorState

from retribooru.training.arguments import TrainArguments
from retribooru.training.train import train


@pytest.fixture(scope="session")
def own_precision():
    """`with own_precision():` accelerate, which keeps the precision of a process's first training for all others,
    forgets it before and after."""

    @contextmanager
    def own_precision():
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            yield
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)

    return own_precision


@pytest.fixture(scope="module")
def run(data_dir, stable_diffusion_dir, tmp_path_factory, own_precision):
    """A training of six steps, with a checkpoint after every second."""

    def run(name=None, **options):
        settings = {
            "output_dir": str(name or tmp_path_factory.mktemp("run")),
            "data_dir": str(data_dir),
            "pretrained_model_name_or_path": str(stable_diffusion_dir),
            "resolution": 32,
            "tasks": ["reconstruct", "compose"],
            "train_batch_size": 2,
            "max_train_steps": 6,
            "learning_rate": 1e-2,
            "lr_warmup_steps": 1,
            "logging_steps": 1,
            "validation_steps": 3,
            "validation_targets": 6,
            "checkpointing_steps": 2,
            "proportion_empty_references": 0.0,
        }
        with own_precision():
            return train(TrainArguments(**{**settings, **options}))

    return run
