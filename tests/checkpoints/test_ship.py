"""What was trained becomes what comes along."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from retribooru import RetriBooruPipeline
from retribooru.checkpoints import ship
from retribooru.metrics.attributes import AttributeClassifier
from retribooru.training.train_ip_adapter import WEIGHTS, new_adapter


@pytest.fixture
def runs(stable_diffusion, tmp_path, monkeypatch):
    """As mini.sh leaves them, with tiny models; what is shipped comes to lie in shipped/."""
    runs = tmp_path / "runs"
    RetriBooruPipeline.from_stable_diffusion(stable_diffusion).save_pretrained(runs / "mini-retrieval")
    (runs / "mini-retrieval" / "training.json").write_text(json.dumps({"finished": "2026-01-01", "steps": 7,
                                                                       "settings": {}, "held_out": None}))  # fmt: skip
    for name in ("vae", "base", "retrieval"):
        (runs / f"mini-{name}").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(runs / f"mini-{name}" / "loss.png")
    monkeypatch.setattr(ship, "MINI", tmp_path / "shipped" / "mini")
    return runs


def ships(monkeypatch, *argv):
    monkeypatch.setattr("sys.argv", ["ship", *map(str, argv)])
    ship.main()


def test_a_pipeline_in_half_precision_with_its_card(runs, monkeypatch):
    ships(monkeypatch, "mini", "--runs", runs)
    pipeline = RetriBooruPipeline.from_pretrained(ship.MINI, torch_dtype=torch.float16)
    sizes = [sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
             for folder in (ship.MINI, runs / "mini-retrieval")]  # fmt: skip
    assert sizes[0] < 0.6 * sizes[1]
    assert pipeline.unet.dtype == torch.float16
    card = (ship.MINI / "README.md").read_text()
    assert "7 steps" in card and "### The commands" in card and "--preset" in card
    assert "evaluation/training-retrieval.png" in card
    assert card.count("](evaluation/demo.png)") == 1 and (ship.MINI / "evaluation" / "demo.png").is_file()
    assert [path.name for path in ship.MINI.parent.iterdir()] == ["mini"]


def test_the_base_in_half_precision(runs, stable_diffusion, monkeypatch):
    stable_diffusion.save_pretrained(runs / "mini-base")
    (runs / "mini-base" / "training.json").write_text("{}")
    ships(monkeypatch, "base", "--runs", runs)
    folder = ship.MINI.with_name("mini-base")
    assert load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == torch.float16
    image = StableDiffusionPipeline.from_pretrained(folder)("1girl", num_inference_steps=1).images[0]
    assert image.size == (32, 32)
    assert not any("_name_or_path" in file.read_text() for file in folder.glob("*/config.json"))
    assert (folder / "training.json").is_file() and "# mini-base" in (folder / "README.md").read_text()


def test_what_was_measured_comes_along(runs, monkeypatch):
    for name, (title, table, pictures) in ship.MEASURED.items():
        (runs / name).mkdir()
        (runs / name / f"{table}.md").write_text(f"| {name} |\n\n### below\n")
        (runs / name / f"{table}.json").write_text("{}")
        for picture in pictures:
            Image.new("RGB", (8, 8)).save(runs / name / f"{picture}.png")
    ships(monkeypatch, "mini", "--runs", runs)
    card = (ship.MINI / "README.md").read_text()
    for name, (title, table, pictures) in ship.MEASURED.items():
        assert f"### {title}\n\n| {name} |\n\n#### below\n" in card
        assert (ship.MINI / "evaluation" / f"{name}.json").is_file()
        assert [card.count(f"](evaluation/{picture}.png)") for picture in pictures] == [1] * len(pictures)


def test_what_is_still_being_measured_is_left_out(runs, monkeypatch):
    (runs / "mini-benchmark").mkdir()
    (runs / "mini-benchmark" / "results.md").write_text("half of it")
    ships(monkeypatch, "mini", "--runs", runs)
    assert "half of it" not in (ship.MINI / "README.md").read_text()
    assert not (ship.MINI / "evaluation" / "mini-benchmark.json").exists()


def test_a_judge_without_what_a_run_leaves(runs, monkeypatch):
    AttributeClassifier({"hair": ["red", "black"]}, 32, [8, 16]).half().save_pretrained(runs / "mini-attributes")
    (runs / "mini-attributes" / "checkpoint-5").mkdir()
    (runs / "mini-attributes" / "metrics.jsonl").write_text("{}")
    (runs / "mini-attributes" / "training.json").write_text(json.dumps(
        {"steps": 4000, "settings": {"resolution": 32}, "held_out": {"pictures": 1951, "accuracy": {"hair": 0.987}}}
    ))  # fmt: skip
    ships(monkeypatch, "attributes", "--runs", runs)
    folder = ship.MINI.with_name("mini-attributes")
    kept = {"config.json", "diffusion_pytorch_model.safetensors", "training.json"}
    assert {path.name for path in folder.iterdir()} == {*kept, "README.md"}
    card = (folder / "README.md").read_text()
    assert "4,000 steps. Of 1,951 pictures" in card and "| hair |\n| ---: |\n| 98.7 |" in card
    assert "at 32 pixels" in card


def test_an_ip_adapter_in_half_precision(runs, stable_diffusion, monkeypatch):
    run = runs / "mini-ip-adapter"
    config = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                              image_size=32, patch_size=8, projection_dim=16)  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(run / "image_encoder")
    CLIPImageProcessor(size=32, crop_size=32).save_pretrained(run / "image_encoder")
    save_file(new_adapter(stable_diffusion.unet, 16), run / WEIGHTS)
    (run / "training.json").write_text("{}")
    ships(monkeypatch, "ip-adapter", "--runs", runs)
    folder = ship.MINI.with_name("mini-ip-adapter")
    files = [path for path in folder.rglob("*.safetensors")]
    assert {tensor.dtype for path in files for tensor in load_file(path).values()} == {torch.float16}
    assert "# mini-ip-adapter" in (folder / "README.md").read_text()
    assert CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder").dtype == torch.float32
    stable_diffusion.load_ip_adapter(folder, subfolder="", weight_name=WEIGHTS)
    assert stable_diffusion.image_encoder.config.projection_dim == 16


def test_a_failure_leaves_what_was_there(runs, monkeypatch):
    ships(monkeypatch, "mini", "--runs", runs)
    before = (ship.MINI / "README.md").read_bytes()
    (runs / "mini-vae" / "loss.png").unlink()
    with pytest.raises(FileNotFoundError, match="loss.png"):
        ships(monkeypatch, "mini", "--runs", runs)
    assert (ship.MINI / "README.md").read_bytes() == before and (ship.MINI / "model_index.json").is_file()
