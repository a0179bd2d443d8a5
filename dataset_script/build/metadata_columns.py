"""JSON lines of a dump as columns, by pyarrow, a block at once; `metadata_lines` reads what it does not take."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from .annotations import MAX_DEPTH, MAX_ID
from .metadata_records import (
    BAD_NAME,
    BAD_RATING,
    CATEGORIES,
    GOOD_ID,
    MAX_LINE,
    RECORDS,
    SCAN_BYTES,
    SPACE,
    depth_of,
    loads,
)


@dataclass(frozen=True)
class Lines:
    """Lines in a buffer: line i is buffer[starts[i]:ends[i]], one newline before the next, and numbers[i]."""

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


def split_lines(block: bytes) -> tuple[Lines, list[tuple[int, bytes]]]:
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


def _schema(newer: bool, id_type: pa.DataType, category_type: pa.DataType | None = None) -> pa.Schema:
    """What pyarrow is to find in a record; all else it passes over."""
    tag = pa.struct([("name", pa.string()), ("category", category_type or pa.string())])
    kinds = CATEGORIES.values() if newer else ["general"]
    fields = [("id", id_type), ("rating", pa.string())] + [(f"tag_string_{kind}", pa.string()) for kind in kinds]
    return pa.schema(fields if newer else fields + [("tags", pa.list_(tag))])


SCHEMAS = [_schema(True, id_type) for id_type in (pa.string(), pa.int64())]
SCHEMAS += [_schema(False, *types) for types in itertools.product((pa.string(), pa.int64()), repeat=2)]


def schema_of(line: bytes) -> pa.Schema:
    """The one that `line` is likely to be read by."""
    try:
        entry = loads(line.decode()) if depth_of(line) <= MAX_DEPTH else None
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


def read_json(lines: Lines, schema: pa.Schema) -> tuple[pa.Table, np.ndarray] | None:
    """What `read_columns` returns of the lines, or None where they are not an object each, or not of the schema."""
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
        return read_columns(table, lines.numbers, text) if len(table) == len(lines) else None
    except pa.ArrowException:
        return None


def read_columns(table: pa.Table, numbers: np.ndarray, text: pa.Array) -> tuple[pa.Table, np.ndarray]:
    """`RECORDS` of the regular rows, and which rows are irregular (bool per row): those are for `read_entry` to judge.

    Args:
        table: of one of `SCHEMAS`.
        numbers, text: of its rows, as in RECORDS.
    """
    ids, rating = one(table["id"]).cast(pa.string()), one(table["rating"])
    irregular = ~_true(pc.and_(pc.match_substring_regex(ids, GOOD_ID), pc.less_equal(pc.binary_length(ids), MAX_ID)))
    irregular |= _true(pc.match_substring_regex(rating, BAD_RATING))
    general = one(table["tag_string_general"])
    if "tags" in table.column_names:
        kinds, bad = _tags_of_lists(one(table["tags"]))
        irregular |= bad | _true(pc.is_valid(general))
    else:
        irregular |= _true(pc.is_null(general))
        kinds = {}
        for kind in CATEGORIES.values():
            kinds[kind], bad = _tags_of_strings(one(table[f"tag_string_{kind}"]))
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


def one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _true(flags: pa.Array) -> np.ndarray:
    """bool per value, null is False."""
    return flags.fill_null(False).to_numpy(zero_copy_only=False)


def _filled(numbers: pa.Array, value: int = 0) -> np.ndarray:
    return (numbers.fill_null(value) if numbers.null_count else numbers).to_numpy()
