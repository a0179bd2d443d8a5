"""Trains an IP-Adapter (Ye et al., arXiv:2308.06721) on the same examples: a baseline for the benchmark.

accelerate launch -m retribooru.training.train_ip_adapter --preset mini-ip-adapter \
    --pretrained_model_name_or_path runs/mini-base --image_encoder runs/mini-clip --output_dir runs/mini-ip-adapter
"""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import datasets
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from retribooru.dataset_script.files import replacing

from .arguments import TrainArguments, check_argument
from .augment import Augmentation
from .checkpoints import settings_facts
from .data import TrainingFigures, load_figures
from .latent_cache import CachedViews, cache_latents
from .parsing import parse
from .preflight import check_files
from .run import Run, begin
from .step import encode_batch, training_loss
from .trainable import adamw, freeze_all_but, load_pipeline
from .views import Views

TOKENS = 4  # of an image, as `load_ip_adapter` takes an adapter of this form to have
WEIGHTS = "ip_adapter.safetensors"
UNUSED = ("lock_decoder", "lock_encoder", "lora_rank", "image_validation_steps", "push_to_hub")


@dataclass
class IpAdapterArguments(TrainArguments):
    """Training an IP-Adapter beside a frozen Stable Diffusion."""

    image_encoder: str = field(
        default="openai/clip-vit-large-patch14",
        metadata={"help": "A CLIP whose image tower reads the references: a Hub id or a folder."},
    )

    def __post_init__(self):
        super().__post_init__()
        check_argument(
            "tasks", self.tasks == ["reconstruct"], self.tasks, "reconstruct: an IP-Adapter knows no concepts"
        )
        for name in UNUSED:
            check_argument(name, not getattr(self, name), getattr(self, name), "none: an IP-Adapter has no use for it")
        self.train_base = True  # what it stands on is plain Stable Diffusion, and nothing is retrieved


@dataclass
class EmbeddedViews:
    """Targets as `Views` or `CachedViews` have them; of a reference its embedding, (D,), read once."""

    targets: Views | CachedViews
    embeddings: torch.Tensor

    def target(self, position: int, rng: Random) -> dict[str, torch.Tensor]:
        return self.targets.target(position, rng)

    def reference(self, position: int, concept: str, rng: Random) -> dict[str, torch.Tensor]:
        return {"embeddings": self.embeddings[position]}


class AdapterModel(nn.Module):
    """What a step runs through: the U-Net, with the adapter's layers in it."""

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet = unet

    def forward(self, noisy, timesteps, text, references, concepts, content, scale):
        """Predicts the noise in `noisy` (k B, c, h, w), or v; k in a row share `references` (B, N, D), embedded images.

        Those whose `scale` (k B,) is 0 see embeddings of zeros, as the unconditional branch of a call does.
        """
        references = references.repeat_interleave(len(noisy) // len(references), dim=0) * scale.view(-1, 1, 1)
        return self.unet(noisy, timesteps, text, added_cond_kwargs={"image_embeds": [references]}).sample


def new_adapter(unet: UNet2DConditionModel, width: int) -> dict[str, torch.Tensor]:
    """An adapter before its training, in the form that diffusers' `load_ip_adapter` reads.

    Keys and values begin as the text's, as in IP-Adapter's own training; the projection at random.

    Args:
        width: D, of the image embeddings.
    """
    dim = unet.config.cross_attention_dim
    projection, norm = nn.Linear(width, TOKENS * dim), nn.LayerNorm(dim)
    return _state(unet, projection, norm, lambda layer, key: getattr(layer, f"to_{key}"))


def adapter_modules(unet: UNet2DConditionModel) -> list[nn.Module]:
    """What is trained of a U-Net with an adapter."""
    return [unet.encoder_hid_proj, *(unet.get_submodule(name).processor for _, name in _cross_attentions(unet))]


def adapter_state(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """The adapter of a U-Net, in the form of `new_adapter`."""
    (projection,) = unet.encoder_hid_proj.image_projection_layers
    return _state(
        unet, projection.image_embeds, projection.norm, lambda layer, key: getattr(layer.processor, f"to_{key}_ip")[0]
    )


def _state(
    unet: UNet2DConditionModel, projection: nn.Linear, norm: nn.LayerNorm, find: Callable[[nn.Module, str], nn.Linear]
) -> dict[str, torch.Tensor]:
    """Copies, on the CPU, by diffusers' names; `find` gives a cross-attention's projection to "k" or "v"."""
    state = {f"image_proj.{name}.{key}": value for name, layer in (("proj", projection), ("norm", norm))
             for key, value in layer.state_dict().items()}  # fmt: skip
    for number, name in _cross_attentions(unet):
        for key in ("k", "v"):
            state[f"ip_adapter.{number}.to_{key}_ip.weight"] = find(unet.get_submodule(name), key).weight
    return {key: value.detach().cpu().clone() for key, value in state.items()}


def _cross_attentions(unet: UNet2DConditionModel) -> list[tuple[int, str]]:
    """(number in the adapter's file, name of the attention): odd numbers, in the order of the U-Net's processors."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    return [(2 * i + 1, name) for i, name in enumerate(names)]


def load_image_encoder(name: str) -> tuple[CLIPVisionModelWithProjection, CLIPImageProcessor]:
    """Raises ValueError where there is no CLIP."""
    try:
        encoder = CLIPVisionModelWithProjection.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
        return encoder, CLIPImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"image_encoder: got {name}, wanted a CLIP: a Hub id or a folder ({error})") from error


@torch.no_grad()
def embed(
    figures: datasets.Dataset,
    encoder: CLIPVisionModelWithProjection,
    processor: CLIPImageProcessor,
    batch_size: int = 64,
) -> torch.Tensor:
    """(n, D), on the CPU: what the encoder reads in each figure's whole picture, its background among it."""
    found, pictures = [], figures.select_columns("image")
    for start in tqdm(range(0, len(figures), batch_size), desc="references", unit="batch"):
        images = [image.convert("RGB") for image in pictures[start : start + batch_size]["image"]]
        pixels = processor(images=images, return_tensors="pt").pixel_values.to(encoder.device, encoder.dtype)
        found.append(encoder(pixels).image_embeds.float().cpu())
    return torch.cat(found)


def train_ip_adapter(args: IpAdapterArguments) -> Path:
    """Trains, and leaves in `output_dir` what `load_ip_adapter(output_dir, subfolder="", weight_name=WEIGHTS)` reads:
    the adapter and image_encoder/; beside them training.json, checkpoint-STEP, metrics.jsonl and loss.png."""
    output_dir = Path(args.output_dir)
    check_files(args, ["train"])
    accelerator = begin(args)
    figures = load_figures(args.data_dir, "train", args.images, args.characters)
    pipeline = load_pipeline(args)
    encoder, processor = load_image_encoder(args.image_encoder)
    encoder.to(accelerator.device)
    pipeline.to(accelerator.device)
    attach(pipeline, new_adapter(pipeline.unet, encoder.config.projection_dim))
    modules = adapter_modules(pipeline.unet)
    encoder.requires_grad_(False)
    freeze_all_but(pipeline, modules)

    targets = Views(figures, args.resolution, args.background_removal, Augmentation(args.crop, args.flip, args.jitter))
    if args.latent_cache:
        targets = cache_latents(
            Path(args.latent_cache), targets, [], pipeline.vae, args.latent_cache_variants, args.seed, accelerator,
            num_workers=args.dataloader_num_workers,
        )  # fmt: skip
    views = EmbeddedViews(targets, embed(figures, encoder, processor))
    trained = [parameter for module in modules for parameter in module.parameters()]
    run = Run(
        args, accelerator, AdapterModel(pipeline.unet),
        adamw([{"params": trained, "lr": args.learning_rate * args.retrieval_lr_multiplier}], args),
        TrainingFigures(figures, views, args.tasks, args.seed),
    )  # fmt: skip

    def terms(model: nn.Module, examples: dict) -> dict[str, torch.Tensor]:
        batch = encode_batch(pipeline, examples, None, train_base=True)
        references = examples["reference_embeddings"].to(accelerator.device)
        return training_loss(model, pipeline.scheduler, replace(batch, references=references), args, run.step)

    for _ in run.steps(terms):
        pass
    if accelerator.is_main_process:
        encoder.save_pretrained(output_dir / "image_encoder")
        processor.save_pretrained(output_dir / "image_encoder")
        with replacing(output_dir / "training.json") as partial:
            partial.write_text(json.dumps(settings_facts(args), indent=2) + "\n", encoding="utf-8")
        with run.evaluating() as model, replacing(output_dir / WEIGHTS) as partial:
            save_file(adapter_state(model.unet), partial)
    return output_dir


def attach(pipeline: StableDiffusionPipeline, adapter: dict[str, torch.Tensor]) -> None:
    """Puts an adapter's layers into the U-Net, as `load_ip_adapter` does; the image encoder stays outside."""
    parts = {"image_proj": {}, "ip_adapter": {}}
    for key, value in adapter.items():
        part, name = key.split(".", 1)
        parts[part][name] = value
    pipeline.load_ip_adapter(parts, subfolder="", weight_name=WEIGHTS, image_encoder_folder=None)


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO)
    train_ip_adapter(parse(IpAdapterArguments, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
