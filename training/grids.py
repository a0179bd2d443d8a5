"""Pictures of characters that were never trained on, beside their references and targets."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import CLIPModel, CLIPProcessor

from retribooru.dataset_script.files import replacing
from retribooru.metrics import modules
from retribooru.metrics.functional import clip_i, clip_t
from retribooru.pipeline.pipeline_retribooru import RetriBooruPipeline
from retribooru.pipeline.reference_processor import pad_to_square, remove_background

from .arguments import TrainArguments
from .data import load_figures


def held_out_rows(
    data_dir: str | None, task: str, count: int, images: str | None = None, characters: int | None = None
) -> list[dict]:
    """Rows of characters that were never trained on, of as many characters and outfits as there are.

    Args:
        data_dir, images, characters: see `load_figures`.
    """
    dataset = load_figures(data_dir, "out_of_domain", images, characters, task)
    identities = list(zip(dataset["character"], dataset["artist"], dataset["outfit"]))
    return [dataset[i] for i in spread(identities)[: min(count, len(set(identities)))]]


def spread(identities: Sequence[tuple[str, str, str]]) -> list[int]:
    """The order of rows in which every character comes before any's next outfit, and that before any next picture.

    Args:
        identities: (character, artist, outfit) of each row.
    """
    pictures, worn = Counter(), defaultdict(dict)
    keys = []
    for identity in identities:
        outfits = worn[identity[0]]
        keys.append((pictures[identity], outfits.setdefault(identity, len(outfits))))
        pictures[identity] += 1
    return sorted(range(len(keys)), key=keys.__getitem__)


def draw(pipeline: RetriBooruPipeline, row: dict, seed: int, guidance_scale: float, **more) -> Image.Image:
    """One picture from a row of a task, its references without their backgrounds; `more` are arguments of the call."""
    return pipeline(
        row["prompt"],
        reference_images=row["reference_images"],
        reference_concepts=row["reference_concepts"],
        reference_masks=row["reference_masks"],
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
        **more,
    ).images[0]


def load_clip(argument: str, name: str) -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIP to score with, by Hub id or folder. Raises ValueError where there is none."""
    try:
        return modules.load_clip(name, device="cpu")
    except (OSError, ValueError) as error:
        raise ValueError(f"{argument}: got {name}, wanted a CLIP: a Hub id or a folder ({error})") from error


def clip_scores(
    rows: dict[str, list[dict]], generated: dict[str, list[Image.Image]], model: CLIPModel, processor: CLIPProcessor
) -> dict[str, dict[str, float]]:
    """Mean CLIP-I and CLIP-T of each task: {"clip_i": {task: cosine}, "clip_t": {task: cosine}}; in [-1, 1].

    Args:
        rows, generated: by task, in parallel.
        model, processor: see `clip_i`.
    """
    return {
        "clip_i": {
            task: clip_i(generated[task], [row["reference_images"] for row in rows[task]], model, processor)
            .mean().item() for task in rows
        },
        "clip_t": {
            task: clip_t(generated[task], [row["prompt"] for row in rows[task]], model, processor)
            .mean().item() for task in rows
        },
    }  # fmt: skip


class ValidationPictures:
    """Pictures of held-out characters, the same ones at every step: samples/step-STEP.png in the output folder.

    Raises ValueError where `validation_clip` is no CLIP.
    """

    def __init__(self, pipeline: RetriBooruPipeline, args: TrainArguments):
        self.pipeline, self.args = pipeline, args
        self.clip, self.processor = (
            load_clip("validation_clip", args.validation_clip) if args.validation_clip else (None, None)
        )
        self.rows = {
            task: held_out_rows(args.data_dir, task, args.num_validation_images, args.images, args.characters)
            for task in args.tasks
        }
        self.targets = {task: [square_target(row, args.resolution) for row in rows] for task, rows in self.rows.items()}

    def draw(self) -> dict[str, list[Image.Image]]:
        """The pictures of each task."""
        self.pipeline.set_progress_bar_config(disable=True)
        scale = self.args.validation_guidance_scale
        return {
            task: [draw(self.pipeline, row, self.args.seed, scale) for row in rows] for task, rows in self.rows.items()
        }

    def scores(self, drawn: dict[str, list[Image.Image]]) -> dict[str, float]:
        """clip_i and clip_t by `validation_clip`, the means over the tasks."""
        by_task = clip_scores(self.rows, drawn, self.clip.to(self.pipeline.device), self.processor)
        return {name: fmean(scores.values()) for name, scores in by_task.items()}

    def save(self, step: int, drawn: dict[str, list[Image.Image]]) -> Image.Image:
        """The grid of what was drawn, which is written too."""
        folder = Path(self.args.output_dir) / "samples"
        folder.mkdir(exist_ok=True)
        path = folder / f"step-{step:06d}.png"
        save_grid(path, self.rows, {"drawn": drawn, "target": self.targets}, max(96, self.args.resolution))
        return Image.open(path)


def square_target(row: dict, size: int) -> Image.Image:
    """The target as the model would have had to draw it, its background kept."""
    return pad_to_square(row["target"].convert("RGB"), (255, 255, 255)).resize((size, size), Image.BICUBIC)


def save_grid(
    path: Path, rows: dict[str, list[dict]], columns: dict[str, dict[str, list[Image.Image]]], cell: int
) -> Path:
    """References, then the columns; a line per row, the tasks one below the other.

    Args:
        rows: by task.
        columns: {title: pictures by task, in parallel with the rows}.
        cell: side of each picture in the grid, in pixels.
    """
    gap, head, font = 4, 22, ImageFont.load_default(13)
    count = max(len(row["reference_images"]) for task_rows in rows.values() for row in task_rows)
    lines = sum(map(len, rows.values()))
    width, height = (count + len(columns)) * (cell + gap) + 3 * gap, lines * (cell + gap) + len(rows) * head + gap
    grid = Image.new("RGB", (width, height), "white")
    pen, y = ImageDraw.Draw(grid), 0
    lefts = [column * (cell + gap) + gap + (gap if column >= count else 0) for column in range(count + len(columns))]
    for task, task_rows in rows.items():
        for x, title in zip((lefts[0], *lefts[count:]), (f"{task}: references", *columns)):
            pen.text((x, y + 4), title, "black", font)
        y += head
        for i, row in enumerate(task_rows):
            references = [
                pad_to_square(remove_background(image.convert("RGB"), mask, (255, 255, 255)), (255, 255, 255))
                for image, mask in zip(row["reference_images"], row["reference_masks"])
            ]
            for x, image in zip(lefts, references):
                grid.paste(_resized(image, cell), (x, y))
            for x, pictures in zip(lefts[count:], columns.values()):
                grid.paste(_resized(pictures[task][i], cell), (x, y))
            y += cell + gap
    with replacing(path) as partial:
        grid.save(partial, format="PNG")
    return path


def _resized(image: Image.Image, cell: int) -> Image.Image:
    return image.resize((cell, cell), Image.NEAREST if image.width < cell else Image.BICUBIC)
