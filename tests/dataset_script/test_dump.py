"""From a booru dump to the figures table: all stages together, killed, on a cluster, and by the command."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

import build_dump
import retribooru  # noqa: F401
from retribooru.dataset_script.build import dump
from retribooru.dataset_script.build.detectors import heads_named, masks_named
from retribooru.dataset_script.build.filter import FilterRules, filter_dump
from retribooru.dataset_script.build.stage import Runner, count_stage, read_rejects, read_rows
from retribooru.dataset_script.figures import SPLITS
from retribooru.dataset_script.table import FiguresTable, shard_files

PROGRAM = Path(build_dump.__file__)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dump") / "source"
    spoilt = build_dump.write_dump(folder)
    return folder, spoilt


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "out"
    build_dump.build_dump(source[0], out, Runner(1))
    return out


def content(out):
    """{file: bytes} of everything but what says where the build was."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name != "settings.json")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def rows_of(out):
    return [row for split in SPLITS for row in FiguresTable(shard_files(out, split))]


def test_every_record_is_in_the_table_or_rejected_once(source, built):
    folder, spoilt = source
    ids = [json.loads(line)["id"] for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rejects = [json.loads(line) for line in (built / "rejects.jsonl").read_text().splitlines()]
    rows = rows_of(built)
    assert sorted([row["image_id"] for row in rows] + [line["image_id"] for line in rejects]) == sorted(ids)
    reasons = Counter(line["reason"].split(":")[0] for line in rejects)
    assert {reason: reasons[reason] for reason in spoilt} == spoilt and min(spoilt.values()) > 2
    assert set(reasons) <= {*spoilt, "alone"}
    assert {line["stage"] for line in rejects} <= {"filter", "annotate", "ask", "outfits"}


def test_rows_are_what_the_stages_found(source, built):
    by_id = {
        row["image_id"]: row
        for identity in build_dump.identities(0, 12)
        for row in build_dump.draw_rows(identity, 48, 0)
    }
    for row in rows_of(built):
        drawn = by_id[row["image_id"]]
        for name in ("character", "artist", "copyright", "head_box", "outfit_answer"):
            assert row[name] == drawn[name]
        assert row["image"] == drawn["image"] and row["outfit"] == drawn["outfit_answer"] and row["rating"] == "s"
        assert row["tags"] == drawn["tags"] and row["prompt"] == ", ".join(drawn["tags"])


def test_it_loads(built, tmp_path):
    figures = load_dataset("retribooru", "figures", data_dir=str(built), cache_dir=str(tmp_path))
    compose = load_dataset("retribooru", "compose", data_dir=str(built), cache_dir=str(tmp_path))
    assert sum(figures.num_rows.values()) == sum(compose.num_rows.values()) == len(rows_of(built))  # nobody is alone
    code_free = load_dataset(str(built), cache_dir=str(tmp_path / "code_free"))  # by the card
    assert code_free.num_rows == figures.num_rows and code_free["train"][0] == figures["train"][0]


def test_report_and_counts(source, built):
    stages = dump.stage_counts(built)
    assert [stage.name for stage in stages] == ["metadata", "filter", "annotate", "ask", "outfits"]
    for earlier, later in zip(stages, stages[1:]):
        assert later.total == earlier.kept
    page = (built / "report" / "README.md").read_text()
    assert "855,880" in page and "116,729" in page and "missing" not in page and "too many" not in page
    assert {path.suffix for path in (built / "report").iterdir()} == {".md", ".png"}


def test_again_does_nothing_anew(source, built):
    def times():
        return {path: path.stat().st_mtime_ns for path in (built / "stages").rglob("0*.parquet")}

    before = times()
    build_dump.build_dump(source[0], built, Runner(1))
    assert before == times() and len(before) > 40


@pytest.mark.parametrize("runner", ["2", pytest.param("ray", marks=pytest.mark.slow)])
def test_many_workers_make_the_same_bytes(runner, source, built, tmp_path):
    if runner == "ray":
        pytest.importorskip("ray", reason="needs the extra cluster: ray[data]")
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, PROGRAM, source[0], out, runner], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert content(out) == content(built)


@pytest.mark.slow
def test_killed_at_random_moments(source, built, tmp_path):
    """SIGKILL, 20 times, at any moment of what is left to do; then it ends as if nothing had been."""
    out, rng, kills = tmp_path / "out", random.Random(0), 0
    command = [sys.executable, PROGRAM, source[0], out]
    began = time.monotonic()
    subprocess.run([*command[:3], tmp_path / "timed"], check=True, capture_output=True)
    whole = time.monotonic() - began
    while kills < 20:
        command[4:] = ["2" if kills % 5 == 0 else "1"]  # the rows do not depend on it
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(rng.uniform(0.3, 1.0) * whole)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too
            process.wait()
            kills += 1
            for path in out.rglob("*.parquet"):
                if ".partial" not in str(path):
                    pq.read_metadata(path)  # whatever bears its final name is whole
        else:
            assert process.returncode == 0
            whole_files = content(out)
            assert whole_files == content(built)
            for path in sorted(out.rglob("*"), reverse=True):  # once more from the beginning
                path.unlink() if path.is_file() else path.rmdir()
    subprocess.run(command, check=True, capture_output=True)
    assert content(out) == content(built)


def test_command_on_real_figures(real_figures, tmp_path):
    command = [Path(sys.executable).parent / "retribooru", "build", "--metadata", real_figures / "metadata.jsonl",
               "--images", real_figures / "images", "--masks", f"given:{real_figures / 'masks'}",
               "--heads", f"given:{real_figures / 'retribooru.json'}",
               "--model", f"given:{real_figures / 'retribooru.json'}", "--out", tmp_path / "out"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "608 figures" in done.stdout and "120 identities" in done.stdout
    counts = count_stage(tmp_path / "out" / "stages" / "filter")
    assert counts == {"kept": 608, "monochrome": 20, "sketch": 20, "characters": 20, "artists": 20, "clothing": 20}
    assert len(list(read_rejects(tmp_path / "out" / "stages" / "filter"))) == 100


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "source: got none, wanted one of annotations, metadata, people"),
        (["--metadata", "a", "--people", "b"], "source: got metadata and people, wanted one of"),
        (["--metadata", "a"], "out: got none"),
        (["--metadata", "a", "--out", "o"], "images: got none"),
        (["--metadata", "a", "--out", "o", "--images", "i"], "heads: got none"),
        (["--metadata", "a", "--out", "o", "--images", "i", "--heads", "none", "--masks", "alpha"], "metadata: got a"),
        (["--metadata", "a", "--out", "o", "--images", "i", "--heads", "noses"], "heads: got 'noses', wanted"),
        (["--metadata", "a", "--out", "o", "--images", "i", "--heads", "none", "--model", "given:b"], "model: got b"),
        (
            ["--annotations", "a", "--out", "o", "--images", "i", "--masks", "m", "--heads", "none"],
            "heads: got none, wanted none",
        ),
        (["annotate", "--out", "o", "--images", ".", "--heads", "none"], "out: o has no filter yet"),
        (["write", "--out", "o", "--images", "."], "out: o has no outfits yet"),
        (["filter", "--out", "o", "--metadata", "a", "--processes", "0"], "processes: got 0, wanted at least 1"),
    ],
)
def test_bad_commands(options, message, tmp_path):
    from typer.testing import CliRunner

    from retribooru.cli import app

    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        done = CliRunner().invoke(app, ["build", *options])
    finally:
        os.chdir(before)
    assert done.exit_code == 1 and f"error: {message}" in done.output


def test_a_stage_that_leaves_nothing_ends_the_build(tmp_path):
    """Garbage is counted, and no model is loaded for it."""
    (tmp_path / "bad.jsonl").write_bytes(b'garbage\n[1]\n{"id": "../x", "rating": "s", "tags": []}\n\xff\xfe\n')
    filter_dump([tmp_path / "bad.jsonl"], dump.stage_folder(tmp_path, "filter"), FilterRules.from_files(), Runner(1))
    with pytest.raises(ValueError, match="out: filter has left nothing of .*; rejected: .*3 line"):
        dump.annotate_stage(tmp_path, tmp_path, masks_named("alpha"), heads_named("none"), Runner(1))


class Judge:
    """Stands for a model: `judge_outfits` is what would ask it."""

    def settings(self):
        return ["judge"]


def test_a_judge_splits_outfits(source, built, tmp_path, monkeypatch):
    """Every group loses its first image to nobody, and is cut in two where four or more are left."""
    out = tmp_path / "out"
    shutil.copytree(built / "stages", out / "stages")
    before = {row["image_id"]: row for row in read_rows(dump.stage_folder(out, "outfits")).to_pylist()}
    asked = []

    def judge_outfits(groups, *args):
        asked.extend(groups)
        pieces = [[group[:1], group[1:3], group[3:]] if len(group) > 4 else [group[:1], group[1:]] for group in groups]
        return [piece for group in pieces for piece in group if piece]

    monkeypatch.setattr(dump, "judge_outfits", judge_outfits)
    counts = dump.outfits_stage(out, source[0] / "images", Runner(1), judge=Judge())
    assert sorted(image_id for group in asked for image_id in group) == sorted(before)
    rows = read_rows(dump.stage_folder(out, "outfits")).to_pylist()
    firsts = {group[0] for group in asked}
    assert firsts.isdisjoint(row["image_id"] for row in rows)
    sizes = Counter()
    for row in rows:
        name, _, first = row["outfit"].rstrip(")").rpartition(" (")
        assert name == before[row["image_id"]]["outfit"] and first in before
        sizes[row["outfit"]] += 1
    assert min(sizes.values()) >= 2 and len(sizes) > len(asked)
    rejects = list(read_rejects(dump.stage_folder(out, "outfits")))
    assert len(rows) + len(rejects) == count_stage(dump.stage_folder(out, "ask"))["kept"] == counts.total()
    assert {line["image_id"] for line in rejects if line["reason"].endswith("by the judge")} >= firsts
    dump.write_stage(out, source[0] / "images")
    assert len(rows_of(out)) == len(rows)
