"""The rows of the tasks: for each target its references, drawn, cut out and encoded."""

import io
import itertools
import logging
from collections.abc import Iterator
from functools import lru_cache
from random import Random

import pyarrow as pa
from PIL import Image, ImageOps

from .concepts import crop_concept
from .figures import IDENTITY, TASK_ROWS, identity_of
from .files import encode_image
from .references import BORROWED, RECIPES, draw_other, draw_references, row_rng
from .table import FiguresTable

logger = logging.getLogger(__name__)

TABLE_ROWS = 10  # what is made before the first of it can be read

# The split that references come from, where it is not the targets' own.
POOLS = {"in_domain": "train"}


def task_rows(
    task: str, targets: FiguresTable, pool: FiguresTable, seed: int = 0, image_format: str | None = "PNG"
) -> Iterator[dict]:
    """A row of `TASK_ROWS` for each target that has references, identity by identity.

    Args:
        task: a name of `RECIPES`.
        targets: some shards of a split.
        pool: the whole split that references come from, see `POOLS`. If it is the targets' own, the images of an
            identity are each other's references, and the pool is looked into for what a task borrows of others alone.
        seed: of everything drawn.
        image_format: PNG, for keeping: crops are PNGs, whole figures as they came. PPM, for what is decoded at once:
            large, without compression, and each image is decompressed once, however many rows show it. None: rows of
            `TASK_LABELS`, without any pixels.
    """
    lonely, apart = 0, not set(targets.files) <= set(pool.files)
    for rows in targets.identities():
        own = pool.rows(pool.index.members.get(identity_of(rows[0]), [])) if apart else rows
        for target in rows:
            drawn = draw_rows(task, target, own, pool, row_rng(seed, task, target["image_id"]))
            if drawn:
                yield task_row(target, drawn, image_format)
            else:
                lonely += 1
    if lonely:
        logger.warning("%s: %d images have no image to draw references from, no rows", task, lonely)


def task_tables(rows: Iterator[dict]) -> Iterator[pa.Table]:
    """Rows of a task as tables of TABLE_ROWS rows."""
    while chunk := list(itertools.islice(rows, TABLE_ROWS)):
        yield pa.Table.from_pylist(chunk, schema=TASK_ROWS.arrow_schema)


def draw_rows(task: str, target: dict, own: list[dict], pool: FiguresTable, rng: Random) -> list[tuple[dict, str]]:
    """[(row of the figures table, concept), ...] by the task's recipe, or [] where some concept has no image.

    Args:
        own: images of the target's identity.
        pool: where another character is drawn from, for a concept that the task borrows.
        rng: consumed.
    """
    sources = [(own, [concept for concept in RECIPES[task] if concept != BORROWED.get(task)])]
    if task in BORROWED:
        other = draw_other(pool.index.identities_with_head, target["character"], rng)
        images = pool.rows(pool.index.members[other]) if other else []
        sources.append((images, [concept for concept in RECIPES[task] if concept == BORROWED[task]]))
    drawn = []
    for images, recipe in sources:
        by_id = {row["image_id"]: row for row in images}
        has_head = {image_id: bool(row["head_box"]) for image_id, row in by_id.items()}
        found = draw_references(target["image_id"], has_head, recipe, rng)
        if not found:
            return []
        drawn += [(by_id[image_id], concept) for image_id, concept in found]
    return drawn


def task_row(target: dict, drawn: list[tuple[dict, str]], image_format: str | None) -> dict:
    """The row of a target and of what was drawn for it, see `task_rows`."""
    row = {
        "target_id": target["image_id"],
        **{key: target[key] for key in ("head_box", "prompt", *IDENTITY)},
        "reference_concepts": [concept for _, concept in drawn],
        "reference_ids": [source["image_id"] for source, _ in drawn],
        **{f"reference_{key}s": [source[key] for source, _ in drawn] for key in IDENTITY},
    }
    if image_format is None:
        return row
    crops = [encoded_crop(concept, source, image_format) for source, concept in drawn]
    image, mask = encoded_crop("figure", target, image_format)
    return {
        **row,
        "target": image,
        "target_mask": mask,
        "reference_images": [image for image, _ in crops],
        "reference_masks": [mask for _, mask in crops],
    }


def encoded_crop(concept: str, row: dict, image_format: str) -> tuple[dict, dict]:
    """(image, mask) of a concept, encoded; to be kept, a whole figure as it came."""
    if concept == "figure" and image_format == "PNG":
        return row["image"], row["mask"]
    sources = (row[key]["bytes"] or row[key]["path"] for key in ("image", "mask"))
    try:
        crop = _cut(concept, *sources, tuple(row["head_box"] or ()), image_format)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {row['image_id']}: its {concept} cannot be cut out: {error}") from error
    return tuple({"bytes": part, "path": None} for part in crop)


# An image is reference to several rows, which come one after the other: what was opened and cut lately is remembered.
@lru_cache(maxsize=64)
def _cut(concept: str, image: bytes | str, mask: bytes, head_box: tuple, image_format: str) -> tuple[bytes, bytes]:
    crop = crop_concept(concept, _open(image, "RGB"), _open(mask, "L"), head_box)
    return tuple(encode_image(part, image_format) for part in crop)


@lru_cache(maxsize=32)
def _open(source: bytes | str, mode: str) -> Image.Image:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return ImageOps.exif_transpose(image).convert(mode)
