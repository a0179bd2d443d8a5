"""Augmentations, drawn separately for targets and references (paper section 5.1). Randomness is passed in."""

from dataclasses import dataclass
from random import Random

from PIL import Image, ImageEnhance, ImageOps


@dataclass(frozen=True)
class Augmentation:
    """Ranges; 0 turns one off.

    crop: the largest share of the width and height that is cut away.
    flip: probability of a horizontal flip.
    jitter: brightness, contrast and saturation are each multiplied by a number in [1 - jitter, 1 + jitter].
    """

    crop: float = 0.1
    flip: float = 0.5
    jitter: float = 0.05


def augment(
    image: Image.Image, mask: Image.Image, head_box: list[int] | None, how: Augmentation, rng: Random
) -> tuple[Image.Image, Image.Image, list[int] | None]:
    """An image, its mask and head box in pixels, changed together; the box is None where it is cut away."""
    width, height = image.size
    keep = 1 - how.crop * rng.random()
    new_width, new_height = max(1, round(width * keep)), max(1, round(height * keep))
    left, top = rng.randint(0, width - new_width), rng.randint(0, height - new_height)
    window = (left, top, left + new_width, top + new_height)
    image, mask = image.crop(window), mask.crop(window)
    if head_box:
        box = (max(head_box[0] - left, 0), max(head_box[1] - top, 0),
               min(head_box[2] - left, new_width), min(head_box[3] - top, new_height))  # fmt: skip
        head_box = list(box) if box[0] < box[2] and box[1] < box[3] else None
    if rng.random() < how.flip:
        image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
        head_box = head_box and [new_width - head_box[2], head_box[1], new_width - head_box[0], head_box[3]]
    if how.jitter:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(1 + how.jitter * rng.uniform(-1, 1))
    return image, mask, head_box


NO_AUGMENTATION = Augmentation(crop=0.0, flip=0.0, jitter=0.0)
