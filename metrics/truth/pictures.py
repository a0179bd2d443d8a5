"""The pictures of a pipeline, each drawn once and kept."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm import tqdm

from retribooru.checkpoint_facts import check_pipeline
from retribooru.dataset_script.files import replacing
from retribooru.pipeline.pipeline_retribooru import RetriBooruPipeline

from ..attributes import square
from .arguments import TruthArguments
from .figures import Figures, Setting


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Noise of its own for each picture, on the CPU: the same for every method, setting, device and batch."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def draw(pipeline: DiffusionPipeline, rows: Sequence[Mapping], seed: int, args: TruthArguments, **more) -> list:
    """A picture of each row's prompt; `more` are arguments of the pipeline's call."""
    return pipeline(
        [row["prompt"] for row in rows],
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        generator=[generator(seed, row["target_id"]) for row in rows],
        **more,
    ).images


def draw_missing(
    folder: Path, ids: Sequence[str], batch_size: int, draw: Callable[[list[int]], list[Image.Image]]
) -> list[Image.Image]:
    """The pictures `folder`/ID.png, in the order of the ids. `draw` makes those that are not there, by number.

    Batches are always the same ones, so that no picture depends on where an earlier run was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{image_id}.png" for image_id in ids]
    batches = [range(start, min(start + batch_size, len(ids))) for start in range(0, len(ids), batch_size)]
    missing = [batch for batch in batches if not all(paths[i].exists() for i in batch)]
    for batch in tqdm(missing, desc=f"{folder.parent.name}/{folder.name}", unit="batch", disable=not missing):
        for i, picture in zip(batch, draw(list(batch))):
            with replacing(paths[i]) as partial:
                picture.save(partial, format="PNG")
    return [read_picture(path) for path in paths]


def read_picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


class Drawn:
    """The pictures of a pipeline: in a folder that its weights and the call's settings name, each is drawn once."""

    def __init__(self, pipeline: DiffusionPipeline, figures: Figures, args: TruthArguments):
        self.pipeline, self.figures, self.args = pipeline, figures, args
        call = f"steps-{args.num_inference_steps}_guidance-{args.guidance_scale:g}"
        if isinstance(pipeline, RetriBooruPipeline) and args.reference_guidance_scale is not None:
            call += f"_reference-guidance-{args.reference_guidance_scale:g}"
        self.folder = Path(args.output_dir) / "pictures" / f"{weights_digest(pipeline)}_{call}"

    def retrieved(self, setting: Setting, seed: int, count: int) -> list[Image.Image]:
        """Of the first `count` rows of the setting's task, with their references."""

        def draw_rows(numbers: list[int]) -> list[Image.Image]:
            rows = [self.figures.row(setting, i) for i in numbers]
            names = ("reference_images", "reference_concepts", "reference_masks")
            return draw(
                self.pipeline, rows, seed, self.args,
                **{name: [row[name] for row in rows] for name in names},
                retrieval_scale=setting.retrieval_scale,
                reference_guidance_scale=self.args.reference_guidance_scale,
            )  # fmt: skip

        ids = self.figures.rows[setting.task]["target_id"][:count]
        return draw_missing(self.folder / setting.name / f"seed-{seed}", ids, self.args.batch_size, draw_rows)

    def plain(self, seed: int) -> dict[str, Image.Image]:
        """Of all targets' prompts, without references, by target."""
        ids = self.figures.target_ids
        prompts = {
            row["target_id"]: row
            for rows in self.figures.rows.values()
            for row in rows.select_columns(["target_id", "prompt"])
        }
        pictures = draw_missing(
            self.folder / "base" / f"seed-{seed}", ids, self.args.batch_size,
            lambda numbers: draw(self.pipeline, [prompts[ids[i]] for i in numbers], seed, self.args),
        )  # fmt: skip
        return dict(zip(ids, pictures))

    def targets(self) -> list[Image.Image]:
        """The targets as pictures of the pipeline's size."""
        side = self.pipeline.sample_size
        return [square(self.figures.target(image_id), side) for image_id in self.figures.target_ids]

    def reconstructions(self) -> list[Image.Image]:
        """The targets through the VAE and back: the best that the pipeline could draw."""
        targets = self.targets()
        return draw_missing(
            self.folder / "vae" / "targets", self.figures.target_ids, self.args.batch_size,
            lambda numbers: through_vae(self.pipeline, [targets[i] for i in numbers]),
        )  # fmt: skip


@torch.no_grad()
def through_vae(pipeline: DiffusionPipeline, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Encoded and decoded."""
    vae, processor = pipeline.vae, pipeline.image_processor
    pixels = processor.preprocess(list(images)).to(vae.device, vae.dtype)  # (B, 3, H, W) in [-1, 1]
    return processor.postprocess(vae.decode(vae.encode(pixels).latent_dist.mode()).sample)


def weights_digest(pipeline: DiffusionPipeline) -> str:
    """Eight hexadecimal digits that tell these weights from others."""
    digest = hashlib.sha256()
    for _, component in sorted(pipeline.components.items()):
        if isinstance(component, torch.nn.Module):
            for name, tensor in component.state_dict().items():
                digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def load(argument: str, name: str, kind: type[DiffusionPipeline], device: str) -> DiffusionPipeline:
    """A pipeline of that class. Raises ValueError where there is none."""
    check_pipeline(argument, name, kind.__name__)
    pipeline = kind.from_pretrained(name, dtype=torch.float32, use_safetensors=True).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
