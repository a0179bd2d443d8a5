"""The app of this metric's Space."""

from pathlib import Path

from retribooru.metrics.widgets import clip, gallery, metric_app


def score(metric, images, references):
    return metric.compute(predictions=images, references=[references] * len(images), **clip())


inputs = [gallery("Generated images"), gallery("Their references")]
app = metric_app(Path(__file__).with_name("clip_i.py"), inputs, score)

if __name__ == "__main__":
    app.launch()
