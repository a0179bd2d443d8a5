"""Small Gradio apps for the metrics' Spaces: the widget of evaluate takes a table of texts, and these take images."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import evaluate
import gradio as gr
from evaluate.utils.gradio import parse_readme

from .modules import load_clip, load_vqa


@cache
def clip() -> dict:
    """The default CLIP, loaded at its first use, as arguments of ``compute``."""
    return dict(zip(("model", "processor"), load_clip()))


@cache
def vqa() -> dict:
    """The default VQA model, loaded at its first use, as arguments of ``compute``."""
    return dict(zip(("vqa_model", "vqa_processor"), load_vqa()))


def gallery(label: str) -> gr.Gallery:
    """Room for several images; a function gets their list."""
    return gr.Gallery(label=label, type="pil", columns=4)


def metric_app(module: Path, inputs: list, compute: Callable) -> gr.Interface:
    """The app of a metric.

    Args:
        module: the metric's Python file, with its card beside it.
        inputs: components, whose values go into ``compute``; a gallery's as the list of its images.
        compute: function of the metric and these values that returns the result.

    Example:
        >>> metric_app(path, [gallery("Images"), gr.Textbox(label="Prompt")], score).launch()
    """
    metric = evaluate.load(str(module))

    def score(*values):
        values = [
            [image for image, _ in value or []] if isinstance(component, gr.Gallery) else value
            for component, value in zip(inputs, values)
        ]
        try:
            return compute(metric, *values)
        except (TypeError, ValueError) as error:
            raise gr.Error(str(error)) from error

    return gr.Interface(
        score,
        inputs,
        gr.JSON(label=metric.name),
        title=f"Metric: {metric.name}",
        description=metric.description,
        article=parse_readme(module.with_name("README.md")),
        flagging_mode="never",
    )
