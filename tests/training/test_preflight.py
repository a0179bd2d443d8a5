"""What would fail late is refused before the first step, and what is fine is not."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from hub import FakeApi, Hub
from retribooru import RetriBooruPipeline
from retribooru.training import preflight
from retribooru.training.arguments import TrainArguments
from retribooru.training.curves import read_metrics
from retribooru.training.data import load_figures
from retribooru.training.preflight import (
    check_concepts,
    check_disk,
    check_files,
    check_hub,
    check_kind,
    check_resolution,
    checkpoints_to_come,
)


def arguments(output_dir="out", **options):
    return TrainArguments(output_dir=str(output_dir), **options)


# --- room on the disk


@pytest.mark.parametrize(
    "there, options, expected",
    [
        ([], {"max_train_steps": 9, "checkpointing_steps": 2}, 4),  # none after the last step
        ([], {"max_train_steps": 8, "checkpointing_steps": 2}, 3),
        ([], {"max_train_steps": 9, "checkpointing_steps": 100}, 0),
        ([], {"max_train_steps": 9, "checkpointing_steps": 2, "checkpoints_total_limit": 1}, 2),  # one while writing
        ([], {"max_train_steps": 9, "checkpointing_steps": 2, "checkpoints_total_limit": 50}, 4),
        ([2, 4], {"max_train_steps": 9, "checkpointing_steps": 2}, 2),
        ([2, 4, 6, 8], {"max_train_steps": 9, "checkpointing_steps": 2}, 1),  # written anew, beside the old one
        ([2, 4], {"max_train_steps": 9, "checkpointing_steps": 2, "checkpoints_total_limit": 2}, 1),
    ],
)
def test_checkpoints_to_come(tmp_path, there, options, expected):
    for step in there:
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert checkpoints_to_come(arguments(tmp_path, **options)) == expected


@pytest.fixture
def disk(monkeypatch):
    """Sets how much is free; returns which folder was asked about."""
    asked = []

    def free(count):
        def usage(path):
            asked.append(path)
            return SimpleNamespace(free=count)

        monkeypatch.setattr(preflight.shutil, "disk_usage", usage)
        return asked

    return free


def test_room_on_the_disk(tmp_path, disk):
    """Two million weights, one of them trained: 8 MB, two moments of 4 MB each, an average of 4 MB."""
    model = nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.Linear(1000, 1000, bias=False))
    model[0].requires_grad_(False)
    args = arguments(tmp_path / "a" / "b", max_train_steps=10, checkpointing_steps=4)  # two checkpoints
    asked = disk(37_000_000)
    check_disk(args, model, 5_000_000)
    assert asked == [tmp_path.resolve()]
    disk(36_900_000)
    message = (
        r"output_dir: got .*/a/b with 36.9 MB free, wanted 37.0 MB: 2 checkpoints at a time of 16.0 MB "
        r"\(weights 8.0 MB, moments of Adam 8.0 MB, moving average 0.0 MB\), and the result of 5.0 MB"
    )
    with pytest.raises(ValueError, match=message):
        check_disk(args, model, 5_000_000)


@pytest.mark.parametrize(
    "options, megabytes", [({"use_ema": True}, 45), ({"use_8bit_adam": True}, 25), ({"checkpoints_total_limit": 1}, 37)]
)
def test_what_a_checkpoint_takes(tmp_path, disk, options, megabytes):
    model = nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.Linear(1000, 1000, bias=False))
    model[0].requires_grad_(False)
    args = arguments(tmp_path, max_train_steps=10, checkpointing_steps=4, **options)
    disk(megabytes * 1_000_000)
    check_disk(args, model, 5_000_000)
    disk(megabytes * 1_000_000 - 1)
    with pytest.raises(ValueError, match=f"output_dir: .* wanted {megabytes}.0 MB: 2 checkpoints"):
        check_disk(args, model, 5_000_000)


def test_what_is_estimated_is_what_is_written(run, tmp_path, monkeypatch):
    """Files and their headers included, for a model so small that headers weigh most."""
    seen = []
    monkeypatch.setattr("retribooru.training.train.check_disk", lambda args, *given: seen.append(given))
    folder = run(tmp_path / "run", max_train_steps=3, use_ema=True)
    model, result = seen[0]
    monkeypatch.undo()
    parameters = list(model.parameters())
    trained = sum(each.numel() for each in parameters if each.requires_grad)
    weights = sum(each.numel() for each in parameters)
    size = sum(path.stat().st_size for path in (folder / "checkpoint-2").rglob("*") if path.is_file())
    assert 1 <= size / (4 * (weights + 3 * trained)) < 1.4
    saved = sum(path.stat().st_size for path in folder.glob("*/*.safetensors") if "checkpoint" not in path.parent.name)
    assert 1 <= saved / result < 1.2


# --- files


def test_missing_shards(data_dir, tmp_path):
    folder = Path(shutil.copytree(data_dir, tmp_path / "built"))
    check_files(arguments(data_dir=str(folder)), ["train", "out_of_domain"])
    (shard, *_) = sorted((folder / "data").glob("train-*.parquet"))
    shard.rename(shard.with_name("train-00000-of-00002.parquet"))
    with pytest.raises(FileNotFoundError, match="data_dir: .* which has 1 files data/train.*wanted the 2 that"):
        check_files(arguments(data_dir=str(folder)), ["train"])
    check_files(arguments(data_dir=str(folder)), ["out_of_domain"])


def test_an_image_that_went_after_the_table_was_cached(run, data_dir, tmp_path):
    from retribooru.dataset_script.export import export_dataset

    table = export_dataset(tmp_path / "labels", data_dir, ratings=["unknown"]).out
    images = tmp_path / "images"
    images.mkdir()
    for split in ("train", "out_of_domain", "in_domain"):
        for row in load_figures(str(data_dir), split):
            row["image"].save(images / f"{row['image_id']}.png")
    names = {"data_dir": str(table), "images": str(images)}
    train = load_figures(str(table), "train", str(images))
    (images / f"{train[0]['image_id']}.png").unlink()
    load_figures(str(table), "train", str(images))  # nobody notices
    with pytest.raises(FileNotFoundError, match=f"images: {images} lacks 1 of the {len(train)} files .*, such as"):
        run(tmp_path / "run", **names, pretrained_model_name_or_path="nothing is loaded before")
    with pytest.raises(ValueError, match="images: got none, wanted the folder with the image files"):
        run(tmp_path / "run", data_dir=str(table))


# --- what does not fit the model


def test_resolution(stable_diffusion):
    check_resolution(stable_diffusion, 40)  # the VAE halves it twice, the U-Net once
    with pytest.raises(ValueError, match="resolution: got 36, wanted a multiple of 8: VAE and U-Net halve it 3 times"):
        check_resolution(stable_diffusion, 36)


@pytest.mark.parametrize(
    "name, made, asked", [("retrieval_query", "encoder", "decoder"), ("reference_timestep", "zero", "denoising")]
)
def test_kind_of_pipeline(stable_diffusion, name, made, asked):
    pipeline = RetriBooruPipeline.from_stable_diffusion(stable_diffusion, **{name: made})
    check_kind(pipeline, arguments(**{name: made}))
    with pytest.raises(ValueError, match=f"{name}: got {asked}, wanted {made}: that of the pipeline one begins with"):
        check_kind(pipeline, arguments(**{name: asked}))


def test_concepts():
    check_concepts(["face", "body"], ["compose", "face"])
    with pytest.raises(ValueError, match="tasks: got reconstruct, .* of the concept figure; .* knows: body, face"):
        check_concepts(["face", "body"], ["compose", "reconstruct"])


def test_a_run_is_refused_before_its_first_step(run, tmp_path):
    for options, message in (
        ({"resolution": 36}, "resolution: got 36"),
        ({"resolution": 36, "train_base": True, "tasks": ["compose"]}, "resolution: got 36"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path / "run", **options)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_without_room_is_refused(run, tmp_path, disk):
    disk(1000)
    with pytest.raises(ValueError, match="output_dir: got .* wanted .* MB: 2 checkpoints at a time of"):
        run(tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# --- the Hub


class Api(FakeApi):
    """FakeApi with somebody logged in, or nobody."""

    def __init__(self, hub, logged_in=True):
        super().__init__(hub)
        self.logged_in = logged_in

    def whoami(self):
        if not self.logged_in:
            raise OSError("Token is required")
        return {"name": "somebody"}


@pytest.fixture
def api(tmp_path):
    return Api(Hub("http://127.0.0.1", tmp_path / "hub"))


def test_the_result_is_pushed_with_its_card(run, tmp_path, api, monkeypatch):
    for module in ("retribooru.training.preflight", "retribooru.push"):
        monkeypatch.setattr(f"{module}.HfApi", lambda: api)
    folder = run(
        tmp_path / "run", max_train_steps=1, push_to_hub=True, hub_model_id="somebody/tiny", hub_private_repo=True
    )
    (created,) = [call for name, call in api.calls if name == "create_repo"]
    assert created["private"] and created["repo_type"] == "model"
    files = api.hub.files("somebody/tiny", "model")
    assert {"README.md", "model_index.json", "training.json"} <= set(files)
    assert not any(name.startswith(("checkpoint-", "metrics", "samples")) for name in files)
    repository = api.hub.repository("somebody/tiny", "model")
    assert "somebody/tiny" in (repository / "README.md").read_text()
    assert (repository / "training.json").read_text() == (folder / "training.json").read_text()
    RetriBooruPipeline.from_pretrained(repository)
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line] == [1]


def test_nobody_is_logged_in(run, tmp_path, api, monkeypatch):
    api.logged_in = False
    monkeypatch.setattr("retribooru.training.preflight.HfApi", lambda: api)
    push = {"push_to_hub": True, "hub_model_id": "somebody/tiny"}
    with pytest.raises(
        ValueError, match="push_to_hub: got True, but the Hub does not say who is logged in .OSError: T"
    ):
        run(tmp_path / "run", **push, pretrained_model_name_or_path="nothing is loaded before")
    assert not api.calls and not (tmp_path / "run").exists()


def test_names_of_the_hub(api):
    check_hub(arguments(push_to_hub=True, hub_model_id="tiny"), api)
    with pytest.raises(ValueError, match="hub_model_id: got a/b/c, wanted NAME or OWNER/NAME"):
        check_hub(arguments(push_to_hub=True, hub_model_id="a/b/c"), api)


WRONG = {
    "no name": ({"push_to_hub": True}, "hub_model_id: got None, wanted NAME or OWNER/NAME with push_to_hub"),
    "no push": ({"hub_model_id": "a/b"}, "hub_model_id: got a/b, wanted none without push_to_hub"),
    "private": ({"hub_private_repo": True}, "hub_private_repo: got True, wanted none without push_to_hub"),
    "base": (
        {"push_to_hub": True, "hub_model_id": "a/b", "train_base": True},
        "push_to_hub: got True, wanted none with train_base",
    ),
}


@pytest.mark.parametrize("options, message", WRONG.values(), ids=WRONG)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        arguments(**options)
