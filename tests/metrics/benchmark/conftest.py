"""Methods of tiny random models of the real classes, and arguments of a benchmark that takes seconds."""

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from retribooru import RetriBooruPipeline
from retribooru.metrics.benchmark.arguments import BenchmarkArguments

WIDTH = 16  # of the image encoder's embeddings
TOKENS = 4  # of an image, as `load_ip_adapter` takes an adapter of this form to have
PROMPTS = ["1girl, solo, standing", "1girl, jumping"]


@pytest.fixture(scope="session")
def retribooru_dir(stable_diffusion_dir, tmp_path_factory):
    """Its retrieval layers retrieve: all zero convolutions are filled."""
    pipeline = RetriBooruPipeline.from_stable_diffusion(str(stable_diffusion_dir))
    torch.manual_seed(0)
    for layer in pipeline.unet.retrieval_layers:
        nn.init.normal_(layer.zero_conv.weight, std=10.0)
    folder = tmp_path_factory.mktemp("retribooru")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ip_adapter_dir(stable_diffusion_dir, tmp_path_factory):
    """ip_adapter.safetensors for the tiny U-Net, and image_encoder/."""
    folder = tmp_path_factory.mktemp("ip_adapter")
    unet = UNet2DConditionModel.from_pretrained(stable_diffusion_dir, subfolder="unet")
    dim = unet.config.cross_attention_dim
    torch.manual_seed(0)
    layers = {"proj": nn.Linear(WIDTH, TOKENS * dim), "norm": nn.LayerNorm(dim)}
    state = {f"image_proj.{name}.{key}": value.detach().clone() for name, layer in layers.items()
             for key, value in layer.state_dict().items()}  # fmt: skip
    names = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    for i, name in enumerate(names):
        for key in ("to_k", "to_v"):
            shape = getattr(unet.get_submodule(name), key).weight.shape
            state[f"ip_adapter.{2 * i + 1}.{key}_ip.weight"] = torch.randn(shape)
    save_file(state, folder / "ip_adapter.safetensors")
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=WIDTH,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    CLIPImageProcessor(size=32, crop_size=32).save_pretrained(folder / "image_encoder")
    return folder


@pytest.fixture(scope="session")
def controlnet_dir(stable_diffusion_dir, tmp_path_factory):
    unet = UNet2DConditionModel.from_pretrained(stable_diffusion_dir, subfolder="unet")
    torch.manual_seed(0)
    # As many times smaller as the tiny VAE's latents are.
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8))
    for block in [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]:
        nn.init.normal_(block.weight)
    nn.init.normal_(controlnet.controlnet_cond_embedding.conv_out.weight)
    folder = tmp_path_factory.mktemp("controlnet")
    controlnet.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def described(retribooru_dir, stable_diffusion_dir, ip_adapter_dir):
    """methods.yaml of three families of five methods."""
    return {
        "RetriBooru": {"kind": "retribooru", "checkpoint": str(retribooru_dir), "retrieval_scale": [0.5, 1.0],
                       "guidance_scale": 2.0},
        "Stable Diffusion": {"kind": "stable-diffusion", "checkpoint": str(stable_diffusion_dir)},
        "IP-Adapter": {"kind": "ip-adapter", "checkpoint": str(stable_diffusion_dir), "adapter": str(ip_adapter_dir),
                       "weight_name": "ip_adapter.safetensors", "scale": [0.3, 1.0]},
    }  # fmt: skip


@pytest.fixture(scope="session")
def settings(edition, described, clip_folder, blip_folder, tmp_path_factory):
    """Function: the arguments of a benchmark in `out`, as a dict; `methods` may be a dict too."""

    def settings(out, methods=None, **more):
        files = tmp_path_factory.mktemp("arguments")
        (files / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
        (files / "methods.yaml").write_text(yaml.safe_dump(methods or described, sort_keys=False))
        return {
            "methods": str(files / "methods.yaml"), "prompts": str(files / "prompts.txt"), "output_dir": str(out),
            "data_dir": str(edition), "in_domain": 2, "out_of_domain": 2, "seeds": 2, "images_per_prompt": 2,
            "num_inference_steps": 2, "clip": str(clip_folder), "vqa": str(blip_folder), "device": "cpu",
            "questions": ["what is she wearing?", "where?"], "max_new_tokens": 4, "resamples": 200, **more,
        }  # fmt: skip

    return settings


@pytest.fixture(scope="session")
def arguments(settings):
    return lambda out, methods=None, **more: BenchmarkArguments(**settings(out, methods, **more))


@pytest.fixture(scope="session")
def files():
    """Function: {name below the folder: bytes} of all files in it."""

    def files(folder: Path):
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    return files


FUNCTIONS = '''
"""Drawing by a function that notes every call."""

import json

import numpy as np
from PIL import Image


def draw(character, prompt, generators, log=None, scale=1.0):
    if log:
        seeds = [generator.initial_seed() for generator in generators]
        with open(log, "a") as file:
            file.write(json.dumps([character.name, prompt, scale, seeds]) + "\\n")
    colours = [generator.initial_seed() % 256 for generator in generators]
    return [Image.fromarray(np.full((32, 32, 3), colour * scale, dtype=np.uint8)) for colour in colours]


def too_few(character, prompt, generators):
    return draw(character, prompt, generators)[1:]


def no_images(character, prompt, generators):
    return [None for _ in generators]


def no_list(character, prompt, generators):
    return draw(character, prompt, generators)[0]


def upper_half(images):
    return [np.arange(image.height)[:, None].repeat(image.width, 1) < image.height // 2 for image in images]


def everything(images):
    return [Image.new("L", image.size, 255) for image in images]


def one_mask(images):
    return upper_half(images)[:1]
'''


@pytest.fixture(scope="session")
def functions_dir(tmp_path_factory):
    """Folder of the module benchmark_functions."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "benchmark_functions.py").write_text(FUNCTIONS)
    return folder


@pytest.fixture
def functions(functions_dir, monkeypatch):
    """The module, to be imported by that name."""
    monkeypatch.syspath_prepend(str(functions_dir))
    return "benchmark_functions"
