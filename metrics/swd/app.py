"""The app of this metric's Space."""

from pathlib import Path

import gradio as gr

from retribooru.metrics.functional import QUESTION
from retribooru.metrics.widgets import clip, gallery, metric_app, vqa


def score(metric, images, references, questions, floor):
    more = {"questions": questions.splitlines(), "floor": floor, **clip(), **vqa()}
    return metric.compute(predictions=[images], references=[references], **more)


inputs = [
    gallery("Images of one prompt"),
    gallery("Their references"),
    gr.Textbox(QUESTION, label="Questions, one a line", lines=2),
    gr.Slider(0, 0.95, 0, label="Floor: CLIP-I of unrelated images"),
]
app = metric_app(Path(__file__).with_name("swd.py"), inputs, score)

if __name__ == "__main__":
    app.launch()
