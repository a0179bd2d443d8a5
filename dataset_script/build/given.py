"""Labels that somebody made elsewhere: a value per image id, read from a JSON, JSON Lines, CSV or Parquet file."""

import csv
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

GIVEN_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
IDS = ("image_id", "id")  # of these columns the first that is there


@dataclass(frozen=True)
class Given:
    """What a file gives: a value per image id.

    Args:
        ids: strings, each once.
        values: as long; JSON texts where `as_json`.
    """

    ids: pa.Array
    values: pa.Array
    as_json: bool

    def of(self, image_ids: Sequence[str]) -> dict[str, object]:
        """{image_id: value} of those of `image_ids` that the file has."""
        found = [image_id for image_id in image_ids if image_id in self._positions]
        values = self.values.take(pa.array([self._positions[image_id] for image_id in found], pa.int64())).to_pylist()
        return dict(zip(found, map(json.loads, values) if self.as_json else values))

    @functools.cached_property
    def _positions(self) -> dict[str, int]:
        return {image_id: position for position, image_id in enumerate(self.ids.to_pylist())}

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_positions"}


def read_given(path: str | Path, argument: str, column: str, value_of: Callable[[dict], object]) -> Given:
    """Reads the file; its suffix says what it is.

    Args:
        argument: the name of the user's argument, for errors.
        column: of a Parquet file, its values.
        value_of: of a record of the other formats, its value; raises KeyError for one that has none.

    Raises:
        FileNotFoundError, ValueError: no such file, not what its suffix says, a record without id or value, an id
            twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: got {path}, which is not a file; wanted {', '.join(GIVEN_SUFFIXES)}")
    suffix = path.suffix.lower()
    if suffix not in GIVEN_SUFFIXES:
        raise ValueError(f"{argument}: got {path}, wanted {', '.join(GIVEN_SUFFIXES)}")
    try:
        given = _read_parquet(path, column) if suffix == ".parquet" else _read_records(_records(path), value_of)
    except (ValueError, csv.Error, RecursionError, pa.ArrowException) as error:
        raise ValueError(f"{argument}: {path} cannot be used: {error}") from None
    if len(given._positions) != len(given.ids):
        ids = given.ids.to_pylist()
        twice = next(image_id for position, image_id in enumerate(ids) if given._positions[image_id] != position)
        raise ValueError(f"{argument}: {path} has {twice} twice, wanted every id once")
    return given


def file_stamp(path: str | Path) -> list:
    """What tells whether a file or folder is still the same: its path, size and time of change."""
    path = Path(path).resolve()
    state = path.stat()
    return [str(path), state.st_size, state.st_mtime_ns]


def _read_parquet(path: Path, column: str) -> Given:
    names = pq.read_schema(path).names
    ids = next((name for name in IDS if name in names), None)
    if ids is None or column not in names:
        raise ValueError(f"its columns are {', '.join(names)}; wanted image_id and {column}")
    table = pq.read_table(path, columns=[ids, column]).combine_chunks()
    if table[ids].null_count:
        raise ValueError("a row has no id")
    return Given(_one(table[ids].cast(pa.string())), _one(table[column]), as_json=False)


def _one(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)


def _read_records(records: Iterable[tuple[str, object]], value_of: Callable[[dict], object]) -> Given:
    ids, values = [], []
    for place, record in records:
        if not isinstance(record, dict):
            raise ValueError(f"{place} holds a {type(record).__name__}, wanted an object")
        image_id = next((record[name] for name in IDS if name in record), None)
        if isinstance(image_id, bool) or not isinstance(image_id, str | int):
            raise ValueError(f"{place} has no id, wanted image_id or id")
        try:
            values.append(json.dumps(value_of(record)))
        except KeyError as name:
            raise ValueError(f"{place} has no {name.args[0]}") from None
        ids.append(str(image_id))
    return Given(pa.array(ids, pa.string()), pa.array(values, pa.string()), as_json=True)


def _records(path: Path) -> Iterator[tuple[str, object]]:
    """(where it stands, record)."""
    with open(path, encoding="utf-8-sig", newline="" if path.suffix.lower() == ".csv" else None) as file:
        if path.suffix.lower() == ".json":
            entries = json.load(file)
            if not isinstance(entries, list):
                raise ValueError(f"it holds a {type(entries).__name__}, wanted a list of records")
            for number, entry in enumerate(entries, 1):
                yield f"record {number}", entry
        elif path.suffix.lower() == ".csv":
            for number, row in enumerate(csv.DictReader(file), 1):
                yield f"row {number}", {name: value for name, value in row.items() if value is not None}
        else:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield f"line {number}", json.loads(line)
                    except ValueError as error:
                        raise ValueError(f"line {number} is not JSON: {error}") from None
