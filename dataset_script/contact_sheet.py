"""A contact sheet: what a dataset looks like, identity by identity or row by row.

python -m retribooru.dataset_script.contact_sheet --out sheet.png [--config figures] [--data_dir built/] [--split train]
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, load_dataset
from PIL import Image, ImageDraw, ImageOps

from .figures import IdentityIndex
from .files import replacing

MARGIN, TITLE = 6, 14


def contact_sheet(lines: Sequence[tuple[str, Sequence[Image.Image]]], cell: int = 128, columns: int = 1) -> Image.Image:
    """Lines of images, each under its title, RGB.

    Args:
        lines: (title, images of any size, shown whole).
        cell: side in pixels that an image is fitted into.
        columns: of lines beside each other.
    """
    if not lines:
        raise ValueError("lines: got none, wanted one or more")
    longest = max(len(images) for _, images in lines)
    width, height = longest * (cell + MARGIN) + 2 * MARGIN, cell + TITLE + MARGIN
    sheet = Image.new("RGB", (columns * width, -(-len(lines) // columns) * height + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (title, images) in enumerate(lines):
        left, top = number % columns * width + MARGIN, number // columns * height + MARGIN
        while title and pen.textlength(title) > width - 2 * MARGIN:
            title = title[:-1]
        pen.text((left, top), title, fill="black")
        for i, image in enumerate(images):
            fitted = ImageOps.contain(image.convert("RGB"), (cell, cell), Image.Resampling.LANCZOS)
            x = left + i * (cell + MARGIN) + (cell - fitted.width) // 2
            sheet.paste(fitted, (x, top + TITLE + (cell - fitted.height) // 2))
    return sheet


def figures_lines(figures: Dataset, count: int, images: int, seed: int = 0) -> list[tuple[str, list[Image.Image]]]:
    """`count` identities of the figures config, drawn by the seed, with up to `images` images each."""
    members = IdentityIndex.from_dataset(figures).members
    chosen = random.Random(seed).sample(sorted(members), min(count, len(members)))
    return [
        (", ".join(identity), [figures[i]["image"] for i in members[identity][:images]]) for identity in sorted(chosen)
    ]


def task_lines(rows: Dataset, count: int, seed: int = 0) -> list[tuple[str, list[Image.Image]]]:
    """`count` rows of a task, drawn by the seed: the references, then the target."""
    chosen = random.Random(seed).sample(range(len(rows)), min(count, len(rows)))
    lines = []
    for row in (rows[i] for i in sorted(chosen)):
        whose = " + ".join(dict.fromkeys(row["reference_characters"]))
        title = f"{', '.join(row['reference_concepts'])} of {whose}; target {row['target_id']}"
        lines.append((title, [*row["reference_images"], row["target"]]))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a picture to write: its ending says the format")
    parser.add_argument("--config", default="figures", help="figures or a task")
    parser.add_argument("--data_dir", help="a folder that `retribooru build` wrote; without, the mini edition")
    parser.add_argument("--split", default="train")
    parser.add_argument("--lines", type=int, default=12, help="identities or rows")
    parser.add_argument("--images", type=int, default=5, help="of an identity, at most")
    parser.add_argument("--columns", type=int, default=2, help="of lines beside each other")
    parser.add_argument("--cell", type=int, default=128, help="side of an image in pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = load_dataset("retribooru", args.config, data_dir=args.data_dir, split=args.split)
    if args.config == "figures":
        lines = figures_lines(rows, args.lines, args.images, args.seed)
    else:
        lines = task_lines(rows, args.lines, args.seed)
    with replacing(args.out) as partial:
        sheet = contact_sheet(lines, args.cell, args.columns)
        sheet.save(partial, format=Image.registered_extensions()[args.out.suffix.lower()])
    print(args.out)


if __name__ == "__main__":
    main()
