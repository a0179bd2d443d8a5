"""The model card of a checkpoint, its facts, and `retribooru push --checkpoint`."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hub import OWNER, FakeApi, Hub
from retribooru import RetriBooruPipeline
from retribooru.cli import app
from retribooru.checkpoint_facts import read_checkpoint
from retribooru.model_card import is_edited, write_model_card
from retribooru.push import push_checkpoint
from retribooru.training.arguments import TrainArguments
from retribooru.training.checkpoints import training_facts
from retribooru.training.train import train

UNTRAINED, UNKNOWN = "This pipeline is untrained", "Nothing is known of the training"


@pytest.fixture(scope="module")
def untrained(stable_diffusion_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    RetriBooruPipeline.from_stable_diffusion(str(stable_diffusion_dir)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(data_dir, stable_diffusion_dir, tmp_path_factory) -> Path:
    """What a training of two steps leaves."""
    return train(
        TrainArguments(
            output_dir=str(tmp_path_factory.mktemp("trained")), data_dir=str(data_dir), resolution=32,
            pretrained_model_name_or_path=str(stable_diffusion_dir), max_train_steps=2, train_batch_size=1,
            learning_rate=1e-3, lr_warmup_steps=1, validation_targets=4, checkpointing_steps=1,
        )
    )  # fmt: skip


@pytest.fixture
def checkpoint(trained, tmp_path) -> Path:
    """A copy of its own."""
    return shutil.copytree(trained, tmp_path / "checkpoint")


def card_of(folder: Path, **options) -> ModelCard:
    return ModelCard.load(write_model_card(folder, **options))


def test_facts_are_the_pipelines(checkpoint):
    pipeline, text = RetriBooruPipeline.from_pretrained(checkpoint), card_of(checkpoint).text
    assert f"{pipeline.sample_size} x {pipeline.sample_size} pixels" in text
    for name in ("unet", "retrieval_encoder", "vae", "text_encoder"):
        part = getattr(pipeline, name)
        assert re.search(
            rf"\| `{name}` \| {type(part).__name__} \| {part.num_parameters():,}(,.*)? \| float32 \|", text
        )
    retrieval = sum(parameter.numel() for parameter in pipeline.unet.retrieval_layers.parameters())
    assert f"of these {retrieval:,} in retrieval layers" in text
    for concept, words in pipeline.retrieval_encoder.config.concept_texts.items():
        assert f'`{concept}` ("{words}")' in text
    assert "`zero`: references are read once" in text and "`decoder`: the state at the entry" in text


def test_settings_other_than_the_usual(stable_diffusion, tmp_path):
    RetriBooruPipeline.from_stable_diffusion(
        stable_diffusion.to(torch.float16), retrieval_query="encoder", reference_timestep="denoising"
    ).save_pretrained(tmp_path, variant="fp16")
    text = card_of(tmp_path).text
    assert "guidance_scale=" not in text  # nothing is known of it
    assert "`denoising`: references are read anew" in text and "`encoder`: the encoder's feature" in text
    assert len(re.findall(r'\| float16 \(`variant="fp16"`\) \|', text)) == 4 and "float32" not in text


def test_training_facts(checkpoint, data_dir):
    facts = json.loads((checkpoint / "training.json").read_text())
    looks = [json.loads(line) for line in (checkpoint / "metrics.jsonl").read_text().splitlines()]
    last = [look for look in looks if "own_references" in look][-1]
    assert facts["steps"] == last["step"] == 2
    assert {name: facts["held_out"][name] for name in last} == last
    assert facts["settings"]["learning_rate"] == 1e-3 and facts["settings"]["tasks"] == ["reconstruct"]
    assert facts["settings"]["data_dir"] == data_dir.name
    card = card_of(checkpoint)
    assert f"2 steps, finished {facts['finished']}" in card.text and facts["held_out"]["verdict"] in card.text
    assert "NOT learned to retrieve" in card.text  # two steps are too few
    assert "learning_rate: 0.001" in card.text
    assert "    guidance_scale=7.5,  # as in the grids of its training\n    generator=" in card.text
    assert UNTRAINED not in card.text and UNKNOWN not in card.text
    assert card.data.base_model is None  # a folder of this machine means nothing elsewhere


def test_tables_and_plots_are_shown_and_pushed(checkpoint):
    assert "## Evaluation" not in card_of(checkpoint).text
    folder = checkpoint / "evaluation"
    folder.mkdir()
    (folder / "truth.md").write_text("| hair | top |\n|---|---|\n| 97 | 91 |\n")
    (folder / "truth.json").write_text("{}")
    Image.new("RGB", (8, 8)).save(folder / "scale.png")
    (folder / "notes.txt").write_text("mine")
    text = card_of(checkpoint).text
    assert "## Evaluation\n" in text and "| 97 | 91 |" in text and "![scale](evaluation/scale.png)" in text
    files = read_checkpoint(checkpoint).files
    assert {"evaluation/truth.md", "evaluation/truth.json", "evaluation/scale.png"} <= set(files)
    assert "evaluation/notes.txt" not in files


def test_training_facts_name_what_is_on_the_hub():
    args = TrainArguments(output_dir="out", pretrained_model_name_or_path="somebody/stable-diffusion", train_base=True)
    facts = training_facts(args, [{"step": 1, "loss": 1.0}])
    assert facts["settings"]["pretrained_model_name_or_path"] == "somebody/stable-diffusion"
    assert facts["settings"]["data_dir"] is None and facts["held_out"] is None
    assert "output_dir" not in facts["settings"]


def test_base_model_of_the_hub(checkpoint):
    facts = json.loads((checkpoint / "training.json").read_text())
    facts["settings"]["pretrained_model_name_or_path"] = "somebody/stable-diffusion"
    (checkpoint / "training.json").write_text(json.dumps(facts))
    assert card_of(checkpoint).data.base_model == "somebody/stable-diffusion"


def test_nothing_known_and_untrained(untrained, checkpoint, tmp_path):
    (checkpoint / "training.json").unlink()
    assert UNKNOWN in card_of(checkpoint).text and UNTRAINED not in card_of(checkpoint).text
    copy = shutil.copytree(untrained, tmp_path / "untrained")
    assert UNTRAINED in card_of(copy).text and UNKNOWN not in card_of(copy).text
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["retrieval_layers.0.zero_conv.bias"][0] = 1e-6
    save_file(tensors, weights, metadata={"format": "pt"})
    assert UNTRAINED not in card_of(copy).text and UNKNOWN in card_of(copy).text


def test_metadata_and_licence(checkpoint):
    card = card_of(checkpoint, repo_id="somebody/retrieval")
    assert card.data.license == "unknown" and "Unknown: whoever published" in card.text
    assert card.data.library_name == "diffusers" and "RetriBooruPipeline" in card.data.tags
    assert 'from_pretrained("somebody/retrieval", trust_remote_code=True)' in card.text
    card = card_of(checkpoint, license="creativeml-openrail-m")
    assert card.data.license == "creativeml-openrail-m" and "`creativeml-openrail-m`, as whoever" in card.text
    assert "2312.02521" in card.text and "{" not in card.text


def test_the_lines_of_the_card_run(checkpoint, tmp_path, monkeypatch):
    _, ours, use = re.findall(r"```python\n(.*?)```", card_of(checkpoint, repo_id=str(checkpoint)).text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name in ("face", "body", "body_mask"):
        Image.linear_gradient("L").save(f"{name}.png")
    names = {}
    exec(ours + use, names)
    assert names["image"].size == (32, 32) and (tmp_path / "character.safetensors").is_file()


def test_a_card_that_people_edited_is_not_overwritten(checkpoint):
    readme = write_model_card(checkpoint)
    assert not is_edited(readme) and write_model_card(checkpoint, license="mit") == readme  # ours may be replaced
    text = readme.read_text()
    assert "license: mit" in text
    for edited in (text.replace("Limits", "Its limits"), text + "More.\n", "# Mine\n"):
        readme.write_text(edited)
        with pytest.raises(ValueError, match="README.md: got one .* that people wrote or edited"):
            write_model_card(checkpoint)
        assert readme.read_text() == edited
    readme.write_bytes(text.replace("\n", "\r\n").encode())  # as git may check it out
    assert not is_edited(readme)


def without(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink() if (folder / name).is_file() else shutil.rmtree(folder / name)

    return change


def cut(folder):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def without_a_shard(folder):
    RetriBooruPipeline.from_pretrained(folder).unet.save_pretrained(folder / "unet", max_shard_size="100KB")
    sorted((folder / "unet").glob("*-of-*.safetensors"))[1].unlink()


def of_another_pipeline(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionPipeline"}))


BROKEN = {
    "no index": (without("model_index.json"), "has no model_index.json"),
    "another pipeline": (of_another_pipeline, "names the class 'StableDiffusionPipeline'"),
    "not JSON": (lambda folder: (folder / "model_index.json").write_text("{"), "is no JSON file"),
    "no component": (without("vae"), "lacks vae"),
    "no configuration": (without("unet/config.json"), "lacks unet"),
    "no code": (without("guidance.py", "unet/retrieval_unet.py"), "lacks guidance.py, unet/retrieval_unet.py"),
    "no pipeline code": (without("pipeline_retribooru.py"), "lacks pipeline_retribooru.py"),
    "no weights": (without("unet/diffusion_pytorch_model.safetensors"), "unet lacks safetensors files"),
    "weights cut short": (cut, "diffusion_pytorch_model.safetensors is no safetensors file"),
    "no shard": (without_a_shard, "unet lacks diffusion_pytorch_model-00002-of"),
}


@pytest.mark.parametrize("change, message", BROKEN.values(), ids=BROKEN)
def test_what_is_no_whole_checkpoint_is_refused_before_anything_is_made(checkpoint, tmp_path, change, message):
    change(checkpoint)
    api = FakeApi(Hub("", tmp_path / "hub"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        push_checkpoint("retrieval", checkpoint, api=api)
    assert not api.calls and not (checkpoint / "README.md").exists()


@pytest.fixture
def api(tmp_path) -> FakeApi:
    return FakeApi(Hub("", tmp_path / "hub"))


def test_pushed_and_pushed_again(api, checkpoint, tmp_path):
    repo_id = f"{OWNER}/retrieval"
    (checkpoint / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    RetriBooruPipeline.from_pretrained(checkpoint).save_pretrained(checkpoint, max_shard_size="100KB")
    report = push_checkpoint("retrieval", checkpoint, private=True, api=api)
    assert [name for name, _ in api.calls] == ["create_repo", "file_exists", "upload_folder"]
    assert all(call["repo_type"] == "model" for _, call in api.calls) and api.calls[0][1]["private"]
    files = set(api.hub.files(repo_id, "model"))
    assert report.repo_id == repo_id and report.files == len(files)
    parts = {"scheduler", "text_encoder", "tokenizer", "unet", "vae", "retrieval_encoder"}
    assert {file.split("/")[0] for file in files if "/" in file} == parts
    assert {file for file in files if "/" not in file and not file.endswith(".py")} == {
        "README.md", "model_index.json", "training.json",
    }  # fmt: skip
    assert {Path(file).suffix for file in files} == {".md", ".json", ".py", ".safetensors"}
    assert [file for file in files if "unet/" in file and "-of-" in file]
    repository = api.hub.repository(repo_id, "model")
    for file in files:
        assert str(tmp_path).encode() not in (repository / file).read_bytes(), file
    assert f'from_pretrained("{repo_id}"' in (repository / "README.md").read_text()
    RetriBooruPipeline.from_pretrained(repository)

    RetriBooruPipeline.from_pretrained(checkpoint).save_pretrained(checkpoint)
    push_checkpoint(repo_id, checkpoint, license="mit", api=api)
    assert not [file for file in api.hub.files(repo_id, "model") if "-of-" in file or "safetensors.index" in file]
    assert ModelCard.load(repository / "README.md").data.license == "mit"
    RetriBooruPipeline.from_pretrained(repository)


def test_a_card_that_people_edited_is_kept(api, checkpoint):
    repo_id = f"{OWNER}/retrieval"
    push_checkpoint(repo_id, checkpoint, api=api)
    there = api.hub.repository(repo_id, "model") / "README.md"
    there.write_text("# Edited on the Hub\n")
    assert "left as people edited it on the Hub" in str(push_checkpoint(repo_id, checkpoint, api=api))
    assert there.read_text() == "# Edited on the Hub\n"

    (checkpoint / "README.md").write_text("# Edited here\n")
    calls = len(api.calls)
    with pytest.raises(ValueError, match="license: got mit, but .*README.md has been edited"):
        push_checkpoint(repo_id, checkpoint, license="mit", api=api)
    assert len(api.calls) == calls
    assert "README.md: as people edited it" in str(push_checkpoint(repo_id, checkpoint, api=api))
    assert there.read_text() == (checkpoint / "README.md").read_text() == "# Edited here\n"


def test_console(tmp_path):
    runner, push = CliRunner(), ["push", "somebody/retrieval", "--checkpoint", str(tmp_path)]
    done = runner.invoke(app, push)
    assert done.exit_code == 1 and done.output.startswith(f"error: checkpoint: got {tmp_path}, which has no model_ind")
    done = runner.invoke(app, [*push, "--seed", "0", "--data-dir", "built", "--rating", "g", "--private"])
    assert done.exit_code == 1
    assert done.output == (
        "error: checkpoint: got --data-dir, --rating, --seed with it, wanted none of the dataset's options\n"
    )
