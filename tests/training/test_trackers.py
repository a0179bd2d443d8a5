"""Trackers, and the CLIP scores of the grids: in metrics.jsonl, in loss.png, and in what TensorBoard reads."""

import io

import pytest
import torch
from PIL import Image, ImageChops
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from retribooru.training.arguments import TrainArguments
from retribooru.training.curves import plot_metrics, read_metrics
from retribooru.training.grids import load_clip


@pytest.fixture(scope="module")
def clip_dir(stable_diffusion_dir, tmp_path_factory):
    """A tiny CLIP with random weights, which reads with the tokenizer of the tiny Stable Diffusion."""
    tokenizer = CLIPTokenizer.from_pretrained(stable_diffusion_dir / "tokenizer")
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**size, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    torch.manual_seed(1)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config={**size, "image_size": 16, "patch_size": 8}, projection_dim=8)
    )
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tracked(run, clip_dir):
    return run(
        report_to=["tensorboard"], image_validation_steps=3, num_validation_images=1, validation_clip=str(clip_dir),
        max_train_steps=4, logging_steps=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def events(tracked):
    """What TensorBoard shows."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(tracked / "retribooru"), size_guidance={"images": 0, "scalars": 0}).Reload()


def test_scalars_are_those_of_the_metrics_at_their_steps(tracked, events):
    lines = read_metrics(tracked / "metrics.jsonl")
    names = {name for line in lines for name in line} - {"step"}
    assert names == {"loss", "content", "head", "lr", "own_references", "other_references", "clip_i", "clip_t"}
    assert set(events.Tags()["scalars"]) == names
    steps = {"loss": [2, 4], "own_references": [0, 3, 4], "clip_i": [3]}
    for name in names:
        expected = [(line["step"], line[name]) for line in lines if name in line]
        got = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in got] == [step for step, _ in expected] == steps.get(name, [s for s, _ in expected])
        assert [value for _, value in got] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_the_grid_is_shown(tracked, events):
    (tag,) = events.Tags()["images"]
    (shown,) = events.Images(tag)
    assert tag == "held-out characters" and shown.step == 3
    with Image.open(tracked / "samples" / "step-000003.png") as grid:
        drawn = Image.open(io.BytesIO(shown.encoded_image_string)).convert("RGB")
        assert grid.size == drawn.size and not ImageChops.difference(grid, drawn).getbbox()


def test_scores_are_cosines(tracked):
    (line,) = [line for line in read_metrics(tracked / "metrics.jsonl") if "clip_i" in line]
    assert line.keys() == {"step", "clip_i", "clip_t"}
    assert all(-1 <= line[name] <= 1 for name in ("clip_i", "clip_t")) and line["clip_i"] != line["clip_t"]


def test_scores_have_a_plot_of_their_own(tmp_path):
    trained = [{"step": step, "loss": 1.0 / step, "lr": 0.1} for step in (1, 2)]
    look, scores = {"step": 2, "own_references": 0.1, "other_references": 0.2}, {"step": 2, "clip_i": 0.7}
    widths = []
    for lines in (trained, [*trained, look], [*trained, look, scores]):
        with Image.open(plot_metrics(lines, tmp_path / "loss.png")) as plot:
            widths.append(plot.width)
    assert widths[1] == 2 * widths[0] and widths[2] == 3 * widths[0]


def test_what_is_no_clip_is_refused_by_name(stable_diffusion_dir):
    with pytest.raises(ValueError, match=f"validation_clip: got {stable_diffusion_dir}, wanted a CLIP"):
        load_clip("validation_clip", str(stable_diffusion_dir))


WRONG = {
    "unknown": ({"report_to": ["tensorbord"]}, r"report_to: got \['tensorbord'\], wanted some of .*tensorboard"),
    "all": ({"report_to": ["all"]}, r"report_to: got \['all'\], wanted some of"),
    "no grids": ({"validation_clip": "clip"}, "validation_clip: got clip, wanted none without image_validation_steps"),
}


@pytest.mark.parametrize("options, message", WRONG.values(), ids=WRONG)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        TrainArguments(output_dir="out", **options)


def test_a_tracker_that_is_not_installed(run, tmp_path, monkeypatch):
    monkeypatch.setattr("retribooru.training.preflight.get_available_trackers", lambda: [])
    with pytest.raises(ImportError, match="report_to: got tensorboard, which is not installed: pip install tensorb"):
        run(tmp_path / "run", report_to=["tensorboard"], pretrained_model_name_or_path="nothing is loaded before")
    assert not (tmp_path / "run").exists()
