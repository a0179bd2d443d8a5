"""Stage 5: the figures table, from what the stages before have found out about each image."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from ..figures import FIGURES, FIGURES_WITHOUT_PIXELS, IDENTITY, SPLITS, split_of
from ..files import replacing_folder
from ..table import write_shards
from .annotations import Reject, reject
from .pixels import read_image
from .stage import part_files


def write_figures(
    out: Path,
    filtered: Path,
    annotated: Path,
    outfits: pa.Table,
    images: Path,
    embed_images: bool = True,
    seed: int = 0,
    out_of_domain: float = 0.1,
    in_domain: float = 0.05,
) -> list[dict]:
    """Writes out/data/SPLIT-*.parquet; an earlier table is replaced once this one is whole.

    Args:
        filtered, annotated: folders of the stages.
        outfits: `OUTFITS` of all images that have one.
        images: the folder that `file` of `ANNOTATED` is below.
        embed_images: whether the table holds the images; without, it names their files.
        seed, out_of_domain, in_domain: of the split, see `split_of`.

    Returns:
        What `annotations.reject` makes of images that could not be read any more.
    """
    labels, rejects = collect_labels(filtered, annotated, outfits), []
    splits = pa.array(
        [
            split_of(character, image_id, seed, out_of_domain, in_domain)
            for character, image_id in zip(labels["character"].to_pylist(), labels["image_id"].to_pylist())
        ],
        pa.string(),
    )
    with replacing_folder(out / "data") as folder:
        for split in SPLITS:
            members = labels.filter(pc.equal(splits, split))
            records = (row for batch in members.to_batches(max_chunksize=100) for row in batch.to_pylist())
            progress = tqdm(records, desc=f"writing {split}", unit="image", total=len(members))
            rows = figure_rows(progress, images, embed_images, rejects)
            write_shards(split, rows, folder, FIGURES if embed_images else FIGURES_WITHOUT_PIXELS, len(members))
    return rejects


def collect_labels(filtered: Path, annotated: Path, outfits: pa.Table) -> pa.Table:
    """Everything about the images of `outfits` but their pixels, sorted by identity and image id."""
    ids = outfits["image_id"].combine_chunks()
    table = outfits
    for folder in (filtered, annotated):
        found = aligned(pa.concat_tables(_rows_of(path, ids) for path in part_files(folder)), ids)
        for name in found.column_names:
            if name != "image_id":
                table = table.append_column(name, found[name])
    return table.sort_by([(name, "ascending") for name in (*IDENTITY, "image_id")])


def aligned(table: pa.Table, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The rows of `table`, whose image ids are unique, in the order of `ids`, which all are among them."""
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    return table.take(pc.index_in(ids, value_set=table["image_id"].combine_chunks()))


def _rows_of(path: Path, ids: pa.Array) -> pa.Table:
    table = pq.read_table(path)
    return table.filter(pc.is_in(table["image_id"], value_set=ids))


def figure_rows(records: Iterator[dict], images: Path, embed_images: bool, rejects: list[dict]) -> Iterator[dict]:
    """Rows of `FIGURES`; images that were changed since they were annotated end among the rejects."""
    for record in records:
        try:
            cell = read_image(images / record["file"])[1]
            if not embed_images and cell["path"] is None:
                raise Reject(
                    f"image: {record['file']} must be converted, wanted one that a table without pixels can name"
                )
        except Reject as reason:
            rejects.append(reject({"id": record["image_id"]}, reason))
            continue
        image = {"bytes": cell["bytes"] if embed_images else None, "path": cell["path"] and record["file"]}
        yield {name: record.get(name) for name in FIGURES} | {
            "image": image,
            "mask": {"bytes": record["mask"], "path": None},
        }
