"""From filtered rows and a folder of images to annotated rows: each figure's file, mask and head box."""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from ..files import encode_image
from . import pixels
from .annotations import MAX_ID, PLAIN_NAME, Reject, reject, shown
from .detectors import HeadSpec, MaskSpec, Picture
from .stage import ANNOTATED, SETTINGS, Done, Part, Runner, part_files, rejects_table, run_stage

# What a kill costs at most: so many images are annotated again.
ROWS_PER_PART = 512
# Of a rejected image, what stands beside its reason.
LABELS = ["image_id", "character", "artist"]
ALONE = "alone: no other image of this character by this artist"


def annotate(
    filtered: Path,
    images: Path,
    out: Path,
    masks: MaskSpec,
    heads: HeadSpec,
    runner: Runner,
    only: pa.Array | Sequence[str] | None = None,
    batch_size: int = 8,
) -> Counter:
    """Annotates the figures; returns what `count_stage` does.

    Args:
        filtered: folder of a stage whose rows are `FILTERED`.
        images: folder with ID.SUFFIX or, as Danbooru's, BUCKET/ID.SUFFIX, where the bucket is the id modulo 1000, in
            four digits.
        out: folder of this stage: its rows are `ANNOTATED`, masks of 0 and 255 in one bit a pixel.
        masks, heads: what finds them, see `masks_named`, `heads_named`. A box that a network puts beside the figure
            is no box; one that is given and wrong rejects the image.
        only: ids of the images that are worth the work; the others are rejected as alone.
        batch_size: pictures in memory at a time; the rows do not depend on it.
    """
    images = checked_folder(images, "images")
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, wanted at least 1")
    masks = masks.prepared()
    if only is not None:
        only = pa.array(sorted(only.to_pylist() if isinstance(only, pa.Array | pa.ChunkedArray) else only), pa.string())
    threads = max(1, (os.cpu_count() or 1) // runner.processes)
    work = functools.partial(AnnotateWork, str(images), masks, heads, batch_size, threads, only)
    settings = ["annotate", settings_of(filtered), str(images), masks.settings(), heads.settings(), digest_of(only)]
    return run_stage(out, cut(filtered, ROWS_PER_PART), work, settings, runner)


class AnnotateWork:
    """Annotates the images of one part, {"path": a Parquet file of `FILTERED` rows, "start", "rows"}: which of them."""

    def __init__(
        self,
        images: str,
        masks: MaskSpec,
        heads: HeadSpec,
        batch_size: int = 8,
        threads: int = 1,
        only: pa.Array | None = None,
    ):
        self.images, self.batch_size, self.only = Path(images), batch_size, only
        self.find_masks, self.find_heads = masks.load(threads), heads.load(threads)

    def __call__(self, item: dict) -> Done:
        table = pq.read_table(item["path"], columns=LABELS).slice(item["start"], item["rows"])
        records = table.to_pylist()
        worth = [True] * len(records)
        if self.only is not None:
            worth = pc.is_in(table["image_id"], value_set=self.only).to_pylist()
        rows = []
        rejects = [reject(record, Reject(ALONE)) for record, is_worth in zip(records, worth) if not is_worth]
        for batch in batches([record for record, is_worth in zip(records, worth) if is_worth], self.batch_size):
            for record, row in zip(batch, self._annotate([record["image_id"] for record in batch])):
                if isinstance(row, Reject):
                    rejects.append(reject(record, row))
                else:
                    rows.append(row)
        return Done(pa.Table.from_pylist(rows, schema=ANNOTATED), rejects_table(rejects))

    def _annotate(self, image_ids: Sequence[str]) -> list[dict | Reject]:
        """For each image its row, or why there is none."""
        found = {image_id: read_picture(self.images, image_id) for image_id in image_ids}
        pictures = [picture for picture in found.values() if isinstance(picture, Picture)]
        masks = self.find_masks(pictures) if pictures else []
        masks = [checked_mask(mask, picture.image.size) for mask, picture in zip(masks, pictures, strict=True)]
        figures = [(picture, mask) for picture, mask in zip(pictures, masks) if not isinstance(mask, Reject)]
        heads = self.find_heads(*zip(*figures)) if figures else []
        rows = {picture.image_id: mask for picture, mask in zip(pictures, masks)}  # the rejects among them stay
        for (picture, mask), head in zip(figures, heads, strict=True):
            rows[picture.image_id] = head if isinstance(head, Reject) else self._row(picture, mask, head)
        return [rows.get(image_id, found[image_id]) for image_id in image_ids]

    def _row(self, picture: Picture, mask: Image.Image, head_box: list[int] | None) -> dict:
        return {
            "image_id": picture.image_id,
            "file": picture.file.relative_to(self.images).as_posix(),
            "mask": encode_image(mask),
            "head_box": head_box,
        }


def read_picture(images: Path, image_id: str) -> Picture | Reject:
    """The image, or why it cannot be used: missing, damaged, too large, not a still picture."""
    try:
        file = find_image(images, image_id)
        image, _ = pixels.read_image(file)
    except Reject as reason:
        return reason
    return Picture(image_id, file, image)


def find_image(images: Path, image_id: str) -> Path:
    """images/ID.SUFFIX or images/BUCKET/ID.SUFFIX, where the bucket is the id modulo 1000, in four digits.

    Raises:
        Reject: there is none, it is no regular file, or the id is no plain name.
    """
    if not PLAIN_NAME.fullmatch(image_id) or len(image_id) > MAX_ID:
        raise Reject(f"image_id: got {shown(image_id)}, wanted letters, digits, '.', '-' and '_', at most {MAX_ID}")
    in_bucket = images / f"{int(image_id) % 1000:04d}" if image_id.isdecimal() else None
    if in_bucket:
        try:
            return pixels.find_file(in_bucket, image_id, "image")
        except Reject as reason:
            if " is missing in " not in str(reason):
                raise
    return pixels.find_file(images, image_id, "image")


def checked_mask(mask: Image.Image | None | Reject, size: tuple[int, int]) -> Image.Image | Reject:
    """The mask where it is the picture's size and holds a figure, or what is wrong with it."""
    if isinstance(mask, Reject):
        return mask
    if mask is None or not mask.getextrema()[1]:
        return Reject("mask: got one without a figure, wanted some pixels above 0")
    if mask.size != size:
        return Reject(f"mask: got size {mask.size}, wanted the image's {size}")
    if mask.getextrema()[1] < pixels.MIN_MASK_PEAK:
        return Reject(f"mask: got values up to {mask.getextrema()[1]}, wanted 255 where the figure is")
    return mask


def cut(folder: Path, rows_per_part: int | None) -> list[Part]:
    """The rows of a stage in parts of at most so many, where the work on a row takes long; None: as they are."""
    parts = []
    for file in part_files(Path(folder)):
        total = pq.read_metadata(file).num_rows
        rows = rows_per_part or max(total, 1)
        parts += [
            Part(f"{file.stem}-{start:07d}", {"path": str(file), "start": start, "rows": rows})
            for start in range(0, max(total, 1), rows)
        ]
    return parts


def batches(items: Sequence, size: int) -> Iterator[Sequence]:
    """`items` in pieces of `size`, the last one shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def settings_of(folder: Path) -> str | None:
    """What the rows of an earlier stage were made with; None for a folder that no stage made."""
    file = Path(folder) / SETTINGS
    return file.read_text() if file.is_file() else None


def digest_of(ids: pa.Array | None) -> str | None:
    """Tells whether two lists of ids are the same."""
    return None if ids is None else hashlib.sha256("\n".join(ids.to_pylist()).encode()).hexdigest()


def checked_folder(folder: Path, argument: str) -> Path:
    """The folder, absolute; raises FileNotFoundError, naming the argument, where it is none."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{argument}: got {folder}, which is not a folder")
    return Path(folder).resolve()
