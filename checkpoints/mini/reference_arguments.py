"""What a caller passes as references, looked over before anything is computed. Pure functions."""

import math
from collections.abc import Collection, Sequence
from numbers import Real
from typing import NamedTuple

from PIL import Image


class Reference(NamedTuple):
    """One reference image, and what is to be read off it."""

    image: Image.Image
    concept: str
    mask: Image.Image | None  # 255 where the figure is
    weight: float  # above 0


def read_references(
    concepts: Collection[str], reference_images, reference_concepts, reference_masks=None, reference_weights=None
) -> list[list[Reference]]:
    """Of each item its references, but for those of weight 0.

    Args:
        concepts: those that are known.
        reference_images, reference_concepts, reference_masks, reference_weights: see `encode_references`: a list each
            for one item, or a list of lists each for several.

    Raises ValueError or TypeError naming the argument, what came and what was wanted.
    """
    _check_list("reference_images", reference_images, "images, or lists of images")
    if not reference_images:
        raise ValueError("reference_images: got an empty list, wanted at least one image")
    nested = [isinstance(entry, Sequence) and not isinstance(entry, str) for entry in reference_images]
    if any(nested) and not all(nested):
        raise TypeError("reference_images: got images and lists of images, wanted the one or the other")
    arguments = {"images": reference_images, "concepts": reference_concepts, "masks": reference_masks,
                 "weights": reference_weights}  # fmt: skip
    if not any(nested):
        return [_read_item(concepts, **arguments)]
    for name, values in arguments.items():
        if name == "concepts" or values is not None:
            _check_list(f"reference_{name}", values, "a list for each item")
            if len(values) != len(reference_images):
                raise ValueError(
                    f"reference_{name}: got {len(values)} lists, wanted as many as reference_images: "
                    f"{len(reference_images)}"
                )
    return [
        _read_item(concepts, **{name: values and values[i] for name, values in arguments.items()})
        for i in range(len(reference_images))
    ]


def _read_item(known: Collection[str], images, concepts, masks, weights) -> list[Reference]:
    """The references of one item; see `read_references`."""
    _check_list("reference_images", images, "images")
    if not images:
        raise ValueError("reference_images: got an empty list, wanted at least one image")
    for image in images:
        if not isinstance(image, Image.Image):
            raise TypeError(f"reference_images: got a {type(image).__name__} in the list, wanted PIL images")
    masks = [None] * len(images) if masks is None else masks
    weights = [1.0] * len(images) if weights is None else weights
    for name, values in (("concepts", concepts), ("masks", masks), ("weights", weights)):
        _check_list(f"reference_{name}", values, "one entry per image")
        if len(values) != len(images):
            raise ValueError(f"reference_{name}: got {len(values)}, wanted as many as reference_images: {len(images)}")
    for concept in concepts:
        if concept not in known:
            raise ValueError(f"reference_concepts: got {concept!r}, wanted one of {', '.join(sorted(known))}")
    for image, mask in zip(images, masks):
        if mask is not None and not isinstance(mask, Image.Image):
            raise TypeError(f"reference_masks: got a {type(mask).__name__} in the list, wanted PIL images or None")
        if mask is not None and mask.size != image.size:
            raise ValueError(f"reference_masks: got a mask of size {mask.size}, wanted the image's {image.size}")
    for weight in weights:
        if not isinstance(weight, Real) or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"reference_weights: got {weight!r}, wanted finite numbers of at least 0")
    references = [Reference(*entry) for entry in zip(images, concepts, masks, weights) if entry[3] > 0]
    if not references:
        raise ValueError("reference_weights: got only zeros, wanted at least one reference above 0")
    return references


def _check_list(name: str, values, of: str) -> None:
    if isinstance(values, (str, Image.Image)) or not isinstance(values, Sequence):
        got = repr(values) if isinstance(values, (str, type(None))) else type(values).__name__
        raise TypeError(f"{name}: got {got}, wanted a list: {of}")
