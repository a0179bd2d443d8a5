"""Metrics on disk, a line of JSON per look, and their curves as PNG."""

import json
from pathlib import Path

from retribooru.dataset_script.files import write_lines
from retribooru.dataset_script.files import replacing

# What a trainer looks at of held-out figures, and how a plot names it; what is of one scale is in one plot.
LOOKS = {
    "held-out characters": {
        "own_references": "loss, own references",
        "other_references": "loss, another character's",
        "psnr": "reconstruction, PSNR in dB",
    },
    "pictures of held-out characters": {"clip_i": "CLIP-I", "clip_t": "CLIP-T"},
}


class MetricsLog:
    """metrics.jsonl in a folder. Lines after `last_step` of an earlier run are dropped: that run is gone back on."""

    def __init__(self, folder: Path, last_step: int = 0):
        self.path = Path(folder) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lines = [line for line in read_metrics(self.path) if line["step"] <= last_step]
        write_lines(self.path, self.lines)

    def add(self, step: int, **values: float) -> None:
        self.lines.append({"step": step, **values})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")

    def plot(self) -> Path:
        """Writes loss.png beside the metrics."""
        return plot_metrics(self.lines, self.path.with_name("loss.png"))


def read_metrics(path: Path) -> list[dict]:
    """The whole lines of a metrics file; one that a kill cut short is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def plot_metrics(lines: list[dict], path: Path) -> Path:
    """Left: the terms of the training loss. To its right, what was looked at of held-out figures, if anything."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    trained = [line for line in lines if "loss" in line]
    looks = [line for line in lines if "loss" not in line]
    seen = set().union(*looks)
    plots = {title: [name for name in names if name in seen] for title, names in LOOKS.items() if seen & names.keys()}
    figure, axes = plt.subplots(1, 1 + len(plots), figsize=(5 * (1 + len(plots)), 3.6), squeeze=False)
    axis = axes[0][0]
    for name in (key for key in (trained[0] if trained else ()) if key not in ("step", "lr")):
        steps, values = [line["step"] for line in trained], [line[name] for line in trained]
        (drawn,) = axis.plot(steps, values, alpha=0.25, linewidth=0.8)
        axis.plot(steps, _smooth(values), color=drawn.get_color(), label=name)
    axis.set(xlabel="step", ylabel="loss", yscale="log", title="training loss (smoothed)")
    for axis, (title, names) in zip(axes[0][1:], plots.items()):
        for name in names:
            having = [line for line in looks if name in line]
            values = [line[name] for line in having]
            axis.plot([line["step"] for line in having], values, marker=".", label=LOOKS[title][name])
        axis.set(xlabel="step", title=title)
    for axis in axes[0]:
        if axis.lines:
            axis.legend()
    figure.tight_layout()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)
    return path


def _smooth(values: list[float], weight: float = 0.9) -> list[float]:
    smoothed, average = [], values[0] if values else 0.0
    for value in values:
        average = weight * average + (1 - weight) * value
        smoothed.append(average)
    return smoothed
