"""The report of a build: a page and pictures that say where every image went, beside the paper's numbers."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random

from ..contact_sheet import contact_sheet
from ..figures import SPLITS
from ..files import replacing_folder
from ..table import FiguresTable, has_pixels, shard_files
from .report_counts import (
    AUTHORS_PARTNERS,
    CELL,
    IMAGES,
    PAPER_KEPT,
    Sample,
    StageCount,
    choose_identities,
    commonest,
    count_names,
    partner_counts,
    plain,
    sample_rejects,
)
from .report_pictures import plot_partners, plot_stages, read_row, rejected_images, small

COLUMNS = 2  # of the sheets
MOST_REASONS = 15  # of a stage, in its table


def write_report(
    out: Path,
    stages: Sequence[StageCount],
    data_dir: Path,
    rejected: Iterable[dict],
    images: Path | None,
    seed: int = 0,
) -> Path:
    """Writes out/report/: README.md and PNGs beside it; an earlier report is replaced whole.

    Args:
        stages: in their order; the paper's numbers stand beside those named as in `PAPER_KEPT`.
        data_dir: holds data/SPLIT-*.parquet, whose labels are counted.
        rejected: what the stages rejected: stage, image_id, reason, record. Read once, a few of each kind are held.
        images: folder of rejected images, as `annotate.find_image` finds them, and of the images that a table names and
            does not hold. Without, no such picture is shown.
        seed: draws the identities and the rejected images that are shown.

    Returns:
        The path of README.md.
    """
    files = {split: shard_files(data_dir, split) for split in SPLITS}
    every_file = [file for split in SPLITS for file in files[split]]
    if not every_file:
        raise ValueError(f"data_dir: got {data_dir}, which has no figures; wanted one with data/SPLIT-*.parquet")
    held = has_pixels(every_file)
    table = FiguresTable(every_file, None if held or images is None else str(images))
    samples = sample_rejects(rejected, Random(f"{seed}/rejected"))
    chosen = choose_identities(table.index.members, Random(f"{seed}/identities"))
    partners = partner_counts(map(len, table.index.members.values()))

    with replacing_folder(Path(out) / "report") as folder:
        plot_stages(stages, folder / "stages.png")
        plot_partners(partners, folder / "partners.png")
        if held or images is not None:
            lines = [
                (plain(", ".join(filter(None, identity))), [small(read_row, table, i) for i in members[:IMAGES]])
                for identity, members in chosen
            ]
            contact_sheet(lines, CELL, COLUMNS).save(folder / "identities.png")
        if samples:
            lines = [
                (plain(f"{stage}: {reason} ({sample.count:,})"), rejected_images(sample, images))
                for (stage, reason), sample in samples.items()
            ]
            contact_sheet(lines, CELL, COLUMNS).save(folder / "rejected.png")
        page = "\n\n".join(
            [
                "# Report of a build",
                *_stages_section(stages, len(table.index)),
                *_partners_section(partners),
                *_splits_section({split: count_names(part) for split, part in files.items() if part}),
                *_identities_section(chosen, held or images is not None),
                *_rejected_section(samples, images),
            ]
        )
        (folder / "README.md").write_text(page + "\n", encoding="utf-8")
    return Path(out) / "report" / "README.md"


def _stages_section(stages: Sequence[StageCount], figures: int) -> list[str]:
    rows, before = [], None
    for stage in [*stages, StageCount("table", figures, {})]:
        came = stage.total if before is None else before
        paper = PAPER_KEPT.get(stage.name)
        rows.append((stage.name, _n(came), _n(stage.kept), _n(stage.total - stage.kept), _check(before, stage.total),
                     f"{paper:,}" if paper else ""))  # fmt: skip
        before = stage.kept
    section = [
        "## Where the images went",
        markdown_table(("stage", "in", "kept", "rejected", "in = kept + rejected", "kept in the paper"), rows),
        "![What each stage kept and rejected](stages.png)",
    ]
    for stage in stages:
        total = stage.total - stage.kept
        rows = [(code(name), _n(count), _share(count, total)) for name, count in commonest(stage, MOST_REASONS)]
        if rows:
            section += [f"Rejected by {code(stage.name)}:", markdown_table(("reason", "records", "share"), rows)]
    return section


def _check(before: int | None, total: int) -> str:
    """Whether what a stage accounts for is what the one before it handed on."""
    if before is None:
        return "read"
    if before == total:
        return "yes"
    return f"**no: {abs(before - total):,} {'missing' if total < before else 'too many'}**"


def _partners_section(counts: Mapping[str, int]) -> list[str]:
    total, authors = sum(counts.values()), sum(AUTHORS_PARTNERS.values())
    rows = []
    for name, count in counts.items():
        theirs = AUTHORS_PARTNERS.get(name, 0)
        with_partner = _share(count, total - counts["0"]) if name != "0" else ""
        rows.append((name, _n(count), _share(count, total), with_partner, _n(theirs), _share(theirs, authors)))
    header = ("partners", "images", "of all images", "of those with a partner", "the authors' images", "of all images")
    return [
        "## Partners of an image",
        "Partners are other images of the same character, artist and outfit. The authors left out images without one.",
        markdown_table(header, rows),
        "![Partners of an image, beside the authors'](partners.png)",
    ]


def _splits_section(counts: Mapping[str, Sequence[int]]) -> list[str]:
    rows = [(split, *map(_n, numbers)) for split, numbers in counts.items()]
    return ["## Splits", markdown_table(("split", "images", "characters", "identities"), rows)]


def _identities_section(chosen: Sequence[tuple[tuple, list[int]]], is_shown: bool) -> list[str]:
    picture = (
        "![Identities drawn by lot, one in each line](identities.png)"
        if is_shown
        else "The table names its images and does not hold them: no picture without the folder of the images."
    )
    rows = [(*map(code, identity), _n(len(members))) for identity, members in chosen]
    return [
        "## Identities, drawn by lot",
        picture,
        markdown_table(("character", "artist", "outfit", "images"), rows),
    ]


def _rejected_section(samples: Mapping[tuple[str, str], Sample], images: Path | None) -> list[str]:
    if not samples:
        return ["## Rejected", "Nothing was rejected."]
    rows = [
        (code(stage), code(image_id or ""), code(reason))
        for (stage, _), sample in samples.items()
        for image_id, reason, _ in sample.records
    ]
    hidden = "Where there is no picture that can be shown, or its rating is not for everybody, a grey cell says why."
    return [
        "## Rejected, drawn by lot",
        "![Rejected images, by stage and reason](rejected.png)",
        hidden if images is not None else "No folder of images was given: grey cells say why.",
        markdown_table(("stage", "image", "reason"), rows),
    ]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of GitHub's Markdown; cells are Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: str | None) -> str:
    """Text from the data as a code span, in which Markdown reads nothing: no HTML, link, image, mention or cell.

    Cut where it is long; what would end the span or the cell is replaced.
    """
    text = plain(text or "").replace("`", "'").replace("|", "¦")
    return f"`{text}`" if text.strip() else "(empty)"


def _n(count: int) -> str:
    return f"{count:,}"


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f}%" if total else ""
