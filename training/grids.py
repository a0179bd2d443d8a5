"""Pictures of characters that were never trained on, beside their references and targets."""

from collections import defaultdict
from itertools import zip_longest
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from retribooru.dataset_script.files import replacing
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
    identities = {}
    for i, identity in enumerate(zip(dataset["character"], dataset["artist"], dataset["outfit"])):
        identities.setdefault(identity, i)
    by_character = defaultdict(list)
    for (character, _, _), i in identities.items():
        by_character[character].append(i)
    # One of each character first, then their other outfits.
    order = [i for turn in zip_longest(*by_character.values()) for i in turn if i is not None]
    return [dataset[i] for i in order[:count]]


def draw(pipeline: RetriBooruPipeline, row: dict, seed: int, guidance_scale: float) -> Image.Image:
    """One picture from a row of a task, its references without their backgrounds."""
    return pipeline(
        row["prompt"],
        reference_images=row["reference_images"],
        reference_concepts=row["reference_concepts"],
        reference_masks=row["reference_masks"],
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]


class ValidationPictures:
    """Pictures of held-out characters, the same ones at every step: samples/step-STEP.png in the output folder."""

    def __init__(self, pipeline: RetriBooruPipeline, args: TrainArguments):
        self.pipeline, self.args = pipeline, args
        self.rows = {
            task: held_out_rows(args.data_dir, task, args.num_validation_images, args.images, args.characters)
            for task in args.tasks
        }
        self.targets = {task: [square_target(row, args.resolution) for row in rows] for task, rows in self.rows.items()}

    def draw(self, step: int) -> Image.Image:
        """The grid, which is saved too."""
        self.pipeline.set_progress_bar_config(disable=True)
        scale = self.args.validation_guidance_scale
        drawn = {
            task: [draw(self.pipeline, row, self.args.seed, scale) for row in rows] for task, rows in self.rows.items()
        }
        folder = Path(self.args.output_dir) / "samples"
        folder.mkdir(exist_ok=True)
        path = folder / f"step-{step:06d}.png"
        save_grid(path, self.rows, drawn, self.targets, max(96, self.args.resolution))
        return Image.open(path)


def square_target(row: dict, size: int) -> Image.Image:
    """The target as the model would have had to draw it, its background kept."""
    return pad_to_square(row["target"].convert("RGB"), (255, 255, 255)).resize((size, size), Image.BICUBIC)


def save_grid(
    path: Path,
    rows: dict[str, list[dict]],
    generated: dict[str, list[Image.Image]],
    targets: dict[str, list[Image.Image]],
    cell: int = 96,
) -> Path:
    """references | generated | target, a line per row, the tasks one below the other.

    Args:
        rows, generated, targets: by task, in parallel.
        cell: side of each picture in the grid, in pixels.
    """
    gap, head = 4, 18
    columns = max(len(row["reference_images"]) for task_rows in rows.values() for row in task_rows) + 2
    lines = sum(map(len, rows.values()))
    grid = Image.new("RGB", (columns * (cell + gap) + 2 * gap, lines * (cell + gap) + len(rows) * head + gap), "white")
    pen, y = ImageDraw.Draw(grid), 0
    for task, task_rows in rows.items():
        pen.text((gap, y + 3), f"{task}: references (background removed)", fill="black")
        for column, title in ((columns - 2, "generated"), (columns - 1, "target")):
            pen.text((column * (cell + gap) + gap * 2, y + 3), title, fill="black")
        y += head
        for row, picture, target in zip(task_rows, generated[task], targets[task]):
            references = [
                pad_to_square(remove_background(image.convert("RGB"), mask, (255, 255, 255)), (255, 255, 255))
                for image, mask in zip(row["reference_images"], row["reference_masks"])
            ]
            for column, image in enumerate([*references, picture, target]):
                x = column * (cell + gap) + gap + (gap if column >= len(references) else 0)
                grid.paste(image.resize((cell, cell), Image.NEAREST if image.width < cell else Image.BICUBIC), (x, y))
            y += cell + gap
    with replacing(path) as partial:
        grid.save(partial, format="PNG")
    return path
