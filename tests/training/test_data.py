"""Training examples."""

from random import Random

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image

import retribooru  # noqa: F401
from handmade import HEAD_BOX, draw
from retribooru.dataset_script.concepts import CONCEPTS
from retribooru.training.augment import NO_AUGMENTATION, Augmentation, augment
from retribooru.training.data import EpochSampler, TrainingFigures
from retribooru.training.views import Views


@pytest.fixture(scope="module")
def figures(data_dir):
    return load_dataset("retribooru", "figures", data_dir=str(data_dir), split="train")


def make(figures, **options):
    """Examples of 32 x 32 pixels; `augmentation` and `background_removal` are the views', the rest their own."""
    views = {name: options.pop(name) for name in ("augmentation", "background_removal") if name in options}
    return TrainingFigures(figures, Views(figures, 32, **views), options.pop("tasks", ["compose"]), **options)


def equal(a, b):
    return all(torch.equal(a[key], b[key]) if torch.is_tensor(a[key]) else a[key] == b[key] for key in a)


def test_shapes_and_ranges(figures):
    example = make(figures, tasks=["reconstruct", "compose"], augmentation=Augmentation())[0, 0]
    assert example["pixel_values"].shape == (3, 32, 32)
    assert example["content_mask"].shape == example["head_mask"].shape == (1, 32, 32)
    assert example["reference_pixel_values"].shape == (4, 3, 32, 32)
    assert example["reference_concepts"].shape == (4,)
    assert example["pixel_values"].abs().max() <= 1
    assert set(example["content_mask"].unique().tolist()) <= {0.0, 1.0}


def test_an_example_is_a_function_of_epoch_and_number(figures):
    one, two = make(figures, augmentation=Augmentation()), make(figures, augmentation=Augmentation())
    two[0, 3], two[1, 2]  # what came before does not matter
    assert equal(one[1, 0], two[1, 0])
    assert not equal(one[1, 0], one[0, 0])
    assert not equal(one[1, 0], make(figures, augmentation=Augmentation(), seed=1)[1, 0])


def test_references_are_drawn_anew_every_epoch_and_never_the_target(figures):
    data = make(figures)
    draws = set()
    for epoch in range(20):
        drawn = data._draw(data.targets[0], "compose", epoch)
        assert data.index.image_ids[data.targets[0]] not in [image_id for image_id, _ in drawn]
        draws.add(tuple(drawn))
    assert len(draws) > 3


def test_concepts_by_task(figures):
    for task, expected in (("compose", ["face", "face", "body", "body"]), ("reconstruct", ["figure"] * 4)):
        example = make(figures, tasks=[task])[0, 0]
        assert [CONCEPTS[i] for i in example["reference_concepts"]] == expected
    mixed = make(figures, tasks=["compose", "reconstruct"])
    assert len({tuple(mixed[0, i]["reference_concepts"].tolist()) for i in range(len(mixed))}) == 2


def test_without_tasks_every_figure_is_a_target_without_references(figures):
    data = make(figures, tasks=[])
    assert len(data) == len(figures)
    assert not [key for key in data[0, 0] if "reference" in key]


def test_padding_is_outside_the_content_mask_and_of_one_random_colour(figures):
    data = make(figures)
    colors = set()
    for epoch in range(4):
        example = data[epoch, 0]
        content = example["content_mask"][0].bool()
        assert content[:, 6:26].all() and not content[:, :5].any() and not content[:, 27:].any()  # 40 x 60 in a square
        padding = example["pixel_values"][:, :, :4].flatten(1)
        assert (padding == padding[:, :1]).all()
        colors.add(tuple(padding[:, 0].tolist()))
    assert len(colors) == 4


def test_head_mask_is_the_head_box(figures):
    example = make(figures)[0, 0]
    black = (example["pixel_values"] < -0.9).all(dim=0)  # heads are painted black
    head = example["head_mask"][0].bool()
    assert (black == head).float().mean() > 0.97


def test_background_removal(figures):
    grey = torch.tensor([128, 128, 128]) / 127.5 - 1  # the background of the handmade figures

    def share_of_grey(**options):
        pixels = make(figures, tasks=["reconstruct"], **options)[0, 0]["reference_pixel_values"]
        return (pixels - grey.view(3, 1, 1)).abs().lt(0.02).all(dim=1).float().mean().item()

    assert share_of_grey(background_removal=0.0) > 0.1
    assert share_of_grey(background_removal=1.0) < 0.02


def test_figures_without_partners():
    import datasets

    from retribooru.dataset_script.figures import FIGURES

    image, mask = draw("red")
    row = {key: None for key in FIGURES} | {"image_id": "1", "image": image, "mask": mask, "character": "a"}
    alone = datasets.Dataset.from_list([row], features=FIGURES)
    with pytest.raises(ValueError, match="figures: got 1 rows, none with references for compose"):
        make(alone)


def test_no_augmentation_changes_nothing():
    image, mask = draw("red")
    new_image, new_mask, box = augment(image, mask, HEAD_BOX, NO_AUGMENTATION, Random(0))
    assert (new_image, new_mask, box) == (image, mask, HEAD_BOX)


def test_box_and_mask_move_with_the_image():
    image, mask = draw("red")
    for seed in range(30):
        new_image, new_mask, box = augment(
            image, mask, HEAD_BOX, Augmentation(crop=0.3, flip=0.5, jitter=0), Random(seed)
        )
        assert new_image.size == new_mask.size
        pixels, figure = np.asarray(new_image), np.asarray(new_mask) > 0
        black = (pixels == 0).all(axis=2)
        expected = np.zeros_like(black)
        if box:
            expected[box[1] : box[3], box[0] : box[2]] = True
        assert (black == expected).all()  # heads are black, and nothing else is
        assert (figure == (pixels != 128).any(axis=2)).all()


def test_sampler_shows_every_example_once_an_epoch():
    stream = list(EpochSampler(length=5, stop=13, seed=3))
    for epoch in range(2):
        assert sorted(stream[5 * epoch : 5 * epoch + 5]) == [(epoch, i) for i in range(5)]
    assert stream[:5] != [(0, i) for i in range(5)] or [n for _, n in stream[5:10]] != [n for _, n in stream[:5]]
    assert list(EpochSampler(length=5, stop=13, start=7, seed=3)) == stream[7:]
    assert len(EpochSampler(length=5, stop=13, start=7)) == 6


def test_target_is_the_image():
    square = Image.new("RGB", (32, 32), "red")
    assert Views(None, 32)._square(square, (0, 0, 0))[:, 5, 5].tolist() == [1.0, -1.0, -1.0]
