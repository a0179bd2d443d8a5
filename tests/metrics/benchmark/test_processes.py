"""Runs that are killed, shared out among processes or put on a cluster end as one undisturbed process does.

Runs that are killed are forked from a server that has imported everything, so that what a kill hits is a benchmark.
"""

import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from launching import flags_of, launch
from retribooru.cli import app
from retribooru.metrics.benchmark import run

SMALL = {"in_domain": 1, "out_of_domain": 2, "images_per_prompt": 3, "questions": ["where?"]}
UNITS = 3 * 2 * 2  # of a method: characters, prompts and seeds


@pytest.fixture(scope="module")
def flags(settings, described, functions_dir, tmp_path_factory):
    """Function: of a benchmark of an IP-Adapter, the base and a function that notes its calls in `out`.calls."""

    def flags(out, **more):
        methods = {
            "IP-Adapter": {**described["IP-Adapter"], "scale": [0.3, 1.0]},
            "base": described["Stable Diffusion"],
            "mine": {"function": "benchmark_functions:draw"},
        }
        return flags_of(settings(out, methods, **SMALL, **more))

    return flags


def main_in(folder, log, flags):
    """The command, as it is in a process that works in `folder`; notes in a file what is drawn."""
    import torch

    from retribooru.metrics.benchmark import pictures

    torch.set_num_threads(1)
    os.chdir(folder)
    draw_unit = pictures._draw_unit

    def noting(plan, draw, number, method, unit):
        with open(log, "a") as file:
            file.write(json.dumps([method.name, number, unit[0][:2]]) + "\n")
        draw_unit(plan, draw, number, method, unit)

    pictures._draw_unit = noting
    run.main(flags)


@pytest.fixture(scope="module")
def start():
    """Function: starts `main_in` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        context.set_forkserver_preload([run.__name__, "retribooru.metrics.benchmark.pictures"])

        def start(*args):
            process = context.Process(target=main_in, args=args)
            process.start()
            return process

        yield start


def until_the_end(start, folder, log, flags):
    """Runs it, or goes on with it; returns the seconds that it took."""
    began = time.monotonic()
    process = start(folder, log, flags)
    process.join(240)
    alive = process.is_alive()
    process.kill()
    assert not alive and process.exitcode == 0
    return time.monotonic() - began


@pytest.fixture(scope="module")
def whole(start, flags, functions_dir, tmp_path_factory):
    """A run that nobody killed, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("whole")
    # The first also starts the server and caches the data.
    until_the_end(start, functions_dir, folder / "first.log", flags(folder / "first"))
    return folder, until_the_end(start, functions_dir, folder / "log", flags(folder / "out"))


def noted(log):
    return [json.dumps(json.loads(line)) for line in Path(log).read_text().splitlines()]


@pytest.mark.slow
def test_killed_at_random_moments(start, flags, whole, functions_dir, files, tmp_path):
    """The same files to the bit; what is there at a kill is never written again, and no call is made again but the one
    that the kill hit. One run after another, until five kills have hit."""
    expected, seconds = whole
    rng, left, run_number = Random(0), 5, 0
    while left:
        out, log = tmp_path / str(run_number) / "out", tmp_path / str(run_number) / "log"
        log.parent.mkdir()
        kills, kept, ended = 0, {}, False
        while left and not ended:
            process = start(functions_dir, log, flags(out))
            process.join(rng.uniform(0, seconds))
            process.kill()  # SIGKILL
            process.join()
            ended = process.exitcode == 0
            kills, left = kills + (not ended), left - (not ended)
            for path in (out / "pictures").rglob("*.png"):
                kept.setdefault(path, path.stat().st_mtime_ns)
        until_the_end(start, functions_dir, log, flags(out))
        assert files(out) == files(expected / "out")
        assert kept and {path: path.stat().st_mtime_ns for path in kept} == kept
        drawn = Counter(noted(log))
        assert len(drawn) == 4 * UNITS and set(drawn) == set(noted(expected / "log"))
        assert drawn.total() - len(drawn) <= kills
        run_number += 1


@pytest.mark.slow
def test_killed_in_the_middle_of_writing(start, flags, whole, functions_dir, files, tmp_path):
    expected, _ = whole
    out, log = tmp_path / "out", tmp_path / "log"
    for pattern in ("settings.json", "pictures/ip-adapter-1/*/*.png*", "pictures/mine/*/1-1-1.png*",
                    "scores/*/*.groups.parquet*", "scores/mine/*", "scores.parquet*", "results.json*", "frontier.png*",
                    "grid-*"):  # fmt: skip
        process = start(functions_dir, log, flags(out))
        while process.is_alive() and not any(out.glob(pattern)):
            time.sleep(1e-3)
        process.kill()
        process.join()
        assert any(out.glob(pattern))
    until_the_end(start, functions_dir, log, flags(out))
    assert files(out) == files(expected / "out")


@pytest.mark.slow
def test_two_processes_share_the_characters(flags, whole, functions_dir, files, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "retribooru.metrics.benchmark", *flags(tmp_path / "out")]
    status, output = launch(command, functions_dir)
    assert status == 0, output
    assert output.count("### All characters") == 1
    assert files(tmp_path / "out") == files(whole[0] / "out")


@pytest.mark.slow
def test_accelerate_launches_it(flags, whole, functions_dir, files, tmp_path):
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    command = [*accelerate, "-m", "retribooru.metrics.benchmark", *flags(tmp_path / "out")]
    status, output = launch(command, functions_dir)
    assert status == 0, output
    assert files(tmp_path / "out") == files(whole[0] / "out")


@pytest.mark.slow
def test_on_ray(flags, whole, functions_dir, files, tmp_path):
    pytest.importorskip("ray")
    more = ["--ray", "local", "--ray_actors", "2"]
    command = [sys.executable, "-m", "retribooru.metrics.benchmark", *flags(tmp_path / "out"), *more]
    status, output = launch(command, functions_dir)
    assert status == 0, output
    assert files(tmp_path / "out") == files(whole[0] / "out")


def test_the_console_command(tmp_path):
    done = CliRunner().invoke(app, ["benchmark", "--help"])
    assert done.exit_code == 0 and "--images_per_prompt" in done.output
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["benchmark", "--methods", "a.yaml", "--output_dir", str(out), "--task", "swap"])
    assert done.exit_code == 1
    assert done.stderr.strip() == "error: task: got swap, wanted one of reconstruct, compose, face"
    assert not out.exists()
