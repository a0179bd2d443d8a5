"""The best diagnostic of a retrieval training: held-out characters with their own references and with another's."""

import torch
from torch import nn

from . import objective
from .arguments import TrainArguments
from .augment import NO_AUGMENTATION
from .data import Batch, TrainingFigures

# A run whose held-out loss with another character's references is not at least this share above that with their own
# has not learned to retrieve.
PARTED = 0.05


@torch.no_grad()
def held_out_losses(model: nn.Module, scheduler, batch: Batch, others: list[int], seed: int) -> dict[str, float]:
    """Loss on held-out characters with their own references and with another character's, for the same noise.

    When the second rises above the first, the model has begun to retrieve: visible long before it is in pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch.latents.shape, generator=generator).to(batch.latents.device)
    steps = scheduler.config.num_train_timesteps
    timesteps = torch.linspace(steps // 4, steps - 1, len(noise)).long().to(noise.device)
    noisy = scheduler.add_noise(batch.latents, noise, timesteps)

    def loss(order) -> float:
        prediction = model(noisy, timesteps, batch.text, batch.references[order], batch.concepts[order],
                           batch.content[order])  # fmt: skip
        terms = objective.noise_prediction_loss(prediction, noise, batch.content_mask, batch.head_mask, 0.0)
        return terms["loss"].item()

    return {"own_references": loss(list(range(len(noise)))), "other_references": loss(others)}


def other_characters(characters: list[str]) -> list[int]:
    """For each item the next item, in a circle, of another character."""
    count = len(characters)
    return [
        next((i + k) % count for k in range(1, count + 1) if characters[(i + k) % count] != characters[i] or k == count)
        for i in range(count)
    ]


def held_out_examples(figures, args: TrainArguments) -> dict:
    """A batch of held-out targets, spread over the table, without augmentation or prompt: references alone tell."""
    held_out = TrainingFigures(
        figures, args.tasks, args.resolution, args.seed, background_removal=1.0,
        augmentation=NO_AUGMENTATION,
    )  # fmt: skip
    count = min(args.validation_targets, len(held_out))
    chosen = [held_out[0, i * len(held_out) // count] for i in range(count)]
    if len({example["character"] for example in chosen}) < 2:
        raise ValueError("data_dir: the split out_of_domain has one character, wanted two or more to tell them apart")
    return torch.utils.data.default_collate([{**example, "prompt": ""} for example in chosen])


def verdict(lines: list[dict]) -> str:
    """What the last look at the held-out characters says."""
    last = [line for line in lines if "own_references" in line][-1]
    own, other = last["own_references"], last["other_references"]
    numbers = f"step {last['step']}: held-out loss {own:.4f} with own references, {other:.4f} with another character's"
    if other < own * (1 + PARTED):
        return f"{numbers}. The two have not parted: this run has NOT learned to retrieve."
    return f"{numbers}. The two have parted: the model retrieves."
