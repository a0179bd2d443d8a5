"""Reads the annotations in the form that the paper's authors show: `retribooru.json`."""

import json
import re
from collections import defaultdict
from pathlib import Path

# An id becomes a file name: nothing that could leave the folder.
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Reject(ValueError):
    """Why a record cannot be used."""


def read_annotations(path: Path) -> tuple[list[dict], list[dict]]:
    """Reads a JSON list of `id, character, artists, cloths[], prompts, bbox, similar[]`.

    Returns:
        (records, rejects). A record has the columns of the figures table that need no pixels, `bbox` still as it came
        (normalised centre x, centre y, width, height, or None); a reject has image_id, reason and the record.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"annotations: got {path}, which is not there; wanted a JSON file") from None
    except ValueError as error:  # not JSON, or not UTF-8
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
    """A line of the rejects file."""
    image_id = entry.get("id", entry.get("image_id")) if isinstance(entry, dict) else None
    return {"image_id": image_id, "reason": str(reason), "record": entry}


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


def _read_record(entry: object) -> dict:
    if not isinstance(entry, dict):
        raise Reject(f"record: got {type(entry).__name__}, wanted an object")
    for key, kind in (("id", str), ("character", str), ("prompts", str)):
        if not isinstance(entry.get(key), kind) or not entry[key].strip():
            raise Reject(f"{key}: got {entry.get(key)!r}, wanted a string")
    for key in ("artists", "cloths", "similar"):
        value = entry.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise Reject(f"{key}: got {value!r}, wanted a list of strings")
    if not PLAIN_NAME.fullmatch(entry["id"]):
        raise Reject(f"id: got {entry['id']!r}, wanted letters, digits, '.', '_' and '-' alone: it names a file")
    if len(entry["artists"]) != 1:
        raise Reject(f"artists: got {len(entry['artists'])}, wanted exactly one")
    return {
        "image_id": entry["id"],
        "character": entry["character"],
        "artist": entry["artists"][0],
        "copyright": entry.get("copyright"),
        "outfit": None,
        "outfit_answer": entry.get("outfit_answer"),
        "tags": [tag for tag in (part.strip() for part in entry["prompts"].split(",")) if tag],
        "prompt": entry["prompts"],
        "rating": entry.get("rating"),
        "bbox": entry.get("bbox"),
        "cloths": entry["cloths"],
        "similar": entry["similar"],
    }
