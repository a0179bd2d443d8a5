"""Numbers, a table and plots of what pictures show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from retribooru.dataset_script.files import replacing
from retribooru.dataset_script.mini import TRUTH

OF_PROMPT = ("pose", "expression", "background")
OF_REFERENCES = tuple(name for name in TRUTH if name not in OF_PROMPT)
# Means over attributes, beside them: what is taken from the references, and whether the prompt is obeyed.
MEANS = {"identity": OF_REFERENCES, "obedience": OF_PROMPT}
COLUMNS = (*TRUTH, *MEANS)


def with_means(shares: Mapping[str, float]) -> dict[str, float]:
    """The shares, and the means that `MEANS` names."""
    return {**shares, **{mean: fmean(shares[name] for name in names) for mean, names in MEANS.items()}}


def summary(by_seed: Sequence[Mapping[str, float]], ceiling: Mapping[str, float]) -> dict[str, dict]:
    """seeds: {seed: shares}, mean, spread (the largest less the smallest of the seeds), and share_of_ceiling: mean /
    ceiling, None where that is 0."""
    mean = {name: fmean(shares[name] for shares in by_seed) for name in COLUMNS}
    return {
        "seeds": {str(seed): dict(shares) for seed, shares in enumerate(by_seed)},
        "mean": mean,
        "spread": {name: max(s[name] for s in by_seed) - min(s[name] for s in by_seed) for name in COLUMNS},
        "share_of_ceiling": {name: mean[name] / ceiling[name] if ceiling[name] else None for name in COLUMNS},
    }


def table(result: Mapping) -> str:
    """What was drawn, and methods by attributes in percent, as Markdown; the mean of the seeds and, in brackets, their
    spread."""
    lines = [["", *COLUMNS], ["---", *["---:"] * len(COLUMNS)]]
    for name, title in (("real", "real pictures"), ("vae", "through the VAE (the ceiling)")):
        lines.append([title, *(percent(result[name][column]) for column in COLUMNS)])
    for task, methods in result["tasks"].items():
        lines.append([f"{task}: chance", *(percent(methods["chance"][column]) for column in COLUMNS)])
        for method in ("base", "retribooru"):
            if method not in methods:
                continue
            mean, spread_ = methods[method]["mean"], methods[method]["spread"]
            lines.append([f"{task}: {method}", *(f"{percent(mean[c])} ({percent(spread_[c])})" for c in COLUMNS)])
        share = methods["retribooru"]["share_of_ceiling"]
        lines.append([f"{task}: share of the ceiling", *(percent(share[column]) for column in COLUMNS)])
    return caption(result["settings"]) + "\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def caption(settings: Mapping) -> str:
    """How the numbers of the table came about."""
    guidance = settings["reference_guidance_scale"]
    return (
        f"{settings['pictures']} pictures of each task and seed, of characters that were never trained on, by "
        f"{settings['num_inference_steps']} steps with guidance_scale {settings['guidance_scale']:g}"
        f"{'' if guidance is None else f', reference_guidance_scale {guidance:g}'} and retrieval_scale "
        f"{settings['retrieval_scale']:g}. Percent of the pictures of which a classifier reads what is true of the "
        f"references ({', '.join(OF_REFERENCES)}; their mean is identity) or of the prompt ({', '.join(OF_PROMPT)}; "
        f"obedience): the mean of {settings['seeds']} seeds and, in brackets, the largest less the smallest."
    )


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def plot(by_task: Mapping[str, Mapping[str, Mapping[str, float]]], kind: str, path: Path) -> None:
    """identity and obedience over the values of a curve, a colour per task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    for task, points in by_task.items():
        color = None
        for mean, style in zip(MEANS, ("-", "--")):
            values = [100 * shares[mean] for shares in points.values()]
            (line,) = axis.plot(
                list(map(float, points)), values, style, marker=".", color=color, label=f"{task}, {mean}"
            )
            color = line.get_color()
    if kind == "references":
        ticks = sorted({float(value) for points in by_task.values() for value in points})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    label = {"scale": "retrieval_scale", "references": "number of references"}[kind]
    axis.set(xlabel=label, ylabel="read as expected, %", ylim=(0, 100))
    axis.legend(fontsize="small")
    figure.tight_layout()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)
