"""A figures table (or a table of a task's rows) on disk: Parquet shards by split, the rows of an identity together."""

import bisect
import functools
import inspect
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features
from datasets.table import table_cast

from .figures import FIGURES, LABELS, SPLITS, IdentityIndex, identity_of

# A shard ends at the first identity beyond one of these. Small tables are cut into about SHARDS all the same, so that
# there is something to share out among processes and workers.
SHARD_BYTES = 500 << 20
SHARD_ROWS = (100, 4000)  # at least, at most
SHARDS = 24
# What is read at once to get at one row ends at the first identity beyond ROW_GROUP_ROWS (as `datasets` has it for
# images), within an identity beyond ROW_GROUP_BYTES.
ROW_GROUP_ROWS = 100
ROW_GROUP_BYTES = 64 << 20

# A file's name in a data file: folders of plain names, and so never outside the folder that the user gave.
PLAIN_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")

PARQUET = {
    # An image that many rows refer to is stored once per row group: the dictionary page must never be full.
    "dictionary_pagesize_limit": 1 << 30,
    # Pages end where the content says so, so that a changed row leaves the rest of a file's chunks as they were.
    **(
        {"use_content_defined_chunking": True}
        if "use_content_defined_chunking" in inspect.signature(pq.ParquetWriter.__init__).parameters
        else {}
    ),
}


def shard_files(data_dir: str | os.PathLike, split: str) -> list[str]:
    """The Parquet files of a split of the table in `data_dir`."""
    return sorted(map(str, (Path(data_dir) / "data").glob(f"{split}-*.parquet")))


def table_files(data_dir: str | os.PathLike) -> list[str]:
    """The Parquet files of the whole table in `data_dir`, split by split."""
    return [file for split in SPLITS for file in shard_files(data_dir, split)]


def write_shards(split: str, rows: Iterable[dict], folder: Path, features: Features, total: int) -> int:
    """Writes rows, those of an identity one after the other, to folder/SPLIT-00000-of-0000N.parquet; returns how many.

    Args:
        rows: of the figures table or of a task, images as {"bytes", "path"}.
        features: their schema.
        total: how many rows are expected, about; small tables make small shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shard_rows = min(max(total // SHARDS, SHARD_ROWS[0]), SHARD_ROWS[1])
    schema = portable_schema(features)
    paths, writer, rows_written, count = [], None, 0, 0
    for group, ends_identity in _row_groups(rows):
        if not writer:
            paths.append(folder / f"{split}-{len(paths):05d}.parquet")
            writer, rows_written = pq.ParquetWriter(paths[-1], schema, **PARQUET), 0
        writer.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=len(group))
        rows_written += len(group)
        count += len(group)
        if ends_identity and (rows_written >= shard_rows or paths[-1].stat().st_size >= SHARD_BYTES):
            writer.close()
            writer = None
    if writer:
        writer.close()
    for number, path in enumerate(paths):
        path.rename(folder / f"{split}-{number:05d}-of-{len(paths):05d}.parquet")
    return count


def _row_groups(rows: Iterable[dict]) -> Iterator[tuple[list[dict], bool]]:
    """(rows, whether an identity ends with them): identities gathered to a row group, or as much of one as it bears."""
    group, size = [], 0
    for _, members in itertools.groupby(rows, key=identity_of):
        for row in members:
            if size >= ROW_GROUP_BYTES:
                yield group, False
                group, size = [], 0
            group.append(row)
            size += sum(map(_image_bytes, row.values()))
        if len(group) >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
            yield group, True
            group, size = [], 0
    if group:
        yield group, True


def _image_bytes(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_image_bytes, value))
    return len(value["bytes"] or b"") if isinstance(value, dict) else 0


def table_features(files: Sequence[str]) -> Features:
    """The schema of a figures table, extra columns included, as its rows are loaded: with images."""
    features = stored_features(files)
    missing = [name for name in FIGURES if name not in features]
    if missing:
        raise ValueError(f"data_dir: {files[0]} has no column {', '.join(missing)}; wanted a figures table")
    return Features({**features, **FIGURES})


def has_pixels(files: Sequence[str]) -> bool:
    """False for a table that names its image files and does not hold them."""
    return stored_features(files)["image"].decode


def read_columns(files: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Some columns of the whole table ("image.path" is one), without the others being read."""
    return pa.concat_tables([pq.ParquetFile(file).read(columns=list(columns)) for file in files])


def portable_schema(features: Features) -> pa.Schema:
    """The Arrow schema of `features`, with their description in the form that `datasets` 3 and later read."""
    schema = features.arrow_schema
    description = json.loads(schema.metadata[b"huggingface"])
    return schema.with_metadata({"huggingface": json.dumps(_lists_as_before(description))})


def _lists_as_before(description: object) -> object:
    """{"_type": "List", "feature": x}, which `datasets` 4 brought, as [x]."""
    if isinstance(description, dict):
        if description.get("_type") == "List":
            return [_lists_as_before(description["feature"])]
        return {key: _lists_as_before(value) for key, value in description.items()}
    return description


def count_rows(files: Sequence[str]) -> int:
    """How many rows the files have, by their metadata."""
    return sum(pq.read_metadata(file).num_rows for file in files)


def stored_features(files: Sequence[str]) -> Features:
    """The schema that the files have."""
    return Features.from_arrow_schema(pq.read_schema(files[0]))


class FiguresTable:
    """The rows of a figures table, image by image as stored: {"bytes": encoded or None, "path": a file or None}.

    Holds labels alone and reads the rest when asked for it.

    Args:
        files: Parquet shards.
        images: folder to find the image files in; for a table without pixels, and for that alone.
    """

    def __init__(self, files: Sequence[str], images: str | None = None):
        self.files, self.images = list(files), images
        self._read_group = functools.lru_cache(maxsize=2)(self._read_group)

    @functools.cached_property
    def features(self) -> Features:
        """The schema of the rows."""
        return table_features(self.files)

    @functools.cached_property
    def _schema(self) -> pa.Schema:
        return self.features.arrow_schema

    @functools.cached_property
    def _has_pixels(self) -> bool:
        return has_pixels(self.files)

    @functools.cached_property
    def index(self) -> IdentityIndex:
        """Who is who in the whole table."""
        if not self.files:
            return IdentityIndex(FIGURES.arrow_schema.empty_table())
        return IdentityIndex(read_columns(self.files, LABELS))

    def tables(self) -> Iterator[pa.Table]:
        """The whole table, row group by row group."""
        for file in self.files:
            parquet = pq.ParquetFile(file)
            for number in range(parquet.num_row_groups):
                yield self._with_images(parquet.read_row_group(number), file)

    def __iter__(self) -> Iterator[dict]:
        """Row after row."""
        for table in self.tables():
            yield from table.to_pylist()

    def identities(self) -> Iterator[list[dict]]:
        """The rows of one identity after the other."""
        for _, members in itertools.groupby(self, key=identity_of):
            yield list(members)

    def rows(self, positions: Sequence[int]) -> list[dict]:
        """The rows at these positions of the whole table."""
        rows = []
        for position in positions:
            group = bisect.bisect_right(self._group_starts, position) - 1
            rows += self._read_group(group).slice(position - self._group_starts[group], 1).to_pylist()
        return rows

    @functools.cached_property
    def _groups(self) -> list[tuple[pq.ParquetFile, int]]:
        return [
            (parquet, number) for parquet in map(pq.ParquetFile, self.files) for number in range(parquet.num_row_groups)
        ]

    @functools.cached_property
    def _group_starts(self) -> list[int]:
        sizes = (parquet.metadata.row_group(number).num_rows for parquet, number in self._groups)
        return list(itertools.accumulate(sizes, initial=0))[:-1]

    def _read_group(self, group: int) -> pa.Table:
        parquet, number = self._groups[group]
        return self._with_images(parquet.read_row_group(number), self.files[0])

    def _with_images(self, table: pa.Table, file: str) -> pa.Table:
        """The rows with all that they are to hold: a file that they name is looked for in the user's folder alone."""
        for name in ("image", "mask"):
            column = table.column(name).combine_chunks()
            if name == "image" and self.images is not None:
                names = pc.struct_field(column, "path").to_pylist()
                paths = pa.array([os.path.join(self.images, plain_file(each)) for each in names], pa.string())
                column = pa.StructArray.from_arrays([pa.nulls(len(table), pa.binary()), paths], ["bytes", "path"])
                table = table.set_column(table.schema.get_field_index(name), name, column)
            elif name == "mask" or self._has_pixels:
                holes = pc.is_null(pc.struct_field(column, "bytes"))
                if pc.any(holes).as_py():
                    image_id = table["image_id"][pc.index(holes, True).as_py()]
                    raise ValueError(f"data_dir: {file} holds no {name} for image_id {image_id}")
        return table_cast(table.select(list(self.features)), self._schema)


def plain_file(path: str | None) -> str:
    """`path` as it is; raises ValueError unless it is a relative path of plain names."""
    if not path or not PLAIN_FILE.fullmatch(path):
        raise ValueError(f"data_dir: a row names its image file {path!r}, wanted a relative path of plain names")
    return path


def check_images(files: Sequence[str], images: str | None) -> None:
    """Raises unless `images` is given where it is needed, not where it is not, and has every file that is named."""
    if has_pixels(files):
        if images is not None:
            raise ValueError(f"images: got {images}, wanted none: this table holds its images")
        return
    if images is None:
        raise ValueError(
            "images: got none, wanted the folder with the image files: this table names and does not hold them"
        )
    if not os.path.isdir(images):
        raise FileNotFoundError(f"images: got {images}, which is not a folder; wanted the one with the image files")
    names = [plain_file(image["path"]) for image in read_columns(files, ["image.path"])["image"].to_pylist()]
    missing = [name for name in names if not os.path.isfile(os.path.join(images, name))]
    if missing:
        raise FileNotFoundError(
            f"images: {images} lacks {len(missing)} of the {len(names)} files that the table names, such as {missing[0]}"
        )
