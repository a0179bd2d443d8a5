"""Reading a booru dump: every line is a record or a reject, however the file is cut, packed and spoilt."""

import bz2
import csv
import gzip
import json
import lzma
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retribooru.dataset_script.build import metadata, metadata_columns, metadata_lines
from retribooru.dataset_script.build.filter import FilterRules, FilterWork
from retribooru.dataset_script.build.metadata import metadata_parts, read_part
from retribooru.dataset_script.build.metadata_lines import stored_line
from retribooru.dataset_script.build.metadata_records import RECORDS, Piece
from retribooru.dataset_script.build.stage import FILTERED, REJECTS

KINDS = {"general": "0", "artist": "1", "copyright": "3", "character": "4", "meta": "5"}


def older(image_id="1", rating="s", **names):
    """A record of Danbooru2019."""
    tags = [{"id": "7", "name": name, "category": KINDS[kind]} for kind in names for name in names[kind]]
    return {"id": image_id, "rating": rating, "score": "3", "tags": tags}


def newer(image_id=1, rating="s", **names):
    """The same record in the newer form."""
    return {"id": image_id, "rating": rating, **{f"tag_string_{kind}": " ".join(names[kind]) for kind in names}}


NAMES = {"general": ["solo", "red_dress"], "artist": ["ann"], "character": ["eve_(x)"], "copyright": ["x"], "meta": []}


def read(piece_or_path):
    """(rows, rejects) of a part or of a whole file, in the order of the lines."""
    pieces = [piece_or_path] if isinstance(piece_or_path, Piece) else [p.item for p in metadata_parts([piece_or_path])]
    rows, rejects = [], []
    for piece in pieces:
        of_piece = list(read_part(piece))
        rows += sorted((row for records, _ in of_piece for row in records.to_pylist()), key=lambda row: row["number"])
        rejects += sorted((line for _, lines in of_piece for line in lines), key=lambda line: line[0])
    for row in rows:
        row["line"] = row["line"] and row["line"].strip()
    return rows, rejects


def write(path, lines, end="\n"):
    path.write_bytes(end.encode().join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def only(path):
    rows, rejects = read(path)
    assert len(rows) + len(rejects) == 1
    return rows[0] if rows else rejects[0][1]["reason"]


def test_both_forms_are_the_same_record(tmp_path):
    names = {**NAMES, "meta": ["photo_(medium)"]}
    forms = [older("12", **names), newer(12, **names), newer("12", **names), {**newer(12, **names), "tags": "ignored"}]
    numbered = older(12, **names)
    numbered["tags"] = [{**tag, "category": int(tag["category"])} for tag in numbered["tags"]]
    want = {"number": 0, "image_id": "12", "rating": "s", **names}
    for number, entry in enumerate([*forms, numbered]):
        row = only(write(tmp_path / f"{number}.jsonl", [json.dumps(entry)]))
        assert row.pop("line") == json.dumps(entry)
        assert row == want


def test_missing_keys_are_tolerated_where_they_are_not_needed(tmp_path):
    rows, rejects = read(
        write(tmp_path / "a.jsonl", ['{"id": 1, "tag_string_general": "solo"}', '{"id": 2, "tags": []}'])
    )
    assert not rejects
    nothing = {"artist": [], "copyright": [], "character": [], "meta": [], "rating": None}
    for row, general in zip(rows, (["solo"], []), strict=True):
        assert {key: row[key] for key in nothing} == nothing
        assert row["general"] == general


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "line: got no JSON, wanted an object"),
        ("[1, 2]", "line: got a list, wanted an object"),
        ('{"id": 1, "tags": []} {"id": 2, "tags": []}', "line: got no JSON, wanted an object (Extra data"),
        ('{"id": 1, "tags": [', "line: got no JSON"),
        (b'{"id": "1", "tags": [], "x": "\xff"}', "line: not UTF-8"),
        ('{"id": "1", "tags": [], "x": "\x01"}', "line: got no JSON"),
        ('{"id": "1", "tags": [], "x": "\0"}', "line: got no JSON"),
        ('{"tags": []}', "id: got None, wanted a plain name"),
        ('{"id": "../x", "tags": []}', "id: got '../x', wanted a plain name"),
        ('{"id": "a\\n", "tags": []}', "id: got 'a\\n', wanted"),
        ('{"id": "' + "1" * 201 + '", "tags": []}', "id: got '1111"),
        ('{"id": -4, "tags": []}', "id: got -4"),
        ('{"id": 1.5, "tags": []}', "id: got 1.5"),
        ('{"id": true, "tags": []}', "id: got True"),
        ('{"id": null, "tags": []}', "id: got None"),
        ('{"id": ' + "9" * 6000 + ', "tags": []}', "id: got "),
        ('{"id": 1}', "tags: got None, wanted a list, or tag_string_general"),
        ('{"id": 1, "tags": null}', "tags: got None"),
        ('{"id": 1, "tags": "solo"}', "tags: got 'solo'"),
        ('{"id": 1, "tags": {"name": "solo"}}', "tags: got {'name': 'solo'}"),
        ('{"id": 1, "tags": ["solo"]}', "tags: got 'solo', wanted a name and a category"),
        ('{"id": 1, "tags": [null]}', "tags: got None, wanted a name and a category"),
        ('{"id": 1, "tags": [{"name": "solo"}]}', "tags: got {'name': 'solo'}, wanted a name and a category"),
        ('{"id": 1, "tags": [{"name": "", "category": "0"}]}', "tags: got '', wanted a name"),
        ('{"id": 1, "tags": [{"name": " ", "category": "0"}]}', "tags: got ' ', wanted a name"),
        ('{"id": 1, "tags": [{"name": "a\\u0000", "category": "0"}]}', "tags: got 'a\\x00', wanted a name without"),
        ('{"id": 1, "tags": [{"name": "a\\ud800", "category": "9"}]}', "tags: got 'a\\ud800', wanted a name without"),
        ('{"id": 1, "tags": [{"name": "a", "category": 0.5}]}', "tags: got {'category': 0.5, 'name': 'a'}"),
        ('{"id": 1, "tag_string_general": 5}', "tags: got 5 as tag_string_general, wanted names"),
        ('{"id": 1, "tag_string_general": "a", "tag_string_artist": ["b"]}', "tags: got ['b'] as tag_string_artist"),
        ('{"id": 1, "tag_string_general": "a\\tb"}', "tags: got 'a\\tb', wanted a name without control characters"),
        ('{"id": 1, "tags": [], "rating": 3}', "rating: got 3, wanted a string"),
        ('{"id": 1, "tags": [], "rating": "s\\u0007"}', "rating: got 's\\x07', wanted a string"),
        ('{"id": 1, "tags": ' + "[" * 5000 + "]" * 5000 + "}", "line: nested too deeply, wanted at most 100 levels"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, line, reason):
    got = only(write(tmp_path / "a.jsonl", [line]))
    assert isinstance(got, str), got
    assert got.startswith(reason)


@pytest.mark.parametrize(
    "rest",
    [
        '"x": NaN',
        '"x": -Infinity',
        '"x": 1e999',
        '"x": "\\ud800"',
        '"x": "\\udc00"',
        '"x": ' + "7" * 6000,
        '"x": ' + "[" * 5000 + "]" * 5000,
        '"x": 1, "x": "2"',
        '"x": "\\u0000\\u007f"',
        '"x": {"id": 5, "tags": 7}',
    ],
)
def test_what_is_not_needed_may_be_anything(tmp_path, rest):
    line = '{"id": "1", "tags": [{"name": "solo", "category": "0"}], ' + rest + "}"
    row = only(write(tmp_path / "a.jsonl", [line]))
    assert row["general"] == ["solo"]
    # Kept among the rejects, it is JSON that every reader takes.
    json.loads(stored_line(row["line"]), parse_constant=lambda name: pytest.fail(name)).__repr__().encode()


def wild_lines(rng: random.Random, count: int) -> list[bytes]:
    """Lines of both forms, many of them damaged one way or another."""

    def name():
        return rng.choice(
            ["solo", "red_dress", "a b", "é", "花", "😀", " ", "", "a\u2003", "\u3000", "x\x7f", "\x85", "re:zero"]
        )

    def names(most=4):
        return [name() if rng.random() < 0.15 else f"tag_{rng.randrange(50)}" for _ in range(rng.randrange(most))]

    def value():
        wild = [
            None,
            True,
            0,
            -1,
            7,
            1.5,
            "",
            "0",
            "4",
            "x" * 300,
            [],
            {},
            [None],
            [[1]],
            {"name": "a"},
            float("nan"),
            10**400,
        ]
        return rng.choice(wild)

    lines = []
    for _ in range(count):
        kinds = {kind: names() for kind in KINDS}
        image_id = rng.choice([str(rng.randrange(99)), rng.randrange(99), rng.randrange(99), "a.b-c_d"])
        entry = rng.choice([older, newer])(image_id, rng.choice("sqeg"), **kinds)
        if rng.random() < 0.3:
            entry[rng.choice(["id", "rating", "tags", "tag_string_general", "tag_string_artist", "extra"])] = value()
        if rng.random() < 0.2:
            entry.pop(rng.choice(list(entry)))
        if rng.random() < 0.3 and isinstance(entry.get("tags"), list) and entry["tags"]:
            tag = rng.randrange(len(entry["tags"]))
            if rng.random() < 0.3:
                entry["tags"][tag] = value()
            elif isinstance(entry["tags"][tag], dict):
                entry["tags"][tag][rng.choice(["name", "category", "id"])] = value()
        if rng.random() < 0.02:
            entry["tags"] = [{"name": f"t{i}", "category": str(i % 6)} for i in range(10_000)]
        if rng.random() < 0.02:
            for _ in range(rng.choice([90, 99, 120, 900])):
                entry = {"id": 5, "deep": entry, "tags": []}
        line = json.dumps(entry, ensure_ascii=rng.random() < 0.5, separators=rng.choice([None, (",", ":")])).encode()
        if rng.random() < 0.1:
            place = rng.randrange(len(line))
            line = line[:place] + rng.choice([b"\0", b"\xff", b"\\", b'"', b"{", b"}", b"\t", b"\r", b"", b"\\ud800", b"}{"]) + line[
                place + rng.randrange(2) :
            ]  # fmt: skip
        if rng.random() < 0.1:
            line = rng.choice(
                [b"", b" ", b"\t\r", b"\xef\xbb\xbf" + line, line + b" ", b"  " + line, line + b"\r", line * 2]
            )
        if rng.random() < 0.03:
            line = line.replace(b'"id"', b'"id": "77", "id"', 1)
        if rng.random() < 0.03:
            line = line.replace(b'"name"', b'"name": "twice", "name"', 1)
        lines.append(line)
    return lines


def test_the_fast_way_and_the_slow_way_are_one(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "SLOW_LINES", 1)
    for seed in range(12):
        rng = random.Random(seed)
        lines = wild_lines(rng, 300)
        path = write(tmp_path / f"{seed}.jsonl", lines, rng.choice(["\n", "\r\n"]))
        fast = read(path)
        kept = sum(bool(line.strip(b" \t\r")) for line in path.read_bytes().split(b"\n"))
        assert len(fast[0]) + len(fast[1]) == kept
        assert len(fast[0]) > 50 < len(fast[1])
        assert sorted([row["number"] for row in fast[0]] + [number for number, _ in fast[1]]) == list(range(kept))
        with monkeypatch.context() as patch:
            patch.setattr(metadata, "_read_fast", lambda lines: ([], lines.take(slice(None))))
            slow = read(path)
        assert json.dumps(fast[1]) == json.dumps(slow[1])
        assert fast[0] == slow[0]


def test_nothing_is_lost_in_the_filter_and_the_two_ways_are_one(tmp_path, monkeypatch):
    rules = FilterRules(
        frozenset({"tag_7", "tag_8"}), frozenset(f"tag_{number}" for number in range(0, 50, 2)), ("s", "q", "e")
    )
    kept = 0
    for seed in range(100, 104):
        path = write(tmp_path / f"{seed}.jsonl", wild_lines(random.Random(seed), 800))
        (part,) = metadata_parts([path])
        fast = FilterWork(rules)(part.item)
        assert fast.rows.schema == FILTERED
        assert fast.rejects.schema == REJECTS
        assert len(fast.rows) + len(fast.rejects) == sum(
            bool(line.strip(b" \t\r")) for line in path.read_bytes().split(b"\n")
        )
        kept += len(fast.rows)
        with monkeypatch.context() as patch:
            patch.setattr(metadata, "_read_fast", lambda lines: ([], lines.take(slice(None))))
            slow = FilterWork(rules)(part.item)
        assert fast.rows == slow.rows
        assert fast.rejects == slow.rejects
        for record in fast.rejects["record"].to_pylist():
            json.loads(record, parse_constant=lambda name: pytest.fail(name))
    assert kept > 20


def test_the_fast_way_is_taken(tmp_path, monkeypatch):
    lines = [json.dumps(form(number, **NAMES)) for form in (older, newer) for number in range(2000)]
    lines[77] = "garbage"
    seen = []
    read_line = metadata.read_line
    monkeypatch.setattr(metadata, "read_line", lambda *args: seen.append(args) or read_line(*args))
    rows, rejects = read(write(tmp_path / "a.jsonl", lines))
    assert len(rows) == 3999
    assert len(rejects) == 1
    assert len(seen) < 600  # the garbage, and a piece at the change of forms


@pytest.mark.parametrize("block_bytes", [1, 3, 50, 333, 1000, 64 << 20])
@pytest.mark.parametrize("read_bytes", [1, 64, 16 << 20])
def test_any_cut_gives_the_same(tmp_path, monkeypatch, block_bytes, read_bytes):
    lines = [json.dumps(older(str(number), **NAMES)) for number in range(4)]
    lines = ["\ufeff" + lines[0], "", lines[1], "garbage", " ", lines[2], "é" * 40, lines[3]]
    for end in ("", "\n", "\n\n"):
        path = write(tmp_path / "a.jsonl", [*lines[:-1], lines[-1] + end])
        whole = [[row["image_id"] for row in read(path)[0]], [line for _, line in read(path)[1]]]
        assert whole[0] == ["0", "1", "2", "3"]
        monkeypatch.setattr(metadata, "READ_BYTES", read_bytes)
        parts = metadata_parts([path], block_bytes)
        assert [part.name for part in parts] == sorted(part.name for part in parts)
        cut = [read(part.item) for part in parts]
        assert [row["image_id"] for rows, _ in cut for row in rows] == whole[0]
        assert [line for _, rejects in cut for _, line in rejects] == whole[1]


def test_long_lines(tmp_path, monkeypatch):
    long = json.dumps({**older("1", **NAMES), "x": "y" * 10_000_000})
    many = json.dumps(older("2", **{**NAMES, "general": [f"tag_{number}" for number in range(10_000)]}))
    path = write(tmp_path / "a.jsonl", [long, many, json.dumps(older("3", **NAMES))])
    rows, rejects = read(path)
    assert [row["image_id"] for row in rows] == ["1", "2", "3"]
    assert len(rows[1]["general"]) == 10_000
    for module in (metadata, metadata_columns, metadata_lines):
        monkeypatch.setattr(module, "MAX_LINE", 1_000_000)
    for read_bytes in (1000, 999_999, 16 << 20):
        monkeypatch.setattr(metadata, "READ_BYTES", read_bytes)
        rows, rejects = read(path)
        assert [row["image_id"] for row in rows] == ["2", "3"]
        assert rejects[0][0] == 0
        assert rejects[0][1]["reason"] == "line: longer than 1000000 bytes"
        assert len(rejects[0][1]["record"]) == 20_000


def test_compressed_files(tmp_path):
    def zstd(data):
        return pa.Codec("zstd").compress(data).to_pybytes()

    data = "\n".join(json.dumps(older(str(number), **NAMES)) for number in range(5)).encode()
    packed = {"gz": gzip.compress(data[:700]) + gzip.compress(data[700:]), "bz2": bz2.compress(data),
              "xz": lzma.compress(data), "zst": zstd(data[:700]) + zstd(data[700:])}  # fmt: skip
    for suffix, content in packed.items():
        for name in (f"a.jsonl.{suffix}", "plain_name.jsonl"):  # by what it is, not by its name
            path = tmp_path / name
            path.write_bytes(content)
            assert [row["image_id"] for row in read(path)[0]] == ["0", "1", "2", "3", "4"]
        path.write_bytes(content[: len(content) * 2 // 3])
        with pytest.raises(ValueError, match="^metadata: .* is damaged, wanted a whole file"):
            read(path)


def test_parquet_and_csv_are_the_newer_form(tmp_path):
    entries = [newer(number, **{**NAMES, "general": [f"tag_{number}", "solo"]}) for number in range(5)]
    entries[1]["tag_string_artist"] = None
    entries[2]["tag_string_general"] = None
    entries[3]["tag_string_general"] = "a\x07"
    lines, rejects = read(write(tmp_path / "a.jsonl", map(json.dumps, entries)))
    assert [len(lines), len(rejects)] == [3, 2]
    table = pa.Table.from_pylist(entries)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    large = table.cast(
        pa.schema([(f.name, pa.large_string() if f.type == pa.string() else f.type) for f in table.schema])
    )
    pq.write_table(large, tmp_path / "b.parquet")
    for name in ("a.csv", "b.csv"):
        with (tmp_path / name).open("w", newline="", encoding="utf-8-sig" if name == "b.csv" else "utf-8") as file:
            writer = csv.DictWriter(file, [*entries[0], "extra"])
            writer.writeheader()
            writer.writerows({**entry, "extra": 'a, "\n'} for entry in entries)
    columns = [name for name in RECORDS.names if name not in ("number", "line")]
    for name in ("a.parquet", "b.parquet", "a.csv", "b.csv"):
        rows, rejected = read(tmp_path / name)
        assert [[row[name] for name in columns] for row in rows] == [[row[name] for name in columns] for row in lines]
        assert [line["reason"] for _, line in rejected] == [line["reason"] for _, line in rejects]
    assert len(metadata_parts([tmp_path / "a.parquet"])) == 3


def test_a_bad_row_of_a_table_is_that_row_s_matter(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,tag_string_general\n1,solo\n2,\xff\n3,solo,more\n../4,solo\n5,solo\n")
    rows, rejects = read(path)
    assert [row["image_id"] for row in rows] == ["1", "5"]
    assert sorted(line["reason"].split(":")[0] for _, line in rejects) == ["id", "line", "tags"]
    pq.write_table(pa.table({"id": [1.0, 2.5], "tag_string_general": ["solo", "solo"]}), tmp_path / "a.parquet")
    rows, rejects = read(tmp_path / "a.parquet")
    assert len(rejects) == 2


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("none.jsonl", None, "which is no file"),
        ("empty.jsonl", b"", "is empty"),
        ("a.zip", b"PK\x03\x04", "of no form that is read here"),
        ("a.json", b' [{"id": 1}]', "one JSON list, wanted a record on each line"),
        ("a.parquet", b"PAR1 nonsense", "damaged"),
        ("a.csv", b"name,tags\n1,2\n", "has the columns name, tags; wanted id"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, match):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match=f"^metadata: .*{match}"):
        read(tmp_path / name)


def test_no_file():
    with pytest.raises(ValueError, match="^metadata: got no file"):
        metadata_parts([])
