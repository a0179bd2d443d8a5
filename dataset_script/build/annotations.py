"""Reads the annotations in the form that the paper's authors show: `retribooru.json`."""

import json
import re
import reprlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

# An id becomes a file name: nothing that could leave the folder, and no longer than a file system takes with a suffix.
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MAX_ID = 200

# A record whose JSON has more characters stands in the rejects file with its first ones, as a string.
MAX_REJECTED_RECORD = 20_000

# Lists and objects in each other, in a field. Python's own limit for JSON depends on where it is called.
MAX_DEPTH = 100

# Longer whole numbers are read as floats: the longest of these fits one, while int() refuses some thousand digits.
MAX_DIGITS = 300

SURROGATE = re.compile("[\ud800-\udfff]")


class Reject(ValueError):
    """Why a record cannot be used."""


def read_annotations(path: Path) -> tuple[list[dict], list[dict]]:
    """Reads a JSON list of `id, character, artists, cloths[], prompts, bbox, similar[]`.

    Returns:
        (records, rejects). A record has the columns of the figures table that need no pixels, `bbox` still as it came
        (normalised centre x, centre y, width, height, or None); a reject is as `reject` makes it.
    """
    try:
        entries = _parse(Path(path).read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"annotations: got {path}, which is not there; wanted a JSON file") from None
    except RecursionError:
        raise ValueError(f"annotations: {path} is nested too deeply, wanted a list of flat records") from None
    except ValueError as error:
        raise ValueError(f"annotations: {path} is not JSON: {error}") from None
    if not isinstance(entries, list):
        raise ValueError(f"annotations: {path} holds a {type(entries).__name__}, wanted a list of records")
    records, rejects, seen = [], [], set()
    for entry in entries:
        try:
            record = _read_record(entry)
            if record["image_id"] in seen:
                raise Reject(f"id: {record['image_id']} came before, wanted every id once")
            seen.add(record["image_id"])
            records.append(record)
        except Reject as reason:
            rejects.append(reject(entry, reason))
    return records, rejects


def reject(entry: object, reason: Exception) -> dict:
    """A line of the rejects file: image_id, reason and record, whatever that held.

    Strict JSON and UTF-8: surrogates become their escapes, NaN and infinities strings. A record that is too long is cut
    (`MAX_REJECTED_RECORD`), one that is nested too deeply (`MAX_DEPTH`) is abridged; both are then strings.
    """
    image_id = entry.get("id", entry.get("image_id")) if isinstance(entry, dict) else None
    if image_id is not None and not (isinstance(image_id, str) and len(image_id) <= MAX_ID):
        image_id = shown(image_id)
    if _depth(entry) > MAX_DEPTH:
        entry = shown(entry)
    elif len(text := json.dumps(entry, ensure_ascii=False)) > MAX_REJECTED_RECORD:
        entry = text[:MAX_REJECTED_RECORD]
    return _strict({"image_id": image_id, "reason": " ".join(str(reason).split()), "record": entry})


def count_reasons(rejects: Iterable[dict]) -> Counter:
    """How many of what `reject` returns there are for each field at fault: what stands before the reason's colon."""
    return Counter(line["reason"].split(":")[0] for line in rejects)


def shown(value: object) -> str:
    """`value` as a reason names it: on one line, abridged where it is long or deep."""
    return _ABRIDGED.repr(value)


_ABRIDGED = reprlib.Repr()
_ABRIDGED.maxstring = _ABRIDGED.maxother = 100


def name_outfits(records: list[dict]) -> int:
    """Fills in `outfit`: images that `similar` links, of one character and artist, wear the same.

    The name is the clothes that all of them share, or the first image's; where two outfits of a character and artist
    would bear one name, the smallest image id is added.

    Returns how many links could not be followed: to an image that is not here, or of another character or artist.
    """
    by_id = {record["image_id"]: record for record in records}
    group = {image_id: image_id for image_id in by_id}

    def root(image_id):
        while group[image_id] != image_id:
            group[image_id] = group[group[image_id]]
            image_id = group[image_id]
        return image_id

    loose = 0
    for record in records:
        for other_id in record["similar"]:
            other = by_id.get(other_id)
            if not other or (other["character"], other["artist"]) != (record["character"], record["artist"]):
                loose += 1
            else:
                first, second = sorted((root(record["image_id"]), root(other_id)))
                group[second] = first  # the root of a group is its smallest id

    outfits = defaultdict(list)
    for record in records:
        outfits[root(record["image_id"])].append(record)
    names = {first_id: _clothes_of(members) for first_id, members in outfits.items()}
    same_name = defaultdict(list)
    for first_id, members in outfits.items():
        same_name[members[0]["character"], members[0]["artist"], names[first_id]].append(first_id)
    for (_, _, name), first_ids in same_name.items():
        for first_id in first_ids:
            for record in outfits[first_id]:
                record["outfit"] = name if len(first_ids) == 1 else f"{name} ({first_id})"
    return loose


def _clothes_of(records: list[dict]) -> str:
    shared = set.intersection(*(set(record["cloths"]) for record in records))
    first = min(records, key=lambda record: record["image_id"])["cloths"]
    return ", ".join(cloth for cloth in first if cloth in shared) or ", ".join(first) or "outfit"


def _parse(data: bytes) -> object:
    """JSON, with what is not UTF-8 as surrogates: one bad tag does not sink the file."""
    text = data.decode("utf-8-sig", errors="surrogateescape")
    return json.loads(text, parse_int=_parse_int, strict=False)  # raw control characters: for `_read_record` to judge


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


def _read_record(entry: object) -> dict:
    if not isinstance(entry, dict):
        raise Reject(f"record: got {type(entry).__name__}, wanted an object")
    for key, value in entry.items():
        _check_field(key, value)
    for key in ("id", "character", "prompts"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise Reject(f"{key}: got {shown(entry.get(key))}, wanted a string")
    for key in ("artists", "cloths", "similar"):
        value = entry.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise Reject(f"{key}: got {shown(value)}, wanted a list of strings")
    for key in ("copyright", "outfit_answer", "rating"):
        if not isinstance(entry.get(key), str | None):
            raise Reject(f"{key}: got {shown(entry[key])}, wanted a string or null")
    if not PLAIN_NAME.fullmatch(entry["id"]):
        raise Reject(f"id: got {shown(entry['id'])}, wanted letters, digits, '.', '_' and '-' alone: it names a file")
    if len(entry["id"]) > MAX_ID:
        raise Reject(f"id: got {len(entry['id'])} characters, wanted at most {MAX_ID}: it names a file")
    if len(entry["artists"]) != 1:
        raise Reject(f"artists: got {len(entry['artists'])}, wanted exactly one")
    if not entry["artists"][0].strip():
        raise Reject(f"artists: got {shown(entry['artists'])}, wanted a name")
    for key, names in (("character", [entry["character"]]), ("artists", entry["artists"]), ("cloths", entry["cloths"])):
        for name in names:
            if any(unicodedata.category(character) == "Cc" for character in name):
                raise Reject(f"{key}: got {shown(name)}, wanted a name without control characters")
    tags = _filled(entry["prompts"].split(","))
    if not tags:
        raise Reject(f"prompts: got {shown(entry['prompts'])}, wanted at least one tag")
    return {
        "image_id": entry["id"],
        "character": entry["character"],
        "artist": entry["artists"][0],
        "copyright": entry.get("copyright"),
        "outfit": None,
        "outfit_answer": entry.get("outfit_answer"),
        "tags": tags,
        "prompt": entry["prompts"],
        "rating": entry.get("rating"),
        "bbox": entry.get("bbox"),
        "cloths": _filled(entry["cloths"]),
        "similar": entry["similar"],
    }


def _strict(value: object) -> object:
    """JSON that every reader takes: surrogates as their escapes, NaN and infinities as strings."""
    text = SURROGATE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
    return json.loads(text, parse_constant=str)


def _check_field(key: str, value: object) -> None:
    if _depth(value) > MAX_DEPTH:
        raise Reject(f"{key[:MAX_ID]}: nested too deeply, wanted at most {MAX_DEPTH} levels")
    try:
        json.dumps({key: value}, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Reject(f"{key[:MAX_ID]}: not UTF-8") from None


def _depth(value: object) -> int:
    """How many lists and objects stand in each other."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | dict)]:
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
        depth += 1
    return depth


def _filled(names: list[str]) -> list[str]:
    """The names stripped, without those of nothing but space."""
    return [name for name in (name.strip() for name in names) if name]
