"""Training examples: references drawn anew every epoch from the figures table."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import datasets
import torch
from torch.utils.data import Dataset, Sampler

import retribooru  # noqa: F401 (teaches datasets the name)
from retribooru.dataset_script.concepts import CONCEPTS
from retribooru.dataset_script.figures import IdentityIndex
from retribooru.dataset_script.mini import TRUTH
from retribooru.dataset_script.references import (
    RECIPES,
    TRAINABLE,
    draw_references,
    has_references,
    row_rng,
)
from retribooru.dataset_script.table import shard_files

from .latent_cache import CachedViews
from .views import Views


@dataclass
class Batch:
    """What the model reads: (B, c, h, w), masks (B, 1, h, w), text (B, T, D), (B, N, c, h, w), (B, N, T, D).

    `content` is (B, N, 1, H, W), bool: where a reference shows something; its other tokens are not retrieved from.
    """

    latents: torch.Tensor
    content_mask: torch.Tensor
    head_mask: torch.Tensor
    text: torch.Tensor
    references: torch.Tensor
    concepts: torch.Tensor
    content: torch.Tensor
    empty_text: torch.Tensor  # (1, T, D): of no prompt
    samples: torch.Tensor  # (B,): see `TrainingFigures`


def check_truth(figures: datasets.Dataset) -> None:
    """Raises ValueError for a table without the truth about its figures, `TRUTH`."""
    missing = [name for name in TRUTH if name not in figures.column_names]
    if missing:
        raise ValueError(f"data_dir: got figures without {', '.join(missing)}, wanted those of the mini edition")


def load_figures(
    data_dir: str | None, split: str, images: str | None = None, characters: int | None = None, config: str = "figures"
) -> datasets.Dataset:
    """One split of the figures, or of the task `config`: of a table in `data_dir` or, without one, of the mini edition.

    `images` is the folder of the image files for a table that does not hold them; `characters`, how many the mini
    edition has.

    Raises FileNotFoundError where the folder has no figures of the split.
    """
    if data_dir is not None and not shard_files(data_dir, split):
        raise FileNotFoundError(
            f"data_dir: got {data_dir}, which has no data/{split}-*.parquet; wanted a folder that `retribooru build` "
            f"wrote, with figures of the split {split}"
        )
    more = {"characters": characters} if characters else {}
    return datasets.load_dataset("retribooru", config, data_dir=data_dir, split=split, images=images, **more)


class TrainingFigures(Dataset):
    """Targets with references, drawn anew every epoch.

    An item is a pure function of (epoch, position) and the seed: the same in every process and after every restart.

    Args:
        figures: rows of the figures config.
        views: of the same figures: `Views`, or `CachedViews` of their latents.
        tasks: some of `TRAINABLE`; each example is of one of them. Empty: targets without references, and every figure
            is one.
        seed: of everything drawn.
        task_weights: how often each task is drawn, in relation to the others; evenly without.
    """

    def __init__(
        self,
        figures: datasets.Dataset,
        views: Views | CachedViews,
        tasks: list[str],
        seed: int = 0,
        task_weights: list[float] | None = None,
    ):
        self.views, self.tasks, self.seed, self.task_weights = views, list(tasks), seed, task_weights
        self.labels = figures.select_columns(["prompt", "character"])
        self.index = IdentityIndex.from_dataset(figures)
        unknown = set(self.tasks) - set(TRAINABLE)
        if unknown:
            raise ValueError(f"tasks: got {', '.join(sorted(unknown))}, wanted some of {', '.join(TRAINABLE)}")
        self.targets = [i for i in range(len(self.index)) if self._has_references(i)]
        if not self.targets:
            raise ValueError(
                f"figures: got {len(self.index)} rows, none with references for {', '.join(self.tasks)}; wanted "
                "identities of two images or more"
            )

    def __len__(self) -> int:
        return len(self.targets)

    def _has_references(self, position: int) -> bool:
        image_id, images = self.index.image_ids[position], self.index.images_like(position)
        return all(has_references(image_id, images, RECIPES[task]) for task in self.tasks)

    def _draw(self, position: int, task: str, epoch: int) -> list[tuple[str, str]]:
        target_id = self.index.image_ids[position]
        rng = row_rng(self.seed, task, target_id, epoch)
        return draw_references(target_id, self.index.images_like(position), RECIPES[task], rng)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """
        Returns, for R = resolution and N references:
            what the views show of a target (see `Views.target` and `CachedViews.target`), prompt (str),
            reference_pixel_values (N, 3, R, R) or reference_latents (N, c, h, w), reference_content (N, 1, R, R),
            reference_concepts (N,) positions in `CONCEPTS`, character (str), image_id (str), sample (int): the number
            of this example in all that are ever drawn.
        """
        epoch, number = key
        position = self.targets[number]
        image_id = self.index.image_ids[position]
        rng = Random(f"{self.seed}/{epoch}/example/{image_id}")
        example = {
            **self.views.target(position, rng),
            **self.labels[position],
            "image_id": image_id,
            "sample": epoch * len(self) + number,
        }
        if not self.tasks:
            return example
        (task,) = rng.choices(self.tasks, self.task_weights)
        drawn = self._draw(position, task, epoch)
        views = [self.views.reference(self.index.positions[image_id], concept, rng) for image_id, concept in drawn]
        return {
            **example,
            **{f"reference_{name}": torch.stack([view[name] for view in views]) for name in views[0]},
            "reference_concepts": torch.tensor([CONCEPTS.index(concept) for _, concept in drawn]),
        }


class EpochSampler(Sampler):
    """(epoch, number) of example after example: a new order each epoch, from `start` to `stop` of one endless stream.

    Restarting a training is starting the stream where it stopped.
    """

    def __init__(self, length: int, stop: int, start: int = 0, seed: int = 0):
        self.length, self.start, self.stop, self.seed = length, start, stop, seed

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, order = None, []
        for i in range(self.start, self.stop):
            if i // self.length != epoch:
                epoch = i // self.length
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order = torch.randperm(self.length, generator=generator).tolist()
            yield epoch, order[i % self.length]
