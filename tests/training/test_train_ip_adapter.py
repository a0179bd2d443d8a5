"""The IP-Adapter that the benchmark compares with: trained here, loaded by diffusers' own call."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from retribooru.training.arguments import TrainArguments
from retribooru.training.parsing import parse
from retribooru.training.train_ip_adapter import (
    TOKENS,
    WEIGHTS,
    IpAdapterArguments,
    adapter_state,
    attach,
    new_adapter,
    train_ip_adapter,
)


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=50, max_position_embeddings=8, bos_token_id=0, eos_token_id=1, **sizes)
    vision = CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=12, **sizes)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    ).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(data_dir, stable_diffusion_dir, clip_dir, tmp_path_factory, own_precision):
    def run(folder=None, **options):
        settings = {
            "output_dir": str(folder or tmp_path_factory.mktemp("run")),
            "data_dir": str(data_dir),
            "pretrained_model_name_or_path": str(stable_diffusion_dir),
            "image_encoder": str(clip_dir),
            **{"resolution": 32, "train_batch_size": 2, "noise_draws": 2, "max_train_steps": 4, "learning_rate": 1e-2},
            **{"lr_warmup_steps": 1, "logging_steps": 1, "checkpointing_steps": 2},
        }
        with own_precision():
            return train_ip_adapter(IpAdapterArguments(**{**settings, **options}))

    return run


@pytest.fixture(scope="module")
def trained(run):
    return run()


def drawn(pipeline, image) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline("1girl", ip_adapter_image=[[image, image]], num_inference_steps=2, output_type="latent",
                    generator=generator).images  # fmt: skip


def test_diffusers_loads_it_and_the_references_change_the_picture(trained, stable_diffusion):
    stable_diffusion.load_ip_adapter(str(trained), subfolder="", weight_name=WEIGHTS)
    assert stable_diffusion.image_encoder.config.projection_dim == 12
    red, blue = (drawn(stable_diffusion, Image.new("RGB", (32, 32), color)) for color in ("red", "blue"))
    assert red.isfinite().all() and not torch.equal(red, blue)
    stable_diffusion.set_ip_adapter_scale(0.0)
    red, blue = (drawn(stable_diffusion, Image.new("RGB", (32, 32), color)) for color in ("red", "blue"))
    assert torch.equal(red, blue)


def test_what_is_saved_is_what_was_trained(trained, stable_diffusion):
    before, after = new_adapter(stable_diffusion.unet, 12), load_file(trained / WEIGHTS)
    assert before.keys() == after.keys() and all(before[key].shape == after[key].shape for key in before)
    assert all(not torch.equal(before[key], after[key]) for key in before)
    attach(stable_diffusion, after)
    again = adapter_state(stable_diffusion.unet)
    assert again.keys() == after.keys() and all(torch.equal(again[key], after[key]) for key in after)
    width = stable_diffusion.unet.config.cross_attention_dim
    assert after["image_proj.proj.weight"].shape == (TOKENS * width, 12)
    facts = json.loads((trained / "training.json").read_text())
    assert facts["steps"] == 4 and facts["settings"]["train_batch_size"] == 2


def test_before_the_training_keys_and_values_are_those_of_the_text(stable_diffusion):
    adapter = new_adapter(stable_diffusion.unet, 12)
    layer = stable_diffusion.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    assert torch.equal(adapter["ip_adapter.1.to_k_ip.weight"], layer.to_k.weight)
    assert torch.equal(adapter["ip_adapter.1.to_v_ip.weight"], layer.to_v.weight)


def test_stable_diffusion_stays_as_it_is(run, stable_diffusion_dir, tmp_path, monkeypatch):
    seen = {}

    def keep(unet):
        seen.update({key: value.clone() for key, value in unet.state_dict().items()})
        return adapter_state(unet)

    monkeypatch.setattr("retribooru.training.train_ip_adapter.adapter_state", keep)
    run(tmp_path)
    plain = StableDiffusionPipeline.from_pretrained(stable_diffusion_dir).unet.state_dict()
    assert plain.keys() < seen.keys() and all(torch.equal(seen[key], value) for key, value in plain.items())


def test_it_goes_on_where_it_stopped(run, trained, tmp_path):
    run(tmp_path, max_train_steps=4, use_ema=False)
    (tmp_path / WEIGHTS).unlink()
    run(tmp_path, resume_from_checkpoint="checkpoint-2")
    whole, resumed = load_file(trained / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_latents_may_be_cached_and_averages_kept(run, tmp_path):
    folder = run(tmp_path / "run", latent_cache=str(tmp_path / "latents"), use_ema=True, ema_decay=0.5)
    assert (folder / WEIGHTS).is_file() and (tmp_path / "latents").is_dir()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tasks": ["compose"]}, "tasks: got .*compose.*, wanted reconstruct"),
        ({"lock_decoder": True}, "lock_decoder: got True, wanted none"),
        ({"lora_rank": 4}, "lora_rank: got 4, wanted none"),
        ({"image_encoder": "no-such-folder"}, "image_encoder: got no-such-folder, wanted a CLIP"),
    ],
)
def test_wrong_settings(run, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **options)


def test_the_preset_is_as_long_as_the_retrieval():
    args = parse(IpAdapterArguments, ["--preset", "mini-ip-adapter", "--output_dir", "out"])
    retrieval = parse(TrainArguments, ["--preset", "mini-retrieval", "--output_dir", "out"])
    assert (
        args.max_train_steps == retrieval.max_train_steps
        and args.tasks == ["reconstruct"]
        and args.image_validation_steps is None
    )
