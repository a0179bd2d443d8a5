"""The console command, end to end, as a user's shell sees it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from handmade import write_figures
from retribooru import RetriBooruPipeline


def retribooru(*args, cwd, timeout=600):
    """The installed console script, with a cache of its own."""
    command = [str(Path(sys.executable).parent / "retribooru"), *map(str, args)]
    env = {**os.environ, "HF_HOME": str(Path(cwd) / "hf_home"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def test_help(tmp_path):
    done = retribooru("--help", cwd=tmp_path)
    assert done.returncode == 0 and all(name in done.stdout for name in ("build", "train", "demo"))
    for command in ("build", "demo", "train"):
        done = retribooru(command, "--help", cwd=tmp_path)
        assert done.returncode == 0 and "--out" in done.stdout


def test_build(figures_folder, tmp_path):
    options = {name: figures_folder / name for name in ("images", "masks")}
    done = retribooru(
        "build", "--annotations", figures_folder / "retribooru.json", "--images", options["images"], "--masks",
        options["masks"], "--out", "built", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "48 figures" in done.stdout and "12 identities" in done.stdout
    assert list((tmp_path / "built" / "data").glob("train-*.parquet"))
    assert (tmp_path / "built" / "rejects.jsonl").read_text() == ""


def test_bad_input_is_one_line_and_status_1(tmp_path):
    done = retribooru("build", "--annotations", "a", "--images", "b", "--masks", "c", "--out", "d", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: images: got b, which is not a folder; wanted one with a file per image id"
    done = retribooru("train", "--output_dir", "a", "--data_dir", "b", "--tasks", "paint", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("error: tasks: got ['paint']")


@pytest.mark.slow
def test_demo_draws_with_a_checkpoint(stable_diffusion_dir, tmp_path):
    RetriBooruPipeline.from_stable_diffusion(str(stable_diffusion_dir)).save_pretrained(tmp_path / "mine")
    done = retribooru("demo", "--checkpoint", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for file, pictures in (("grid.png", 4 + 4), ("scales.png", 4 + 5)):
        assert str(Path("demo") / file) in done.stdout
        with Image.open(tmp_path / "demo" / file) as grid:
            assert grid.width > 128 * pictures and grid.height > 128 * 9


def test_demo_refuses_what_is_not_for_it(stable_diffusion_dir, tmp_path):
    wrong = {
        ("--steps", 3): "steps: got 3, wanted it with --train alone",
        ("--train", "--checkpoint", "x"): "checkpoint: got x, wanted none with --train",
        ("--checkpoint", stable_diffusion_dir): "wanted a RetriBooruPipeline",
        ("--checkpoint", "nowhere"): "checkpoint: got nowhere, wanted a RetriBooruPipeline",
    }
    for options, message in wrong.items():
        done = retribooru("demo", *options, cwd=tmp_path)
        assert done.returncode == 1 and message in done.stderr.splitlines()[-1]


def test_demo_of_too_few_characters(tmp_path):
    figures = write_figures(tmp_path / "figures", characters=1, images=3)
    done = retribooru("demo", "--train", "--out", "demo", "--figures", figures, cwd=tmp_path)
    assert done.returncode == 1
    assert "characters to hold out, wanted two or more" in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("figures", ["drawn", "given"])
def test_demo_that_trains(figures, figures_folder, tmp_path):
    options = ["--figures", figures_folder] if figures == "given" else []
    done = retribooru(
        "demo", "--train", "--out", "demo", "--vae-steps", 3, "--base-steps", 2, "--steps", 2, *options, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "demo"
    scores = json.loads((out / "scores.json").read_text())
    assert scores["training_steps"] == 2
    assert set(scores["palette_match"]) == {"reconstruct", "compose"} and "clip_i" not in scores
    assert "NOT learned to retrieve" in done.stdout  # two steps are too few
    assert "tiny" in done.stdout and "an untrained CLIP's mean nothing" in done.stdout
    rows = sum(scores["pictures_per_task"].values())
    assert rows >= 4
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 500 and grid.height > 90 * rows
    for file in ("grid.png", "demo-retrieval/loss.png", "scores.json"):
        assert str(Path("demo") / file) in done.stdout and (out / file).stat().st_size > 100
    RetriBooruPipeline.from_pretrained(out / "demo-retrieval")
