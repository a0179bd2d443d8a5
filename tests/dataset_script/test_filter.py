"""The paper's rules on a dump: whose reason is told, that nothing is lost, and that how it is done shows nowhere."""

import gzip
import json
import pickle
import tempfile
from collections import Counter

import pyarrow as pa
import pytest

from retribooru.dataset_script.build import filter as filter_module
from retribooru.dataset_script.build import metadata
from retribooru.dataset_script.build.filter import DUPLICATES, FilterRules, filter_dump, read_tags
from retribooru.dataset_script.build.stage import Runner, read_rejects, read_rows

RULES = FilterRules(frozenset({"sketch", "comic"}), frozenset({"red_dress", "cape"}))
LOCAL = Runner(1)
KINDS = {"general": "0", "artist": "1", "copyright": "3", "character": "4", "meta": "5"}
NAMES = {"general": ["solo", "red_dress"], "artist": ["ann"], "character": ["eve_(x)"], "copyright": ["x"]}


def older(image_id="1", rating="s", **names):
    """A record of Danbooru2019."""
    tags = [{"id": "7", "name": name, "category": KINDS[kind]} for kind in names for name in names[kind]]
    return {"id": image_id, "rating": rating, "tags": tags}


def newer(image_id=1, rating="s", **names):
    """The same record in the newer form."""
    return {"id": image_id, "rating": rating, **{f"tag_string_{kind}": " ".join(names[kind]) for kind in names}}


def write(path, lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def run(tmp_path, lines, rules=RULES, name="out", **options):
    """(counts, rows, rejects) of the stage."""
    counts = filter_dump([write(tmp_path / "a.jsonl", lines)], tmp_path / name, rules, LOCAL, **options)
    return counts, read_rows(tmp_path / name).to_pylist(), list(read_rejects(tmp_path / name))


def reason_of(tmp_path, entry, rules=RULES):
    _, rows, rejects = run(tmp_path, [json.dumps(entry)], rules)
    assert len(rows) + len(rejects) == 1
    return rejects[0]["reason"] if rejects else None


def test_real_figures(tmp_path, real_figures):
    counts = filter_dump([real_figures / "metadata.jsonl"], tmp_path / "out", FilterRules.from_files(), LOCAL)
    assert counts == Counter(kept=608, monochrome=20, sketch=20, characters=20, artists=20, clothing=20)
    given = {record["id"] for record in json.loads((real_figures / "retribooru.json").read_text())}
    assert set(read_rows(tmp_path / "out")["image_id"].to_pylist()) == given


@pytest.mark.parametrize("form", [older, newer])
def test_a_row(tmp_path, form):
    names = {**NAMES, "general": ["solo", "red_dress", "花"], "copyright": ["x", "y"]}
    _, rows, rejects = run(
        tmp_path, [json.dumps(form("12", "g", **names)), json.dumps(form("13", **{**NAMES, "copyright": []}))]
    )
    assert not rejects
    assert rows[0] == {
        "image_id": "12",
        "character": "eve_(x)",
        "artist": "ann",
        "copyright": "x, y",
        "tags": ["solo", "red_dress", "花"],
        "prompt": "solo, red_dress, 花",
        "rating": "g",
    }
    assert rows[1]["copyright"] is None


@pytest.mark.parametrize("form", [older, newer])
@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({"general": ["sketch", "red_dress"]}, "sketch: an unwanted tag"),
        ({"general": ["red_dress", "comic", "sketch"], "meta": ["sketch"]}, "comic: an unwanted tag"),
        ({"meta": ["sketch"]}, "sketch: an unwanted tag"),
        ({"copyright": ["sketch"]}, None),
        ({"character": []}, "characters: got 0, wanted exactly one"),
        ({"character": ["a", "b"]}, "characters: got 2 (a, b), wanted exactly one"),
        ({"character": list("abcdefg")}, "characters: got 7 (a, b, c, d, e, ...), wanted exactly one"),
        ({"artist": []}, "artists: got 0, wanted exactly one"),
        ({"artist": ["a", "a"]}, "artists: got 2 (a, a), wanted exactly one"),
        ({"general": []}, "clothing: got no tag that counts as clothing"),
        ({"general": ["solo"], "copyright": ["cape"]}, "clothing: got no tag that counts as clothing"),
        # The first reason, and no other.
        ({"general": ["solo"], "artist": []}, "artists: got 0, wanted exactly one"),
        ({"general": ["solo"], "artist": [], "character": []}, "characters: got 0, wanted exactly one"),
        ({"general": ["sketch"], "artist": [], "character": []}, "sketch: an unwanted tag"),
        ({}, None),
    ],
)
def test_reasons(tmp_path, form, names, reason):
    assert reason_of(tmp_path, form("1", **{**NAMES, **names})) == reason


def test_ratings(tmp_path):
    rules = FilterRules(RULES.unwanted, RULES.clothing, ("g", "s"))
    assert reason_of(tmp_path, older("1", "s", **NAMES), rules) is None
    assert reason_of(tmp_path, older("1", "e", general=["sketch"]), rules) == "rating: got 'e', wanted g or s"
    assert reason_of(tmp_path, older("1", None, **NAMES), rules) == "rating: got None, wanted g or s"
    assert reason_of(tmp_path, older("1", None, **NAMES)) is None
    assert reason_of(tmp_path, older("1", 5, **NAMES), rules) == "rating: got 5, wanted a string"


def test_a_reject_holds_what_came_in(tmp_path):
    lines = [
        json.dumps(older("1", general=["花"]), ensure_ascii=False),
        "garbage",
        json.dumps(newer(3, general=["a"] * 9000)),
    ]
    _, rows, rejects = run(tmp_path, lines)
    assert not rows
    assert [line["image_id"] for line in rejects] == ["1", None, "3"]
    assert rejects[0]["record"] == json.loads(lines[0])
    assert rejects[1]["record"] == "garbage"
    assert rejects[2]["record"] == json.loads(lines[2])
    lines[2] = json.dumps(newer(3, general=["a"] * 11_000))
    assert run(tmp_path, lines)[2][2]["record"] == lines[2][:20_000]


def test_a_row_of_a_table_is_kept_in_the_newer_form(tmp_path):
    import pyarrow.parquet as pq

    pq.write_table(
        pa.Table.from_pylist([newer(7, **NAMES), newer(8, general=["solo", "cape"])]), tmp_path / "a.parquet"
    )
    counts = filter_dump([tmp_path / "a.parquet"], tmp_path / "out", RULES, LOCAL)
    assert counts == Counter(kept=1, characters=1)
    (line,) = read_rejects(tmp_path / "out")
    assert line["record"]["id"] == line["image_id"] == "8"
    assert line["record"]["tag_string_general"] == "solo cape"


def duplicates(count=60):
    """Lines in which every third id came before, garbage, and ids whose first record is rejected."""
    entries = [older(str(number if number % 3 else number // 2), "s", **NAMES) for number in range(count)]
    entries[5]["tags"] = entries[5]["tags"][1:2]
    entries.append(older("5", **NAMES))
    return [json.dumps(entry) for entry in entries] + ["garbage", " "]


@pytest.mark.parametrize("block_bytes", [100, 1000, 5000])
def test_any_cut_gives_the_same(tmp_path, block_bytes):
    lines = duplicates()
    whole, cut = run(tmp_path, lines), run(tmp_path, lines, name="cut", block_bytes=block_bytes)
    assert whole == cut
    assert len(list((tmp_path / "cut").glob("0*.rejects.parquet"))) > 3
    assert sum(whole[0].values()) == sum(bool(line.strip()) for line in lines)


def test_an_id_counts_once(tmp_path):
    counts, rows, rejects = run(tmp_path, duplicates(), block_bytes=1000)
    ids = [row["image_id"] for row in rows]
    assert len(ids) == len(set(ids)) == counts["kept"]
    reasons = [line["reason"] for line in rejects if line["reason"].startswith("id:")]
    assert len(reasons) == counts["id"] == 10
    assert "id: 1 came before, wanted every id once" in reasons
    assert "5" in ids  # its first record was no row
    assert next(line for line in rejects if line["reason"].startswith("id:"))["record"]["tags"] == ["solo", "red_dress"]


def test_files_of_a_dump_go_together(tmp_path):
    """Two forms in two files, the second with the first's records again."""
    entries = [(str(number), NAMES) for number in range(10)]
    first = write(tmp_path / "first.jsonl", [json.dumps(older(number, **names)) for number, names in entries])
    second = write(tmp_path / "second.jsonl", [json.dumps(newer(int(number), **names)) for number, names in entries])
    counts = filter_dump([first, second], tmp_path / "out", RULES, LOCAL)
    assert counts == Counter(kept=10, id=10)


def test_stopping_among_the_duplicates_loses_nothing(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", duplicates())
    want = filter_dump([path], tmp_path / "want", RULES, LOCAL, 300)
    written = filter_module.write_parquet
    for stop in range(40):
        writes = iter(range(stop))

        def write_some(*args, writes=writes):
            if next(writes, None) is None:
                raise KeyboardInterrupt
            written(*args)

        monkeypatch.setattr(filter_module, "write_parquet", write_some)
        try:
            filter_dump([path], tmp_path / f"out{stop}", RULES, LOCAL, 300)
        except KeyboardInterrupt:
            monkeypatch.setattr(filter_module, "write_parquet", written)
            assert filter_dump([path], tmp_path / f"out{stop}", RULES, LOCAL, 300) == want
        else:
            assert stop > 5
            break
        for file in (tmp_path / "want").iterdir():
            if file.suffix == ".parquet":
                assert file.read_bytes() == (tmp_path / f"out{stop}" / file.name).read_bytes()
    else:
        pytest.fail("never came to an end")


def test_one_and_two_processes_write_the_same_bytes(tmp_path):
    path = write(tmp_path / "a.jsonl", duplicates())
    for processes in (1, 2):
        filter_dump([path], tmp_path / str(processes), RULES, Runner(processes), 1000)
    files = sorted(file.name for file in (tmp_path / "1").iterdir())
    assert len(files) > 10
    assert DUPLICATES in files
    assert files == sorted(file.name for file in (tmp_path / "2").iterdir())
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_part_that_is_too_large_for_memory(tmp_path, monkeypatch):
    """Compressed, so one part; the same rows, by way of a temporary file."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(duplicates()).encode()))
    monkeypatch.setattr(metadata, "READ_BYTES", 500)
    want = filter_dump([path], tmp_path / "memory", RULES, LOCAL)
    spools = []
    monkeypatch.setattr(filter_module, "SPOOL_BYTES", 100)
    monkeypatch.setattr(
        filter_module.tempfile, "TemporaryFile", lambda make=tempfile.TemporaryFile: spools.append(1) or make()
    )
    assert filter_dump([path], tmp_path / "file", RULES, LOCAL) == want
    assert len(spools) == 2
    assert read_rows(tmp_path / "file") == read_rows(tmp_path / "memory")
    assert list(read_rejects(tmp_path / "file")) == list(read_rejects(tmp_path / "memory"))


def test_other_settings_are_another_stage(tmp_path):
    lines = [json.dumps(older("1", **NAMES))]
    assert run(tmp_path, lines)[0] == Counter(kept=1)
    assert run(tmp_path, lines, FilterRules(frozenset({"solo"}), RULES.clothing))[0] == Counter(solo=1)
    assert run(tmp_path, [*lines, "garbage"])[0] == Counter(kept=1, line=1)


def test_a_dump_without_any_row(tmp_path):
    assert run(tmp_path, ["garbage"])[0] == Counter(line=1)
    assert run(tmp_path, [" "], name="blank")[0] == Counter()


def test_the_lists_of_the_package():
    rules = FilterRules.from_files()
    counts = rules.garments()
    assert len(pickle.dumps(rules)) < 1 << 16  # more than a pipe holds would stall the start of a process
    garments = read_tags("clothing", filter_module.TAGS / "clothing.txt")
    assert 300 <= len(garments) == len(set(garments)) <= 600
    for tag in ("dress", "blue_cardigan", "red_cape", "green_dress", "blue_sash", "light_blue_shirt", "plaid_skirt"):
        assert tag in counts
    for tag in (
        "boots",
        "red_shoes",
        "hat",
        "blue_eyes",
        "glasses",
        "sword",
        "white_gloves",
        "dress_shoes",
        "red_hair",
        "bow",
    ):
        assert tag not in counts
    for tag in ("monochrome", "greyscale", "sketch", "lineart", "comic", "4koma", "multiple_views", "chibi"):
        assert tag in rules.unwanted
    assert not rules.unwanted & counts
    assert rules.ratings is None


def test_lists_of_the_user(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# mine\ncape # any\n\n  c#_shirt  \n", encoding="utf-8-sig")
    rules = FilterRules.from_files(unwanted=path, clothing=path, ratings=["g"])
    assert rules.unwanted == {"cape", "c#_shirt"}
    assert "red_cape" in rules.garments()
    assert "dress" not in rules.garments()
    assert rules.ratings == ("g",)
    with pytest.raises(FileNotFoundError, match="^clothing: got .*none.txt"):
        FilterRules.from_files(clothing=tmp_path / "none.txt")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="^unwanted: .* is not UTF-8"):
        FilterRules.from_files(unwanted=path)
