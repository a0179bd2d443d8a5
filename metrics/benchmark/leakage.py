"""How much of the references' backgrounds stands in drawn pictures, whose figures nobody has masked."""

from collections.abc import Callable, Sequence
from math import isnan

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retribooru.pipeline.reference_processor import pad_to_square
from retribooru.training.data import load_figures

from ..backgrounds import leakage_from_embeddings, without_figure
from .arguments import BenchmarkArguments
from .characters import DOMAINS
from .families import Method, resolve
from .pictures import read_picture
from .plan import Plan

TYPICAL_FIGURES, TYPICAL_SHARE = 500, 0.05


class Leakage:
    """See :func:`retribooru.metrics.functional.leakage`. A value is None where it is undefined: where there is no plain
    method, where no background is left outside of the figure, or where the plain model's is the references' already.

    Args:
        see: images -> their embeddings, (n, d).
    """

    def __init__(self, plan: Plan, see: Callable[[Sequence[Image.Image]], Tensor]):
        self.plan, self.see = plan, see
        self.percent = typical_figure(plan.args) if plan.plain and plan.args.masks == "typical" else None
        self._grounds = {}  # of the character that is scored: those of the plain method's pictures, and the references'

    def __call__(self, number: int, method: Method, images: Sequence[Image.Image]) -> list[float | None]:
        """Of each of a method's pictures of the character of that number."""
        found = [None] * len(images)
        if self.plan.plain is None:
            return found
        if number not in self._grounds:
            character, keys = self.plan.characters[number], self.plan.pictures()
            plain = [read_picture(self.plan, self.plan.plain, number, key)[0] for key in keys]
            self._grounds = {
                number: (
                    self.backgrounds(plain, self.masks(plain)),
                    self.backgrounds(character.reference_images, character.reference_masks),
                )
            }
        plain, references = self._grounds[number]
        own = plain if method == self.plan.plain else self.backgrounds(images, self.masks(images))
        seen = [vector for vector in references if vector is not None]
        chosen = [i for i in range(len(images)) if own[i] is not None and plain[i] is not None]
        if not seen or not chosen:
            return found
        values = leakage_from_embeddings(
            torch.stack([own[i] for i in chosen]),
            torch.stack([plain[i] for i in chosen]),
            [torch.stack(seen)] * len(chosen),
        )
        for i, value in zip(chosen, values.tolist()):
            found[i] = None if isnan(value) else value
        return found

    def backgrounds(self, images: Sequence[Image.Image], masks: Sequence) -> list[Tensor | None]:
        """Embedding of each image without its figure; None where nothing is left."""
        grounds = [
            without_figure(image, mask) if not covers(mask) else None for image, mask in zip(images, masks, strict=True)
        ]
        left = [ground for ground in grounds if ground is not None]
        embedded = iter(self.see(left) if left else ())
        return [None if ground is None else next(embedded) for ground in grounds]

    def masks(self, images: Sequence[Image.Image]) -> Sequence:
        """Where the figures of drawn pictures are."""
        if self.percent is not None:
            return [typical_mask(self.percent, image.size) for image in images]
        name = self.plan.args.masks
        masks = resolve("masks", name)(list(images))
        if not isinstance(masks, Sequence) or len(masks) != len(images):
            got = len(masks) if isinstance(masks, Sequence) else f"a {type(masks).__name__}"
            raise ValueError(f"masks: got {got} of {name} for {len(images)} pictures, wanted a list of as many")
        return masks


def typical_figure(args: BenchmarkArguments) -> np.ndarray:
    """(256, 256) uint8: where figures of the table are, in percent of the figures, made square as references are.

    At most 500 of them are looked at, evenly from the split that is first there.
    """
    domain = next(domain for domain in DOMAINS if getattr(args, domain))
    figures = load_figures(args.data_dir, domain, args.images, args.characters).select_columns("mask")
    chosen = range(0, len(figures), -(-len(figures) // TYPICAL_FIGURES))
    squares = (pad_to_square(figures[i]["mask"].convert("L"), 0).resize((256, 256), Image.BILINEAR) for i in chosen)
    total = sum(np.asarray(mask) > 127 for mask in squares)
    return (100 * total / len(chosen)).round().astype(np.uint8)


def typical_mask(percent: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool: where more than 5 % of the figures are, for a picture of `size` (width, height)."""
    return np.asarray(Image.fromarray(percent).resize(size, Image.BILINEAR)) > 100 * TYPICAL_SHARE


def covers(mask: Image.Image | np.ndarray) -> bool:
    """Whether a figure leaves no background."""
    return bool((np.asarray(mask.convert("L")) > 127).all() if isinstance(mask, Image.Image) else np.all(mask))
