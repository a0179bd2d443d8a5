"""What people load into a pipeline: LoRA, textual inversions, single-file checkpoints."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers

from generating import REFERENCES, close, generate
from original_layout import write_original
from retribooru import RetriBooruPipeline

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def write_lora(unet, folder, targets):
    """A LoRA with random weights, as a trainer of diffusers saves it."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=targets))
    layers = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    unet.delete_adapters("default")
    return folder


def test_lora_of_stable_diffusion(stable_diffusion, pipeline, trained_like, tmp_path):
    folder, trained = write_lora(stable_diffusion.unet, tmp_path, ATTENTION), trained_like(pipeline)
    before = generate(trained, **REFERENCES)
    for each in (stable_diffusion, pipeline, trained):
        each.load_lora_weights(folder, adapter_name="style")
    assert torch.equal(generate(pipeline, **REFERENCES), generate(stable_diffusion))
    after = generate(trained, **REFERENCES)
    assert not close(after, before, 1e-2)
    trained.set_adapters("style", 0.0)
    assert torch.equal(generate(trained, **REFERENCES), before)
    trained.set_adapters("style", 1.0)
    trained.fuse_lora()
    assert close(generate(trained, **REFERENCES), after, 1e-3)
    trained.unfuse_lora()
    trained.unload_lora_weights()
    assert close(generate(trained, **REFERENCES), before, 1e-3)


def test_lora_that_reaches_the_retrieval_layers(trained, trained_like, tmp_path):
    """Trained on this U-Net, with the bare names that trainers give; features stay good with it and without it."""
    folder = write_lora(trained_like(trained).unet, tmp_path, ["to_q", "to_k", "to_v"])
    features, before = trained.encode_references(**REFERENCES), generate(trained, **REFERENCES)
    trained.load_lora_weights(folder, adapter_name="style")
    assert any("lora" in name for name, _ in trained.unet.retrieval_layers.named_parameters())
    after = generate(trained, **REFERENCES)
    assert not close(after, before, 1e-2)
    assert torch.equal(generate(trained, reference_features=features), after)
    with_adapter = trained.encode_references(**REFERENCES)
    trained.set_adapters("style", 0.0)
    assert torch.equal(generate(trained, reference_features=with_adapter), before)
    trained.unload_lora_weights()
    assert torch.equal(generate(trained, reference_features=with_adapter), before)


def test_textual_inversion(stable_diffusion, pipeline, trained_like):
    trained, prompt = trained_like(pipeline), "solo, <someone>"
    before, features = generate(trained, prompt, **REFERENCES), trained.encode_references(**REFERENCES)
    learned = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))  # two vectors
    for each in (pipeline, trained):  # the first shares its text encoder with stable_diffusion
        each.load_textual_inversion(learned, token="<someone>")
    assert torch.equal(generate(pipeline, prompt, **REFERENCES), generate(stable_diffusion, prompt))
    after = generate(trained, prompt, **REFERENCES)
    assert not close(after, before, 1e-3)
    assert torch.equal(generate(trained, prompt, reference_features=features), after)
    trained.unload_textual_inversion()
    assert torch.equal(generate(trained, prompt, **REFERENCES), before)


@pytest.fixture
def single_file(stable_diffusion, stable_diffusion_dir, tmp_path):
    """A tiny checkpoint in one file, and the folder of its configuration (else diffusers asks the Hub for that)."""
    config = tmp_path / "config"
    shutil.copytree(stable_diffusion_dir, config, ignore=shutil.ignore_patterns("*.safetensors"))
    return write_original(stable_diffusion, tmp_path / "tiny.safetensors"), str(config)


def test_single_file(stable_diffusion, single_file):
    path, config = single_file
    expected = generate(stable_diffusion)
    for make in (RetriBooruPipeline.from_single_file, RetriBooruPipeline.from_stable_diffusion):
        loaded = make(str(path), config=config, local_files_only=True)
        loaded.set_progress_bar_config(disable=True)
        assert torch.equal(generate(loaded, **REFERENCES), expected)
    half = RetriBooruPipeline.from_single_file(str(path), config=config, torch_dtype=torch.float16)
    assert half.unet.dtype == half.retrieval_encoder.dtype == half.unet.retrieval_layers[0].to_k.weight.dtype
    assert half.unet.dtype == torch.float16
    kind = RetriBooruPipeline.from_stable_diffusion(
        str(path), retrieval_query="encoder", reference_timestep="denoising", config=config
    )
    assert kind.unet.config.retrieval_query == "encoder"
    assert kind.retrieval_encoder.config.reference_timestep == "denoising"
