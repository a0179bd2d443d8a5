"""A small classifier, and its training by command on a small mini edition."""

import json
import shutil
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from retribooru.dataset_script.mini import TRUTH
from retribooru.metrics.attributes import AttributeClassifier, accuracy
from retribooru.training.arguments import AttributeArguments
from retribooru.training.curves import read_metrics
from retribooru.training.data import load_figures
from retribooru.training.train_attributes import TrueFigures, attribute_values, degrade, main

ATTRIBUTES = {"skin": ["pale_skin", "tan"], "hair": ["black", "red", "white"]}  # not in order: JSON will be
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def train(edition):
    def train(folder, *more):
        main(
            ["--output_dir", str(folder), "--data_dir", str(edition), "--resolution", "32", "--train_batch_size", "8",
             "--block_out_channels", "8", "16", "--learning_rate", "1e-2", "--lr_warmup_steps", "1",
             "--max_train_steps", "4", "--validation_steps", "2", "--checkpointing_steps", "2", *more]
        )  # fmt: skip
        return folder

    return train


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    more = ["--max_train_steps", "150", "--validation_steps", "75", "--checkpointing_steps", "1000"]
    return train(tmp_path_factory.mktemp("trained"), *more)


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return AttributeClassifier(ATTRIBUTES, resolution=32, block_out_channels=[8, 16]).eval()


def pictures(count=5, size=(40, 40)):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)) for _ in range(count)]


def test_saved_and_loaded_it_says_the_same(classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    loaded = AttributeClassifier.from_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, got = classifier(pixels), loaded(pixels)
    assert expected["hair"].shape == (2, 3) and expected["skin"].shape == (2, 2)
    assert expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)
    assert loaded.classify(pictures()) == classifier.classify(pictures())


def test_the_value_of_the_largest_logit_is_named_whatever_the_batch(classifier):
    images = [*pictures(), *pictures(1, (60, 20))]
    found = classifier.train().classify(images)
    assert classifier.training and len(found) == 6
    classifier.eval()
    for image, read in zip(images, found):
        with torch.no_grad():
            logits = classifier(classifier.read(image)[None])
        assert read == {name: ATTRIBUTES[name][logits[name].argmax()] for name in ATTRIBUTES}
    assert classifier.classify(images, batch_size=4) == found
    assert classifier.classify([]) == []


def test_a_picture_that_is_not_square_is_padded(classifier):
    wide = Image.new("RGB", (60, 20), "red")
    square = Image.new("RGB", (60, 60), "white")
    square.paste(wide, (0, 20))
    assert torch.equal(classifier.read(wide), classifier.read(square))


def test_accuracy():
    found = [{"hair": "red", "skin": "tan"}, {"hair": "red", "skin": "tan"}]
    expected = [{"hair": "red", "skin": "tan"}, {"hair": "black", "skin": "tan"}]
    assert accuracy(found, expected) == {"hair": 0.5, "skin": 1.0}
    with pytest.raises(ValueError, match="found: got 1 pictures, wanted as many as expected, 2"):
        accuracy(found[:1], expected)


WRONG = {
    "no attributes": (lambda: AttributeClassifier({}), "attributes: got {}, wanted one or more"),
    "one value": (lambda: AttributeClassifier({"hair": ["red"]}), "attributes: got .*, of at least two values each"),
    "resolution": (lambda: AttributeClassifier(ATTRIBUTES, 100), "resolution: got 100, wanted a multiple of 8"),
}


@pytest.mark.parametrize("make, message", WRONG.values(), ids=WRONG)
def test_wrong_classifiers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_pictures(classifier):
    with pytest.raises(TypeError, match="images: got a str in the list, wanted PIL images"):
        classifier.classify(["a.png"])
    with pytest.raises(ValueError, match="batch_size: got 0, wanted at least 1"):
        classifier.classify(pictures(), batch_size=0)


def test_training_learns_and_reports_what_was_saved(trained, edition):
    facts = json.loads((trained / "training.json").read_text())
    held_out = load_figures(str(edition), "out_of_domain")
    classifier = AttributeClassifier.from_pretrained(trained)
    assert set(classifier.config.attributes) == set(TRUTH)
    assert {tensor.dtype for tensor in load_file(trained / WEIGHTS).values()} <= {torch.float16, torch.int64}
    found = accuracy(classifier.classify(held_out["image"]), held_out.select_columns(list(TRUTH)).to_list())
    assert facts["held_out"] == {"pictures": len(held_out), "accuracy": found}
    assert found["background"] > 0.5  # of eight
    assert facts["settings"]["data_dir"] == edition.name and facts["settings"]["resolution"] == 32
    looks = [line for line in read_metrics(trained / "metrics.jsonl") if "accuracy_hair" in line]
    assert [line["step"] for line in looks] == [75, 150] and (trained / "loss.png").exists()


def test_going_on_from_a_checkpoint_ends_with_the_same_weights(train, tmp_path):
    expected = load_file(train(tmp_path / "whole") / WEIGHTS)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    got = load_file(train(tmp_path / "again", "--resume_from_checkpoint", "latest") / WEIGHTS)
    assert expected.keys() == got.keys() and all(torch.equal(expected[key], got[key]) for key in expected)


def test_examples_are_drawn_anew_every_epoch_and_alike_every_time(edition):
    figures = load_figures(str(edition), "train")
    values = attribute_values(figures)
    examples = TrueFigures(figures, values, AttributeArguments(output_dir="out", resolution=32))
    first, again, other = examples[0, 3], examples[0, 3], examples[1, 3]
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert not torch.equal(first["pixel_values"], other["pixel_values"])
    assert {name: values[name][first[name]] for name in TRUTH} == {name: figures[3][name] for name in TRUTH}


def test_degraded_pictures_keep_their_colours():
    image = Image.new("RGB", (64, 64), (200, 60, 60))
    assert degrade(image, 0.0, Random(0)) is image
    for seed in range(20):
        worse = np.asarray(degrade(image, 1.0, Random(seed)), dtype=float)
        assert worse.shape == (64, 64, 3) and worse.std(axis=(0, 1)).max() > 0.3
        assert np.abs(worse.mean(axis=(0, 1)) - (200, 60, 60)).max() < 4


def test_a_table_without_the_truth_is_refused(data_dir, tmp_path):
    with pytest.raises(ValueError, match="data_dir: got figures without hair, .*, wanted those of the mini edition"):
        main(["--output_dir", str(tmp_path), "--data_dir", str(data_dir), "--resolution", "32"])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--degradation", "2"], "degradation: got 2.0, wanted a share between 0 and 1"),
        (["--resolution", "100"], "resolution: got 100, wanted a multiple of 8"),
        (["--block_out_channels", "1"], r"block_out_channels: got \[1\], wanted 2 or more"),
        (["--validation_steps", "0"], "validation_steps: got 0, wanted at least 1"),
    ],
)
def test_wrong_arguments(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        main(["--output_dir", str(tmp_path), *flags])
