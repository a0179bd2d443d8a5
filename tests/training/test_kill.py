"""Runs that are killed and started again end as if they had never been killed: the same bits.

Each run is a process of its own, forked from a server that has imported the trainers already: that takes six seconds or
so, and a start from there less than one, so that what a kill hits is a training.
"""

import multiprocessing
import time
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from retribooru.training import train, train_vae


@pytest.fixture(scope="module")
def start():
    """Starts a trainer's main in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("OMP_NUM_THREADS", "1")
        context.set_forkserver_preload([train.__name__, train_vae.__name__])

        def start(main, flags):
            process = context.Process(target=main, args=(flags,))
            process.start()
            return process

        yield start


@pytest.fixture(scope="module")
def retrieval(data_dir, stable_diffusion_dir):
    """Flags of a run of twelve steps, with a checkpoint after every second."""
    return [
        "--data_dir", str(data_dir), "--pretrained_model_name_or_path", str(stable_diffusion_dir), "--resolution", "32",
        "--tasks", "reconstruct", "compose", "--train_batch_size", "2", "--max_train_steps", "12", "--use_ema",
        "--learning_rate", "1e-2", "--lr_scheduler", "cosine", "--lr_warmup_steps", "3", "--logging_steps", "1",
        "--validation_steps", "4", "--validation_targets", "4", "--checkpointing_steps", "2",
        "--checkpoints_total_limit", "2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def vae(data_dir):
    return [
        "--data_dir", str(data_dir), "--resolution", "32", "--block_out_channels", "8", "8", "--train_batch_size", "2",
        "--max_train_steps", "12", "--use_ema", "--logging_steps", "1", "--validation_steps", "4",
        "--validation_pictures", "4", "--checkpointing_steps", "2",
    ]  # fmt: skip


def until_the_end(start, main, flags, folder):
    """Starts the run, or goes on with it; returns the seconds that it took."""
    began = time.monotonic()
    process = start(main, [*flags, "--output_dir", str(folder), "--resume_from_checkpoint", "latest"])
    process.join(120)
    assert process.exitcode == 0
    return time.monotonic() - began


def kill_when(start, main, flags, folder, due):
    """Starts the run, or goes on with it, and kills it when `due()`; False where it ended before."""
    process = start(main, [*flags, "--output_dir", str(folder), "--resume_from_checkpoint", "latest"])
    while process.is_alive() and not due():
        time.sleep(1e-4)
    process.kill()  # SIGKILL
    process.join()
    assert process.exitcode in (0, -9)
    return process.exitcode == -9


@pytest.fixture(scope="module")
def whole(start, retrieval, tmp_path_factory):
    """A run that nobody killed, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    until_the_end(start, train.main, retrieval, folder.with_name("first"))  # the first also starts the server
    return folder, until_the_end(start, train.main, retrieval, folder)


def assert_same(folder, expected):
    """The same weights and the same metrics, to the bit; and nothing half written."""
    assert not [*folder.glob("*.partial"), *folder.glob("*.old")]
    files = [path.relative_to(expected) for path in expected.rglob("*.safetensors")]
    assert files and {path.relative_to(folder) for path in folder.rglob("*.safetensors")} == set(files)
    for file in files:
        before, after = load_file(expected / file), load_file(folder / file)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), file
    assert (folder / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()


def kill_at_random_moments(start, main, flags, folder, expected, seconds, kills, rng):
    """One run after another, `seconds` long if not killed, until so many kills have hit; each ends as `expected`."""
    runs = 0
    while kills:
        due_at = time.monotonic() + rng.uniform(0, seconds)
        if kill_when(start, main, flags, folder / str(runs), lambda: time.monotonic() >= due_at):
            kills -= 1
        else:  # it ended before
            assert_same(folder / str(runs), expected)
            runs += 1
    until_the_end(start, main, flags, folder / str(runs))
    assert_same(folder / str(runs), expected)


@pytest.mark.slow
def test_killed_at_random_moments(start, retrieval, whole, tmp_path):
    kill_at_random_moments(start, train.main, retrieval, tmp_path, *whole, kills=10, rng=Random(0))


@pytest.mark.slow
def test_killed_in_the_middle_of_writing(start, retrieval, whole, tmp_path):
    expected, _ = whole
    folder = tmp_path / "run"
    for written, final in {
        "checkpoint-2.partial": "checkpoint-2",
        "checkpoint-6.partial/model.safetensors": "checkpoint-6",
        "checkpoint-10.partial/optimizer.bin": "checkpoint-10",
        "pipeline.partial/unet": "model_index.json",
    }.items():
        assert kill_when(start, train.main, retrieval, folder, (folder / written).exists)
        assert (folder / written).exists() and not (folder / final).exists()  # it was in the middle
    until_the_end(start, train.main, retrieval, folder)
    assert_same(folder, expected)


@pytest.mark.slow
def test_a_vae_killed(start, vae, tmp_path):
    expected, folder = tmp_path / "whole", tmp_path / "run"
    seconds = until_the_end(start, train_vae.main, vae, expected)
    kill_at_random_moments(start, train_vae.main, vae, tmp_path, expected, seconds, kills=3, rng=Random(1))
    assert kill_when(start, train_vae.main, vae, folder, (folder / "checkpoint-6.partial").exists)
    until_the_end(start, train_vae.main, vae, folder)
    assert_same(folder, expected)
