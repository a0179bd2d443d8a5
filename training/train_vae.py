"""Trains a small VAE from scratch on the figures and their concept crops.

python -m retribooru.training.train_vae --preset mini-vae --data_dir built/ --output_dir runs/vae
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL
from diffusers.optimization import get_scheduler
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from .arguments import VaeArguments, parse
from .augment import Augmentation
from .curves import MetricsLog
from .data import EpochSampler, TrainingFigures, load_figures
from .scratch import small_vae


def vae_loss(vae, pixels: torch.Tensor, kl_weight: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """L1 + L2 of the reconstruction of `pixels` (B, 3, R, R) in [-1, 1], and the KL term."""
    posterior = vae.encode(pixels).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(pixels.device)
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    reconstruction = F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels)
    kl = posterior.kl().mean()
    return {"loss": reconstruction + kl_weight * kl, "reconstruction": reconstruction}


def train_vae(args: VaeArguments) -> Path:
    """Trains, and leaves in `output_dir` the VAE (`AutoencoderKL.from_pretrained`), metrics.jsonl and loss.png."""
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    if accelerator.num_processes > 1:
        raise ValueError(f"accelerate launch: got {accelerator.num_processes} processes, wanted one: this VAE is small")
    set_seed(args.seed)
    figures = TrainingFigures(
        load_figures(args.data_dir, "train", args.images),
        ["reconstruct", "compose"], args.resolution, args.seed,
        augmentation=Augmentation(args.crop, args.flip, args.jitter),
    )  # fmt: skip
    vae = small_vae(args.block_out_channels, args.latent_channels, args.resolution)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.learning_rate, weight_decay=args.adam_weight_decay)
    lr_scheduler = get_scheduler(
        args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
    )
    examples_needed = args.max_train_steps * args.train_batch_size
    loader = DataLoader(
        figures, batch_size=args.train_batch_size, sampler=EpochSampler(len(figures), examples_needed, seed=args.seed),
        num_workers=args.dataloader_num_workers,
    )  # fmt: skip
    model, optimizer, loader, lr_scheduler = accelerator.prepare(vae, optimizer, loader, lr_scheduler)
    log = MetricsLog(output_dir)
    progress = tqdm(total=args.max_train_steps, desc="training the VAE", unit="step")
    latents = None
    for step, examples in enumerate(loader, 1):
        # The target and one of its references: crops are drawn larger than whole figures, and both must be encoded.
        pixels = torch.cat([examples["pixel_values"], examples["reference_pixel_values"][:, step % 4]])
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        with accelerator.autocast():
            terms = vae_loss(model, pixels, args.kl_weight, generator)
        accelerator.backward(terms["loss"])
        accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        progress.update()
        progress.set_postfix(loss=f"{terms['loss'].item():.4f}")
        if step % args.logging_steps == 0:
            log.add(step, **{name: term.item() for name, term in terms.items()}, lr=lr_scheduler.get_last_lr()[0])
        latents = pixels
    progress.close()
    vae = accelerator.unwrap_model(model).eval()
    with torch.no_grad():
        spread = vae.encode(latents).latent_dist.mode().std().item()
    vae.register_to_config(scaling_factor=1 / spread)  # latents of unit variance, as Stable Diffusion wants them
    save_vae(vae, output_dir)
    log.plot()
    accelerator.end_training()
    return output_dir


def save_vae(vae: AutoencoderKL, output_dir: Path) -> None:
    """The weights beside their name first; the configuration is a few lines."""
    partial = output_dir / "vae.partial"
    vae.save_pretrained(partial)
    for path in sorted(partial.iterdir()):
        path.replace(output_dir / path.name)
    partial.rmdir()


def main(argv: list[str] | None = None) -> None:
    train_vae(parse(VaeArguments, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
