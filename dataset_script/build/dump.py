"""From a booru dump to the figures table: the stages in their order, each in a folder of its own below out/stages/.

A stage reads the folders of those before it. What it made stays until it is asked for something else, so that a build
that was killed, or asked again, goes on where it was.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from ..files import write_lines
from ..table import count_rows, table_files
from . import BuildReport, summary
from .annotate import annotate, settings_of
from .annotations import Reject, reject
from .ask import QUESTION, ask
from .detectors import HeadSpec, MaskSpec
from .filter import FilterRules, filter_dump
from .finish import REJECTS, finish
from .judge import judge_outfits
from .outfits import cluster, group_sizes
from .report_counts import StageCount
from .stage import (
    OUTFITS,
    Done,
    Runner,
    begin,
    count_stage,
    part_files,
    read_rejects,
    read_rows,
    rejects_table,
    write_part,
)
from .vqa import ModelSpec
from .write import aligned, write_figures

STAGES = ("filter", "annotate", "ask", "outfits")
NO_RECORD = ("line", "record", "id", "tags")  # of the filter's reasons, those of what is no record


def stage_folder(out: Path, stage: str) -> Path:
    """Where a stage keeps what it made."""
    return Path(out) / "stages" / stage


def filter_stage(out: Path, metadata: Sequence[Path], rules: FilterRules, runner: Runner) -> Counter:
    """Which records of the dump are wanted, see `filter_dump`."""
    return filter_dump(metadata, stage_folder(out, "filter"), rules, runner)


def annotate_stage(
    out: Path, images: Path, masks: MaskSpec, heads: HeadSpec, runner: Runner, batch_size: int = 8
) -> Counter:
    """Masks and head boxes of the images that have another of their character by their artist, see `annotate`."""
    labels = read_rows(_done(out, "filter"), ["image_id", "character", "artist"])
    only = labels["image_id"].filter(pa.array(group_sizes([labels["character"], labels["artist"]]) > 1))
    folders = (stage_folder(out, "filter"), images, stage_folder(out, "annotate"))
    return annotate(*folders, masks, heads, runner, only, batch_size)


def ask_stage(out: Path, images: Path | None, model: ModelSpec, runner: Runner, question: str = QUESTION) -> Counter:
    """What the figures wear, in the words of a model, see `ask`."""
    return ask(_done(out, "annotate"), images, stage_folder(out, "ask"), model, runner, question)


def outfits_stage(
    out: Path, images: Path | None, runner: Runner, judge: ModelSpec | None = None, keep_alone: bool = False
) -> Counter:
    """Which images wear the same: those whose answers match and, with a `judge`, that it finds alike (`judge_outfits`)."""
    filtered, asked = _done(out, "filter"), _done(out, "ask")
    answers = read_rows(asked)
    labels = aligned(read_rows(filtered, ["image_id", "character", "artist"]), answers["image_id"])
    done = cluster(labels.append_column("answer", answers["answer"]), keep_alone)
    if judge:
        groups = outfit_groups(done.rows, labels)
        groups = judge_outfits(groups, _done(out, "annotate"), images, stage_folder(out, "judge"), judge, runner)
        done = split_outfits(done, groups, keep_alone)
    folder = stage_folder(out, "outfits")
    begin(folder, [settings_of(filtered), settings_of(asked), keep_alone, judge and judge.settings()])
    write_part(folder, "outfits", done)
    return count_stage(folder)


def outfit_groups(outfits: pa.Table, labels: pa.Table) -> list[list[str]]:
    """The image ids of each (character, artist, outfit), sorted."""
    table = aligned(labels, outfits["image_id"]).append_column("outfit", outfits["outfit"])
    groups = table.group_by(["character", "artist", "outfit"]).aggregate([("image_id", "list")])
    return sorted(map(sorted, groups["image_id_list"].to_pylist()))


def split_outfits(done: Done, groups: Sequence[Sequence[str]], keep_alone: bool) -> Done:
    """The outfits split along `groups`: the first image's id joins the name, and who is alone by now is rejected."""
    rows_by_id, rows, rejects = {row["image_id"]: row for row in done.rows.to_pylist()}, [], []
    for group in groups:
        for image_id in group:
            row = rows_by_id[image_id]
            if len(group) > 1 or keep_alone:
                rows.append({**row, "outfit": f"{row['outfit']} ({group[0]})"})
            else:
                rejects.append(
                    reject({"id": image_id, **row}, Reject("alone: no other image wears the same, by the judge"))
                )
    return Done(pa.Table.from_pylist(rows, schema=OUTFITS), pa.concat_tables([done.rejects, rejects_table(rejects)]))


def write_stage(
    out: Path,
    images: Path,
    embed_images: bool = True,
    seed: int = 0,
    out_of_domain: float = 0.1,
    in_domain: float = 0.05,
) -> BuildReport:
    """The figures table with its splits, the rejects, the card, and the report (out/report/README.md).

    Every record of the dump is now in the table or, once, in out/rejects.jsonl: stage, image_id, reason. What a record
    was stands with it in the stages' folders.
    """
    out = Path(out)
    outfits = read_rows(_done(out, "outfits"))
    folders = (stage_folder(out, stage) for stage in ("filter", "annotate"))
    changed = write_figures(out, *folders, outfits, images, embed_images, seed, out_of_domain, in_domain)
    stages = [
        *stage_counts(out),
        StageCount("write", count_rows(table_files(out)), {"image": len(changed)} if changed else {}),
    ]
    write_lines(out / REJECTS, ({**line, "record": None} for line in _rejected(out, changed)))
    finish(
        out, stages, images, seed, f"`retribooru build --metadata` made it of {stages[0].total:,} records of a dump."
    )
    return summary(out, sum((Counter(stage.rejected) for stage in stages), Counter()))


def stage_counts(out: Path) -> list[StageCount]:
    """What each stage kept and rejected; what is no record at all counts as the metadata's."""
    counts = {stage: count_stage(stage_folder(out, stage)) for stage in STAGES}
    no_record = {reason: counts["filter"].pop(reason) for reason in NO_RECORD if reason in counts["filter"]}
    metadata = StageCount("metadata", counts["filter"].total(), no_record)
    return [metadata, *(StageCount(stage, count.pop("kept"), dict(count)) for stage, count in counts.items())]


def _rejected(out: Path, changed: Sequence[dict]) -> Iterator[dict]:
    """What all stages rejected, with the stage's name."""
    for stage in STAGES:
        for line in read_rejects(stage_folder(out, stage)):
            yield {"stage": stage, **line}
    for line in changed:
        yield {"stage": "write", **line}


def _done(out: Path, stage: str) -> Path:
    """The folder of a stage that has been and left something; raises FileNotFoundError or ValueError otherwise."""
    folder = stage_folder(out, stage)
    if not folder.is_dir():
        raise FileNotFoundError(f"out: {out} has no {stage} yet, wanted `retribooru build {stage}` before this")
    if not count_rows(part_files(folder)):
        rejected = ", ".join(f"{count:,} {reason}" for reason, count in count_stage(folder).items() if count)
        raise ValueError(f"out: {stage} has left nothing of {out}; rejected: {rejected or 'none, nothing came in'}")
    return folder
