"""Pictures of characters that were never trained on, beside their references and targets."""

from collections import defaultdict
from itertools import zip_longest
from pathlib import Path

import torch
from datasets import load_dataset
from PIL import Image, ImageDraw

import retribooru  # noqa: F401 (teaches datasets the name)
from retribooru.dataset_script.files import replacing
from retribooru.pipeline.pipeline_retribooru import RetriBooruPipeline
from retribooru.pipeline.reference_processor import pad_to_square, remove_background


def held_out_rows(data_dir: str | None, task: str, count: int, images: str | None = None) -> list[dict]:
    """Rows of characters that were never trained on, of as many characters and outfits as there are.

    Args:
        data_dir, images: see `load_figures`.
    """
    dataset = load_dataset("retribooru", task, data_dir=data_dir, split="out_of_domain", images=images)
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
