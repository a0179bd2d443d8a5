"""Reads the metadata of a booru dump, in parts, as columns.

Two forms of a record, and any mixture of them: with `tags`, a list of {name, category} (Danbooru2019, all values strings),
or with `tag_string_general`, `tag_string_character`, ... (newer dumps, the API). As JSON lines, plain or compressed; the
newer form as Parquet and CSV too.

A block of lines is read by pyarrow at once, lines that it does not take by Python one by one: the same `RECORDS` either
way, so that how a dump is cut into blocks shows nowhere.
"""

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from .annotations import (
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_ID,
    MAX_REJECTED_RECORD,
    PLAIN_NAME,
    SURROGATE,
    Reject,
    reject,
    shown,
)
from .stage import Part

# The kinds of tags that are told apart, by their number in the older form; tags of other numbers are passed over.
CATEGORIES = {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta"}
TAGS = pa.list_(pa.dictionary(pa.int32(), pa.string()))
# A row per record that can be read: which line of the part it was, and the line itself (null: it was no JSON).
RECORDS = pa.schema(
    [("number", pa.int64()), ("image_id", pa.string()), ("rating", pa.string()), ("line", pa.string())]
    + [(kind, TAGS) for kind in CATEGORIES.values()]
)

READ_BYTES = 16 << 20  # of a file at once
SCAN_BYTES = 1 << 17
MAX_LINE = 32 << 20  # bytes; longer lines are not read
SLOW_LINES = 256  # a piece of a block that pyarrow does not take is halved down to this many lines
PARQUET_ROWS = 20_000  # at once

SPACE = b" \t\r"  # what JSON takes for space, in a line
# In a name: control characters, and surrogates; nothing but spaces is no name. The same twice, for re and for RE2.
BAD_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
BAD_RATING = r"[\x00-\x1f\x7f-\x{9f}]"
BAD_NAME = r"[\x00-\x1f\x7f-\x{9f}]|^[ \x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]*\z"
TEXT = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.null())
LONG_NUMBER = re.compile(f"[0-9]{{{MAX_DIGITS}}}")
GOOD_ID = f"^{PLAIN_NAME.pattern}\\z"

MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst", b"PAR1": "parquet"}
PLAIN = ("", ".json", ".jsonl", ".ndjson", ".txt")
FORMS = "JSON lines (plain, .gz, .bz2, .xz, .zst), .csv or .parquet"


@dataclass(frozen=True)
class Piece:
    """What a part reads: of a plain file the lines that start in bytes [begin, end), of Parquet that row group."""

    path: str
    kind: str  # "plain", "csv", "parquet" or the compression
    begin: int = 0
    end: int | None = None


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
            yield from _number(map(_read_table, _parquet_tables(piece)))
        elif piece.kind == "csv":
            bad_rows = []
            yield from _number(map(_read_table, _csv_tables(piece, bad_rows)), bad_rows)
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
    """The lines that start in bytes [begin, end), some MB of whole lines at a time; of too long a line its beginning."""
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


@dataclass(frozen=True)
class Lines:
    """Lines in a buffer: line i is buffer[starts[i]:ends[i]], with one newline between it and the next, and numbers[i]."""

    buffer: bytes
    starts: np.ndarray
    ends: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, part: slice) -> "Lines":
        return replace(self, starts=self.starts[part], ends=self.ends[part], numbers=self.numbers[part])

    def take(self, rows: np.ndarray) -> list[tuple[int, bytes]]:
        """(number, line) of some of them."""
        spans = zip(self.numbers[rows].tolist(), self.starts[rows].tolist(), self.ends[rows].tolist(), strict=True)
        return [(number, self.buffer[start:end]) for number, start, end in spans]

    def text(self) -> pa.Array:
        """The lines as strings, newlines included, the buffer not copied; ArrowInvalid where it is not UTF-8."""
        offsets = np.append(self.starts, self.ends[-1]).astype(np.int32)
        text = pa.StringArray.from_buffers(len(self), pa.py_buffer(offsets), pa.py_buffer(self.buffer))
        text.validate(full=True)
        return text


class _Unreadable(Exception):
    """Why there is no record in a line, and what there is."""

    def __init__(self, entry: object, reason: Reject):
        self.entry, self.reason = entry, reason


def _read_block(block: bytes) -> tuple[pa.Table, list[tuple[int, dict]]]:
    """What `read_part` yields, of whole lines."""
    lines, odd = _split(block)
    tables, slow = _read_fast(lines)
    records, rejects = [], []
    for number, line in sorted(odd + slow):
        try:
            records.append(_read_line(number, line))
        except _Unreadable as error:
            rejects.append((number, reject(error.entry, error.reason)))
    return pa.concat_tables([*tables, *_tables_of(records)] or [RECORDS.empty_table()]), rejects


def _split(block: bytes) -> tuple[Lines, list[tuple[int, bytes]]]:
    """(the lines that look like an object, the others), numbered together, without the blank ones."""
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    characters = np.frombuffer(block, np.uint8)
    newlines = _places(characters, ord("\n"))
    starts, ends = np.append(0, newlines + 1), np.append(newlines, len(block))
    if starts[-1] == len(block):
        starts, ends = starts[:-1], ends[:-1]
    plain = (starts < ends) & (characters[starts] == ord("{")) & (characters[ends - 1] == ord("}"))
    plain[np.searchsorted(starts, _pitfalls(characters), side="right") - 1] = False
    if plain.all():
        return Lines(block, starts, ends, np.arange(len(starts))), []
    good, odd, number = [], [], 0
    for start, end, is_plain in zip(starts.tolist(), ends.tolist(), plain.tolist(), strict=True):
        line = block[start:end]
        line = line if is_plain or len(line) > MAX_LINE else line.strip(SPACE)
        if line:
            (good if is_plain else odd).append((number, line))
            number += 1
    lengths = np.array([len(line) for _, line in good], np.int64)
    ends = np.cumsum(lengths + 1) - 1
    numbers = np.array([number for number, _ in good], np.int64)
    return Lines(b"\n".join(line for _, line in good), ends - lengths, ends, numbers), odd


def _pitfalls(characters: np.ndarray) -> np.ndarray:
    """Where what pyarrow takes otherwise than Python may stand: NUL, which ends its reading; NaN, Inf, Infinity."""
    found = [np.flatnonzero(characters == 0)] if not characters.min(initial=1) else []
    for word in (b"NaN", b"Inf"):
        places = _places(characters[: -len(word) + 1], word[0])
        for offset, letter in enumerate(word[1:], start=1):
            places = places[characters[places + offset] == letter]
        found.append(places)
    return np.concatenate(found)


def _places(characters: np.ndarray, letter: int) -> np.ndarray:
    """Where `letter` stands; piece by piece, as large as caches are."""
    pieces = range(0, len(characters), SCAN_BYTES)
    return np.concatenate(
        [np.flatnonzero(characters[i : i + SCAN_BYTES] == letter) + i for i in pieces] or [np.zeros(0, np.int64)]
    )


def _read_fast(lines: Lines) -> tuple[list[pa.Table], list[tuple[int, bytes]]]:
    """(tables, what is left for `_read_line`). A line that spoils a block costs its neighbours the fast way, no more."""
    if not len(lines):
        return [], []
    read = _read_json(lines, _schema_of(lines.buffer[lines.starts[0] : lines.ends[0]]))
    few = len(lines) <= SLOW_LINES
    if read is not None and (few or 4 * read[1].sum() <= len(lines)):  # else: another form begins in the block
        table, irregular = read
        return [table], lines.take(np.flatnonzero(irregular))
    if few:
        return [], lines.take(np.arange(len(lines)))
    (first, slow), (second, slow_too) = _read_fast(lines[: len(lines) // 2]), _read_fast(lines[len(lines) // 2 :])
    return first + second, slow + slow_too


def _schema(newer: bool, id_type: pa.DataType, category_type: pa.DataType | None = None) -> pa.Schema:
    """What pyarrow is to find in a record; all else it passes over."""
    tag = pa.struct([("name", pa.string()), ("category", category_type or pa.string())])
    kinds = CATEGORIES.values() if newer else ["general"]
    fields = [("id", id_type), ("rating", pa.string())] + [(f"tag_string_{kind}", pa.string()) for kind in kinds]
    return pa.schema(fields if newer else fields + [("tags", pa.list_(tag))])


SCHEMAS = [_schema(True, id_type) for id_type in (pa.string(), pa.int64())]
SCHEMAS += [_schema(False, *types) for types in itertools.product((pa.string(), pa.int64()), repeat=2)]


def _schema_of(line: bytes) -> pa.Schema:
    """The one that `line` is likely to be read by."""
    try:
        entry = _loads(line.decode()) if _depth(line) <= MAX_DEPTH else None
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        return _schema(False, pa.string())
    id_type = pa.int64() if isinstance(entry.get("id"), int) else pa.string()
    if entry.get("tag_string_general") is not None:
        return _schema(True, id_type)
    tags = entry.get("tags")
    number = isinstance(tags, list) and tags and isinstance(tags[0], dict) and isinstance(tags[0].get("category"), int)
    return _schema(False, id_type, pa.int64() if number else pa.string())


def _read_json(lines: Lines, schema: pa.Schema) -> tuple[pa.Table, np.ndarray] | None:
    """What `_read_columns` returns of the lines, or None where they are not an object each, or not of the schema."""
    begin, end = int(lines.starts[0]), int(lines.ends[-1])
    if (lines.ends - lines.starts).max() > MAX_LINE:
        return None
    try:
        text = lines.text()
        table = pa.json.read_json(
            pa.BufferReader(pa.py_buffer(lines.buffer).slice(begin, end - begin)),
            read_options=pa.json.ReadOptions(use_threads=False, block_size=end - begin + 1),
            parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        # No object ends where another line begins but at the top: so many objects as lines are one in each.
        return _read_columns(table, lines.numbers, text) if len(table) == len(lines) else None
    except pa.ArrowException:
        return None


def _read_columns(table: pa.Table, numbers: np.ndarray, text: pa.Array) -> tuple[pa.Table, np.ndarray]:
    """`RECORDS` of the regular rows, and which rows are irregular (bool per row): those are for `_read_entry` to judge.

    Args:
        table: of one of `SCHEMAS`.
        numbers, text: of its rows, as in RECORDS.
    """
    ids, rating = _one(table["id"]).cast(pa.string()), _one(table["rating"])
    irregular = ~_true(pc.and_(pc.match_substring_regex(ids, GOOD_ID), pc.less_equal(pc.binary_length(ids), MAX_ID)))
    irregular |= _true(pc.match_substring_regex(rating, BAD_RATING))
    general = _one(table["tag_string_general"])
    if "tags" in table.column_names:
        kinds, bad = _tags_of_lists(_one(table["tags"]))
        irregular |= bad | _true(pc.is_valid(general))
    else:
        irregular |= _true(pc.is_null(general))
        kinds = {}
        for kind in CATEGORIES.values():
            kinds[kind], bad = _tags_of_strings(_one(table[f"tag_string_{kind}"]))
            irregular |= bad
    columns = {"number": pa.array(numbers), "image_id": ids, "rating": rating, "line": text, **kinds}
    records = pa.table([columns[name] for name in RECORDS.names], schema=RECORDS)
    return (records.filter(pa.array(~irregular)) if irregular.any() else records), irregular


def _tags_of_lists(tags: pa.ListArray) -> tuple[dict[str, pa.Array], np.ndarray]:
    """({kind: `TAGS`}, bool per row: not of the form) of lists of {name, category}."""
    offsets, entries = tags.offsets.to_numpy(), tags.values
    name, category = entries.field("name"), entries.field("category")
    names = name.dictionary_encode()
    codes = _filled(names.indices)
    bad = _bad_names(names.dictionary)[codes] if len(names.dictionary) else np.zeros(len(codes), bool)
    for field in (entries, name, category):
        if field.null_count:
            bad |= _true(field.is_null())
    kind_of = _filled(pc.index_in(category.cast(pa.string()), pa.array(list(CATEGORIES))), -1)
    kinds = {}
    for number, kind in enumerate(CATEGORIES.values()):
        places = np.flatnonzero(kind_of == number)
        kinds[kind] = _lists(np.searchsorted(places, offsets), codes[places], names.dictionary)
    return kinds, _true(tags.is_null()) | _any(bad, offsets)


def _tags_of_strings(strings: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """(`TAGS`, bool per row: with a bad name) of names with spaces between them; null is none."""
    lists = pc.split_pattern(strings.fill_null(""), " ")
    names = lists.values.dictionary_encode()
    codes, offsets = _filled(names.indices), lists.offsets.to_numpy()
    places = np.flatnonzero(~_true(pc.equal(names.dictionary, ""))[codes])
    bad = _bad_names(names.dictionary)[codes[places]]
    offsets = np.searchsorted(places, offsets)
    return _lists(offsets, codes[places], names.dictionary), _any(bad, offsets)


def _lists(offsets: np.ndarray, codes: np.ndarray, dictionary: pa.Array) -> pa.Array:
    values = pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), dictionary)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def _any(flags: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Whether there is a flag in flags[offsets[i]:offsets[i + 1]], for each i."""
    found = np.zeros(len(offsets) - 1, bool)
    found[np.searchsorted(offsets, np.flatnonzero(flags), side="right") - 1] = True
    return found


def _bad_names(names: pa.Array) -> np.ndarray:
    return _true(pc.match_substring_regex(names, BAD_NAME))


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _true(flags: pa.Array) -> np.ndarray:
    """bool per value, null is False."""
    return flags.fill_null(False).to_numpy(zero_copy_only=False)


def _filled(numbers: pa.Array, value: int = 0) -> np.ndarray:
    return (numbers.fill_null(value) if numbers.null_count else numbers).to_numpy()


def _read_line(number: int, line: bytes) -> dict:
    """A row of `RECORDS`, tags as lists of strings; raises `_Unreadable`."""
    if len(line) > MAX_LINE:
        raise _Unreadable(line[:MAX_LINE].decode(errors="replace"), Reject(f"line: longer than {MAX_LINE} bytes"))
    try:
        text = line.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise _Unreadable(line.decode(errors="backslashreplace"), Reject("line: not UTF-8, wanted JSON")) from None
    if _depth(line) > MAX_DEPTH:
        return _read_deep(number, text)
    try:
        entry = _loads(text)
    except ValueError as error:
        raise _Unreadable(text, Reject(f"line: got no JSON, wanted an object ({error})")) from None
    try:
        return {"number": number, "line": _strict_line(text), **_read_entry(entry)}
    except Reject as reason:
        raise _Unreadable(entry, reason) from None


def stored_line(text: str) -> str:
    """A line of RECORDS as the rejects keep it: JSON that every reader takes, long, deep or wild lines as strings."""
    if len(text) > MAX_REJECTED_RECORD or _depth(text.encode()) > MAX_DEPTH or LONG_NUMBER.search(text):
        return json.dumps(text[:MAX_REJECTED_RECORD])
    return text


def _strict_line(text: str) -> str:
    """JSON as it is, if every reader takes it; surrogates become their escapes, NaN and infinities strings."""
    constants = []
    entry = _loads(text, parse_constant=lambda name: constants.append(name) or name)
    dumped = json.dumps(entry, ensure_ascii=False)
    if not constants and not SURROGATE.search(dumped):
        return text
    escaped = SURROGATE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", dumped)
    return json.dumps(json.loads(escaped, parse_constant=str), ensure_ascii=False)


def _read_deep(number: int, text: str) -> dict:
    """The same for a line that Python cannot be trusted with: pyarrow passes over the fields that are not needed."""
    lines, _ = _split(text.encode())
    for schema in SCHEMAS if len(lines) else ():
        read = _read_json(replace(lines, numbers=np.array([number])), schema)
        if read is not None and len(read[0]):
            return read[0].to_pylist()[0]
    raise _Unreadable(text, Reject(f"line: nested too deeply, wanted at most {MAX_DEPTH} levels"))


def _loads(text: str, **options) -> object:
    return json.loads(text, parse_int=_parse_int, **options)


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


def _depth(line: bytes) -> int:
    """How many brackets stand in each other, at most; strings do not count."""
    if line.count(b"[") + line.count(b"{") <= MAX_DEPTH:
        return 0
    characters = np.frombuffer(line.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    outside = np.cumsum(characters == ord('"')) % 2 == 0
    brackets = characters | 0x20  # [ is { without that bit, and ] is }
    steps = (brackets == ord("{")).astype(np.int32) - (brackets == ord("}"))
    return int(np.cumsum(steps * outside).max(initial=0))


def _read_entry(entry: object) -> dict:
    """image_id, rating and the kinds of tags, as lists, of what JSON or a row holds; raises Reject."""
    if not isinstance(entry, dict):
        raise Reject(f"line: got a {type(entry).__name__}, wanted an object")
    image_id = entry.get("id")
    image_id = str(image_id) if isinstance(image_id, int) and not isinstance(image_id, bool) else image_id
    if not isinstance(image_id, str) or not PLAIN_NAME.fullmatch(image_id) or len(image_id) > MAX_ID:
        raise Reject(f"id: got {shown(entry.get('id'))}, wanted a plain name of at most {MAX_ID} characters")
    if entry.get("tag_string_general") is not None:
        kinds = {kind: _names(f"tag_string_{kind}", entry.get(f"tag_string_{kind}")) for kind in CATEGORIES.values()}
    else:
        kinds = _kinds(entry.get("tags"))
    rating = entry.get("rating")
    if rating is not None and (not isinstance(rating, str) or BAD_CHARACTER.search(rating)):
        raise Reject(f"rating: got {shown(rating)}, wanted a string")
    return {"image_id": image_id, "rating": rating, **kinds}


def _names(key: str, value: object) -> list[str]:
    if value is not None and not isinstance(value, str):
        raise Reject(f"tags: got {shown(value)} as {key}, wanted names with spaces between them")
    return [_name(name) for name in (value or "").split(" ") if name]


def _name(name: str) -> str:
    if BAD_CHARACTER.search(name) or not name.strip():
        raise Reject(f"tags: got {shown(name)}, wanted a name without control characters")
    return name


def _kinds(tags: object) -> dict[str, list[str]]:
    if not isinstance(tags, list):
        raise Reject(f"tags: got {shown(tags)}, wanted a list, or tag_string_general")
    kinds = {kind: [] for kind in CATEGORIES.values()}
    for tag in tags:
        name, category = (tag.get("name"), tag.get("category")) if isinstance(tag, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(category, str | int) or isinstance(category, bool):
            raise Reject(f"tags: got {shown(tag)}, wanted a name and a category")
        _name(name)
        if kind := CATEGORIES.get(str(category)):
            kinds[kind].append(name)
    return kinds


def _tables_of(records: list[dict]) -> list[pa.Table]:
    """[`RECORDS`] of rows whose tags are lists of strings; [] of none."""
    if not records:
        return []
    plain = pa.schema([field if field.type != TAGS else (field.name, pa.list_(pa.string())) for field in RECORDS])
    table = pa.Table.from_pylist(records, schema=plain)
    columns = [_encoded(_one(column)) if pa.types.is_list(column.type) else column for column in table.columns]
    return [pa.table(columns, schema=RECORDS)]


def _encoded(lists: pa.ListArray) -> pa.Array:
    return pa.ListArray.from_arrays(lists.offsets, lists.values.dictionary_encode())


def _parquet_tables(piece: Piece) -> Iterator[pa.Table]:
    with pq.ParquetFile(piece.path) as file:
        _check_columns(piece.path, file.schema_arrow.names)
        columns = [name for name in SCHEMAS[0].names if name in file.schema_arrow.names]
        groups = list(range(piece.begin, piece.end))
        for batch in file.iter_batches(PARQUET_ROWS, row_groups=groups, columns=columns, use_threads=False):
            yield pa.Table.from_batches([batch])


def _csv_tables(piece: Piece, bad_rows: list[dict]) -> Iterator[pa.Table]:
    """Columns of bytes: what is not UTF-8 is that row's matter. Rows with other columns join the rejects `bad_rows`."""

    def pass_over(row: pa.csv.InvalidRow) -> str:
        reason = f"line: got {row.actual_columns} columns, wanted {row.expected_columns}"
        bad_rows.append(reject(row.text, Reject(reason)))
        return "skip"

    with open(piece.path, encoding="utf-8-sig", errors="replace", newline="") as file:
        names = next(csv.reader(file), [])
    _check_columns(piece.path, names)
    columns = [name for name in SCHEMAS[0].names if name in names]
    with pa.csv.open_csv(
        piece.path,
        read_options=pa.csv.ReadOptions(use_threads=False, block_size=READ_BYTES),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=pass_over),
        convert_options=pa.csv.ConvertOptions(
            include_columns=columns,
            column_types={name: pa.binary() for name in columns},
            strings_can_be_null=True,
            null_values=[""],
        ),
    ) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _check_columns(path: str, names: Sequence[str]) -> None:
    if "id" not in names or "tag_string_general" not in names:
        raise ValueError(
            f"metadata: {path} has the columns {', '.join(names)}; wanted id, rating, tag_string_general, "
            "tag_string_character, tag_string_artist, tag_string_copyright"
        )


def _read_table(table: pa.Table) -> tuple[pa.Table, list[tuple[int, dict]]]:
    """What `read_part` yields, of rows of the newer form."""
    try:
        columns = {name: _as_text(table[name], name) for name in table.column_names}
        columns = [columns.get(field.name, pa.nulls(len(table), field.type)) for field in SCHEMAS[0]]
        nothing = pa.nulls(len(table), pa.string())
        strings = pa.table(columns, schema=SCHEMAS[0])
        fast, irregular = _read_columns(strings, np.arange(len(table)), nothing)
        tables = [fast]
    except pa.ArrowException:
        tables, irregular = [], np.ones(len(table), bool)
    records, rejects = [], []
    for number in np.flatnonzero(irregular).tolist():
        entry = {name: _decoded(value) for name, value in table.slice(number, 1).to_pylist()[0].items()}
        try:
            records.append({"number": number, "line": None, **_read_entry(entry)})
        except Reject as reason:
            rejects.append((number, reject(_jsonable(entry), reason)))
    return pa.concat_tables([*tables, *_tables_of(records)] or [RECORDS.empty_table()]), rejects


def _as_text(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Strings; raises ArrowTypeError for a column of what JSON would not be taken for one either."""
    is_number = pa.types.is_integer(column.type) and name == "id"
    if not (is_number or column.type in TEXT or pa.types.is_dictionary(column.type)):
        raise pa.ArrowTypeError(f"{name}: {column.type}")
    return column.cast(pa.string())


def _decoded(value: object) -> object:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def _jsonable(entry: dict) -> dict:
    return {name: value if isinstance(value, str | int | float | None) else str(value) for name, value in entry.items()}
