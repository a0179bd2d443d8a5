"""Splits groups of one answer by looking again: a stronger model is shown two images and asked for the same outfit.

The paper wishes for it, with reasons. Linear where the model agrees with the groups: an image is compared with the
first image of each subgroup that its group has so far, not with every other image.
"""

import functools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .annotate import checked_folder, settings_of
from .annotations import Reject
from .ask import SHOWN, show_figures
from .endpoint import Endpoint
from .stage import Done, Part, Runner, part_files, read_rows, rejects_table, run_stage
from .vqa import GivenAnswers, ModelSpec

PAIR_QUESTION = (
    "Both images show the same character. Look at the clothes alone: kinds of garments, their colors, patterns and "
    "lengths. Does the character wear the same outfit in both? Pose, expression, crop and lighting do not matter. "
    'Answer with JSON alone: {"same": true or false, "why": "one sentence"}'
)
JUDGED = pa.schema(
    [
        ("image_id", pa.string()),
        ("representative", pa.string()),  # the image that it was compared with
        ("same", pa.bool_()),
        ("explanation", pa.string()),
    ]
)
GROUPS_PER_PART = 64

AskPair = Callable[[str, str], tuple[bool, str]]


def judge(groups: Sequence[Sequence[str]], ask_pair: AskPair) -> tuple[list[list[str]], list[dict]]:
    """Splits each group along what `ask_pair` says of (representative, image).

    An image joins the first subgroup whose representative, its first image, wears the same.

    Returns:
        (the groups, split, in their order; a row of `JUDGED` for each comparison).
    """
    split, rows = [], []
    for group in groups:
        subgroups = []
        for image_id in group:
            for subgroup in subgroups:
                same, explanation = ask_pair(subgroup[0], image_id)
                rows.append(dict(zip(JUDGED.names, (image_id, subgroup[0], same, explanation))))
                if same:
                    subgroup.append(image_id)
                    break
            else:
                subgroups.append([image_id])
        split += subgroups
    return split, rows


def split_groups(groups: Iterable[Sequence[str]], judged: pa.Table) -> list[list[str]]:
    """The groups as the rows of `JUDGED` split them: what `judge` returned first."""
    joined = judged.filter(judged["same"])
    representative = dict(zip(joined["image_id"].to_pylist(), joined["representative"].to_pylist()))
    split = []
    for group in groups:
        subgroups = defaultdict(list)
        for image_id in group:
            subgroups[representative.get(image_id, image_id)].append(image_id)
        split += subgroups.values()
    return split


def parse_verdict(text: str) -> tuple[bool, str]:
    """(same?, why): of a JSON object {"same": ..., "why": ...} in the text, or of a leading yes or no.

    What is neither counts as "not the same": a subgroup too many costs a few references, an image in another's outfit
    teaches the wrong thing.
    """
    for found in re.finditer(r"\{", text):
        try:
            verdict, _ = json.JSONDecoder().raw_decode(text, found.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(verdict.get("same"), bool):
            return verdict["same"], str(verdict.get("why", ""))
    word = re.match(r"\W*(yes|no)\b[\s,.:;!-]*", text, re.IGNORECASE)
    if word:
        return word[1].lower() == "yes", text[word.end() :].strip()
    return False, f"no verdict: {text[:300]}"


def judge_outfits(
    groups: Sequence[Sequence[str]],
    annotated: Path,
    images: Path,
    out: Path,
    model: ModelSpec,
    runner: Runner,
    question: str = PAIR_QUESTION,
    on_mask: bool = True,
) -> list[list[str]]:
    """`judge` as a stage, with a model that is shown two images: can be stopped and resumed.

    Args:
        groups: image ids of one character, artist and answer each, in an order that stays.
        annotated, images, model, question, on_mask: as of `ask`; the model must take two images, and have room for some
            100 new tokens.
        out: folder of this stage: its rows are `JUDGED`.

    Returns:
        The groups, split.
    """
    if isinstance(model, GivenAnswers):
        raise ValueError("model: got given answers, wanted a model that is shown two images")
    images, groups = checked_folder(images, "images"), [list(group) for group in groups]
    several = [group for group in groups if len(group) > 1]
    parts = [
        Part(f"part-{start // GROUPS_PER_PART:06d}", {"groups": several[start : start + GROUPS_PER_PART]})
        for start in range(0, len(several), GROUPS_PER_PART)
    ]
    made_with = ["judge", settings_of(annotated), str(images), model.settings(), question, on_mask, several]
    work = functools.partial(JudgeWork, str(annotated), str(images), model, question, on_mask)
    run_stage(out, parts, work, made_with, runner)
    return split_groups(groups, read_rows(out) if parts else JUDGED.empty_table())


class JudgeWork:
    """Judges the groups of one part, {"groups": lists of image ids}."""

    def __init__(self, annotated: str, images: str, model: ModelSpec, question: str, on_mask: bool):
        self.images, self.question, self.on_mask = Path(images), question, on_mask
        self.files = part_files(Path(annotated))
        self.model = model.load()
        self.at_once = model.concurrency if isinstance(model, Endpoint) else 1

    def __call__(self, item: dict) -> Done:
        groups = [list(group) for group in item["groups"]]
        figures = self._figures({image_id for group in groups for image_id in group})
        ask_pair = functools.partial(self._ask_pair, figures)
        with ThreadPoolExecutor(self.at_once) as pool:
            judged = [row for _, rows in pool.map(lambda group: judge([group], ask_pair), groups) for row in rows]
        return Done(pa.Table.from_pylist(judged, schema=JUDGED), rejects_table([]))

    def _figures(self, image_ids: set[str]) -> dict[str, dict]:
        wanted = [("image_id", "in", image_ids)]
        tables = (pq.read_table(file, columns=SHOWN, filters=wanted) for file in self.files)
        return {row["image_id"]: row for table in tables for row in table.to_pylist()}

    def _ask_pair(self, figures: dict[str, dict], first: str, second: str) -> tuple[bool, str]:
        rows = [figures[first], figures[second]]
        (answer,) = self.model([functools.partial(show_figures, self.images, rows, self.on_mask)], self.question)
        return (False, f"no verdict: {answer}") if isinstance(answer, Reject) else parse_verdict(answer)
