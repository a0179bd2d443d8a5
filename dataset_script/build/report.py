"""The report of a build: a page and pictures that say where every image went, beside the paper's numbers."""

import bisect
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageOps

from ..contact_sheet import contact_sheet
from ..figures import IDENTITY, SPLITS
from ..files import replacing_folder
from ..table import FiguresTable, has_pixels, read_columns, shard_files
from .annotate import find_image
from .annotations import Reject
from .pixels import read_image

# What the paper counts after these stages (section 3), from the crops of Danbooru2019 Figures on.
PAPER_KEPT = {"metadata": 855_880, "filter": 599_192, "outfits": 116_729}

# How many partners an image has: images of the same identity beside it. The authors' numbers are their project page's;
# 6 to 14 is what is missing there.
PARTNERS = {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4, "5": 5, "6 to 14": 6, "15 or more": 15}  # from so many on
AUTHORS_PARTNERS = {"1": 65_594, "2": 19_636, "3": 9_125, "4": 5_227, "5": 3_434, "6 to 14": 9_481, "15 or more": 4_232}

CELL, COLUMNS = 128, 2
IDENTITIES, IMAGES = 24, 5  # shown: identities, images of each
KINDS, EACH = 24, 5  # shown of what was rejected: kinds (stage and reason), records of each
MOST_REASONS = 15  # of a stage, in its table
SHOWN_RATINGS = (None, "", "g", "s")  # of rejected images; of others the reason alone is shown


@dataclass(frozen=True)
class StageCount:
    """What a stage did with its records: how many went on, how many it rejected by reason."""

    name: str
    kept: int
    rejected: Mapping[str, int]

    @property
    def total(self) -> int:
        """All that came in and can be accounted for."""
        return self.kept + sum(self.rejected.values())


@dataclass
class Sample:
    """Some of many records, each as likely: of how many, and (image_id, reason, whether its picture may be shown)."""

    count: int = 0
    records: list[tuple[str | None, str, bool]] = field(default_factory=list)


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
                (plain(", ".join(filter(None, identity))), [_small(_read_row, table, i) for i in members[:IMAGES]])
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


def partner_counts(sizes: Iterable[int]) -> dict[str, int]:
    """{a name of `PARTNERS`: images with so many partners} of identities with so many images each."""
    names, starts, counts = list(PARTNERS), list(PARTNERS.values()), dict.fromkeys(PARTNERS, 0)
    for size in sizes:
        counts[names[bisect.bisect_right(starts, size - 1) - 1]] += size
    return counts


def count_names(files: Sequence[str]) -> tuple[int, int, int]:
    """(images, characters, identities) of a table."""
    labels = read_columns(files, IDENTITY)
    identities = labels.group_by(list(IDENTITY)).aggregate([])
    return len(labels), len(identities["character"].unique()), len(identities)


def sample_rejects(rejected: Iterable[dict], rng: Random) -> dict[tuple[str, str], Sample]:
    """{(stage, reason's field): up to `EACH` records}, in the order in which the kinds first come.

    Kinds beyond `KINDS`, which the names of fields in the data might make as many as records, are one more per stage.
    """
    samples = {}
    for row in rejected:
        kind = (row["stage"], row["reason"].split(":")[0])
        if kind not in samples and len(samples) >= KINDS:
            kind = (row["stage"], "other reasons")
        sample = samples.setdefault(kind, Sample())
        sample.count += 1
        place = len(sample.records) if len(sample.records) < EACH else rng.randrange(sample.count)
        if place < EACH:
            record = (row["image_id"], row["reason"][:500], may_be_shown(row))
            sample.records[place : place + 1] = [record]
    return samples


def may_be_shown(row: dict) -> bool:
    """Whether a rejected image's picture is for everybody, by what its record says of its rating."""
    record = row["record"]
    if row["reason"].startswith("rating:") or (isinstance(record, str) and record.startswith("{")):  # one that was cut
        return False
    return not isinstance(record, dict) or record.get("rating") in SHOWN_RATINGS


def choose_identities(members: Mapping[tuple, list[int]], rng: Random) -> list[tuple[tuple, list[int]]]:
    """Some identities and positions of their images; of those with two images or more, where there are any."""
    groups = sorted(identity for identity in members if len(members[identity]) > 1) or sorted(members)
    chosen = sorted(rng.sample(groups, min(IDENTITIES, len(groups))))
    return [(identity, members[identity]) for identity in chosen]


def rejected_images(sample: Sample, images: Path | None) -> list[Image.Image]:
    """The pictures of rejected records, or in their place in words why there is none."""
    return [
        _small(_read_below, Path(images), image_id)
        if images is not None and shown and image_id is not None
        else grey_cell(reason)
        for image_id, reason, shown in sample.records
    ]


def grey_cell(text: str) -> Image.Image:
    """CELL x CELL pixels of grey with a text."""
    cell = Image.new("RGB", (CELL, CELL), (200, 200, 200))
    ImageDraw.Draw(cell).multiline_text((6, 6), "\n".join(textwrap.wrap(plain(text), 20)[:9]), fill="black")
    return cell


def _small(read: Callable[..., Image.Image], *args: object) -> Image.Image:
    """What is read, no larger than a cell; a grey cell where it cannot be."""
    try:
        image = read(*args)
        image.thumbnail((CELL, CELL))
        return image
    except Exception as error:  # whatever the file holds, the report is about the others too
        return grey_cell(str(error) or type(error).__name__)


def _read_row(table: FiguresTable, position: int) -> Image.Image:
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
        bars += [(plain(name, 30), count, "tab:orange", None) for name, count in _commonest(stage, 6)]
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
        rows = [(code(name), _n(count), _share(count, total)) for name, count in _commonest(stage, MOST_REASONS)]
        if rows:
            section += [f"Rejected by {code(stage.name)}:", markdown_table(("reason", "records", "share"), rows)]
    return section


def _commonest(stage: StageCount, most: int) -> list[tuple[str, int]]:
    """The commonest reasons of a stage, and the others together."""
    ranked = sorted(stage.rejected.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ranked[most:])
    return ranked[:most] + ([(f"{len(ranked) - most} other reasons", rest)] if rest else [])


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


def plain(text: str, longest: int = 100) -> str:
    """Text on one line, of characters that can be seen, cut where it is long."""
    text = " ".join(text[: 10 * longest].split())
    text = "".join(each if each.isprintable() else "\ufffd" for each in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _n(count: int) -> str:
    return f"{count:,}"


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f}%" if total else ""
