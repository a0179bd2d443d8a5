"""What stands beside a figures table: the dataset card and the report."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..card import UNKNOWN, dataset_card, dataset_info
from ..files import replacing
from ..table import count_rows, has_pixels, read_columns, table_files
from .annotations import count_reasons
from .report import write_report
from .report_counts import StageCount

REJECTS = "rejects.jsonl"


def finish_edition(out: Path, source: str, images: Path, seed: int) -> Path:
    """Card and report of a table that was built in one go, from out/rejects.jsonl; returns the report's path.

    Args:
        source: what it was built from: annotations or people.
        images, seed: see `write_report`.
    """
    with (out / REJECTS).open(encoding="utf-8") as lines:
        rejected = count_reasons(map(json.loads, lines))
    stages = [StageCount(source, count_rows(table_files(out)), rejected)]
    return finish(out, stages, images, seed, f"`retribooru build --{source}` made it of {stages[0].total:,} records.")


def finish(out: Path, stages: Sequence[StageCount], images: Path, seed: int, provenance: str) -> Path:
    """Writes out/README.md, with which load_dataset(out) reads the figures without our code, and out/report/."""
    files = table_files(out)
    ratings = sorted({rating or UNKNOWN for rating in read_columns(files, ["rating"])["rating"].to_pylist()})
    infos, folders = {"figures": dataset_info(out / "data")}, {"figures": "data"}
    with replacing(out / "README.md") as partial:
        card = dataset_card(infos, folders, False, has_pixels(files), None, tuple(ratings), provenance)
        partial.write_text(card, encoding="utf-8")
    with (out / REJECTS).open(encoding="utf-8") as lines:
        rejected = ({"stage": stages[0].name, **json.loads(line)} for line in lines)
        return write_report(out, stages, out, rejected, images, seed)
