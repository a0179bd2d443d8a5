"""Loads a checkpoint and draws with it, where there may be nothing but torch, diffusers and transformers.

python draw_with.py LIBRARY CLASS CHECKPOINT OPTIONS(JSON) LATENTS.safetensors [FOLDER to save the pipeline to]
"""

import importlib
import json
import sys

import torch
from PIL import Image
from safetensors.torch import save_file


def draw(pipeline) -> torch.Tensor:
    """Latents of two prompts with references, a mask and a seed that are always the same."""
    pipeline.set_progress_bar_config(disable=True)
    face, body = Image.linear_gradient("L").convert("RGB"), Image.radial_gradient("L").convert("RGB")
    return pipeline(
        ["1girl, solo", "standing"],
        reference_images=[face, body],
        reference_concepts=["face", "body"],
        reference_masks=[None, Image.linear_gradient("L")],
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images


def main(library: str, name: str, checkpoint: str, options: str, latents: str, again: str | None = None) -> None:
    pipeline = getattr(importlib.import_module(library), name).from_pretrained(checkpoint, **json.loads(options))
    save_file({"latents": draw(pipeline)}, latents)
    if again:
        pipeline.save_pretrained(again)


if __name__ == "__main__":
    main(*sys.argv[1:])
