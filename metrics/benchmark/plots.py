"""frontier.png, prompts.png, and grids of pictures: of every method, and of all beside each other."""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image

from retribooru.dataset_script.files import replacing
from retribooru.training.grids import save_grid

from .families import Method
from .pictures import read_picture
from .plan import Picture, Plan
from .report import ALL

BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1)}  # the axes: nothing is hidden
BESIDE_EACH_OTHER = 5  # characters of each domain in grid.png


def plot_frontier(result: Mapping, path: Path) -> None:
    """Identity against prompt, the paper's retrieval frontier: a line for each family, over its scales."""
    families = {}
    for name, method in result["methods"].items():
        families.setdefault(method["family"], []).append((method["scale"] or 0, name))
    with figure(path, (6.5, 4.5)) as axis:
        for family, members in families.items():
            rows = [result["tables"][ALL][name] for _, name in sorted(members)]
            x, y = ([100 * row[column]["mean"] for row in rows] for column in ("CLIP-T", "CLIP-I"))
            errors = {
                f"{side}err": np.array([_reach(row[column]) for row in rows]).T
                for side, column in (("x", "CLIP-T"), ("y", "CLIP-I"))
            }
            axis.errorbar(x, y, **errors, marker="o", markersize=4, capsize=2, elinewidth=0.8, label=family)
            if len(members) > 1:
                for (scale, _), point in zip(sorted(members), zip(x, y)):
                    axis.annotate(f"{scale:g}", point, xytext=(4, 4), textcoords="offset points", fontsize="x-small")
        axis.set(xlabel="CLIP-T x 100 (prompt)", ylabel="CLIP-I x 100 (identity)")
        axis.legend(fontsize="small", **BESIDE)


def plot_prompts(result: Mapping, path: Path) -> None:
    """VQA diversity of every prompt, a bar for each method."""
    prompts, rows = result["settings"]["prompts"], result["tables"][ALL]
    names = [f"P{number}" for number in range(1, len(prompts) + 1)]
    width = 0.8 / len(rows)
    with figure(path, (max(6.0, 0.35 * len(names) * len(rows)), 4)) as axis:
        for i, (method, row) in enumerate(rows.items()):
            shown = [(k, row[name]) for k, name in enumerate(names) if row[name]["mean"] is not None]
            if shown:
                at = [k + (i + 0.5) * width - 0.4 for k, _ in shown]
                means, reach = zip(*((100 * found["mean"], _reach(found)) for _, found in shown))
                axis.bar(at, means, width, yerr=np.array(reach).T, capsize=1, error_kw={"lw": 0.8}, label=method)
        axis.set_xticks(range(len(names)), names)
        axis.set_ylabel("VQA diversity x 100")
        if axis.containers:
            axis.legend(fontsize="small", **BESIDE)


def save_grids(plan: Plan) -> None:
    """grid-METHOD.png: a line for each character, its references and the first picture of every prompt.

    grid.png: a line for each of a few characters, its references and a picture by every method, of the same prompt and
    noise; the lines take the prompts in turn.
    """
    numbers = {}
    for number, character in enumerate(plan.characters):
        numbers.setdefault(character.domain, []).append(number)
    prompts = range(1, len(plan.prompts) + 1)
    for method in plan.methods:
        columns = {f"P{prompt}": (method, [prompt]) for prompt in prompts}
        _save_grid(plan, f"grid-{method.slug}.png", numbers, columns, 96)
    few = {domain: members[:BESIDE_EACH_OTHER] for domain, members in numbers.items()}
    _save_grid(plan, "grid.png", few, {method.name: (method, prompts) for method in plan.methods}, 128)


def _save_grid(
    plan: Plan,
    name: str,
    numbers: Mapping[str, Sequence[int]],
    columns: Mapping[str, tuple[Method, Sequence[int]]],
    side: int,
) -> None:
    """Of each domain a line for each of these characters; of each column the method, and the prompts in turn."""
    rows = {domain: [vars(plan.characters[number]) for number in members] for domain, members in numbers.items()}
    pictures = {
        title: {
            domain: [_first(plan, method, number, prompt) for number, prompt in zip(members, cycle(prompts))]
            for domain, members in numbers.items()
        }
        for title, (method, prompts) in columns.items()
    }
    save_grid(plan.out / name, rows, pictures, side)


def _first(plan: Plan, method: Method, number: int, prompt_number: int) -> Image.Image:
    """The first picture of a character by a prompt."""
    return read_picture(plan, method, number, Picture(prompt_number, 0, 0))[0]


def _reach(found: Mapping) -> tuple[float, float]:
    """How far the interval goes below and above the mean, x 100."""
    if found["low"] is None:
        return 0.0, 0.0
    return tuple(100 * max(0.0, reach) for reach in (found["mean"] - found["low"], found["high"] - found["mean"]))


@contextmanager
def figure(path: Path, size: tuple[float, float]):
    """An axis to draw on, written to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn, axis = plt.subplots(figsize=size)
    try:
        yield axis
        with replacing(path) as partial:
            drawn.savefig(partial, dpi=110, format="png", bbox_inches="tight")
    finally:
        plt.close(drawn)
