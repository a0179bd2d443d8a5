"""Joins a record with its image and mask files, and checks that they fit together."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from ..figures import check_box
from ..files import encode_image
from .annotations import Reject, shown

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")

# 8192 x 8192: below the 89 million above which Pillow warns whoever reads the table.
MAX_PIXELS = 1 << 26
# What so many pixels take at four bytes each, uncompressed: 256 MiB.
MAX_FILE_BYTES = 4 * MAX_PIXELS

# A mask is grey, and 255 where the figure is. These leave room for JPEG's losses, but not for masks of 0 and 1, nor for
# the image in place of its mask.
MIN_MASK_PEAK = 128
MAX_MASK_COLOR = 32


def add_pixels(record: dict, images: Path, masks: Path) -> dict:
    """A row of the figures table: the record with its image, mask and head box.

    Image and mask are the bytes of their files wherever a plain decoding, upright and converted to RGB or L as
    `datasets` does it, shows the picture as it is meant; otherwise they are encoded anew, and the image has no path.

    Raises:
        Reject: a file is missing, no picture that can be read or too large, the mask is of another size or empty, the
            box is outside the image.
    """
    image, image_cell = read_image(find_file(images, record["image_id"], "image"))
    mask, mask_cell = read_mask(find_file(masks, record["image_id"], "mask"))
    if mask.size != image.size:
        raise Reject(f"mask: got size {mask.size}, wanted the image's {image.size}")
    peak = mask.getextrema()[1]
    if not peak:
        raise Reject("mask: got one without a figure, wanted some pixels above 0")
    if peak < MIN_MASK_PEAK:
        raise Reject(f"mask: got values up to {peak}, wanted 255 where the figure is")
    row = {key: value for key, value in record.items() if key not in ("bbox", "cloths", "similar")}
    return {
        **row,
        "image": image_cell,
        "mask": {**mask_cell, "path": None},
        "head_box": pixel_box(record["bbox"], image.size),
    }


def read_image(file: Path) -> tuple[Image.Image, dict]:
    """(an image as it is meant, upright RGB; its cell in the table, without a path where it is encoded anew).

    Raises Reject where the file is no still picture of moderate size that can be read.
    """
    return _read(file, "image", "RGB", "white")


def read_mask(file: Path) -> tuple[Image.Image, dict]:
    """The same of a mask: L, black where it is transparent. Raises Reject also where it has colours."""
    return _read(file, "mask", "L", "black")


def read_alpha(file: Path, what: str) -> Image.Image | None:
    """The alpha channel of an image that `read_image` has taken, upright L; None where it has none."""
    image = ImageOps.exif_transpose(open_still(file.read_bytes(), f"{what}: {file.name}"))
    if "A" not in image.getbands() and "transparency" not in image.info:
        return None
    return image.convert("RGBA").getchannel("A")


def as_meant(image: Image.Image, ground: str) -> Image.Image:
    """`image` itself where `convert("RGB")` or `convert("L")` shows it as it is meant; otherwise a picture that is.

    Pillow's conversions clip 16-bit grey to white and show what transparency hides, which is painted with `ground`.
    """
    if image.mode in ("I", "I;16", "I;16B"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "RGBA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        if alpha.getextrema() == (255, 255):
            return image
        flat = Image.new("RGB", image.size, ground)
        flat.paste(rgba, mask=alpha)
        return flat
    if image.mode not in ("1", "L", "P", "RGB", "CMYK"):
        raise ValueError(f"its mode is {image.mode}, wanted grey, palette, RGB or CMYK")
    return image


def pixel_box(bbox: list[float] | None, size: tuple[int, int]) -> list[int] | None:
    """Normalised (centre x, centre y, width, height) -> [x_min, y_min, x_max, y_max] in whole pixels, or None.

    Rounded to the nearest pixel; a box that leaves the image even so is refused, not cut.
    """
    if bbox is None or bbox == []:
        return None
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        raise Reject(f"bbox: got {shown(bbox)}, wanted four numbers: centre x, centre y, width, height, in shares of 1")
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
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


def find_file(folder: Path, image_id: str, what: str) -> Path:
    files = [Path(folder) / (image_id + suffix) for suffix in IMAGE_SUFFIXES]
    for file in files:
        if file.is_file():
            return file
    for file in files:
        if file.exists():  # a folder or a pipe, whose reading might never end
            raise Reject(f"{what}: {file.name} is not a regular file")
    raise Reject(f"{what}: {image_id} is missing in {folder}, wanted a {', '.join(IMAGE_SUFFIXES)} file of that name")


def _read(file: Path, what: str, mode: str, ground: str) -> tuple[Image.Image, dict]:
    """(the picture, its cell in the table)."""
    name = f"{what}: {file.name}"
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise Reject(f"{name} has {file.stat().st_size} bytes, wanted at most {MAX_FILE_BYTES}")
        data = file.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the size, which is judged here, and of metadata
            plain = ImageOps.exif_transpose(open_still(data, name))
            meant = as_meant(plain, ground)
            if mode == "L" and _is_coloured(meant):
                raise Reject(f"{name} has colours, wanted grey: white where the figure is")
            picture = meant.convert(mode)
    except Reject:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Reject(f"{name} cannot be read: {reason}") from None
    if meant is plain:
        return picture, {"bytes": data, "path": file.name}
    return picture, {"bytes": encode_image(picture), "path": None}


def open_still(data: bytes, name: str) -> Image.Image:
    """The image, not yet decoded, of a still picture of moderate size."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"{_looks_like(data)}, wanted an intact {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
    if image.width * image.height > MAX_PIXELS:
        raise Reject(f"{name} has {image.width} x {image.height} pixels, wanted at most {MAX_PIXELS} in all")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a JPEG with a preview or the like behind its picture
        raise Reject(f"{name} has {frames} frames, wanted a still image")
    if image.format == "PNG" and image.mode != "P" and "transparency" in image.info and data[24] not in (1, 8):
        # Pillow compares the key, as it stands in the file, with pixels that it has brought to 8 bits.
        raise Reject(f"{name} has a transparent colour among {data[24]}-bit samples, which cannot be told")
    return image


def _is_coloured(image: Image.Image) -> bool:
    if image.mode in ("1", "L"):
        return False
    red, green, blue = image.convert("RGB").split()
    return any(ImageChops.difference(red, other).getextrema()[1] > MAX_MASK_COLOR for other in (green, blue))


def _looks_like(data: bytes) -> str:
    if not data:
        return "it is empty"
    Image.init()  # all formats
    start = data[:16].ljust(16, b"\0")
    kind = next((name for name, (_, accepts) in Image.OPEN.items() if accepts and accepts(start) is True), None)
    return f"it looks like {kind}" if kind else "it is of no known format"
