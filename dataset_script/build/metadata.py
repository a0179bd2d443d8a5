"""Reads the metadata of a booru dump, in parts, as columns.

Two forms of a record, and any mixture of them: with `tags`, a list of {name, category} (Danbooru2019, all values
strings), or with `tag_string_general`, `tag_string_character`, ... (newer dumps, the API). As JSON lines, plain or
compressed; the newer form as Parquet and CSV too.

A block of lines is read by pyarrow at once, lines that it does not take by Python one by one: the same `RECORDS` either
way, so that how a dump is cut into blocks shows nowhere.
"""

import bz2
import csv
import gzip
import io
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .annotations import reject
from .metadata_columns import Lines, read_json, schema_of, split_lines
from .metadata_lines import Unreadable, read_line, tables_of
from .metadata_records import FORMS, MAGIC, MAX_LINE, PLAIN, READ_BYTES, RECORDS, SLOW_LINES, Piece
from .metadata_tables import csv_tables, parquet_tables, read_table
from .stage import Part


def metadata_parts(files: Sequence[Path], block_bytes: int = 32 << 20) -> list[Part]:
    """Cuts a dump's files into parts, whose names sort in the order of reading; reads only how the files begin.

    A plain file is cut every `block_bytes`, Parquet into its row groups; other files are a part each.

    Raises FileNotFoundError and ValueError (empty, damaged, or of no form that is read here).
    """
    if not files:
        raise ValueError(f"metadata: got no file, wanted {FORMS}")
    if block_bytes < 1:
        raise ValueError(f"block_bytes: got {block_bytes}, wanted at least 1")
    parts = []
    for number, path in enumerate(map(Path, files)):
        pieces = _pieces(path, block_bytes)
        parts += [Part(f"{number:05d}-{index:06d}", piece) for index, piece in enumerate(pieces)]
    return parts


def _pieces(path: Path, block_bytes: int) -> list[Piece]:
    kind = _kind(path)
    if kind == "plain":
        size = path.stat().st_size
        return [Piece(str(path), kind, begin, min(begin + block_bytes, size)) for begin in range(0, size, block_bytes)]
    if kind == "parquet":
        try:
            groups = pq.read_metadata(path).num_row_groups
        except pa.ArrowInvalid as error:
            raise ValueError(f"metadata: {path} is damaged, wanted a whole Parquet file: {error}") from None
        return [Piece(str(path), kind, group, group + 1) for group in range(groups)]
    return [Piece(str(path), kind)]


def _kind(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"metadata: got {path}, which is no file; wanted {FORMS}")
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise ValueError(f"metadata: {path} is empty, wanted {FORMS}")
    kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    if kind:
        return kind
    if path.suffix == ".csv":
        return "csv"
    if path.suffix not in PLAIN:
        raise ValueError(f"metadata: {path} is of no form that is read here, wanted {FORMS}")
    if path.suffix == ".json" and head.lstrip().startswith(b"["):
        raise ValueError(f"metadata: {path} is one JSON list, wanted a record on each line")
    return "plain"


def read_part(piece: Piece) -> Iterator[tuple[pa.Table, list[tuple[int, dict]]]]:
    """The records of a part, some MB at a time.

    Yields:
        (`RECORDS`, rejects): what could be read, and (number, what `annotations.reject` returns) for each other line.
        Together every line that is not blank once, numbered in the order of the file; rows are not in that order.

    Raises ValueError for a file that is damaged as a whole (the end of a compressed file is missing, ...).
    """
    try:
        if piece.kind == "parquet":
            yield from _number(map(read_table, parquet_tables(piece)))
        elif piece.kind == "csv":
            bad_rows = []
            yield from _number(map(read_table, csv_tables(piece, bad_rows)), bad_rows)
        else:
            with _open(piece) as file:
                yield from _number(map(_read_block, _blocks(file, piece.begin, piece.end)))
    except (EOFError, OSError, lzma.LZMAError, pa.ArrowInvalid, csv.Error) as error:
        raise ValueError(f"metadata: {piece.path} is damaged, wanted a whole file: {error}") from error


def _number(blocks: Iterator[tuple[pa.Table, list[tuple[int, dict]]]], last: Sequence[dict] = ()) -> Iterator:
    """The same with numbers that go on from block to block; the rejects in `last` after the others."""
    first = 0
    for records, rejects in blocks:
        numbers = pc.add(records["number"], first)
        yield records.set_column(0, "number", numbers), [(number + first, line) for number, line in rejects]
        first += len(records) + len(rejects)
    if last:
        yield RECORDS.empty_table(), list(enumerate(last, start=first))


def _open(piece: Piece) -> BinaryIO:
    if piece.kind == "zst":
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(piece.path), "zstd"), 1 << 20)
    openers = {"plain": open, "gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    return openers[piece.kind](piece.path, "rb")


def _blocks(file: BinaryIO, begin: int, end: int | None) -> Iterator[bytes]:
    """The lines that start in bytes [begin, end), some MB of whole lines at once; of too long a line its beginning."""
    if end is None:
        yield from _stream_blocks(file)
        return
    position = _line_end(file, begin) if begin else 0
    while position < end:
        stop = min(position + READ_BYTES, end)
        line_end = _line_end(file, stop)
        file.seek(position)
        yield file.read(min(line_end, stop + MAX_LINE) - position)
        position = line_end


def _line_end(file: BinaryIO, position: int) -> int:
    """Where the line ends that holds the byte before `position`."""
    file.seek(position - 1)
    return position - 1 + _skip_line(file)


def _stream_blocks(file: BinaryIO) -> Iterator[bytes]:
    """The same of a whole file that can only be read on and on."""
    while block := file.read(READ_BYTES):
        if not block.endswith(b"\n"):
            begun = len(block) - block.rfind(b"\n") - 1
            rest = file.readline(max(MAX_LINE + 1 - begun, 1))
            if rest and not rest.endswith(b"\n"):
                _skip_line(file)
            block += rest
        yield block


def _skip_line(file: BinaryIO) -> int:
    """Reads to the end of the line; returns how many bytes that was."""
    skipped = 0
    while line := file.readline(1 << 20):
        skipped += len(line)
        if line.endswith(b"\n"):
            break
    return skipped


def _read_block(block: bytes) -> tuple[pa.Table, list[tuple[int, dict]]]:
    """What `read_part` yields, of whole lines."""
    lines, odd = split_lines(block)
    tables, slow = _read_fast(lines)
    records, rejects = [], []
    for number, line in sorted(odd + slow):
        try:
            records.append(read_line(number, line))
        except Unreadable as error:
            rejects.append((number, reject(error.entry, error.reason)))
    return pa.concat_tables([*tables, *tables_of(records)] or [RECORDS.empty_table()]), rejects


def _read_fast(lines: Lines) -> tuple[list[pa.Table], list[tuple[int, bytes]]]:
    """(tables, what is left for `read_line`). A line that spoils a block costs its neighbours the fast way, no more."""
    if not len(lines):
        return [], []
    read = read_json(lines, schema_of(lines.buffer[lines.starts[0] : lines.ends[0]]))
    few = len(lines) <= SLOW_LINES
    if read is not None and (few or 4 * read[1].sum() <= len(lines)):  # else: another form begins in the block
        table, irregular = read
        return [table], lines.take(np.flatnonzero(irregular))
    if few:
        return [], lines.take(np.arange(len(lines)))
    (first, slow), (second, slow_too) = _read_fast(lines[: len(lines) // 2]), _read_fast(lines[len(lines) // 2 :])
    return first + second, slow + slow_too
