"""From a booru dump's metadata to the images that can be grouped by outfit: the paper's rules.

Drop images with an unwanted tag; keep those with exactly one character, exactly one artist and at least one garment.
What is unwanted and what is a garment stands in text files (`tags/`). A rejected record has its first reason, in this
order: not readable, rating, unwanted tag, characters, artists, clothing, and an id that a row before it has.
"""

import functools
import json
import mmap
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .annotations import MAX_DEPTH, Reject, reject, shown
from .metadata import metadata_parts, read_part
from .metadata_lines import stored_line
from .metadata_records import CATEGORIES, Piece
from .stage import FILTERED, REJECTS, Done, Runner, count_stage, part_files, rejects_table, run_stage, write_parquet

TAGS = Path(__file__).with_name("tags")
COMMENT = re.compile(r"(^|\s)#.*")
DUPLICATES = "duplicates.rejects.parquet"  # sorts after those of the parts
NAMES_SHOWN = 5  # of characters or artists, in a reason
SPOOL_BYTES = 192 << 20  # of a part's rows, or rejects; a compressed file is one part, however large
PLAIN_LINE = 4000  # bytes; a line that is no longer, and not deep, is kept in the rejects as it is
NUMBERED = pa.schema([("number", pa.int64()), *FILTERED])
NUMBERED_REJECTS = pa.schema([("number", pa.int64()), *REJECTS])


@dataclass(frozen=True)
class FilterRules:
    """What is let through.

    Args:
        unwanted: tags; a record with one of them, among its general or meta tags, is rejected.
        clothing: tags; a record with none of them, among its general tags, is rejected.
        ratings: those that are let through, as the dump writes them; None: all.
        colours: words that may stand before a tag of `clothing`: with red and dress, red_dress counts.
    """

    unwanted: frozenset[str]
    clothing: frozenset[str]
    ratings: tuple[str, ...] | None = None
    colours: frozenset[str] = frozenset()

    @classmethod
    def from_files(
        cls, unwanted: Path | None = None, clothing: Path | None = None, ratings: Sequence[str] | None = None
    ) -> "FilterRules":
        """Reads the lists, the package's own by default, its colours always: one tag a line, # begins a comment.

        Raises FileNotFoundError and ValueError, naming the argument.
        """
        return cls(
            unwanted=frozenset(read_tags("unwanted", unwanted or TAGS / "unwanted.txt")),
            clothing=frozenset(read_tags("clothing", clothing or TAGS / "clothing.txt")),
            ratings=None if ratings is None else tuple(ratings),
            colours=frozenset(read_tags("colours", TAGS / "colours.txt")),
        )

    def garments(self) -> frozenset[str]:
        """All tags that count as clothing. Made where they are looked up: they are too many to be sent to a process."""
        coloured = (f"{colour}_{garment}" for colour in self.colours for garment in self.clothing)
        return self.clothing.union(coloured)


def read_tags(argument: str, path: Path) -> list[str]:
    """The tags of a list, without its comments; an empty list is a list."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{argument}: got {path}, which is not there; wanted a tag on each line") from None
    except UnicodeDecodeError:
        raise ValueError(f"{argument}: {path} is not UTF-8, wanted a tag on each line") from None
    return [tag for line in text.split("\n") if (tag := COMMENT.sub("", line).strip())]


class FilterWork:
    """The work on a part of the metadata: FilterWork(rules)(piece) gives its `FILTERED` rows and its rejects."""

    def __init__(self, rules: FilterRules):
        self.unwanted = pa.array(sorted(rules.unwanted), pa.string())
        self.clothing = pa.array(sorted(rules.garments()), pa.string())
        self.ratings = rules.ratings

    def __call__(self, piece: Piece) -> Done:
        """Rows and rejects in the order of the file."""
        rows, rejects = _Spool(FILTERED), _Spool(REJECTS)
        for records, unreadable in read_part(piece):
            sifted = [self.sift(batch) for batch in records.to_batches()]
            rows.add(_in_order([kept for kept, _ in sifted]))
            numbers = pa.array([number for number, _ in unreadable], pa.int64())
            lines = rejects_table(line for _, line in unreadable).add_column(0, "number", numbers)
            rejects.add(_in_order([lines, *(rejected for _, rejected in sifted)]))
        return Done(rows.table(), rejects.table())

    def sift(self, records: pa.RecordBatch) -> tuple[pa.Table, pa.Table]:
        """(`FILTERED`, `REJECTS`) of `RECORDS`, each with the column `number` before."""
        reasons = self._reasons(records)
        kept = np.array([reason is None for reason in reasons], bool)
        names = records.schema.names
        wanted = [name for name in names if name not in ("line", "meta")]
        told = names if records["line"].null_count else ["number", "image_id", "line"]
        return (
            _filtered(records.select(wanted).filter(pa.array(kept))),
            _rejects(records.select(told).filter(pa.array(~kept)), reasons[~kept]),
        )

    def _reasons(self, records: pa.RecordBatch) -> np.ndarray:
        """The first reason against each record, or None (objects). The last rule first: earlier ones overwrite."""
        reasons = np.full(len(records), None, object)
        tags = {kind: _Tags(records[kind]) for kind in CATEGORIES.values()}
        dressed = tags["general"].with_one_of(self.clothing)[0]
        reasons[np.setdiff1d(np.arange(len(records)), dressed)] = "clothing: got no tag that counts as clothing"
        for kind in ("artist", "character"):
            other = pa.array(tags[kind].sizes != 1)
            names = _strings(records[kind].filter(other)).to_pylist()
            reasons[other.to_numpy(zero_copy_only=False)] = [
                f"{kind}s: got {_counted(each)}, wanted exactly one" for each in names
            ]
        for kind in ("meta", "general"):
            rows, codes = tags[kind].with_one_of(self.unwanted)
            names = tags[kind].dictionary.take(pa.array(codes)).to_pylist()
            reasons[rows] = [f"{name}: an unwanted tag" for name in names]
        if self.ratings is not None:
            wanted = pc.is_in(records["rating"], pa.array(self.ratings, pa.string())).to_numpy(zero_copy_only=False)
            for row in np.flatnonzero(~wanted).tolist():
                rating = shown(records["rating"][row].as_py())
                reasons[row] = f"rating: got {rating}, wanted {' or '.join(self.ratings) or 'none'}"
        return reasons


class _Tags:
    """The tags of one kind: codes[offsets[i]:offsets[i + 1]] of `dictionary` are row i's."""

    def __init__(self, lists: pa.ListArray):
        self.offsets = lists.offsets.to_numpy()
        self.codes, self.dictionary = lists.values.indices.to_numpy(), lists.values.dictionary
        self.sizes = np.diff(self.offsets)

    def with_one_of(self, tags: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """(rows that have one of `tags`, the code of the first that each has)."""
        flags = pc.is_in(self.dictionary, tags).to_numpy(zero_copy_only=False)
        begin, end = self.offsets[0], self.offsets[-1]
        places = np.flatnonzero(flags[self.codes[begin:end]]) + begin if len(flags) else np.zeros(0, np.int64)
        rows, first = np.unique(np.searchsorted(self.offsets, places, side="right") - 1, return_index=True)
        return rows, self.codes[places[first]]


def _counted(names: list[str]) -> str:
    """ "2 (a, b)" """
    if not names:
        return "0"
    more = ["..."] if len(names) > NAMES_SHOWN else []
    return f"{len(names)} ({', '.join([name[:100] for name in names[:NAMES_SHOWN]] + more)})"


def _filtered(records: pa.RecordBatch) -> pa.Table:
    """`FILTERED` after the number of each record, all of which have one character and one artist."""
    tags = {kind: _strings(records[kind]) for kind in ("general", "character", "artist", "copyright")}
    copyright_names = pc.binary_join(tags["copyright"], ", ")
    columns = {
        "number": records["number"],
        "image_id": records["image_id"],
        "character": tags["character"].flatten(),
        "artist": tags["artist"].flatten(),
        "copyright": pc.if_else(pc.equal(copyright_names, ""), pa.scalar(None, pa.string()), copyright_names),
        "tags": tags["general"],
        "prompt": pc.binary_join(tags["general"], ", "),
        "rating": records["rating"],
    }
    return pa.table(columns, schema=NUMBERED)


def _strings(lists: pa.ListArray) -> pa.ListArray:
    """`TAGS` as lists of strings."""
    lists = pa.concat_arrays([lists])  # offsets from 0
    values = lists.flatten()
    return pa.ListArray.from_arrays(
        pc.subtract(lists.offsets, lists.offsets[0]), values.dictionary.take(values.indices)
    )


def _rejects(records: pa.RecordBatch, reasons: np.ndarray) -> pa.Table:
    """`REJECTS` after the number of each record; without lines, from all columns of `RECORDS`."""
    lines = pc.ascii_trim_whitespace(records["line"])
    others = np.flatnonzero(~_plain(lines))
    if len(others):
        stored = pa.array([_stored(records, row, lines[row].as_py()) for row in others.tolist()], pa.string())
        mask = np.zeros(len(lines), bool)
        mask[others] = True
        lines = pc.replace_with_mask(lines, pa.array(mask), stored)
    reasons = pa.array([" ".join(reason.split()) for reason in reasons], pa.string())
    return pa.table([records["number"], records["image_id"], reasons, lines], schema=NUMBERED_REJECTS)


def _plain(lines: pa.StringArray) -> np.ndarray:
    """bool per line: short and with few brackets, so that `stored_line` would keep it as it is."""
    if lines.null_count or not len(lines):
        return np.zeros(len(lines), bool)
    offsets = np.frombuffer(lines.buffers()[1], np.int32)[lines.offset : lines.offset + len(lines) + 1]
    characters = np.frombuffer(lines.buffers()[2], np.uint8)[: offsets[-1]]
    brackets = np.add.reduceat((characters | 0x20) == ord("{"), offsets[:-1], dtype=np.int32)  # [ is { without that bit
    return (np.diff(offsets) <= PLAIN_LINE) & (brackets <= MAX_DEPTH)


def _stored(records: pa.RecordBatch, row: int, line: str | None) -> str:
    """The record as JSON; a row of a table, which was no line, in the newer form."""
    if line is not None:
        return stored_line(line)
    names = {f"tag_string_{kind}": " ".join(map(str, records[kind][row])) for kind in CATEGORIES.values()}
    entry = {"id": records["image_id"][row].as_py(), "rating": records["rating"][row].as_py(), **names}
    return json.dumps(reject(entry, Reject())["record"])


def _in_order(tables: list[pa.Table]) -> pa.Table | None:
    """By number, which then goes."""
    if not tables:
        return None
    table = pa.concat_tables(tables)
    numbers = table["number"].to_numpy()
    table = table.drop_columns("number")
    return table if (np.diff(numbers) > 0).all() else table.take(np.argsort(numbers))


class _Spool:
    """Tables one after the other: in memory, beyond SPOOL_BYTES in a temporary file that no other process sees."""

    def __init__(self, schema: pa.Schema):
        self.schema, self.tables, self.file = schema, [], None

    def add(self, table: pa.Table | None) -> None:
        if table is None:
            return
        self.tables.append(table)
        if self.file is None and sum(each.nbytes for each in self.tables) > SPOOL_BYTES:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115 (without a name: gone with the process, however that ends)
            self.writer = pa.ipc.new_file(pa.PythonFile(self.file, "w"), self.schema)
        if self.file is not None:
            for each in self.tables:
                self.writer.write_table(each)
            self.tables = []

    def table(self) -> pa.Table:
        """All of them; what is in the file is mapped, not read."""
        if self.file is None:
            return pa.concat_tables([self.schema.empty_table(), *self.tables])
        self.writer.close()
        self.file.flush()
        with self.file:
            mapped = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        return pa.ipc.open_file(pa.py_buffer(mapped)).read_all()


def filter_dump(
    files: Sequence[Path], out_folder: Path, rules: FilterRules, runner: Runner, block_bytes: int = 32 << 20
) -> Counter:
    """The stage: from the files of a dump to `FILTERED` rows in `out_folder`; returns what `count_stage` does.

    All that came in is either a row or a reject.
    """
    stats = [(path, path.stat()) for path in map(Path, files) if path.exists()]
    settings = {
        "unwanted": sorted(rules.unwanted),
        "clothing": sorted(rules.clothing),
        "ratings": rules.ratings,
        "colours": sorted(rules.colours),
        "files": [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats],
    }
    parts = metadata_parts(files, block_bytes)
    run_stage(out_folder, parts, functools.partial(FilterWork, rules), settings, runner)
    drop_duplicates(out_folder)
    return count_stage(out_folder)


def drop_duplicates(folder: Path) -> None:
    """Moves the rows whose id a row before them has to the rejects.

    Can be stopped anywhere and done again: first all of the rejects are written, into a file of their own, then the
    parts that have such rows, one by one. The first row of an id never goes, so what is still there is found again.
    """
    paths = part_files(folder)
    ids = [pq.read_table(path, columns=["image_id"])["image_id"] for path in paths]
    codes = pa.chunked_array([chunk for part in ids for chunk in part.chunks], pa.string()).combine_chunks()
    codes = codes.dictionary_encode().indices.to_numpy()  # in the order of their first rows
    before = np.maximum.accumulate(np.append(-1, codes))[:-1]
    duplicates = np.split(codes <= before, np.cumsum([len(part) for part in ids])[:-1])
    affected = [(path, rows) for path, rows in zip(paths, duplicates, strict=True) if rows.any()]
    file = folder / DUPLICATES
    if affected and not file.is_file():
        write_parquet(file, pa.concat_tables(_duplicate_rejects(path, rows) for path, rows in affected))
    for path, rows in affected:
        write_parquet(path, pq.read_table(path).filter(pa.array(~rows)))


def _duplicate_rejects(path: Path, duplicates: np.ndarray) -> pa.Table:
    rows = pq.read_table(path).filter(pa.array(duplicates))
    reasons = [f"id: {image_id} came before, wanted every id once" for image_id in rows["image_id"].to_pylist()]
    records = [stored_line(json.dumps(row, ensure_ascii=False)) for row in rows.to_pylist()]
    return pa.table([rows["image_id"], pa.array(reasons, pa.string()), pa.array(records, pa.string())], schema=REJECTS)
