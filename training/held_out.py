"""The best diagnostic of a retrieval training: held-out characters with their own references and with another's."""

import torch
from torch import nn

from retribooru.pipeline.pipeline_retribooru import RetriBooruPipeline

from . import objective
from .arguments import TrainArguments
from .data import TrainingFigures
from .step import encode_batch
from .views import Views

# A run whose held-out loss with another character's references is not at least this share above that with their own
# has not learned to retrieve.
PARTED = 0.05


class HeldOut:
    """Held-out targets, their noise always the same, with their own references and with another character's.

    When the loss with the second rises above that with the first, the model has begun to retrieve: visible long before
    it is in pictures.

    Args:
        figures: rows of the figures config, of characters that are not trained on.
        concepts: from `concept_embeddings`.
    """

    def __init__(self, figures, pipeline: RetriBooruPipeline, concepts: torch.Tensor, args: TrainArguments):
        examples = held_out_examples(figures, args)
        self.batch = encode_batch(pipeline, examples, concepts, train_base=False)
        self.others = other_characters(examples["character"])
        generator = torch.Generator().manual_seed(args.seed)
        latents = self.batch.latents
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        scheduler = pipeline.scheduler
        steps = scheduler.config.num_train_timesteps
        self.timesteps = torch.linspace(steps // 4, steps - 1, len(latents)).long().to(latents.device)
        self.noisy = scheduler.add_noise(latents, noise, self.timesteps)
        alphas = scheduler.alphas_cumprod.to(latents.device)
        self.target = objective.prediction_target(
            scheduler.config.prediction_type, latents, noise, alphas, self.timesteps
        )

    def losses(self, model: nn.Module) -> dict[str, float]:
        """Means over the targets' content, without the head term."""
        return {
            "own_references": self._loss(model, list(range(len(self.noisy)))),
            "other_references": self._loss(model, self.others),
        }

    def _loss(self, model: nn.Module, order: list[int]) -> float:
        batch = self.batch
        prediction = model(self.noisy, self.timesteps, batch.text, batch.references[order], batch.concepts[order],
                           batch.content[order])  # fmt: skip
        terms = objective.prediction_loss(prediction, self.target, batch.content_mask, batch.head_mask, 0.0)
        return terms["loss"].item()


def other_characters(characters: list[str]) -> list[int]:
    """For each item the next item, in a circle, of another character."""
    count = len(characters)
    return [
        next((i + k) % count for k in range(1, count + 1) if characters[(i + k) % count] != characters[i] or k == count)
        for i in range(count)
    ]


def held_out_examples(figures, args: TrainArguments) -> dict:
    """A batch of held-out targets, spread over the table, without augmentation or prompt: references alone tell."""
    views = Views(figures, args.resolution, background_removal=1.0)
    held_out = TrainingFigures(figures, views, args.tasks, args.seed)
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
