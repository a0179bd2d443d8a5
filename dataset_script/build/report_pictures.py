"""The pictures of a build's report: bars, and cells of its sheets."""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from ..table import FiguresTable
from .annotate import find_image
from .annotations import Reject
from .pixels import read_image
from .report_counts import AUTHORS_PARTNERS, CELL, PAPER_KEPT, PARTNERS, Sample, StageCount, commonest, plain


def rejected_images(sample: Sample, images: Path | None) -> list[Image.Image]:
    """The pictures of rejected records, or in their place in words why there is none."""
    return [
        small(_read_below, Path(images), image_id)
        if images is not None and shown and image_id is not None
        else grey_cell(reason)
        for image_id, reason, shown in sample.records
    ]


def grey_cell(text: str) -> Image.Image:
    """CELL x CELL pixels of grey with a text."""
    cell = Image.new("RGB", (CELL, CELL), (200, 200, 200))
    ImageDraw.Draw(cell).multiline_text((6, 6), "\n".join(textwrap.wrap(plain(text), 20)[:9]), fill="black")
    return cell


def small(read: Callable[..., Image.Image], *args: object) -> Image.Image:
    """What is read, no larger than a cell; a grey cell where it cannot be."""
    try:
        image = read(*args)
        image.thumbnail((CELL, CELL))
        return image
    except Exception as error:  # whatever the file holds, the report is about the others too
        return grey_cell(str(error) or type(error).__name__)


def read_row(table: FiguresTable, position: int) -> Image.Image:
    cell = table.rows([position])[0]["image"]
    if cell["bytes"] is None:
        return read_image(Path(cell["path"]))[0]
    with Image.open(io.BytesIO(cell["bytes"])) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def _read_below(folder: Path, image_id: str) -> Image.Image:
    try:
        file = find_image(folder, image_id).resolve(strict=True)
    except (Reject, OSError):  # which would say where the folder is
        raise Reject(f"image: there is no regular file of {image_id}") from None
    if not file.is_relative_to(folder.resolve()):
        raise Reject(f"image: {image_id} is a link to outside the folder")
    return read_image(file)[0]


def plot_partners(counts: Mapping[str, int], path: Path) -> None:
    """Bars: the share of images that have so many partners, beside the authors'."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(7.5, 3.6))
    for side, (label, numbers) in enumerate((("this build", counts), ("the authors'", AUTHORS_PARTNERS))):
        total = sum(numbers.values())
        shares = [100 * numbers.get(name, 0) / total for name in PARTNERS]
        bars = axis.bar([i + 0.4 * side - 0.2 for i in range(len(shares))], shares, 0.4, label=f"{label} ({total:,})")
        axis.bar_label(bars, [f"{share:.1f}" if share else "" for share in shares], fontsize=8)
    axis.set_xticks(range(len(PARTNERS)), PARTNERS)
    axis.set(xlabel="partners: other images of the same identity", ylabel="% of all images")
    axis.legend()
    _save(figure, path)


def plot_stages(stages: Sequence[StageCount], path: Path) -> None:
    """Bars, as shares of all records: what each stage kept, the paper's as a mark, and its commonest reasons."""
    plt = _pyplot()
    bars = []  # (label, records, colour, stage)
    for stage in stages:
        bars.append((f"{stage.name}: kept", stage.kept, "tab:blue", stage.name))
        bars += [(plain(name, 30), count, "tab:orange", None) for name, count in commonest(stage, 6)]
    read = max(stages[0].total, 1) if stages else 1
    figure, axis = plt.subplots(figsize=(7.5, 0.9 + 0.24 * len(bars)))
    for y, (_, count, color, name) in enumerate(bars):
        ours, papers = 100 * count / read, 100 * PAPER_KEPT.get(name, 0) / PAPER_KEPT["metadata"]
        axis.barh(y, ours, color=color)
        if papers:
            axis.plot([papers, papers], [y - 0.5, y + 0.5], color="black", linewidth=2)
        axis.text(max(ours, papers) + 1.5, y, f"{count:,}", va="center", fontsize=8)
    axis.set_yticks(range(len(bars)), [label for label, *_ in bars], parse_math=False, fontsize=8)
    marks = "; black: kept in the paper" * any(stage.name in PAPER_KEPT for stage in stages)
    axis.set(xlabel=f"% of the records that were read{marks}", xlim=(0, 115))
    axis.invert_yaxis()
    _save(figure, path)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110, format="png")
    _pyplot().close(figure)
