"""Training examples: references drawn anew every epoch from the figures table."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import datasets
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

import retribooru  # noqa: F401 (teaches datasets the name)
from retribooru.dataset_script.concepts import CONCEPTS, crop_concept
from retribooru.dataset_script.figures import IdentityIndex
from retribooru.dataset_script.references import (
    RECIPES,
    TRAINABLE,
    draw_references,
    has_references,
    row_rng,
)
from retribooru.dataset_script.table import shard_files
from retribooru.pipeline.reference_processor import pad_to_square, remove_background, square_content, to_tensor

from .augment import NO_AUGMENTATION, Augmentation, augment


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


def load_figures(data_dir: str | None, split: str, images: str | None = None) -> datasets.Dataset:
    """The figures config of one split: of a table in `data_dir` or, without one, of the mini edition.

    `images` is the folder of the image files for a table that does not hold them.

    Raises FileNotFoundError where the folder has no figures of the split.
    """
    if data_dir is not None and not shard_files(data_dir, split):
        raise FileNotFoundError(
            f"data_dir: got {data_dir}, which has no data/{split}-*.parquet; wanted a folder that `retribooru build` "
            f"wrote, with figures of the split {split}"
        )
    return datasets.load_dataset("retribooru", "figures", data_dir=data_dir, split=split, images=images)


class TrainingFigures(Dataset):
    """Targets with references, from a `datasets.Dataset` of the figures config.

    An item is a pure function of (epoch, position) and the seed: the same in every process and after every restart.

    Args:
        figures: rows of the figures config.
        tasks: some of `TRAINABLE`; each example is of one of them. Empty: targets without references, and every figure
            is one.
        resolution: side in pixels of targets and references.
        seed: of everything drawn.
        background_removal: probability that a reference loses its background.
        augmentation: of targets and, drawn separately, of references.
        task_weights: how often each task is drawn, in relation to the others; evenly without.
    """

    def __init__(
        self,
        figures,
        tasks: list[str],
        resolution: int,
        seed: int = 0,
        background_removal: float = 0.5,
        augmentation: Augmentation = NO_AUGMENTATION,
        task_weights: list[float] | None = None,
    ):
        self.figures, self.resolution, self.seed = figures, resolution, seed
        self.tasks, self.background_removal = list(tasks), background_removal
        self.augmentation = augmentation
        self.task_weights = task_weights
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
            pixel_values (3, R, R) in [-1, 1], content_mask and head_mask (1, R, R) in {0, 1}, prompt (str),
            reference_pixel_values (N, 3, R, R) in [-1, 1], reference_content (N, 1, R, R) bool: the image or, where
            its background is removed, the figure; reference_concepts (N,) positions in `CONCEPTS`,
            character (str), image_id (str), sample (int): the number of this example in all that are ever drawn.
        """
        epoch, number = key
        position = self.targets[number]
        row = self.figures[position]
        rng = Random(f"{self.seed}/{epoch}/example/{row['image_id']}")
        example = {
            **self._target(row, rng),
            "prompt": row["prompt"],
            "character": row["character"],
            "image_id": row["image_id"],
            "sample": epoch * len(self) + number,
        }
        if not self.tasks:
            return example
        (task,) = rng.choices(self.tasks, self.task_weights)
        drawn = self._draw(position, task, epoch)
        references = [self._reference(image_id, concept, rng) for image_id, concept in drawn]
        return {
            **example,
            "reference_pixel_values": torch.stack([pixels for pixels, _ in references]),
            "reference_content": torch.stack([content for _, content in references]),
            "reference_concepts": torch.tensor([CONCEPTS.index(concept) for _, concept in drawn]),
        }

    def _target(self, row: dict, rng: Random) -> dict[str, torch.Tensor]:
        image, _, head_box = augment(
            row["image"].convert("RGB"), row["mask"].convert("L"), row["head_box"], self.augmentation, rng
        )
        content = Image.new("L", image.size, 255)
        head = Image.new("L", image.size, 0)
        if head_box:
            head.paste(255, tuple(head_box))
        return {
            "pixel_values": self._square(image, random_color(rng)),
            "content_mask": self._square_mask(content),
            "head_mask": self._square_mask(head),
        }

    def _reference(self, image_id: str, concept: str, rng: Random) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.figures[self.index.positions[image_id]]
        color = random_color(rng)
        image, mask = crop_concept(
            concept, row["image"].convert("RGB"), row["mask"].convert("L"), row["head_box"], color
        )
        image, mask, _ = augment(image, mask, None, self.augmentation, rng)
        content = square_content(Image.new("L", image.size, 255), self.resolution)
        if rng.random() < self.background_removal:
            image = remove_background(image, mask, color)
            figure = square_content(mask, self.resolution)
            # A crop may have left nothing of the figure: then the painted image is all there is to read.
            content = figure if figure.any() else content
        return self._square(image, color), content

    def _square(self, image: Image.Image, color: tuple[int, int, int]) -> torch.Tensor:
        return to_tensor(pad_to_square(image, color).resize((self.resolution, self.resolution), Image.BICUBIC))

    def _square_mask(self, mask: Image.Image) -> torch.Tensor:
        square = pad_to_square(mask, 0).resize((self.resolution, self.resolution), Image.NEAREST)
        return to_tensor(square.convert("RGB"))[:1].gt(0).float()


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


def random_color(rng: Random) -> tuple[int, int, int]:
    """A solid colour to pad with."""
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)
