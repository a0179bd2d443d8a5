"""What the trainers of the models that judge pictures share: the figures with all that is known, and the training."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from pathlib import Path
from random import Random

import datasets
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from transformers import CLIPImageProcessor, PreTrainedModel, ProcessorMixin

from retribooru.dataset_script.mini import TRUTH
from retribooru.metrics.attributes import square
from retribooru.pipeline.reference_processor import to_tensor

from .arguments import AttributeArguments, JudgeArguments
from .augment import Augmentation, augment
from .checkpoints import save_accuracy, save_model
from .data import check_truth, load_figures
from .run import Run


class JudgedFigures(Dataset, ABC):
    """Figures with all that is known about them, augmented anew every epoch.

    Args:
        figures: rows of the mini edition's figures.
        args: of the trainer.
    """

    def __init__(self, figures: datasets.Dataset, args: JudgeArguments | AttributeArguments):
        check_truth(figures)
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
        pixels = to_tensor(self.alter(square(image, args.resolution), rng))
        return {"pixel_values": pixels, "image_id": row["image_id"], **self.describe(row, rng)}

    def alter(self, image: Image.Image, rng: Random) -> Image.Image:
        """What else is done to a picture that is augmented: nothing."""
        return image

    @abstractmethod
    def describe(self, row: dict, rng: Random) -> dict:
        """What is said about a figure; strings, numbers and tensors of one shape."""


class NamedFigures(JudgedFigures, ABC):
    """Figures whose tags a layer of the training is to name.

    Args:
        tags: T of them.
    """

    def __init__(self, figures: datasets.Dataset, tags: Sequence[str], args: JudgeArguments):
        super().__init__(figures, args)
        self.tags = tags

    def marked(self, tags: Collection[str]) -> torch.Tensor:
        """(T,): 1 for each of the T tags that is among these, else 0."""
        return torch.tensor([float(tag in tags) for tag in self.tags])


def telling_tags(sets: Sequence[Sequence[str]]) -> list[str]:
    """The tags that some figures have, sorted, without those of every figure: what is always there tells nothing."""
    counts = Counter(tag for tags in sets for tag in tags)
    return sorted(tag for tag, count in counts.items() if count < len(sets))


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


def train_judge(
    run: Run,
    compute_terms: Callable[[nn.Module, dict], dict[str, torch.Tensor]],
    judge: PreTrainedModel,
    processor: ProcessorMixin,
    held_out: datasets.Dataset,
    accuracy: Callable[[PreTrainedModel, ProcessorMixin, datasets.Dataset], dict[str, float]],
    load: Callable[..., tuple[PreTrainedModel, ProcessorMixin]],
) -> Path:
    """Does the steps of a run, looks at held-out figures between them, and leaves in its folder the judge in half
    precision, its processor, and training.json with the accuracy of what was saved.

    Args:
        compute_terms: as of `Run.steps`.
        judge: the part of the run's model that is kept.
        load: `load_clip` or `load_vqa`.
    """
    args, output_dir = run.args, run.output_dir
    for step in run.steps(compute_terms):
        if run.is_due(step, args.validation_steps):
            with run.evaluating():
                shares = accuracy(judge, processor, held_out)
                run.record(step, **{f"accuracy_{name}": share for name, share in shares.items()})
    if run.accelerator.is_main_process:
        with run.evaluating():
            save_model(deepcopy(judge).half(), output_dir, processor)  # the one that was trained stays as it is
        saved, processor = load(output_dir, device=run.accelerator.device)
        save_accuracy(args, output_dir, len(held_out), accuracy(saved, processor, held_out))
    return output_dir


def sharpen_attention(model: nn.Module, factor: float = 4.0) -> None:
    """Larger queries and keys: with the usual small ones every layer sees the mean of all patches, and a short training
    learns what the mean tells, the background."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight", "query.weight", "key.weight")):
                parameter *= factor
            elif name.endswith("qkv.weight"):  # query, key and value in one
                parameter[: 2 * len(parameter) // 3] *= factor
