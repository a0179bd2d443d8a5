"""The app of this metric's Space."""

from pathlib import Path

import gradio as gr

from retribooru.metrics.widgets import clip, gallery, metric_app


def score(metric, images, prompt):
    return metric.compute(predictions=images, references=[prompt] * len(images), **clip())


inputs = [gallery("Generated images"), gr.Textbox(label="Their prompt")]
app = metric_app(Path(__file__).with_name("clip_t.py"), inputs, score)

if __name__ == "__main__":
    app.launch()
