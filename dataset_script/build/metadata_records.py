"""What the metadata of a dump is read into: `RECORDS`, and the pieces of its files."""

import json
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from .annotations import MAX_DEPTH, MAX_DIGITS, PLAIN_NAME

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


def loads(text: str, **options) -> object:
    return json.loads(text, parse_int=_parse_int, **options)


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


def depth_of(line: bytes) -> int:
    """How many brackets stand in each other, at most; strings do not count."""
    if line.count(b"[") + line.count(b"{") <= MAX_DEPTH:
        return 0
    characters = np.frombuffer(line.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    outside = np.cumsum(characters == ord('"')) % 2 == 0
    brackets = characters | 0x20  # [ is { without that bit, and ] is }
    steps = (brackets == ord("{")).astype(np.int32) - (brackets == ord("}"))
    return int(np.cumsum(steps * outside).max(initial=0))
