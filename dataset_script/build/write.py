"""Writes the figures table: Parquet shards by split, the rows of an identity together in one file."""

import itertools
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..figures import FIGURES, identity_of
from ..files import replacing

SHARD_BYTES = 500 << 20


def write_shards(split: str, rows: Iterable[dict], folder: Path) -> int:
    """Writes rows, sorted by identity, to folder/SPLIT-00000-of-0000N.parquet; returns how many."""
    paths, count, writer, written = [], 0, None, 0
    for _, members in itertools.groupby(rows, key=identity_of):
        members = list(members)
        if writer is None or written > SHARD_BYTES:
            if writer:
                writer.close()
            paths.append(folder / f"{split}-{len(paths):05d}.parquet")
            writer, written = pq.ParquetWriter(paths[-1], FIGURES.arrow_schema), 0
        columns = {name: [row[name] for row in members] for name in FIGURES}
        writer.write_table(pa.table(columns, schema=FIGURES.arrow_schema))
        written += sum(len(row["image"]["bytes"]) + len(row["mask"]["bytes"]) for row in members)
        count += len(members)
    if writer:
        writer.close()
    for number, path in enumerate(paths):
        path.rename(folder / f"{split}-{number:05d}-of-{len(paths):05d}.parquet")
    return count


def write_lines(path: Path, lines: Iterable[dict]) -> None:
    """Writes JSON lines, beside the file's name first."""
    with replacing(path) as partial:
        partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def replace_folder(partial: Path, final: Path) -> None:
    """Puts a finished folder in the place of an earlier one."""
    old = final.with_name(final.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)
