"""The numbers of the paper's tables, with intervals and by domain."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean

import pyarrow as pa

from ..intervals import bootstrap_interval
from .arguments import shown
from .characters import DOMAINS
from .judges import are_small
from .plan import Plan

ALL = "all"
OF_PICTURES = {"CLIP-I": "clip_i", "CLIP-T": "clip_t"}
# Between VQA avg and SWD stands a column for each prompt.
VQA, SWD, LEAKAGE = "VQA avg", "SWD", "leakage"


def columns(prompts: int) -> list[str]:
    """As in the paper's tables, and ours behind them."""
    return [*OF_PICTURES, VQA, *(f"P{number}" for number in range(1, prompts + 1)), SWD, LEAKAGE]


def summarize(plan: Plan, scores: pa.Table, groups: pa.Table) -> dict:
    """What results.json holds.

    Returns:
        settings: what was drawn; judges: by whom it was judged, whether by the mini edition's small judges (`small`),
        and `floor`: the mean CLIP-I of references of different characters, SWD's floor; cut: see `cut`;
        notes: what one must know to read the tables; methods: {name: what it is}; tables: {all, in_domain or
        out_of_domain: {method: {column: estimate}}}, see `estimate`.
    """
    scores, groups = scores.to_pylist(), groups.to_pylist()
    domains = [domain for domain in DOMAINS if any(one.domain == domain for one in plan.characters)]
    args = plan.args
    drawn = {"task": args.task, "prompts": plan.prompts, "seeds": args.seeds,
             "images_per_prompt": args.images_per_prompt, "level": args.level, "resamples": args.resamples,
             "data": shown(args.data_dir) if args.data_dir else "mini edition"}  # fmt: skip
    return {
        "settings": {**drawn, **{domain: getattr(args, domain) for domain in DOMAINS}},
        "judges": {**plan.judges, "floor": groups[0]["floor"], "small": are_small(args)},
        "cut": cut(scores, groups),
        "notes": notes(plan, scores, groups),
        "methods": {method.name: asdict(method) for method in plan.methods},
        "tables": {
            domain: {
                method.name: _row(plan, *(
                    [row for row in rows if row["method"] == method.name and domain in (ALL, row["domain"])]
                    for rows in (scores, groups)
                ))
                for method in plan.methods
            }
            for domain in [ALL, *domains]
        },
    }  # fmt: skip


def _row(plan: Plan, scores: list[dict], groups: list[dict]) -> dict[str, dict]:
    level, resamples = plan.args.level, plan.args.resamples
    row = {column: estimate(scores, key, level, resamples) for column, key in OF_PICTURES.items()}
    row[VQA] = estimate(groups, "vqa_diversity", level, resamples)
    for number in range(1, len(plan.prompts) + 1):
        own = [group for group in groups if group["prompt_number"] == number]
        row[f"P{number}"] = estimate(own, "vqa_diversity", level, resamples)
    row[SWD] = estimate(groups, "swd", level, resamples)
    row[LEAKAGE] = estimate(scores, "leakage", level, resamples)
    return row


def estimate(rows: Sequence[Mapping], key: str, level: float = 0.95, resamples: int = 1000) -> dict:
    """mean of what is defined, low and high: its bootstrap interval over characters, count and undefined: how many.

    The mean is None where nothing is defined, the interval where it is so for fewer than two characters.
    """
    found = [(row[key], row["character"]) for row in rows if row[key] is not None]
    values, characters = [value for value, _ in found], [character for _, character in found]
    low, high = None, None
    if len(set(characters)) >= 2:
        low, high = bootstrap_interval(values, characters, level, resamples)
    return {
        "mean": fmean(values) if values else None,
        "low": low,
        "high": high,
        "count": len(values),
        "undefined": len(rows) - len(values),
    }


def notes(plan: Plan, scores: Sequence[Mapping], groups: Sequence[Mapping]) -> list[str]:
    """What the tables do not show."""
    said = []
    if groups[0]["pictures"] < 2:
        said.append("VQA and SWD are undefined: a group of one picture has no pair.")
    undefined = sum(row["leakage"] is None for row in scores)
    if plan.plain is None:
        said.append("Leakage is left out: no method is of kind stable-diffusion, with which to compare.")
    else:
        if plan.args.masks == "typical":
            said.append(
                "Leakage: drawn pictures have no masks; what counts as their figures is where more than 5 % of the "
                "table's figures are. It is measured outside of that alone."
            )
        if undefined:
            said.append(
                f"Leakage is undefined for {undefined} of {len(scores)} pictures: no background is left outside of the "
                "figure, in the picture or in any reference, or the plain model's is the references' already."
            )
    found = cut(scores, groups)
    for reader, numbers in {**found["prompts_by_method"], "The CLIP that judges": found["prompts_by_clip"]}.items():
        if numbers:
            said.append(
                f"{reader} does not see the end of {len(numbers)} of {len(plan.prompts)} prompts, too long for it: "
                f"{', '.join(f'P{number}' for number in numbers)}."
            )
    if found["answers"]:
        said.append(
            f"{found['answers']} answers of the VQA model are too long for CLIP, which does not see their ends."
        )
    return said


def cut(scores: Sequence[Mapping], groups: Sequence[Mapping]) -> dict:
    """Whose end was not seen, being too long (77 tokens for CLIP): prompts_by_method, {method: numbers of prompts}, of
    methods that are known to cut some; prompts_by_clip: numbers; answers: how many."""
    by_method = {}
    for row in scores:
        if row["cut_for_method"]:
            by_method.setdefault(row["method"], set()).add(row["prompt_number"])
    return {
        "prompts_by_method": {method: sorted(numbers) for method, numbers in by_method.items()},
        "prompts_by_clip": sorted({row["prompt_number"] for row in scores if row["cut_for_clip"]}),
        "answers": sum(group["cut_answers"] for group in groups),
    }
