"""The picture that people share: references above, a row for each prompt, a column for each seed."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from retribooru.generate_references import Reference
from retribooru.pipeline.reference_processor import pad_to_square, remove_background

PAPER, INK, FAINT, TILE = (241, 241, 246), (32, 32, 40), (112, 112, 124), (255, 255, 255)
MARGIN, GAP, CORNER = 24, 10, 10


def cell_size(width: int, height: int, columns: int, rows: int) -> tuple[int, int]:
    """(width, height) in pixels of a picture in the grid: its longer side 256 to 512, less where there are many."""
    side = min(max(256, min(512, max(width, height))), max(128, 4096 // max(columns, rows)))
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def draw_grid(
    references: Sequence[Reference],
    characters: Sequence[Path],
    prompts: Sequence[str],
    seeds: Sequence[int],
    cells: Sequence[Image.Image],
    small_print: str,
) -> Image.Image:
    """References above, then a row for each prompt and a column for each seed.

    Args:
        cells: the pictures, all of one size, those of the first prompt first.
    """
    cell_width, cell_height = cells[0].size
    inner = max(len(seeds) * (cell_width + GAP) - GAP, 480)
    large, small = _font(20), _font(14)
    tiles = [(_reference_tile(one), one.concept) for one in references]
    tiles += [(_name_tile(file.stem), "character") for file in characters]
    per_line = max(4, inner // 200)
    side = (inner + GAP) // per_line - GAP
    tile_lines = [tiles[i : i + per_line] for i in range(0, len(tiles), per_line)]

    caption, label = 38, 26
    tiles_height = caption + len(tile_lines) * (side + label) + GAP if tiles else 0
    rows_height = len(prompts) * (caption + cell_height + label + GAP)
    grid = Image.new("RGB", (inner + 2 * MARGIN, tiles_height + rows_height + 2 * MARGIN + 14), PAPER)
    pen, y = ImageDraw.Draw(grid), MARGIN

    def line(images: Sequence[Image.Image], labels: Sequence[str], size: tuple[int, int]) -> None:
        for i, (image, text) in enumerate(zip(images, labels)):
            x = MARGIN + i * (size[0] + GAP)
            grid.paste(image, (x, y), _rounded(size))
            pen.text((x + size[0] // 2, y + size[1] + label // 2), _fit(text, small, size[0]), FAINT, small, "mm")

    if tiles:
        pen.text((MARGIN, y + caption // 2 - 4), "References", INK, large, "lm")
        y += caption
        for part in tile_lines:
            line(
                [tile.resize((side, side), Image.LANCZOS) for tile, _ in part], [text for _, text in part], (side, side)
            )
            y += side + label
        y += GAP
    for i, prompt in enumerate(prompts):
        pen.text((MARGIN, y + caption // 2 - 4), _fit(prompt, large, inner), INK, large, "lm")
        y += caption
        line(cells[i * len(seeds) : (i + 1) * len(seeds)], [f"seed {seed}" for seed in seeds], cells[0].size)
        y += cell_height + label + GAP
    pen.text((MARGIN, y + 8), _fit(small_print, small, inner), FAINT, small, "lm")
    return grid


def _reference_tile(reference: Reference) -> Image.Image:
    """As the model sees it: without its background, padded to a square."""
    image = reference.image
    if reference.mask is not None:
        image = remove_background(image, reference.mask, TILE)
    return pad_to_square(image, TILE)


def _name_tile(name: str) -> Image.Image:
    tile = Image.new("RGB", (512, 512), (220, 222, 240))
    ImageDraw.Draw(tile).text((256, 256), _fit(name, _font(64), 460), INK, _font(64), "mm")
    return tile


def _rounded(size: tuple[int, int]) -> Image.Image:
    """A mask with round corners; drawn large and made small, for smooth edges."""
    mask = Image.new("L", (size[0] * 4, size[1] * 4), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), CORNER * 4, 255)
    return mask.resize(size, Image.BOX)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font lacks accents and Cyrillic; matplotlib's has them."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """As much of a text as the width holds."""
    text = " ".join(text.split())
    lengths = range(len(text), -1, -1) if len(text) < 500 else range(500, -1, -1)
    shown = (shorten(text, length) for length in lengths)
    return next(part for part in shown if font.getlength(part) <= width or len(part) < 2)


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length].rstrip(' ,')}…"


def small_print(described: dict) -> str:
    scheduler = described["scheduler"].removesuffix("Scheduler")
    return (f"{described['checkpoint']}  ·  {scheduler}, {described['steps']} steps  ·  "
            f"guidance {described['guidance_scale']:g}  ·  RetriBooru")  # fmt: skip
