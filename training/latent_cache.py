"""Latents of every view of a figure, encoded once before the training.

What is random of a view (crop, flip, jitter, background removal, the colour of the padding) is then drawn once for each
of its variants, not anew each epoch.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from zlib import crc32

import numpy as np
import torch
from diffusers import AutoencoderKL
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from retribooru.dataset_script.files import replacing
from retribooru.dataset_script.figures import IdentityIndex
from retribooru.pipeline.retrieved_features import fingerprint

from . import objective
from .views import TARGET, Views

SHARD = 1024  # pictures
SETTINGS = "settings.json"


@dataclass
class CachedViews:
    """As `Views`, with "latents" in the place of "pixel_values".

    Args:
        folder: what `cache_latents` filled.
        variants: how many of each view there are.
    """

    folder: Path
    variants: int = 1
    _shards: dict = field(default_factory=dict, repr=False)

    def target(self, position: int, rng: Random) -> dict[str, torch.Tensor]:
        """latents (c, h, w), scaled; content_mask and head_mask (1, h, w) in [0, 1]."""
        shard, row = self._find(TARGET, position, rng)
        content, head = shard.get_slice("masks")[row].float().split(1)
        return {"latents": shard.get_slice("latents")[row].float(), "content_mask": content, "head_mask": head}

    def reference(self, position: int, concept: str, rng: Random) -> dict[str, torch.Tensor]:
        """latents (c, h, w), scaled; content (1, R, R) bool."""
        shard, row = self._find(concept, position, rng)
        content = np.unpackbits(shard.get_slice("content")[row].numpy(), axis=-1)
        return {"latents": shard.get_slice("latents")[row].float(), "content": torch.from_numpy(content).bool()}

    def _find(self, view: str, position: int, rng: Random):
        number, row = divmod(position * self.variants + rng.randrange(self.variants), SHARD)
        if (view, number) not in self._shards:
            self._shards[view, number] = safe_open(_shard_file(self.folder, view, number), framework="pt")
        return self._shards[view, number], row


class _Pictures(Dataset):
    """One view of every figure, all variants of one after the other."""

    def __init__(self, views: Views, index: IdentityIndex, view: str, variants: int, seed: int):
        self.views, self.index, self.view, self.variants, self.seed = views, index, view, variants, seed

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        position, variant = divmod(number, self.variants)
        rng = Random(f"{self.seed}/cached/{self.index.image_ids[position]}/{self.view}/{variant}")
        if self.view == TARGET:
            return self.views.target(position, rng)
        # Never read: what has no head has no face to be a reference.
        concept = self.view if self.index.has_head[position] else "figure"
        return self.views.reference(position, concept, rng)

    def __len__(self) -> int:
        return len(self.index) * self.variants


@torch.no_grad()
def cache_latents(
    folder: Path,
    views: Views,
    concepts: list[str],
    vae: AutoencoderKL,
    variants: int,
    seed: int,
    accelerator,
    batch_size: int = 8,
    num_workers: int = 0,
) -> CachedViews:
    """Encodes targets and references of these concepts into `folder`; what is there already is kept.

    The processes share the work; killed, it goes on where it stopped; another run that wants the same waits. The VAE's
    mode is taken, as half precision.

    Raises ValueError where the folder holds the latents of another VAE, other figures or other settings.
    """
    index = IdentityIndex.from_dataset(views.figures)
    folder.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        with FileLock(folder / f"{SETTINGS}.lock"):
            _check_settings(folder, views, index, vae, variants, seed)
    accelerator.wait_for_everyone()
    with FileLock(folder / f"process-{accelerator.process_index}.lock"):
        for view in [TARGET, *concepts]:
            _fill(folder, _Pictures(views, index, view, variants, seed), vae, accelerator, batch_size, num_workers)
    accelerator.wait_for_everyone()
    return CachedViews(folder, variants)


def _fill(
    folder: Path, pictures: _Pictures, vae: AutoencoderKL, accelerator, batch_size: int, num_workers: int
) -> None:
    """Makes the shards of a view that are missing, of those that are this process's."""
    view = pictures.view
    numbers = range(accelerator.process_index, -(-len(pictures) // SHARD), accelerator.num_processes)
    missing = [number for number in numbers if not _shard_file(folder, view, number).is_file()]
    rows = [i for number in missing for i in range(number * SHARD, min((number + 1) * SHARD, len(pictures)))]
    if not rows:
        return
    loader = iter(DataLoader(pictures, batch_sampler=_batches(rows, batch_size), num_workers=num_workers))
    progress = tqdm(total=len(rows), desc=f"encoding ({view})", unit="picture",
                    disable=not accelerator.is_main_process)  # fmt: skip
    for number in missing:
        parts, wanted = [], min(SHARD, len(pictures) - number * SHARD)
        while sum(len(part["latents"]) for part in parts) < wanted:
            batch = next(loader)
            with accelerator.autocast():
                parts.append(_encode(vae, batch))
            progress.update(len(parts[-1]["latents"]))
        with replacing(_shard_file(folder, view, number)) as partial:
            save_file({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, partial)
    progress.close()


def _encode(vae: AutoencoderKL, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    latents = vae.encode(batch["pixel_values"].to(vae.device, vae.dtype)).latent_dist.mode()
    encoded = {"latents": (latents * vae.config.scaling_factor).half().cpu()}
    if "content" in batch:
        return {**encoded, "content": torch.from_numpy(np.packbits(batch["content"].numpy(), axis=-1))}
    masks = torch.cat([batch["content_mask"], batch["head_mask"]], dim=1)
    return {**encoded, "masks": objective.to_latent_size(masks, latents.shape[-2:]).half()}


def _batches(rows: list[int], size: int) -> list[list[int]]:
    """Batches of rows that lie in one shard."""
    starts = [0, *(i for i in range(1, len(rows)) if rows[i] // SHARD != rows[i - 1] // SHARD), len(rows)]
    return [rows[i : min(i + size, end)] for start, end in zip(starts, starts[1:]) for i in range(start, end, size)]


def _check_settings(
    folder: Path, views: Views, index: IdentityIndex, vae: AutoencoderKL, variants: int, seed: int
) -> None:
    settings = {
        "vae": crc32(fingerprint(vae).numpy().tobytes()),
        "scaling_factor": vae.config.scaling_factor,
        "figures": crc32("\0".join(index.image_ids).encode()),
        "resolution": views.resolution,
        "background_removal": views.background_removal,
        "augmentation": asdict(views.augmentation),
        "variants": variants,
        "seed": seed,
    }
    file = folder / SETTINGS
    if not file.is_file():
        with replacing(file) as partial:
            partial.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        return
    there = json.loads(file.read_text(encoding="utf-8"))
    differ = [name for name, value in settings.items() if there.get(name) != value]
    if differ:
        words = ", ".join(f"{name} {there.get(name)} (wanted {settings[name]})" for name in differ)
        raise ValueError(f"latent_cache: got {folder}, which was made with {words}: name another folder")


def _shard_file(folder: Path, view: str, number: int) -> Path:
    return Path(folder) / f"{view}-{number:05d}.safetensors"
