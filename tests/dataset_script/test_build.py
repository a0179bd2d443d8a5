"""`retribooru build`: from the authors' form to the figures table."""

import io
import json

import pyarrow.parquet as pq
import pytest
from PIL import Image

from handmade import BBOX, HEAD_BOX, draw, write_figures
from retribooru.dataset_script.build import build_figures
from retribooru.dataset_script.build.annotations import name_outfits, read_annotations
from retribooru.dataset_script.figures import SPLITS, split_of


def rows_of(out):
    return [row for file in sorted((out / "data").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def rejects_of(out):
    return [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]


def build(folder, out, **options):
    return build_figures(folder / "retribooru.json", folder / "images", folder / "masks", out, **options)


@pytest.fixture
def folder(tmp_path):
    return write_figures(tmp_path / "authors_form", characters=3, images=3)


def change(folder, image_id, **changes):
    """Changes the record of `image_id` in the annotations."""
    path = folder / "retribooru.json"
    records = json.loads(path.read_text())
    for record in records:
        if record["id"] == image_id:
            record.update(changes)
    path.write_text(json.dumps(records))


def spoil_bytes(folder, old, new):
    """Puts `new` in the place of the first `old` in the annotations' file."""
    path = folder / "retribooru.json"
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def test_every_record_becomes_a_row(folder, tmp_path):
    report = build(folder, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert sorted(row["image_id"] for row in rows) == ["100", "101", "102", "200", "201", "202", "300", "301", "302"]
    assert report.identities == 3 and report.rejects == {} and report.alone == 0
    assert sum(report.characters.values()) >= 3 and report.characters["train"] <= 3
    row = next(row for row in rows if row["image_id"] == "201")
    assert row["head_box"] == HEAD_BOX
    assert (row["character"], row["artist"], row["outfit"]) == ("character_01", "somebody", "green_dress")
    assert row["tags"] == ["1girl", "solo", "standing"] and row["prompt"] == "1girl, solo, standing"
    assert row["image"] == {"bytes": (folder / "images" / "201.png").read_bytes(), "path": "201.png"}
    assert Image.open(io.BytesIO(row["mask"]["bytes"])).mode == "L"


BAD = {
    "missing image": (lambda f: (f / "images/101.png").unlink(), "image: 101 is missing in"),
    "missing mask": (lambda f: (f / "masks/101.png").unlink(), "mask: 101 is missing in"),
    "unreadable image": (lambda f: (f / "images/101.png").write_bytes(b"no image"), "image: 101.png cannot be read"),
    "cut-off image": (
        lambda f: (f / "images/101.png").write_bytes((f / "images/101.png").read_bytes()[:60]),
        "image: 101.png cannot be read",
    ),
    "mask of another size": (
        lambda f: Image.new("L", (10, 10), 255).save(f / "masks/101.png"),
        "mask: got size (10, 10), wanted the image's (40, 60)",
    ),
    "empty mask": (lambda f: Image.new("L", (40, 60)).save(f / "masks/101.png"), "mask: got one without a figure"),
    "box outside": (lambda f: change(f, "101", bbox=[0.9, 0.2, 0.4, 0.2]), "bbox: got [0.9, 0.2, 0.4, 0.2]"),
    "box of no size": (lambda f: change(f, "101", bbox=[0.5, 0.2, 0, 0.2]), "bbox: got [0.5, 0.2, 0, 0.2]"),
    "box of three": (lambda f: change(f, "101", bbox=[0.5, 0.2, 0.1]), "bbox: got [0.5, 0.2, 0.1], wanted four"),
    "box of words": (lambda f: change(f, "101", bbox=["a", 0, 0, 1]), "bbox: got ['a', 0, 0, 1], wanted four"),
    "box not finite": (lambda f: change(f, "101", bbox=[float("nan"), 0, 0, 1]), "bbox: got [nan, 0, 0, 1]"),
    "two artists": (lambda f: change(f, "101", artists=["a", "b"]), "artists: got 2, wanted exactly one"),
    "box of huge numbers": (lambda f: change(f, "101", bbox=[1e308, 0, 1e308, 1]), "bbox: got [1e+308, 0, 1e+308, 1]"),
    "box of long numbers": (lambda f: change(f, "101", bbox=[10**400, 0, 1, 1]), "bbox: got [inf, 0, 1, 1], wanted"),
    "box of thousands": (
        lambda f: change(f, "101", bbox=[0.5] * 2000),
        "bbox: got [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, ...]",
    ),
    "artist without a name": (lambda f: change(f, "101", artists=[" "]), "artists: got [' '], wanted a name"),
    "artist of two lines": (
        lambda f: change(f, "101", artists=["a\nb"]),
        "artists: got 'a\\nb', wanted a name without",
    ),
    "character with a NUL": (lambda f: change(f, "101", character="a\0b"), "character: got 'a\\x00b', wanted a name"),
    "clothes with a bell": (lambda f: change(f, "101", cloths=["a\7"]), "cloths: got 'a\\x07', wanted a name without"),
    "copyright of a number": (lambda f: change(f, "101", copyright=5), "copyright: got 5, wanted a string or null"),
    "answer in a list": (lambda f: change(f, "101", outfit_answer=["a"]), "outfit_answer: got ['a'], wanted a string"),
    "rating of false": (lambda f: change(f, "101", rating=False), "rating: got False, wanted a string or null"),
    "clothes in a string": (lambda f: change(f, "101", cloths="hat"), "cloths: got 'hat', wanted a list of strings"),
    "similar of numbers": (lambda f: change(f, "101", similar=[100]), "similar: got [100], wanted a list of strings"),
    "no character": (lambda f: change(f, "101", character=""), "character: got '', wanted a string"),
    "id that leaves the folder": (lambda f: change(f, "101", id="../../secret"), "id: got '../../secret', wanted"),
    "id in a folder": (lambda f: change(f, "101", id="a/101"), "id: got 'a/101', wanted letters"),
    "id in a folder of Windows": (lambda f: change(f, "101", id="a\\101"), "id: got 'a\\\\101', wanted letters"),
    "id of two dots": (lambda f: change(f, "101", id=".."), "id: got '..', wanted letters"),
    "id that hides": (lambda f: change(f, "101", id=".hidden"), "id: got '.hidden', wanted letters"),
    "id of two lines": (lambda f: change(f, "101", id="101\n"), "id: got '101\\n', wanted letters"),
    "id with a NUL": (lambda f: change(f, "101", id="1\0001"), "id: got '1\\x001', wanted letters"),
    "id with an accent": (lambda f: change(f, "101", id="é"), "id: got 'é', wanted letters"),
    "empty id": (lambda f: change(f, "101", id=""), "id: got '', wanted a string"),
    "id of a number": (lambda f: change(f, "101", id=101), "id: got 101, wanted a string"),
    "long id": (lambda f: change(f, "101", id="1" * 201), "id: got 201 characters, wanted at most 200"),
    "very long id": (lambda f: change(f, "101", id="1" * 9000), "id: got 9000 characters, wanted at most 200"),
    "lone surrogate": (lambda f: change(f, "101", note={"a": ["b", {"c": "\ud83d"}]}), "note: not UTF-8"),
    "lone surrogate in a key": (lambda f: change(f, "101", note=[{"\ud83d": 1}]), "note: not UTF-8"),
    "lone surrogate in a field's name": (lambda f: change(f, "101", **{"a\udfff": 1}), "a\\udfff: not UTF-8"),
    "bytes that are not UTF-8": (
        lambda f: spoil_bytes(f, b'"id": "101"', b'"note": ["caf\xe9"], "id": "101"'),
        "note: not UTF-8",
    ),
    "id that is not UTF-8": (lambda f: spoil_bytes(f, b'"id": "101"', b'"id": "10\xff"'), "id: not UTF-8"),
    "id that came before": (lambda f: change(f, "101", id="100"), "id: 100 came before"),
}


@pytest.mark.parametrize("spoil, reason", BAD.values(), ids=BAD)
def test_bad_records_are_listed_and_the_rest_go_on(folder, tmp_path, spoil, reason):
    spoil(folder)
    report = build(folder, tmp_path / "out")
    (line,) = rejects_of(tmp_path / "out")
    assert line["reason"].startswith(reason)
    assert isinstance(line["image_id"], str) and len(line["image_id"]) <= 200
    assert line["record"]["prompts" if "prompts" in line["record"] else "prompt"] == "1girl, solo, standing"
    rows = rows_of(tmp_path / "out")
    assert len(rows) == sum(report.figures.values()) == 8 and sum(report.rejects.values()) == 1
    assert sum(row["character"] == "character_00" for row in rows) == 2


def nested(depth):
    return "[" * depth + "]" * depth


# prompts as they stand in the JSON, the reason, the record in the rejects file
BAD_PROMPTS = {
    "latin-1": (b'"caf\xe9, solo"', "prompts: not UTF-8", lambda record: record["prompts"] == "caf\\udce9, solo"),
    "half a pair": (rb'"\ud83d, solo"', "prompts: not UTF-8", lambda record: record["prompts"] == "\\ud83d, solo"),
    "commas alone": (
        b'", ,"',
        "prompts: got ', ,', wanted at least one tag",
        lambda record: record["prompts"] == ", ,",
    ),
    "not finite": (b"-Infinity", "prompts: got -inf, wanted a string", lambda record: record["prompts"] == "-Infinity"),
    "long number": (b"9" * 5000, "prompts: got inf, wanted a string", lambda record: record["prompts"] == "Infinity"),
    "long text": (
        b'"\xe9' + b"a" * 1_000_000 + b'"',
        "prompts: not UTF-8",
        lambda record: '"prompts": "\\udce9aaa' in record and len(record) < 21_000,
    ),
    "long list": (
        b"[" + b'"a",' * 100_000 + b'"a"]',
        "prompts: got ['a', 'a', 'a', 'a', 'a', 'a', ...], wanted a string",
        lambda record: record.startswith('{"id": "101", ') and len(record) == 20_000,
    ),
}


@pytest.mark.parametrize("prompts, reason, is_kept", BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_rejects_are_written_whatever_the_record_held(folder, tmp_path, prompts, reason, is_kept):
    first, old, rest = (folder / "retribooru.json").read_bytes().partition(b'"id": "101"')
    (folder / "retribooru.json").write_bytes(first + old + rest.replace(b'"1girl, solo, standing"', prompts, 1))
    build(folder, tmp_path / "out")
    lines = (tmp_path / "out/rejects.jsonl").read_bytes().decode("utf-8").splitlines()
    (line,) = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert line["reason"] == reason and is_kept(line["record"]) and line["image_id"] == "101"
    assert len(rows_of(tmp_path / "out")) == 8


@pytest.mark.parametrize("depth", [10, 200, *range(930, 1000), 100_000])
def test_nested_records_are_rejected_or_the_file_is(folder, tmp_path, depth):
    spoil_bytes(folder, b'"bbox": [0.5, ', b'"bbox": [' + nested(depth).encode() + b", ")
    spoil_bytes(folder, b'"id": "101"', b'"note": ' + nested(depth).encode() + b', "id": "101"')
    spoil_bytes(folder, b"[{", b"[" + nested(depth).encode() + b", {")
    try:
        build(folder, tmp_path / "out")
    except ValueError as error:
        assert depth > 900 and str(error).endswith("is nested too deeply, wanted a list of flat records")
        return
    reasons = sorted(line["reason"] for line in rejects_of(tmp_path / "out"))
    assert reasons[0].startswith("bbox: ") and reasons[-1] == "record: got list, wanted an object"
    assert len(reasons) == (2 if depth == 10 else 3) and max(map(len, reasons)) < 300
    assert len(rows_of(tmp_path / "out")) + len(reasons) == 10


def test_records_that_are_none(folder, tmp_path):
    records = json.loads((folder / "retribooru.json").read_text())
    (folder / "retribooru.json").write_text(json.dumps([None, 5, "text", [], {}, *records]))
    build(folder, tmp_path / "out")
    assert [line["reason"].split(":")[0] for line in rejects_of(tmp_path / "out")] == ["record"] * 4 + ["id"]
    assert len(rows_of(tmp_path / "out")) == 9


def test_what_is_unusual_and_no_fault(folder, tmp_path):
    for old, new in (("101", "1.5"), ("102", "a"), ("201", "A"), ("202", "1" * 200)):
        change(folder, old, id=new, cloths=["", " hat "], copyright=None, rating="s", similar=["gone", ""])
        for kind in ("images", "masks"):
            (folder / kind / f"{old}.png").rename(folder / kind / f"{new}.png")
    change(folder, "100", prompts="1girl,\n ,solo,", character="アイリーン \U0001f600")
    path = folder / "retribooru.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"1girl,\\n", b"1girl,\n"))  # a BOM, a raw line break
    assert b"1girl,\n" in path.read_bytes()
    report = build(folder, tmp_path / "out")
    rows = {row["image_id"]: row for row in rows_of(tmp_path / "out")}
    assert set(rows) == {"100", "1.5", "a", "200", "A", "1" * 200, "300", "301", "302"} and report.rejects == {}
    assert rows["100"]["tags"] == ["1girl", "solo"] and rows["100"]["character"] == "アイリーン \U0001f600"
    assert rows["A"]["outfit"] == "hat (A)" and rows["A"]["rating"] == "s" and rows["A"]["copyright"] is None


def test_no_box_is_no_fault(folder, tmp_path):
    change(folder, "101", bbox=None)
    build(folder, tmp_path / "out")
    assert [row["head_box"] for row in rows_of(tmp_path / "out") if row["image_id"] == "101"] == [None]


def test_box_at_the_border(folder, tmp_path):
    change(folder, "101", bbox=[0.2, 0.1, 0.4, 0.2])
    build(folder, tmp_path / "out")
    assert [row["head_box"] for row in rows_of(tmp_path / "out") if row["image_id"] == "101"] == [[0, 0, 16, 12]]


def test_arguments_that_name_nothing(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="annotations: got .*nothing.json, which is not there"):
        build_figures(folder / "nothing.json", folder / "images", folder / "masks", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="masks: got .*nothing, which is not a folder"):
        build_figures(folder / "retribooru.json", folder / "images", folder / "nothing", tmp_path / "out")
    with pytest.raises(ValueError, match="out_of_domain: got 2, wanted a share"):
        build(folder, tmp_path / "out", out_of_domain=2)
    (folder / "retribooru.json").write_text("{]")
    with pytest.raises(ValueError, match="retribooru.json is not JSON"):
        build(folder, tmp_path / "out")
    (folder / "retribooru.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no record"):
        build(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_building_again_replaces_the_table_and_a_failed_build_leaves_it(folder, tmp_path):
    out = tmp_path / "out"
    build(folder, out)
    (out / "data.partial").mkdir()  # what a killed build leaves
    (out / "data.partial" / "train-00000.parquet").write_bytes(b"half")
    change(folder, "100", character="somebody_else")
    build(folder, out)
    rows = rows_of(out)
    assert len(rows) == 9 and any(row["character"] == "somebody_else" for row in rows)
    assert sorted(path.name for path in out.iterdir()) == ["data", "rejects.jsonl"]
    (folder / "retribooru.json").write_text("[]")
    with pytest.raises(ValueError):
        build(folder, out)
    assert rows_of(out) == rows


def record(image_id, similar, cloths=("dress",), character="a"):
    return {"image_id": image_id, "character": character, "artist": "x", "outfit": None, "cloths": list(cloths),
            "similar": similar}  # fmt: skip


def test_outfits_are_what_similar_links():
    records = [
        record("1", ["2"]),
        record("2", []),
        record("3", ["4"]),
        record("4", ["3"]),
        record("5", ["1"], character="b"),
        record("6", ["gone"], character="c"),
    ]
    assert name_outfits(records) == 2  # to another character, and to nobody
    outfits = {entry["image_id"]: entry["outfit"] for entry in records}
    assert outfits == {
        "1": "dress (1)",
        "2": "dress (1)",
        "3": "dress (3)",
        "4": "dress (3)",
        "5": "dress",
        "6": "dress",
    }


def test_outfit_is_named_after_shared_clothes():
    records = [record("1", ["2"], ["hat", "skirt"]), record("2", ["1"], ["skirt", "scarf"])]
    name_outfits(records)
    assert [entry["outfit"] for entry in records] == ["skirt", "skirt"]


def test_split_depends_on_names_alone():
    names = [(f"character_{i // 5}", str(i)) for i in range(5000)]
    splits = {name: split_of(*name, seed=1, out_of_domain=0.2, in_domain=0.1) for name in names}
    assert splits == {name: split_of(*name, seed=1, out_of_domain=0.2, in_domain=0.1) for name in reversed(names)}
    by_character = {}
    for (character, _), split in splits.items():
        by_character.setdefault(character, set()).add(split)
    assert all(found == {"out_of_domain"} or "out_of_domain" not in found for found in by_character.values())
    share = sum("out_of_domain" in found for found in by_character.values()) / len(by_character)
    assert 0.15 < share < 0.25
    assert set(splits.values()) == set(SPLITS)
    assert splits != {name: split_of(*name, seed=2, out_of_domain=0.2, in_domain=0.1) for name in names}


def test_real_figures(real_figures, tmp_path):
    report = build(real_figures, tmp_path / "out")
    assert sum(report.figures.values()) == 608
    assert report.identities == 120 and report.rejects == {} and report.alone == 0
    assert len(rows_of(tmp_path / "out")) == 608


def test_reader_keeps_the_box_as_it_came(folder):
    records, rejects = read_annotations(folder / "retribooru.json")
    assert [entry["bbox"] for entry in records] == [BBOX] * 9 and not rejects
    assert draw("red")[0].size == (40, 60)
