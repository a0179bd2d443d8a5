"""What a training sees of a figure: the whole picture as a target, or one concept of it as a reference."""

from dataclasses import dataclass
from random import Random

import torch
from datasets import Dataset
from PIL import Image

from retribooru.dataset_script.concepts import crop_concept
from retribooru.pipeline.reference_processor import pad_to_square, remove_background, square_content, to_tensor

from .augment import NO_AUGMENTATION, Augmentation, augment

TARGET = "target"


@dataclass
class Views:
    """Targets and references of `figures`, rows of the figures config, as square tensors.

    Args:
        resolution: R, their side in pixels.
        background_removal: probability that a reference loses its background.
        augmentation: drawn separately for each view.
    """

    figures: Dataset
    resolution: int
    background_removal: float = 0.5
    augmentation: Augmentation = NO_AUGMENTATION

    def target(self, position: int, rng: Random) -> dict[str, torch.Tensor]:
        """pixel_values (3, R, R) in [-1, 1]; content_mask and head_mask (1, R, R) in {0, 1}."""
        row = self.figures[position]
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

    def reference(self, position: int, concept: str, rng: Random) -> dict[str, torch.Tensor]:
        """pixel_values (3, R, R) in [-1, 1]; content (1, R, R) bool: the picture or, without background, the figure."""
        row = self.figures[position]
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
        return {"pixel_values": self._square(image, color), "content": content}

    def _square(self, image: Image.Image, color: tuple[int, int, int]) -> torch.Tensor:
        return to_tensor(pad_to_square(image, color).resize((self.resolution, self.resolution), Image.BICUBIC))

    def _square_mask(self, mask: Image.Image) -> torch.Tensor:
        square = pad_to_square(mask, 0).resize((self.resolution, self.resolution), Image.NEAREST)
        return to_tensor(square.convert("RGB"))[:1].gt(0).float()


def random_color(rng: Random) -> tuple[int, int, int]:
    """A solid colour to pad with."""
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)
