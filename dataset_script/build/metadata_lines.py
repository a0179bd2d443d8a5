"""JSON lines of a dump one by one, by Python: the measure of what `metadata_columns` reads a block at once."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa

from .annotations import MAX_DEPTH, MAX_ID, MAX_REJECTED_RECORD, PLAIN_NAME, SURROGATE, Reject, shown
from .metadata_columns import SCHEMAS, one, read_json, split_lines
from .metadata_records import BAD_CHARACTER, CATEGORIES, LONG_NUMBER, MAX_LINE, RECORDS, TAGS, depth_of, loads


class Unreadable(Exception):
    """Why there is no record in a line, and what there is."""

    def __init__(self, entry: object, reason: Reject):
        self.entry, self.reason = entry, reason


def read_line(number: int, line: bytes) -> dict:
    """A row of `RECORDS`, tags as lists of strings; raises `Unreadable`."""
    if len(line) > MAX_LINE:
        raise Unreadable(line[:MAX_LINE].decode(errors="replace"), Reject(f"line: longer than {MAX_LINE} bytes"))
    try:
        text = line.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise Unreadable(line.decode(errors="backslashreplace"), Reject("line: not UTF-8, wanted JSON")) from None
    if depth_of(line) > MAX_DEPTH:
        return _read_deep(number, text)
    try:
        entry = loads(text)
    except ValueError as error:
        raise Unreadable(text, Reject(f"line: got no JSON, wanted an object ({error})")) from None
    try:
        return {"number": number, "line": _strict_line(text), **read_entry(entry)}
    except Reject as reason:
        raise Unreadable(entry, reason) from None


def stored_line(text: str) -> str:
    """A line of RECORDS as the rejects keep it: JSON that every reader takes, long, deep or wild lines as strings."""
    if len(text) > MAX_REJECTED_RECORD or depth_of(text.encode()) > MAX_DEPTH or LONG_NUMBER.search(text):
        return json.dumps(text[:MAX_REJECTED_RECORD])
    return text


def _strict_line(text: str) -> str:
    """JSON as it is, if every reader takes it; surrogates become their escapes, NaN and infinities strings."""
    constants = []
    entry = loads(text, parse_constant=lambda name: constants.append(name) or name)
    dumped = json.dumps(entry, ensure_ascii=False)
    if not constants and not SURROGATE.search(dumped):
        return text
    escaped = SURROGATE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", dumped)
    return json.dumps(json.loads(escaped, parse_constant=str), ensure_ascii=False)


def _read_deep(number: int, text: str) -> dict:
    """The same for a line that Python cannot be trusted with: pyarrow passes over the fields that are not needed."""
    lines, _ = split_lines(text.encode())
    for schema in SCHEMAS if len(lines) else ():
        read = read_json(replace(lines, numbers=np.array([number])), schema)
        if read is not None and len(read[0]):
            return read[0].to_pylist()[0]
    raise Unreadable(text, Reject(f"line: nested too deeply, wanted at most {MAX_DEPTH} levels"))


def read_entry(entry: object) -> dict:
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


def tables_of(records: list[dict]) -> list[pa.Table]:
    """[`RECORDS`] of rows whose tags are lists of strings; [] of none."""
    if not records:
        return []
    plain = pa.schema([field if field.type != TAGS else (field.name, pa.list_(pa.string())) for field in RECORDS])
    table = pa.Table.from_pylist(records, schema=plain)
    columns = [_encoded(one(column)) if pa.types.is_list(column.type) else column for column in table.columns]
    return [pa.table(columns, schema=RECORDS)]


def _encoded(lists: pa.ListArray) -> pa.Array:
    return pa.ListArray.from_arrays(lists.offsets, lists.values.dictionary_encode())
