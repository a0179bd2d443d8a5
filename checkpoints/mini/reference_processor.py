"""From reference images to what the VAE reads: background removed, padded to a square, resized (paper section 4.3)."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

PADDING = (255, 255, 255)
INSIDE = 128  # a mask of 0..255 says "figure" from here on


class ReferenceProcessor:
    """Turns images of any size into one tensor.

    Args:
        size: side of the output, in pixels.
        padding: RGB of the padding and of removed backgrounds.
    """

    def __init__(self, size: int, padding: tuple[int, int, int] = PADDING):
        self.size = size
        self.padding = padding

    def __call__(
        self, images: Sequence[Image.Image], masks: Sequence[Image.Image | None] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            images: N images.
            masks: N masks (255 where the figure is, of the image's size) or Nones; where there is one, the background
                is removed.

        Returns:
            pixels (N, 3, size, size) float32 in [-1, 1], and content (N, 1, size, size) bool: True inside the figure
            where a mask says so, else inside the image; False on the padding.
        """
        pixels, content = [], []
        for image, mask in zip(images, masks or [None] * len(images), strict=True):
            image = image.convert("RGB")
            if mask is None:
                mask = Image.new("L", image.size, 255)
            else:
                mask = mask.convert("L")
                image = remove_background(image, mask, self.padding)
            size = (self.size, self.size)
            pixels.append(to_tensor(pad_to_square(image, self.padding).resize(size, Image.BICUBIC)))
            content.append(square_content(mask, self.size))
        return torch.stack(pixels), torch.stack(content)


def remove_background(image: Image.Image, mask: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Paints with `color` what the mask leaves out, in proportion where the mask is between 0 and 255."""
    if mask.size != image.size:
        raise ValueError(f"reference_masks: got a mask of size {mask.size}, wanted the image's {image.size}")
    return Image.composite(image, Image.new("RGB", image.size, color), mask.convert("L"))


def pad_to_square(image: Image.Image, color: tuple[int, int, int] | int) -> Image.Image:
    """The image in the middle of the smallest square that holds it; keeps its mode."""
    side = max(image.size)
    square = Image.new(image.mode, (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def square_content(mask: Image.Image, size: int) -> torch.Tensor:
    """A mask (255: inside) as `pad_to_square` and resizing leave it: (1, size, size) bool, False on the padding."""
    square = pad_to_square(mask.convert("L"), 0).resize((size, size), Image.BOX)
    return torch.from_numpy(np.asarray(square) >= INSIDE)[None]


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB -> (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1.0
