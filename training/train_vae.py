"""Trains a small VAE from scratch on the figures and their concept crops.

accelerate launch -m retribooru.training.train_vae --preset mini-vae --output_dir runs/mini-vae
"""

import sys
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from retribooru.dataset_script.concepts import CONCEPTS
from retribooru.dataset_script.figures import IdentityIndex

from .arguments import VaeArguments
from .augment import Augmentation
from .checkpoints import save_model
from .data import load_figures
from .parsing import parse
from .preflight import check_disk, check_files
from .run import Run, begin
from .scratch import small_vae
from .trainable import adamw
from .views import TARGET, Views


class Windows(Dataset):
    """Windows of one view of a figure, target or concept, drawn anew every epoch: crops must be encoded well, too.

    Args:
        views: of the figures.
        size: S, side of a window in pixels.
        count: W, windows of each figure.
        seed: of everything drawn.
    """

    def __init__(self, views: Views, size: int, count: int, seed: int):
        self.views, self.size, self.count, self.seed = views, size, count, seed
        self.index = IdentityIndex.from_dataset(views.figures)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """pixel_values (W, 3, S, S) in [-1, 1], image_id, sample: the number of this example in all ever drawn."""
        epoch, position = key
        rng = Random(f"{self.seed}/{epoch}/window/{self.index.image_ids[position]}")
        pixels = draw_view(self.views, self.index, position, rng)
        starts = [[rng.randint(0, side - self.size) for side in pixels.shape[1:]] for _ in range(self.count)]
        windows = [pixels[:, top : top + self.size, left : left + self.size] for top, left in starts]
        return {
            "pixel_values": torch.stack(windows),
            "image_id": self.index.image_ids[position],
            "sample": epoch * len(self) + position,
        }


def draw_view(views: Views, index: IdentityIndex, position: int, rng: Random) -> torch.Tensor:
    """(3, R, R) in [-1, 1]: a figure as a target or, as likely, as a reference of each concept that it has."""
    view = rng.choice([TARGET, *(CONCEPTS if index.has_head[position] else ["figure"])])
    if view == TARGET:
        return views.target(position, rng)["pixel_values"]
    return views.reference(position, view, rng)["pixel_values"]


class Autoencoder(nn.Module):
    """The VAE as one module for accelerate to prepare."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixels (B, 3, S, S) and noise (B, c, s, s) -> reconstruction (B, 3, S, S), and KL in nats (B,)."""
        posterior = self.vae.encode(pixels).latent_dist
        return self.vae.decode(posterior.mean + posterior.std * noise).sample, posterior.kl()


def vae_terms(model: nn.Module, examples: dict, args: VaeArguments, latent_shape: tuple) -> dict[str, torch.Tensor]:
    """L1 + L2 of the reconstruction of `pixel_values` (B, W, 3, S, S), and the KL term; scalars."""
    noise = [
        torch.randn(args.windows, *latent_shape, generator=torch.Generator().manual_seed(args.seed * 10**9 + sample))
        for sample in examples["sample"].tolist()
    ]
    pixels = examples["pixel_values"].flatten(0, 1)
    decoded, kl = model(pixels, torch.cat(noise).to(pixels.device))
    decoded = decoded.float()
    reconstruction = F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels)
    return {"loss": reconstruction + args.kl_weight * kl.mean(), "reconstruction": reconstruction}


def psnr(vae: AutoencoderKL, pixels: torch.Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of whole pictures (B, 3, R, R) through the VAE and back."""
    decoded = [vae.decode(vae.encode(some).latent_dist.mode()).sample for some in pixels.split(8)]
    error = F.mse_loss(torch.cat(decoded).float().clamp(-1, 1), pixels, reduction="none").mean(dim=(1, 2, 3))
    return (10 * torch.log10(4 / error)).mean().item()


def train_vae(args: VaeArguments) -> Path:
    """Trains, and leaves in `output_dir` the VAE (`AutoencoderKL.from_pretrained`), metrics.jsonl and loss.png."""
    output_dir = Path(args.output_dir)
    check_files(args, ["train"])
    accelerator = begin(args)
    # Held-out characters tell whether it has learned enough; without any, those of the training do.
    try:
        rows = load_figures(args.data_dir, "out_of_domain", args.images, args.characters)
    except FileNotFoundError:
        rows = load_figures(args.data_dir, "train", args.images, args.characters)
    views = Views(rows, args.resolution, background_removal=1.0)
    index = IdentityIndex.from_dataset(rows)
    count = min(args.validation_pictures, len(index))
    held_out = torch.stack([draw_view(views, index, i * len(index) // count, Random(i)) for i in range(count)])
    held_out = held_out.to(accelerator.device)

    rows = load_figures(args.data_dir, "train", args.images, args.characters)
    augmentation = Augmentation(args.crop, args.flip, args.jitter)
    examples = Windows(Views(rows, args.resolution, 0.5, augmentation), args.window, args.windows, args.seed)
    if args.pretrained_model_name_or_path:
        vae = AutoencoderKL.from_pretrained(args.pretrained_model_name_or_path, use_safetensors=True)
    else:
        vae = small_vae(args.block_out_channels, args.latent_channels, args.resolution)
    model = Autoencoder(vae.to(accelerator.device))
    check_disk(args, model, sum(parameter.nbytes for parameter in vae.parameters()))
    run = Run(args, accelerator, model, adamw([{"params": list(vae.parameters())}], args), examples)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    shape = (vae.config.latent_channels, args.window // factor, args.window // factor)
    for step in run.steps(lambda model, batch: vae_terms(model, batch, args, shape)):
        if run.is_due(step, args.validation_steps, at_end=True):
            with run.evaluating() as model:
                run.record(step, psnr=psnr(model.vae, held_out))
    if accelerator.is_main_process:
        with run.evaluating() as model:
            spread = torch.cat([model.vae.encode(some).latent_dist.mode() for some in held_out.split(8)]).std().item()
            vae.register_to_config(scaling_factor=1 / spread)  # of unit variance, as Stable Diffusion wants latents
            save_model(vae, output_dir)
    return output_dir


def main(argv: list[str] | None = None) -> None:
    train_vae(parse(VaeArguments, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
