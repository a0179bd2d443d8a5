"""References as an artist has them: picture files, their transparency, and characters saved before."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from retribooru.dataset_script.build.pixels import (
    MIN_MASK_PEAK,
    read_alpha,
    read_image,
    read_mask,
)
from retribooru.pipeline.retrieved_features import RetrievedFeatures


class Reference(NamedTuple):
    """A picture of the character, read from a file."""

    concept: str
    file: Path
    image: Image.Image  # upright RGB
    mask: Image.Image | None  # L, of the image's size, 255 where the figure is
    record: dict  # concept, name and hashes: tells one reference from another


def read_reference(concept: str, file: Path, masks: Path | None = None) -> Reference:
    """A reference and its mask: that of the folder `masks`, else its own transparency, else none.

    Raises ValueError for a file that is no still picture, and for a mask that is missing, does not fit or is empty.
    """
    if not file.is_file():
        raise ValueError(f"{concept}: got {file}, wanted an image file")
    if masks is not None and not masks.is_dir():
        raise ValueError(f"masks: got {masks}, wanted a folder")
    image = _named(concept, read_image, file)
    mask_file = masks and masks / f"{file.stem}.png"
    if mask_file and mask_file.is_file():
        mask = _named("masks", read_mask, mask_file)
    else:
        mask, mask_file = read_alpha(file, concept), None
        if mask and mask.getextrema()[0] == 255:
            mask = None  # opaque everywhere
        if masks and mask is None:
            raise ValueError(f"masks: got {masks}, wanted {file.stem}.png in it for {file}, which has no transparency")
    if mask and mask.size != image.size:
        raise ValueError(f"masks: got {mask_file} of size {mask.size}, wanted {image.size} as {file}")
    if mask and mask.getextrema()[1] < MIN_MASK_PEAK:
        raise ValueError(f"{concept}: got {file} with a mask that keeps nothing, wanted 255 where the figure is")
    record = {"concept": concept, "file": file.name, "sha256": sha256(file),
              "mask_sha256": sha256(mask_file) if mask_file else None}  # fmt: skip
    return Reference(concept, file, image, mask, record)


def read_character(file: Path) -> RetrievedFeatures:
    """The features of one character, from a file that `RetrievedFeatures.save` wrote."""
    try:
        features = RetrievedFeatures.load(file)
    except (ValueError, OSError) as error:
        raise ValueError(f"character: {str(error).removeprefix('path: ')}") from error
    if len(features) != 1:
        raise ValueError(f"character: got {file} with {len(features)} characters, wanted one")
    return features


def sha256(file: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _named(name: str, read: Callable, file: Path) -> Image.Image:
    """What a reader of files reads; its errors under the argument's name."""
    try:
        return read(file)[0]
    except ValueError as error:
        message = str(error).removeprefix("image: ").removeprefix("mask: ")
        raise ValueError(f"{name}: {message}") from error
