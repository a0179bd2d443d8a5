"""`retribooru export`: what its files are like, which figures are published, and that it is whole or not there."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, load_dataset

from dump_rows import CONFIGS
from handmade import write_figures
from retribooru.dataset_script import export
from retribooru.dataset_script.build import build_figures
from retribooru.dataset_script.export import MARK, export_dataset
from retribooru.dataset_script.figures import FIGURES, SPLITS, TASK_LABELS, TASK_ROWS, identity_of
from retribooru.dataset_script.mini import MINI_FIGURES
from retribooru.dataset_script.references import RECIPES
from retribooru.dataset_script.table import ROW_GROUP_ROWS, write_shards

FOLDERS = {"figures": "data", **{task: task for task in RECIPES}}
SMALL = {"size": 32, "characters": 24, "configs": ["reconstruct", "compose"]}


def shards(out, config, split) -> list[Path]:
    return sorted((Path(out) / FOLDERS[config]).glob(f"{split}-*.parquet"))


def rows_of(out, config, columns=None) -> list[dict]:
    files = [file for split in SPLITS for file in shards(out, config, split)]
    return [row for file in files for row in pq.ParquetFile(file).read(columns).to_pylist()]


def content(folder) -> dict[str, bytes]:
    """{path in the folder: bytes} of every file, hidden ones included."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What the files are like


def test_schemas_are_ours(mini_export):
    for config in CONFIGS:
        for split, rows in load_dataset(str(mini_export), config, streaming=True).items():
            assert rows.features == (MINI_FIGURES if config == "figures" else TASK_ROWS), (config, split)


@pytest.mark.parametrize("config", CONFIGS)
def test_identities_are_kept_together(mini_export, config):
    places = {}
    for split in SPLITS:
        for file in shards(mini_export, config, split):
            parquet = pq.ParquetFile(file)
            for number in range(parquet.num_row_groups):
                for row in parquet.read_row_group(number, ["character", "artist", "outfit"]).to_pylist():
                    places.setdefault((split, identity_of(row)), set()).add((file.name, number))
    assert len(places) > 60 and all(len(place) == 1 for place in places.values())


@pytest.mark.parametrize("config", CONFIGS)
def test_a_small_table_has_several_shards(mini_export, config):
    names = [file.name for file in shards(mini_export, config, "train")]
    assert names == [f"train-{number:05d}-of-00003.parquet" for number in range(3)]


def label_rows(identities: int, members: int):
    """Rows of a task without pixels, those of an identity one after the other."""
    for identity in range(identities):
        for member in range(members):
            ids = [f"{identity}-{(member + other) % members}" for other in range(members)]
            names = {"character": f"c{identity:06d}", "artist": "somebody", "outfit": "dress"}
            references = {f"reference_{key}s": [name] * 4 for key, name in names.items()}
            yield {
                "target_id": ids[0], "head_box": [1, 2, 3, 4], "prompt": "1girl", **names, **references,
                "reference_ids": (ids[1:] * 4)[:4], "reference_concepts": ["figure"] * 4,
            }  # fmt: skip


@pytest.mark.parametrize(
    ("identities", "members", "fewest", "most"), [(20_000, 5, 20, 30), (200, 5, 8, 12), (3, 4, 1, 1)]
)
def test_number_of_shards(tmp_path, identities, members, fewest, most):
    total = identities * members
    assert write_shards("train", label_rows(identities, members), tmp_path / "data", TASK_LABELS, total) == total
    files = sorted((tmp_path / "data").iterdir())
    assert fewest <= len(files) <= most
    assert [file.name for file in files] == [f"train-{n:05d}-of-{len(files):05d}.parquet" for n in range(len(files))]
    assert sum(pq.read_metadata(file).num_rows for file in files) == total
    characters = [set(pq.read_table(file, columns=["character"])["character"].to_pylist()) for file in files]
    assert len(set.union(*characters)) == sum(map(len, characters)) == identities
    groups = [pq.read_metadata(file).row_group(0).num_rows for file in files]
    assert max(groups) < ROW_GROUP_ROWS + members


def picture(name: str, size: int = 40_000) -> dict:
    """An image cell with bytes that cannot be compressed; without our options Arrow keeps a megabyte of such apart."""
    return {"bytes": Random(name).randbytes(size), "path": f"{name}.png"}


def test_a_repeated_image_is_stored_once(tmp_path):
    """For 100 images of 40 kB, once as targets and once as references, which name each of them four times."""
    rows = [
        {
            **row,
            "target": picture(row["target_id"]),
            "target_mask": picture(f"mask of {row['target_id']}", 400),
            "reference_images": [picture(image_id) for image_id in row["reference_ids"]],
            "reference_masks": [picture(f"mask of {image_id}", 400) for image_id in row["reference_ids"]],
        }
        for row in label_rows(20, 5)
    ]
    write_shards("train", rows, tmp_path, TASK_ROWS, len(rows))
    (file,) = tmp_path.iterdir()
    assert pq.read_table(file).to_pylist() == [{name: row[name] for name in TASK_ROWS} for row in rows]
    once = 100 * 40_400
    assert 2 * once < file.stat().st_size < 2.1 * once  # and 5 * once if every row had its own


def test_a_repeated_image_of_the_mini_edition_is_stored_once(mini_export):
    distinct = naive = 0
    files = shards(mini_export, "reconstruct", "train")
    for file in files:
        for column in ("target", "target_mask", "reference_images", "reference_masks"):
            cells = pq.read_table(file, columns=[column])[column].combine_chunks()
            cells = (cells.flatten() if pa.types.is_list(cells.type) else cells).field("bytes").to_pylist()
            distinct += sum(map(len, set(cells)))
            naive += sum(map(len, cells))
    assert naive > 2.4 * distinct > 2 * sum(file.stat().st_size for file in files)


def test_pages_end_where_the_content_says_so(monkeypatch, tmp_path):
    writer, asked = pq.ParquetWriter, []
    monkeypatch.setattr(pq, "ParquetWriter", lambda *rest, **options: asked.append(options) or writer(*rest, **options))
    write_shards("train", label_rows(30, 5), tmp_path, TASK_LABELS, 150)
    known = int(pa.__version__.split(".")[0]) >= 21  # the first pyarrow that has it
    assert {options.get("use_content_defined_chunking") for options in asked} == {True if known else None}


# Which figures are published


def rated_table(folder: Path, ratings: list[str | None]) -> Path:
    """A built table of the handmade figures, eight of each character, rated in this order."""
    write_figures(folder / "authors_form", images=8)
    annotations = folder / "authors_form" / "retribooru.json"
    records = json.loads(annotations.read_text())
    for number, record in enumerate(records):
        record["rating"] = ratings[number % len(ratings)]
    annotations.write_text(json.dumps(records))
    sources = [folder / "authors_form" / name for name in ("retribooru.json", "images", "masks")]
    build_figures(*sources, folder / "built", seed=2, out_of_domain=0.25, in_domain=0.15)
    return folder / "built"


@pytest.mark.parametrize(
    ("scheme", "asked", "published"),
    [
        (["g", "s", "q", "e"], None, {"g"}),
        (["s", "q", "e"], None, {"s"}),
        (["g", "s", "q", "e"], ["g", "s"], {"g", "s"}),
        (["s", "q", None], ["unknown"], {None}),
        (["g"], None, {"g"}),
    ],
)
def test_only_these_ratings_are_published(tmp_path, scheme, asked, published):
    table = rated_table(tmp_path, scheme)
    report = export_dataset(tmp_path / "out", table, ratings=asked)
    ratings = [row["rating"] for row in rows_of(table, "figures", ["rating"])]
    figures = rows_of(tmp_path / "out", "figures")
    assert {row["rating"] for row in figures} == published
    assert len(figures) == sum(rating in published for rating in ratings) > 20
    left_out = {f"rated {rating or 'unknown'}": ratings.count(rating) for rating in {*ratings} - published}
    assert report.left_out == left_out
    readme = (tmp_path / "out" / "README.md").read_text()
    for reason, count in left_out.items():
        assert f"left out: {count} figures {reason}" in str(report) and f"{count} figures {reason}" in readme
    assert left_out or "left out" not in str(report).lower() + readme.lower()

    known = {row["image_id"]: identity_of(row) for row in figures}
    for task in RECIPES:
        rows = rows_of(tmp_path / "out", task)
        assert rows
        for row in rows:
            assert row["target_id"] in known
            whose = list(zip(row["reference_characters"], row["reference_artists"], row["reference_outfits"]))
            assert [known[image_id] for image_id in row["reference_ids"]] == whose


@pytest.mark.parametrize(
    ("scheme", "asked", "found"),
    [(["q", "e"], None, "48 q, 48 e"), ([None], None, "96 unknown"), (["g"], ["e"], "96 g")],
)
def test_nothing_left_to_publish(tmp_path, scheme, asked, found):
    with pytest.raises(ValueError, match=f"ratings: got .*, which leaves no figure to publish; there are {found}"):
        export_dataset(tmp_path / "out", rated_table(tmp_path, scheme), ratings=asked)
    assert not list(tmp_path.glob("out*"))


def test_a_task_without_rows_is_left_out(tmp_path):
    """Of each identity a single figure is published: there is nobody to refer to."""
    table = rated_table(tmp_path, ["g", *["e"] * 7])
    report = export_dataset(tmp_path / "out", table, embed_images=True)
    assert set(report.infos) == {"figures"} and report.left_out == {"rated e": 84}
    assert load_dataset(str(tmp_path / "out"), split="train").num_rows > 0
    with pytest.raises(ValueError, match="compose"):
        load_dataset(str(tmp_path / "out"), "compose")


# Whole, or not there


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, bytes]:
    return content(export_dataset(tmp_path_factory.mktemp("exports") / "out", **SMALL).out)


class Killed(BaseException):
    """Nothing catches it."""


def kill_at_row(call: int, row: int):
    """Ends the writing of the `call`th split, before its row of this number."""
    calls = []

    def rows_until(rows):
        for number, each in enumerate(rows):
            if number == row:
                raise Killed
            yield each

    def write(split, rows, *arguments):
        calls.append(split)
        return write_shards(split, rows_until(rows) if len(calls) == call else rows, *arguments)

    return {"write_shards": write}


def kill_when_called(name: str):
    def killed(*_, **__):
        raise Killed

    return {name: killed}


def kill_after(name: str):
    original = getattr(export, name)

    def killed(*arguments, **options):
        original(*arguments, **options)
        raise Killed

    return {name: killed}


MOMENTS = {
    "before the first row": lambda: kill_at_row(1, 0),
    "amid the first shard": lambda: kill_at_row(1, 50),
    "amid the second shard": lambda: kill_at_row(1, 150),
    "in the figures' last split": lambda: kill_at_row(3, 3),
    "amid a task": lambda: kill_at_row(4, 130),
    "in the last task's last split": lambda: kill_at_row(9, 1),
    "before the card": lambda: kill_when_called("dataset_card"),
    "before it is put in place": lambda: kill_when_called("replace_folder"),
    "once it is in place": lambda: kill_after("replace_folder"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("earlier", [False, True], ids=["new", "over an earlier export"])
def test_killed_and_run_again(tmp_path, monkeypatch, uninterrupted, moment, earlier):
    out = tmp_path / "out"
    if earlier:
        export_dataset(out, size=32, characters=4, configs=["compose"])
    before = content(out) if earlier else None
    with monkeypatch.context() as patch:
        for name, killed in MOMENTS[moment]().items():
            patch.setattr(export, name, killed)
        with pytest.raises(Killed):
            export_dataset(out, **SMALL)
    if moment != "once it is in place":  # until then what was there is there
        assert (content(out) if out.exists() else None) == before
    export_dataset(out, **SMALL)
    assert content(out) == uninterrupted
    assert os.listdir(tmp_path) == ["out"]


def test_what_was_whole_is_not_written_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        for name, killed in MOMENTS["in the last task's last split"]().items():
            patch.setattr(export, name, killed)
        with pytest.raises(Killed):
            export_dataset(tmp_path / "out", **SMALL)
    written = []
    monkeypatch.setattr(
        export, "write_shards", lambda split, *rest: written.append(split) or write_shards(split, *rest)
    )
    export_dataset(tmp_path / "out", **SMALL)
    assert written == list(SPLITS)  # of the last task


def test_other_arguments_begin_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        for name, killed in MOMENTS["before the card"]().items():
            patch.setattr(export, name, killed)
        with pytest.raises(Killed):
            export_dataset(tmp_path / "out", seed=1, **SMALL)
    fewer = {**SMALL, "configs": ["compose"]}
    export_dataset(tmp_path / "out", seed=0, **fewer)
    export_dataset(tmp_path / "fresh", seed=0, **fewer)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    assert sorted(os.listdir(tmp_path)) == ["fresh", "out"]


@pytest.mark.slow
@pytest.mark.parametrize(("call", "row"), [(1, 120), (5, 0)])
def test_killed_by_the_system(tmp_path, uninterrupted, call, row):
    """SIGKILL: no block ends, nothing is tidied up."""
    code = (
        "import datasets, os, signal, sys\n"
        "from retribooru.dataset_script import export\n"
        f"datasets.config.HF_DATASETS_CACHE = {str(tmp_path / 'cache')!r}\n"
        "write, calls = export.write_shards, []\n"
        "def rows_until(rows):\n"
        "    for number, each in enumerate(rows):\n"
        f"        if len(calls) == {call} and number == {row}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield each\n"
        "export.write_shards = lambda split, rows, *rest: calls.append(1) or write(split, rows_until(rows), *rest)\n"
        f"export.export_dataset({str(tmp_path / 'to' / 'out')!r}, **{SMALL!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert os.listdir(tmp_path / "to") == ["out.partial"]
    export_dataset(tmp_path / "to" / "out", **SMALL)
    assert content(tmp_path / "to" / "out") == uninterrupted
    assert os.listdir(tmp_path / "to") == ["out"]


def test_an_earlier_export_is_replaced(tmp_path, uninterrupted):
    export_dataset(tmp_path / "out", size=32, characters=12)
    assert (tmp_path / "out" / "swap").is_dir()
    (tmp_path / "out" / "data" / "train-00009-of-00010.parquet").write_bytes(b"left by somebody")
    export_dataset(tmp_path / "out", **SMALL)
    assert content(tmp_path / "out") == uninterrupted and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_is_no_export_stays(tmp_path, what):
    out = tmp_path / "out"
    if what == "folder":
        (out / "data").mkdir(parents=True)
        (out / "data" / "train-00000-of-00001.parquet").write_bytes(b"mine")
    else:
        out.write_bytes(b"mine")
    with pytest.raises(
        ValueError, match="out: got .*out, but .*out is there and no earlier export; wanted a new folder"
    ):
        export_dataset(out, **SMALL)
    assert (
        (content(out) == {"data/train-00000-of-00001.parquet": b"mine"})
        if what == "folder"
        else out.read_bytes() == b"mine"
    )
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_is_filled(tmp_path, uninterrupted):
    (tmp_path / "out").mkdir()
    export_dataset(tmp_path / "out", **SMALL)
    assert content(tmp_path / "out") == uninterrupted and (tmp_path / "out" / MARK).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"configs": ["compose", "paint", "draw"]}, "configs: got paint, draw, wanted some of figures, reconstruct"),
        ({"data_dir": "nothing"}, "data_dir: got nothing, which has no figures; wanted a folder that"),
        ({"images": "folder", "embed_images": False}, "images: got folder, wanted none without embed_images"),
        ({"images": "folder"}, "images: got folder, wanted none: this table holds its images"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_dataset(tmp_path / "out", **{**SMALL, **arguments})
    assert not os.listdir(tmp_path)


def test_the_features_of_a_table_are_kept(tmp_path):
    """Columns beyond ours come along in the figures."""
    table = rated_table(tmp_path, ["g"])
    features = Features({**FIGURES, "note": FIGURES["prompt"]})
    for split in SPLITS:
        rows = [
            row | {"note": row["image_id"]}
            for file in shards(table, "figures", split)
            for row in pq.read_table(file).to_pylist()
        ]
        write_shards(split, rows, tmp_path / "noted" / "data", features, len(rows))
    shutil.rmtree(table)
    export_dataset(tmp_path / "out", tmp_path / "noted", embed_images=True)
    rows = load_dataset(str(tmp_path / "out"), "figures", split="train")
    assert rows.features == features and rows["note"] == rows["image_id"]


@pytest.mark.parametrize("beside", ["out.partial", "out.old"])
def test_what_stands_beside_an_export_stays(beside, data_dir, tmp_path):
    """The names that are used while an export is made may be somebody's."""
    folder = tmp_path / beside
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=f"out: got .*out, but .*{beside} is there and no earlier export"):
        export_dataset(tmp_path / "out", data_dir, ratings=["unknown"])
    assert (folder / "mine.txt").read_text() == "mine" and not (tmp_path / "out").exists()


def test_ratings_are_a_list(data_dir, tmp_path):
    with pytest.raises(ValueError, match="ratings: got 'unknown', wanted a list"):
        export_dataset(tmp_path / "out", data_dir, ratings="unknown")


def test_the_folder_one_stands_in(data_dir, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is there and no earlier export"):
        export_dataset(Path("."), data_dir, ratings=["unknown"])
