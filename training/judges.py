"""What the trainers of the small judges share: the figures with their tags, and what is saved."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from random import Random

import datasets
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import CLIPImageProcessor, PreTrainedModel, ProcessorMixin

from retribooru.dataset_script.files import replacing
from retribooru.dataset_script.mini import TRUTH
from retribooru.metrics.attributes import square
from retribooru.pipeline.reference_processor import to_tensor

from .arguments import JudgeArguments
from .augment import Augmentation, augment
from .checkpoints import settings_facts
from .data import load_figures


class JudgedFigures(Dataset):
    """Figures with all that is known about them, augmented anew every epoch.

    Args:
        figures: rows of the mini edition's figures.
        args: of the trainer.
    """

    def __init__(self, figures: datasets.Dataset, args: JudgeArguments):
        missing = [name for name in TRUTH if name not in figures.column_names]
        if missing:
            raise ValueError(f"data_dir: got figures without {', '.join(missing)}, wanted those of the mini edition")
        self.figures, self.args = figures.select_columns(["image_id", "image", "tags", *TRUTH]), args

    def __len__(self) -> int:
        return len(self.figures)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """pixel_values (3, R, R) in [-1, 1], image_id, and what `describe` adds."""
        epoch, position = key
        row, args = self.figures[position], self.args
        rng = Random(f"{args.seed}/{epoch}/judge/{row['image_id']}")
        image = row.pop("image").convert("RGB")
        image, _, _ = augment(image, image, None, Augmentation(args.crop, args.flip, args.jitter), rng)
        pixels = to_tensor(square(image, args.resolution))
        return {"pixel_values": pixels, "image_id": row["image_id"], **self.describe(row, rng)}

    def describe(self, row: dict, rng: Random) -> dict:
        """What is said about a figure; strings, numbers and tensors of one shape."""
        raise NotImplementedError


def figures_of(args: JudgeArguments) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The figures to train on, and held-out ones, at most `validation_pictures`, evenly from all characters."""
    figures = load_figures(args.data_dir, "train", args.images, args.characters)
    held_out = load_figures(args.data_dir, "out_of_domain", args.images, args.characters)
    count = min(args.validation_pictures, len(held_out))
    return figures, held_out.select([i * len(held_out) // count for i in range(count)])


def image_processor(resolution: int) -> CLIPImageProcessor:
    """Pictures to [-1, 1] at the resolution, without a crop of those that are square."""
    half = [0.5, 0.5, 0.5]
    size = {"height": resolution, "width": resolution}
    return CLIPImageProcessor(size={"shortest_edge": resolution}, crop_size=size, image_mean=half, image_std=half)


def save_judge(model: PreTrainedModel, processor: ProcessorMixin, output_dir: Path) -> None:
    """Model, in half precision, and processor into a folder that may hold other things, beside their names first."""
    partial = output_dir / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    deepcopy(model).half().save_pretrained(partial)  # the one that was trained stays as it is
    processor.save_pretrained(partial)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
        path.replace(output_dir / path.name)
    partial.rmdir()


def save_facts(args: JudgeArguments, output_dir: Path, pictures: int, accuracy: dict[str, float]) -> None:
    """training.json: the settings, and the accuracy on held-out pictures, 0 to 1."""
    facts = {**settings_facts(args), "held_out": {"pictures": pictures, "accuracy": accuracy}}
    with replacing(output_dir / "training.json") as partial:
        partial.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def sharpen_attention(model: nn.Module, factor: float = 4.0) -> None:
    """Larger queries and keys: with the usual small ones every layer sees the mean of all patches, and a short training
    learns what the mean tells, the background."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight", "query.weight", "key.weight")):
                parameter *= factor
            elif name.endswith("qkv.weight"):  # query, key and value in one
                parameter[: 2 * len(parameter) // 3] *= factor
