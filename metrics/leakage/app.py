"""The app of this metric's Space."""

from pathlib import Path

import gradio as gr

from retribooru.metrics.widgets import clip, metric_app


def score(metric, image, mask, plain, plain_mask, reference, reference_mask):
    return metric.compute(
        predictions=[image],
        masks=[mask],
        plain=[plain],
        plain_masks=[plain_mask],
        references=[[reference]],
        reference_masks=[[reference_mask]],
        **clip(),
    )


inputs = [
    component
    for label in ("Generated image", "Plain model's image of the same prompt and seed", "Reference")
    for component in (
        gr.Image(type="pil", label=label),
        gr.Image(type="pil", image_mode="L", label=f"{label}: mask of the figure"),
    )
]
app = metric_app(Path(__file__).with_name("leakage.py"), inputs, score)

if __name__ == "__main__":
    app.launch()
