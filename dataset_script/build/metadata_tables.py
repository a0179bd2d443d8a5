"""The newer form of a dump as Parquet and CSV."""

import csv
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from .annotations import Reject, reject
from .metadata_columns import SCHEMAS, read_columns
from .metadata_lines import read_entry, tables_of
from .metadata_records import PARQUET_ROWS, READ_BYTES, RECORDS, TEXT, Piece


def parquet_tables(piece: Piece) -> Iterator[pa.Table]:
    with pq.ParquetFile(piece.path) as file:
        _check_columns(piece.path, file.schema_arrow.names)
        columns = [name for name in SCHEMAS[0].names if name in file.schema_arrow.names]
        groups = list(range(piece.begin, piece.end))
        for batch in file.iter_batches(PARQUET_ROWS, row_groups=groups, columns=columns, use_threads=False):
            yield pa.Table.from_batches([batch])


def csv_tables(piece: Piece, bad_rows: list[dict]) -> Iterator[pa.Table]:
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


def read_table(table: pa.Table) -> tuple[pa.Table, list[tuple[int, dict]]]:
    """What `read_part` yields, of rows of the newer form."""
    try:
        columns = {name: _as_text(table[name], name) for name in table.column_names}
        columns = [columns.get(field.name, pa.nulls(len(table), field.type)) for field in SCHEMAS[0]]
        nothing = pa.nulls(len(table), pa.string())
        strings = pa.table(columns, schema=SCHEMAS[0])
        fast, irregular = read_columns(strings, np.arange(len(table)), nothing)
        tables = [fast]
    except pa.ArrowException:
        tables, irregular = [], np.ones(len(table), bool)
    records, rejects = [], []
    for number in np.flatnonzero(irregular).tolist():
        entry = {name: _decoded(value) for name, value in table.slice(number, 1).to_pylist()[0].items()}
        try:
            records.append({"number": number, "line": None, **read_entry(entry)})
        except Reject as reason:
            rejects.append((number, reject(_jsonable(entry), reason)))
    return pa.concat_tables([*tables, *tables_of(records)] or [RECORDS.empty_table()]), rejects


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
