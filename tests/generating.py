"""A short call of a tiny pipeline, with references."""

import torch

from handmade import draw

REFERENCES = {
    "reference_images": [draw("red")[0], draw("blue", size=(30, 20))[0]],
    "reference_concepts": ["face", "body"],
}
STEPS = 3


def generate(pipeline, prompt="1girl, solo", seeds=(0,), **options):
    """What a call draws, by default latents (B, c, h, w); a seed for each picture, or one for all."""
    options = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "latent", **options}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    torch.manual_seed(0)  # of the schedulers that have no use for a generator
    return pipeline(prompt, generator=generators if len(seeds) > 1 else generators[0], **options).images


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance)
