"""Joins a record with its image and mask files, and checks that they fit together."""

import io
import math
from pathlib import Path

from PIL import Image, ImageOps

from ..figures import check_box
from .annotations import Reject

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def add_pixels(record: dict, images: Path, masks: Path) -> dict:
    """A row of the figures table: the record with its image and mask (bytes as the files have them) and head box.

    Raises:
        Reject: a file is missing or unreadable, the mask is of another size or empty, the box is outside the image.
    """
    image_file = _find(images, record["image_id"], "image")
    mask_file = _find(masks, record["image_id"], "mask")
    image_bytes, mask_bytes = image_file.read_bytes(), mask_file.read_bytes()
    image = _decode(image_bytes, image_file, "image")
    mask = _decode(mask_bytes, mask_file, "mask").convert("L")
    if mask.size != image.size:
        raise Reject(f"mask: got size {mask.size}, wanted the image's {image.size}")
    if not mask.getbbox():
        raise Reject("mask: got one without a figure, wanted some pixels above 0")
    row = {key: value for key, value in record.items() if key not in ("bbox", "cloths", "similar")}
    return {
        **row,
        "image": {"bytes": image_bytes, "path": None},
        "mask": {"bytes": mask_bytes, "path": None},
        "head_box": pixel_box(record["bbox"], image.size),
    }


def pixel_box(bbox: list[float] | None, size: tuple[int, int]) -> list[int] | None:
    """Normalised (centre x, centre y, width, height) -> [x_min, y_min, x_max, y_max] in whole pixels, or None.

    Rounded to the nearest pixel; a box that leaves the image even so is refused, not cut.
    """
    if bbox is None or bbox == []:
        return None
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        raise Reject(f"bbox: got {bbox!r}, wanted four numbers: centre x, centre y, width, height, in shares of 1")
    x, y, w, h = bbox
    width, height = size
    box = [round((x - w / 2) * width), round((y - h / 2) * height),
           round((x + w / 2) * width), round((y + h / 2) * height)]  # fmt: skip
    try:
        check_box(box, size)
    except ValueError as error:
        raise Reject(f"bbox: got {bbox}; in pixels, {error}") from None
    return box


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _find(folder: Path, image_id: str, what: str) -> Path:
    for suffix in IMAGE_SUFFIXES:
        file = Path(folder) / (image_id + suffix)
        if file.is_file():
            return file
    raise Reject(f"{what}: {image_id} is missing in {folder}, wanted a {', '.join(IMAGE_SUFFIXES)} file of that name")


def _decode(data: bytes, file: Path, what: str) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        image.load()
        return image
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise Reject(f"{what}: {file.name} cannot be read: {error}") from None
