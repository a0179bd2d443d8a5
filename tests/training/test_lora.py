"""LoRA in the place of the decoder: what is trained, what is left, and that it goes on."""

import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from retribooru import RetriBooruPipeline
from retribooru.training.arguments import TrainArguments
from retribooru.training.curves import read_metrics

RANK, ALPHA = 2, 4


@pytest.fixture(scope="module")
def options():
    """The hardest case: half precision, a moving average, grids."""
    return {"lora_rank": RANK, "lora_alpha": ALPHA, "use_ema": True, "ema_decay": 0.5, "mixed_precision": "bf16",
            "image_validation_steps": 3, "num_validation_images": 1}  # fmt: skip


@pytest.fixture(scope="module")
def adapted(run, options):
    return run(**options)


def unet_weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def adapters(folder):
    return load_file(folder / "lora" / "pytorch_lora_weights.safetensors")


def test_the_result_is_a_plain_checkpoint_with_the_adapters_in_its_weights(adapted, stable_diffusion_dir):
    before, after, lora = unet_weights(stable_diffusion_dir), unet_weights(adapted), adapters(adapted)
    added = {key for key in after if key not in before}
    assert added and all(key.startswith("retrieval_layers.") for key in added)
    assert not any("lora" in key or "base_layer" in key for key in after)
    changed = {key.removesuffix(".weight") for key in before if not torch.equal(before[key], after[key])}
    targets = {key.removeprefix("unet.").removesuffix(".lora.down.weight") for key in lora if ".lora.down." in key}
    assert changed == targets
    assert {name.partition(".attn")[2][2:] for name in targets} == {"to_q", "to_k", "to_v", "to_out.0"}
    assert all(name.startswith("up_blocks.") for name in targets)
    for name in targets:
        up, down = (lora[f"unet.{name}.lora.{part}.weight"] for part in ("up", "down"))
        expected = before[f"{name}.weight"] + ALPHA / RANK * up @ down
        assert torch.allclose(after[f"{name}.weight"], expected, atol=1e-6)


def test_what_else_is_trained(adapted):
    assert RetriBooruPipeline.from_pretrained(adapted).unet.retrieval_layers[0].zero_conv.weight.any()
    assert sorted(path.name for path in (adapted / "samples").iterdir()) == ["step-000003.png", "step-000006.png"]
    trained = [line["loss"] for line in read_metrics(adapted / "metrics.jsonl") if "loss" in line]
    assert len(trained) == 6 and len(set(trained)) == 6
    assert not list(adapted.glob("*.partial"))


def test_the_adapters_alone_are_a_lora_of_diffusers(adapted, stable_diffusion_dir):
    """Loaded onto the decoder that was adapted, they predict what the result predicts."""
    result = RetriBooruPipeline.from_pretrained(adapted).unet
    pipeline = RetriBooruPipeline.from_stable_diffusion(str(stable_diffusion_dir))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 4, 8, 8, generator=generator), 500, torch.randn(2, 16, 16, generator=generator)
    with torch.no_grad():
        expected, plain = result(*inputs).sample, pipeline.unet(*inputs).sample
        pipeline.load_lora_weights(adapted / "lora")
        assert torch.allclose(pipeline.unet(*inputs).sample, expected, atol=1e-5)
        assert not torch.allclose(plain, expected, atol=1e-3)


def test_going_on_from_a_checkpoint_ends_with_the_same_weights(run, adapted, options, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(adapted / "checkpoint-4", folder / "checkpoint-4")
    run(folder, resume_from_checkpoint="latest", **options)
    for read in (unet_weights, adapters):
        expected, got = read(adapted), read(folder)
        assert expected.keys() == got.keys() and all(torch.equal(expected[key], got[key]) for key in expected)


def test_without_peft(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="lora_rank: got 2, but peft is not installed: pip install peft"):
        run(tmp_path / "run", lora_rank=2, pretrained_model_name_or_path="nothing is loaded before")
    assert not (tmp_path / "run").exists()


WRONG = {
    "base": ({"lora_rank": 2, "train_base": True}, "lora_rank: got 2, wanted none with train_base"),
    "locked": ({"lora_rank": 2, "lock_decoder": True}, "lora_rank: got 2, wanted none with lock_decoder"),
    "rank": ({"lora_rank": 0}, "lora_rank: got 0, wanted at least 1"),
    "alpha alone": ({"lora_alpha": 2}, "lora_alpha: got 2, wanted none without lora_rank"),
}


@pytest.mark.parametrize("options, message", WRONG.values(), ids=WRONG)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        TrainArguments(output_dir="out", **options)
