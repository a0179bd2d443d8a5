"""`retribooru build` on images and masks of every kind: shown as they are meant, or rejected with the reason."""

import errno
import io
import json
import os
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageChops, ImageDraw

from handmade import draw, write_figures
from retribooru.dataset_script.build import build_figures
from retribooru.dataset_script.build.pixels import MAX_FILE_BYTES, MAX_PIXELS, as_meant

PICTURE, MASK = draw("red")
for corner, color in (((0, 0, 9, 9), "blue"), ((36, 56, 39, 59), "white")):  # no turn or mirroring leaves it as it was
    ImageDraw.Draw(PICTURE).rectangle(corner, fill=color)
GREY = PICTURE.convert("L")
ORIENTATION = 0x0112
UNTURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encoded(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def turned(image, orientation, image_format="PNG", **options):
    """The image stored turned, with the EXIF tag that says how to turn it back."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image.transpose(UNTURN[orientation]), image_format, exif=exif, **options)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size, depth, color_type, samples, *chunks):
    """A PNG of samples that fill whole bytes, for what Pillow does not write."""
    lines = b"".join(b"\0" + bytes(line) for line in np.split(np.frombuffer(samples, np.uint8), size[1]))
    header = struct.pack(">IIBBBBB", *size, depth, color_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bomb(*size):
    """A PNG that says it is of this size, and holds nothing."""
    header = struct.pack(">IIBBBBB", *size, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def deep(image):
    """16-bit samples, big-endian, of an 8-bit image."""
    return (np.asarray(image).astype(">u2") * 257).tobytes()


def veiled(image, hidden):
    """RGBA: outside the figure transparent, with `hidden` under it."""
    result = Image.composite(image.convert("RGB"), Image.new("RGB", image.size, hidden), MASK)
    result.putalpha(MASK)
    return result


def on(ground, image):
    """The figure alone, on one colour."""
    return Image.composite(image, Image.new(image.mode, image.size, ground), MASK)


def keyed(image, key, **options):
    return encoded(image, transparency=key, **options)


def palette_keyed():
    image = veiled(PICTURE, "lime").convert("RGB").quantize(16)
    image.info["transparency"] = image.getpixel((0, 0))
    return encoded(image)


def animated(image_format):
    frames = [Image.new("RGB", MASK.size, color) for color in ("red", "green", "blue")]
    return encoded(frames[0], image_format, save_all=True, append_images=frames[1:])


FINE = {"quality": 100, "subsampling": 0}
VEILED = on("white", PICTURE)
TEXT_BOMB = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * (64 << 20), 9))


@pytest.fixture
def folder(tmp_path):
    return write_figures(tmp_path / "authors_form", characters=3, images=3)


def build(folder):
    """(rows by id, rejects): together as many as there are records."""
    out = folder.parent / "out"
    report = build_figures(folder / "retribooru.json", folder / "images", folder / "masks", out)
    rows = [row for file in (out / "data").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == sum(report.figures.values()) and len(rejects) == sum(report.rejects.values())
    assert len(rows) + len(rejects) == len(json.loads((folder / "retribooru.json").read_text()))
    return {row["image_id"]: row for row in rows}, rejects


def put(folder, kind, name, data):
    (folder / kind / "101.png").unlink()
    (folder / kind / name).write_bytes(data)


def furthest(image, wanted):
    """The largest difference of a sample."""
    assert (image.mode, image.size) == (wanted.mode, wanted.size)
    extrema = ImageChops.difference(image, wanted).getextrema()
    return max(np.ravel(extrema))


# name, file, what is to be seen, do the file's bytes travel, largest difference
HANDLED = {
    "grey": ("101.png", encoded(GREY), GREY, True, 0),
    "grey JPEG": ("101.jpg", encoded(GREY, "JPEG", quality=100), GREY, True, 3),
    "one bit": ("101.png", encoded(MASK.convert("1")), MASK, True, 0),
    "palette": ("101.png", encoded(PICTURE.quantize(16)), PICTURE, True, 0),
    "palette, transparent": ("101.png", palette_keyed(), VEILED, False, 0),
    "CMYK": ("101.jpg", encoded(PICTURE.convert("CMYK"), "JPEG", **FINE), PICTURE, True, 8),
    "WebP": ("101.webp", encoded(PICTURE, "WEBP", lossless=True), PICTURE, True, 0),
    "RGBA": ("101.png", encoded(PICTURE.convert("RGBA")), PICTURE, True, 0),
    "RGBA, transparent": ("101.png", encoded(veiled(PICTURE, "lime")), VEILED, False, 0),
    "RGBA WebP, transparent": (
        "101.webp",
        encoded(veiled(PICTURE, "lime"), "WEBP", lossless=True, exact=True),
        VEILED,
        False,
        0,
    ),
    "RGBA, half transparent": (
        "101.png",
        encoded(Image.merge("RGBA", (*PICTURE.split(), Image.new("L", PICTURE.size, 128)))),
        Image.blend(Image.new("RGB", PICTURE.size, "white"), PICTURE, 128 / 255),
        False,
        1,
    ),
    "LA": ("101.png", encoded(GREY.convert("LA")), GREY, True, 0),
    "LA, transparent": ("101.png", encoded(veiled(GREY, "black").convert("LA")), on(255, GREY), False, 0),
    "transparent colour": ("101.png", keyed(on("lime", PICTURE), (0, 255, 0)), VEILED, False, 0),
    "transparent colour, unused": ("101.png", keyed(PICTURE, (1, 2, 3)), PICTURE, True, 0),
    "transparent grey": ("101.png", keyed(on(7, GREY), 7), on(255, GREY), False, 0),
    "transparent bit": ("101.png", keyed(MASK.convert("1"), 0), Image.new("L", MASK.size, 255), False, 0),
    "16-bit grey": ("101.png", encoded(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)), GREY, False, 0),
    "16-bit colour": ("101.png", png(PICTURE.size, 16, 2, deep(PICTURE)), PICTURE, True, 0),
    "16-bit grey, transparent": ("101.png", png(MASK.size, 16, 4, deep(veiled(GREY, "black").convert("LA"))),
                                 on(255, GREY), False, 0),
    **{f"EXIF {turn}": ("101.jpg", turned(PICTURE, turn, "JPEG", **FINE), PICTURE, True, 8) for turn in UNTURN},
    "EXIF in a PNG": ("101.png", turned(PICTURE, 6), PICTURE, True, 0),
    "EXIF in a WebP": ("101.webp", turned(PICTURE, 6, "WEBP", lossless=True), PICTURE, True, 0),
    "EXIF, transparent": ("101.png", turned(veiled(PICTURE, "lime"), 8), VEILED, False, 0),
    "EXIF, 16-bit grey": (
        "101.png",
        png(MASK.size[::-1], 16, 0, deep(GREY.transpose(UNTURN[6])), chunk(b"eXIf", b"MM\0*" + struct.pack(
            ">IHHHIHHI", 8, 1, ORIENTATION, 3, 1, 6, 0, 0))),
        GREY,
        False,
        0,
    ),
    "JPEG with a preview": (
        "101.jpg",
        encoded(PICTURE, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], **FINE),
        PICTURE,
        True,
        8,
    ),
    "JPEG that is called PNG": ("101.png", encoded(PICTURE, "JPEG", **FINE), PICTURE, True, 8),
}  # fmt: skip


@pytest.mark.parametrize("name, data, wanted, travels, tolerance", HANDLED.values(), ids=HANDLED)
def test_images_are_shown_as_they_are_meant(folder, recwarn, name, data, wanted, travels, tolerance):
    put(folder, "images", name, data)
    rows, rejects = build(folder)
    assert rejects == [] and not recwarn.list
    cell = rows["101"]["image"]
    assert furthest(datasets.Image(mode="RGB").decode_example(cell), wanted.convert("RGB")) <= tolerance
    assert cell["path"] == (name if travels else None)
    assert (cell["bytes"] == data) == travels


MASKS = {
    "one bit": ("101.png", encoded(MASK.convert("1")), True),
    "palette": ("101.png", encoded(MASK.convert("RGB").quantize(2)), True),
    "RGB JPEG": ("101.jpg", encoded(MASK.convert("RGB"), "JPEG", **FINE), True),
    "CMYK": ("101.jpg", encoded(MASK.convert("RGB").convert("CMYK"), "JPEG", **FINE), True),
    "RGBA": ("101.png", encoded(MASK.convert("RGBA")), True),
    "white on transparent white": ("101.png", encoded(veiled(Image.new("L", MASK.size, 255), "white")), False),
    "white on transparent black, palette": ("101.png", keyed(MASK.convert("RGB").quantize(2), b"\xff\x00"), None),
    "16 bits": ("101.png", encoded(Image.fromarray(np.asarray(MASK).astype(np.uint16) * 257)), False),
    "EXIF": ("101.png", turned(MASK, 6), True),
}


@pytest.mark.parametrize("name, data, travels", MASKS.values(), ids=MASKS)
def test_masks_are_255_where_the_figure_is(folder, recwarn, name, data, travels):
    put(folder, "masks", name, data)
    rows, rejects = build(folder)
    assert rejects == [] and not recwarn.list
    cell = rows["101"]["mask"]
    assert furthest(datasets.Image(mode="L").decode_example(cell), MASK) <= (3 if name.endswith("jpg") else 0)
    assert cell["path"] is None
    assert travels is None or (cell["bytes"] == data) == travels


def cut(data, share):
    return data[: int(len(data) * share)]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8))
# folder, name, file, the reason's start, and what else it tells
REJECTED = {
    **{
        f"{image_format} cut at {share}": (
            "images",
            f"101.{image_format.lower()}",
            cut(encoded(NOISE, image_format), share),
            f"image: 101.{image_format.lower()} cannot be read: ",
            "",
        )
        for image_format in ("PNG", "JPEG", "WEBP")
        for share in (0.001, 0.02, 0.5, 0.95)
    },
    "empty": ("images", "101.png", b"", "image: 101.png cannot be read: it is empty", ""),
    "empty mask file": ("masks", "101.png", b"", "mask: 101.png cannot be read: it is empty", ""),
    "GIF": ("images", "101.png", encoded(PICTURE.quantize(16), "GIF"), "image: 101.png", "looks like GIF, wanted"),
    "float TIFF": (
        "images",
        "101.png",
        encoded(GREY.convert("F"), "TIFF"),
        "image: 101.png",
        "looks like TIFF, wanted",
    ),
    "web page": ("images", "101.jpg", b"<!DOCTYPE html>", "image: 101.jpg cannot be read: it is of no known", ""),
    "animated PNG": ("images", "101.png", animated("PNG"), "image: 101.png has 3 frames, wanted a still image", ""),
    "animated WebP": ("images", "101.webp", animated("WEBP"), "image: 101.webp has 3 frames, wanted a still image", ""),
    "animated mask": ("masks", "101.png", animated("PNG"), "mask: 101.png has 3 frames, wanted a still image", ""),
    "just too large": (
        "images",
        "101.png",
        bomb(8193, 8192),
        f"image: 101.png has 8193 x 8192 pixels, wanted at most {MAX_PIXELS}",
        "",
    ),
    "larger than Pillow likes": ("images", "101.png", bomb(10_000, 10_000), "image: 101.png has 10000 x 10000", ""),
    "larger than Pillow opens": ("images", "101.png", bomb(30_000, 30_000), "image: 101.png", "900000000 pixels"),
    "of no size": ("images", "101.png", bomb(0, 0), "image: 101.png cannot be read: it looks like PNG, wanted", ""),
    "text that expands": (
        "images",
        "101.png",
        png((40, 60), 8, 0, GREY.tobytes(), TEXT_BOMB),
        "image: 101.png cannot be read: ",
        "too large",
    ),
    "profile that expands": (
        "images",
        "101.png",
        png((40, 60), 8, 0, GREY.tobytes(), chunk(b"iCCP", TEXT_BOMB[8:-4].replace(b"Comment", b"profile"))),
        "image: 101.png cannot be read: ",
        "too large",
    ),
    "damaged EXIF": (
        "images",
        "101.png",
        png((40, 60), 8, 0, GREY.tobytes(), chunk(b"eXIf", b"garbage garbage")),
        "image: 101.png cannot be read: ",
        "",
    ),
    "transparent 16-bit colour": (
        "images",
        "101.png",
        png((40, 60), 16, 2, deep(PICTURE), chunk(b"tRNS", struct.pack(">3H", 0, 128, 255))),
        "image: 101.png has a transparent colour among 16-bit samples",
        "",
    ),
    "transparent 4-bit grey": (
        "images",
        "101.png",
        png((40, 60), 4, 0, bytes(20 * 60), chunk(b"tRNS", struct.pack(">H", 15))),
        "image: 101.png has a transparent colour among 4-bit samples",
        "",
    ),
    "turned out of its mask": ("images", "101.png", turned(PICTURE.resize((60, 40)), 6), "mask: got size (40, 60)", ""),
    "mask of 0 and 1": ("masks", "101.png", encoded(MASK.point(lambda v: v // 255)), "mask: got values up to 1,", ""),
    "16-bit mask of 0 and 255": (
        "masks",
        "101.png",
        encoded(Image.fromarray(np.asarray(MASK).astype(np.uint16))),
        "mask: got one without a figure",
        "",
    ),
    "mask of nothing but transparency": (
        "masks",
        "101.png",
        encoded(Image.new("RGBA", MASK.size, (255, 255, 255, 0))),
        "mask: got one without a figure",
        "",
    ),
    "image in place of its mask": ("masks", "101.png", encoded(PICTURE), "mask: 101.png has colours, wanted grey", ""),
    "CMYK image in place of its mask": (
        "masks",
        "101.jpg",
        encoded(PICTURE.convert("CMYK"), "JPEG"),
        "mask: 101.jpg has colours, wanted grey",
        "",
    ),
}


@pytest.mark.parametrize("kind, name, data, start, told", REJECTED.values(), ids=REJECTED)
def test_files_that_cannot_be_used_are_rejected(folder, recwarn, kind, name, data, start, told):
    put(folder, kind, name, data)
    rows, (line,) = build(folder)
    assert line["reason"].startswith(start) and told in line["reason"]
    assert "\n" not in line["reason"] and "object at" not in line["reason"]
    assert line["image_id"] == "101" and len(rows) == 8 and not recwarn.list


def large(file):
    with file.open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)  # sparse: takes no room


NO_FILES = {
    "folder": (lambda file: file.mkdir(), "image: 101.png is not a regular file"),
    "pipe": (os.mkfifo, "image: 101.png is not a regular file"),
    "device": (lambda file: file.symlink_to(os.devnull), "image: 101.png is not a regular file"),
    "link to itself": (lambda file: file.symlink_to(file.name), "image: 101 is missing in"),
    "link to nothing": (lambda file: file.symlink_to("nothing.png"), "image: 101 is missing in"),
    "too many bytes": (large, f"image: 101.png has {MAX_FILE_BYTES + 1} bytes, wanted at most {MAX_FILE_BYTES}"),
}


@pytest.mark.parametrize("make, reason", NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_file_is_rejected_unread(folder, make, reason):
    (folder / "images/101.png").unlink()
    make(folder / "images/101.png")
    rows, (line,) = build(folder)
    assert line["reason"].startswith(reason) and len(rows) == 8


def test_a_file_is_found_beside_a_folder_of_its_name(folder):
    (folder / "images/101.png").rename(folder / "images/101.webp")
    (folder / "images/101.png").mkdir()
    rows, rejects = build(folder)
    assert rejects == [] and rows["101"]["image"]["path"] == "101.webp"


def test_a_file_that_may_not_be_read_is_rejected(folder, monkeypatch):
    read_bytes = Path.read_bytes

    def refusing(file):
        if file == folder / "images/101.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    rows, (line,) = build(folder)
    assert line["reason"] == "image: 101.png cannot be read: Permission denied" and len(rows) == 8


@pytest.mark.parametrize("mode", ["F", "YCbCr", "LAB", "HSV", "PA", "La", "RGBa"])
def test_modes_that_no_such_file_should_have_are_named(mode):
    with pytest.raises(ValueError, match=f"its mode is {mode}, wanted"):
        as_meant(Image.new(mode, (4, 4)), "white")
