"""Trains the classifier that reads the truth off pictures of the mini edition: what generated ones are judged by.

accelerate launch -m retribooru.training.train_attributes --preset mini-attributes --output_dir runs/mini-attributes
"""

import io
import sys
from copy import deepcopy
from pathlib import Path
from random import Random

import datasets
import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import nn
from torch.nn import functional as F

from retribooru.dataset_script.mini import TRUTH
from retribooru.metrics.attributes import AttributeClassifier, accuracy

from .arguments import AttributeArguments
from .checkpoints import save_accuracy, save_model
from .data import check_truth, load_figures
from .judges import JudgedFigures
from .parsing import parse
from .run import Run, begin
from .trainable import adamw


class TrueFigures(JudgedFigures):
    """Figures with the truth about them, by attribute the position of its value in `attributes`; degraded.

    Args:
        attributes: {attribute: its values}.
    """

    def __init__(self, figures: datasets.Dataset, attributes: dict[str, list[str]], args: AttributeArguments):
        super().__init__(figures, args)
        self.attributes = attributes

    def alter(self, image: Image.Image, rng: Random) -> Image.Image:
        return degrade(image, self.args.degradation, rng)

    def describe(self, row: dict, rng: Random) -> dict[str, int]:
        return {name: values.index(row[name]) for name, values in self.attributes.items()}


def degrade(image: Image.Image, probability: float, rng: Random) -> Image.Image:
    """What a VAE and a diffusion model do to a picture, in small: blur, lost resolution, artefacts, noise.

    Each comes with `probability`; all are too weak to change what a colour is called.
    """
    if rng.random() < probability:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
    if rng.random() < probability:
        share = rng.uniform(0.55, 1)
        smaller = tuple(max(1, round(side * share)) for side in image.size)
        image = image.resize(smaller, Image.BICUBIC).resize(image.size, Image.BICUBIC)
    if rng.random() < probability:
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=rng.randint(40, 95))
        image = Image.open(buffer).convert("RGB")
    if rng.random() < probability:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal((image.height, image.width, 3), np.float32)
        noisy = np.asarray(image) + rng.uniform(1, 8) * noise
        image = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
    return image


def attribute_values(figures: datasets.Dataset) -> dict[str, list[str]]:
    """{attribute: its values, sorted} of the mini edition's figures.

    Raises ValueError for a table without the truth.
    """
    check_truth(figures)
    return {name: sorted(set(figures[name])) for name in TRUTH}


def attribute_terms(model: nn.Module, examples: dict) -> dict[str, torch.Tensor]:
    """Cross-entropy of each attribute, and "loss", their mean; scalars in nats."""
    terms = {
        name: F.cross_entropy(logits.float(), examples[name])
        for name, logits in model(examples["pixel_values"]).items()
    }
    return {"loss": torch.stack(list(terms.values())).mean(), **terms}


def held_out_accuracy(model: AttributeClassifier, figures: datasets.Dataset, batch_size: int = 64) -> dict[str, float]:
    """Accuracy of each attribute, 0 to 1, on pictures as they are."""
    found, names = [], list(model.config.attributes)
    for start in range(0, len(figures), batch_size):
        found += model.classify(figures[start : start + batch_size]["image"], batch_size)
    return accuracy(found, figures.select_columns(names).to_list())


def train_attributes(args: AttributeArguments) -> Path:
    """Trains, and leaves in `output_dir` the classifier (`AttributeClassifier.from_pretrained`) in half precision,
    training.json with its accuracy on held-out characters, metrics.jsonl and loss.png."""
    output_dir = Path(args.output_dir)
    accelerator = begin(args)
    figures = load_figures(args.data_dir, "train", args.images, args.characters)
    attributes = attribute_values(figures)
    held_out = load_figures(args.data_dir, "out_of_domain", args.images, args.characters)
    held_out = held_out.select_columns(["image", *attributes])
    classifier = AttributeClassifier(attributes, args.resolution, args.block_out_channels).to(accelerator.device)
    optimizer = adamw([{"params": list(classifier.parameters())}], args)
    run = Run(args, accelerator, classifier, optimizer, TrueFigures(figures, attributes, args))
    for step in run.steps(attribute_terms):
        if run.is_due(step, args.validation_steps):
            with run.evaluating() as model:
                shares = held_out_accuracy(model, held_out)
                run.record(step, **{f"accuracy_{name}": share for name, share in shares.items()})
    if accelerator.is_main_process:
        with run.evaluating() as model:
            save_model(deepcopy(model).half(), output_dir)  # the one that was trained stays as it is
        # What is reported is read with what was saved, in half precision.
        saved = AttributeClassifier.from_pretrained(output_dir).to(accelerator.device)
        save_accuracy(args, output_dir, len(held_out), held_out_accuracy(saved, held_out))
    return output_dir


def main(argv: list[str] | None = None) -> None:
    train_attributes(parse(AttributeArguments, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
