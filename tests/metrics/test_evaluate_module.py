"""The evaluate module clip_i: by path, from elsewhere, in batches, with its own arguments."""

from pathlib import Path

import pytest

import retribooru.metrics
from retribooru.metrics.functional import clip_i

MODULE = Path(retribooru.metrics.__file__).parent / "clip_i"


@pytest.fixture
def images(noise):
    """Three predictions and their one, three and two references."""
    return [noise(0), noise(1), noise(2)], [[noise(0)], [noise(1), noise(3), noise(4)], [noise(5), noise(6)]]


def test_compute_equals_the_function(load, images, clip, clip_folder):
    expected = clip_i(*images, *clip)
    result = load(MODULE).compute(predictions=images[0], references=images[1], model_name_or_path=str(clip_folder))
    assert set(result) == {"clip_i", "clip_i_per_image"}
    assert result["clip_i_per_image"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert result["clip_i"] == pytest.approx(expected.mean().item(), abs=1e-6)
    assert result["clip_i_per_image"][0] == pytest.approx(1, abs=1e-6)


def test_batches_and_a_loaded_model(load, images, clip):
    metric, (model, processor) = load(MODULE), clip
    metric.add_batch(predictions=images[0][:2], references=images[1][:2])
    metric.add_batch(predictions=images[0][2:], references=images[1][2:])
    result = metric.compute(model=model, processor=processor, batch_size=2)
    assert result["clip_i_per_image"] == pytest.approx(clip_i(*images, *clip).tolist(), abs=1e-5)
    again = metric.compute(predictions=images[0][:1], references=images[1][:1], model=model, processor=processor)
    assert again["clip_i_per_image"] == pytest.approx([1], abs=1e-6)


def test_metric_loads_from_a_relative_path(load, monkeypatch):
    monkeypatch.chdir(MODULE.parent.parent)
    metric = load(f"{MODULE.parent.name}/clip_i")
    assert metric.name == "clip_i"
    assert "2312.02521" in metric.citation


def test_card_and_requirements_lie_beside_the_module():
    card = (MODULE / "README.md").read_text(encoding="utf-8")
    assert "100 times" in card and "2312.02521" in card
    assert "transformers" in (MODULE / "requirements.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": True}, "processor is None; wanted model and processor together"),
        ({"processor": True}, "model is None; wanted model and processor together"),
        ({"model": True, "processor": True, "device": "cpu"}, "device is 'cpu' beside a loaded model"),
        ({"model": True, "processor": True, "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_arguments_are_checked(load, images, clip, arguments, message):
    given = {"model": clip[0], "processor": clip[1]}
    arguments = {name: given.get(name, value) for name, value in arguments.items()}
    with pytest.raises(ValueError, match=message):
        load(MODULE).compute(predictions=images[0], references=images[1], **arguments)


def test_an_empty_reference_list_is_refused(load, images, clip):
    with pytest.raises(ValueError, match=r"references\[1\] is empty"):
        load(MODULE).compute(predictions=images[0][:2], references=[images[1][0], []], model=clip[0], processor=clip[1])


def test_pickled_weights_are_not_read(load, images, clip, tmp_path):
    model, processor = clip
    folder = tmp_path / "pickled"
    processor.save_pretrained(folder)
    model.config.save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(OSError, match="safetensors"):
        load(MODULE).compute(predictions=images[0], references=images[1], model_name_or_path=str(folder))
