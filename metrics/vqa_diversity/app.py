"""The app of this metric's Space."""

from pathlib import Path

import gradio as gr

from retribooru.metrics.functional import QUESTION
from retribooru.metrics.widgets import clip, gallery, metric_app, vqa


def score(metric, images, questions):
    return metric.compute(predictions=[images], questions=questions.splitlines(), **clip(), **vqa())


inputs = [gallery("Images of one prompt"), gr.Textbox(QUESTION, label="Questions, one a line", lines=2)]
app = metric_app(Path(__file__).with_name("vqa_diversity.py"), inputs, score)

if __name__ == "__main__":
    app.launch()
