"""What comes along with the package: its size, its form, and that it does what its card says."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from launching import flags_of, launch
from retribooru.checkpoints import MINI

MEGABYTES = {"mini": 40, "mini-base": 40, "mini-attributes": 15, "mini-clip": 15, "mini-vqa": 15, "mini-ip-adapter": 15}
READABLE = {".safetensors", ".json", ".md", ".png", ".py", ".txt"}


@pytest.mark.parametrize("name, limit", MEGABYTES.items())
def test_size_and_form(name, limit):
    files = [path for path in MINI.with_name(name).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= READABLE
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert weights and sum(path.stat().st_size for path in weights) <= limit * 10**6
    kinds = {str(tensor.dtype) for path in weights for tensor in load_file(path).values()}
    assert "torch.float16" in kinds and kinds <= {"torch.float16", "torch.int64"}
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))


def test_card_shows_what_is_there():
    card = (MINI / "README.md").read_text(encoding="utf-8")
    shown = [part.split(")")[0] for part in card.split("](")[1:] if part.split(")")[0].endswith(".png")]
    assert shown and all((MINI / name).is_file() for name in shown)
    assert "### The commands" in card


@pytest.mark.parametrize("name", ["mini-base", "mini-ip-adapter"])
def test_the_lines_of_a_card_draw(name, monkeypatch):
    """As they stand there, with plain diffusers; of the adapter's, which reads references, with two of one colour."""
    monkeypatch.chdir(MINI.parents[1])
    card = (MINI.with_name(name) / "README.md").read_text(encoding="utf-8")
    lines = card.split("```python\n")[1].split("```")[0]
    names = {"references": [Image.new("RGB", (64, 64), "red")] * 2}
    exec(lines.replace("guidance_scale=2.0", "guidance_scale=2.0, num_inference_steps=2"), names)
    assert names["image"].size == (64, 64)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What the shipped classifier reads off pictures that the shipped pipelines draw of characters never trained on."""
    out = tmp_path_factory.mktemp("truth")
    settings = {
        "checkpoint": MINI, "base": MINI.with_name("mini-base"), "classifier": MINI.with_name("mini-attributes"),
        "output_dir": out, "characters": 60, "pictures": 16, "seeds": 1, "curve_pictures": 0,
        "tasks": ["reconstruct", "swap"],
    }  # fmt: skip
    command = [sys.executable, "-m", "retribooru.metrics.truth", *flags_of(settings)]
    status, output = launch(command, timeout=600)
    assert status == 0, output
    return json.loads((out / "truth.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["reconstruct", "swap"])
@pytest.mark.parametrize("attribute", ["hair", "top", "bottom"])
def test_hair_and_clothes_come_from_the_references(measured, task, attribute):
    """Colours, which the prompts do not name."""
    methods = measured["tasks"][task]
    assert methods["retribooru"]["mean"][attribute] > 0.7
    assert methods["retribooru"]["mean"][attribute] > methods["base"]["mean"][attribute] + 0.3


@pytest.mark.slow
def test_classifier_reads_real_pictures(measured):
    assert min(measured["real"][name] for name in ("hair", "skin", "top", "bottom")) > 0.9


@pytest.mark.slow
def test_demo(tmp_path):
    status, output = launch([Path(sys.executable).with_name("retribooru"), "demo"], tmp_path, timeout=600)
    assert status == 0, output
    for name in ("grid.png", "scales.png"):
        with Image.open(tmp_path / "demo" / name) as picture:
            assert picture.width > 128 * 8 and picture.height > 128 * 9
