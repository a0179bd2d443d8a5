"""The small judges: what they are told of a figure, and their training by command on a small mini edition."""

import json
import shutil
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from retribooru.dataset_script.mini import TRUTH
from retribooru.metrics.answers import question_answerer
from retribooru.metrics.diversity import QUESTION
from retribooru.metrics.embeddings import image_embeddings, text_embeddings
from retribooru.metrics.modules import load_clip, load_vqa
from retribooru.training import train_clip, train_vqa
from retribooru.training.arguments import ClipArguments, VqaArguments
from retribooru.training.curves import read_metrics
from retribooru.training.data import load_figures

SETTINGS = [
    *("--resolution", "32", "--patch_size", "8", "--train_batch_size", "8", "--learning_rate", "2e-3"),
    *("--lr_scheduler", "constant", "--vision_width", "32", "--vision_layers", "2", "--text_width", "32"),
    *("--text_layers", "1", "--max_train_steps", "4", "--validation_steps", "2", "--checkpointing_steps", "2"),
    *("--validation_pictures", "40", "--crop", "0", "--jitter", "0", "--resume_from_checkpoint", "latest"),
]
TRAINERS = {"clip": train_clip, "vqa": train_vqa}


@pytest.fixture(scope="module")
def train(edition, own_precision):
    def train(judge, folder, *more):
        with own_precision():
            TRAINERS[judge].main(["--output_dir", str(folder), "--data_dir", str(edition), *SETTINGS, *more])
        return folder

    return train


@pytest.fixture(scope="module")
def rows(edition):
    return load_figures(str(edition), "train").remove_columns(["mask"])


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    """{judge: folder} of trainings of some seconds."""
    more = ["--validation_steps", "500", "--checkpointing_steps", "1000", "--max_train_steps"]
    own = {"clip": ["600", "--train_batch_size", "32"], "vqa": ["200"]}  # of fewer pictures, losses are noise
    return {judge: train(judge, tmp_path_factory.mktemp(judge), *more, *own[judge]) for judge in TRAINERS}


def arguments(kind, **options):
    return kind(output_dir="out", resolution=32, train_batch_size=8, **options)


@pytest.mark.slow
@pytest.mark.parametrize("judge", TRAINERS)
def test_a_run_that_stopped_goes_on_to_the_same_weights(train, judge, tmp_path):
    whole, broken = train(judge, tmp_path / "whole"), tmp_path / "broken"
    if judge == "clip":  # learned anew, its tokenizer's tokens have other numbers; one that is there is kept
        shutil.copytree(whole / "tokenizer", broken / "tokenizer")
    train(judge, broken, "--max_train_steps", "3")
    train(judge, broken)
    expected, got = load_file(whole / "model.safetensors"), load_file(broken / "model.safetensors")
    assert expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)
    vocabularies = [json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"] for folder in (whole, broken)]
    assert vocabularies[0] == vocabularies[1]


@pytest.mark.slow
def test_clip_learns_and_says_how_well(trained, edition):
    folder = trained["clip"]
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "contrast" in line]
    for name, share in (("tags_of_pictures", 0.9), ("tags_of_texts", 0.95)):
        first, last = (sum(line[name] for line in some) / 10 for some in (lines[:10], lines[-10:]))
        assert last < share * first, name
    model, processor = load_clip(folder)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
    held_out = json.loads((folder / "training.json").read_text())["held_out"]
    assert set(held_out["accuracy"]) == {*TRUTH, "own_tags"} and held_out["pictures"] == 40
    figures = load_figures(str(edition), "out_of_domain").select(range(2))
    assert image_embeddings(figures["image"], model, processor).shape == (2, 128)
    assert text_embeddings(["1girl, solo"], model, processor).shape == (1, 128)


@pytest.mark.slow
def test_blip_learns_and_answers_in_words(trained, edition):
    folder = trained["vqa"]
    losses = [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    figures = load_figures(str(edition), "out_of_domain").select(range(6))
    answer = question_answerer(*load_vqa(folder))
    described = answer(list(figures["image"]), QUESTION)
    assert len(described) == 6 and all(text.startswith("1girl, solo, ") for text in described)
    skin = answer(list(figures["image"]), train_vqa.QUESTIONS["skin"])
    assert set(skin) <= {"pale skin", "tan", "dark skin"}  # a question is answered, not another one
    held_out = json.loads((folder / "training.json").read_text())["held_out"]
    assert set(held_out["accuracy"]) == {*TRUTH, "description"}


def test_clip_is_told_what_its_text_says(rows):
    tags = sorted({tag for tags in rows["tags"] for tag in tags})
    told = train_clip.TaggedFigures(rows, tags, arguments(ClipArguments))
    whole = 0
    for row in rows.select(range(40)).remove_columns(["image"]).to_list():
        said = told.describe(row, Random(row["image_id"]))
        assert {tag for tag, one in zip(tags, said["shown"]) if one} == set(row["tags"])
        assert {tag for tag, one in zip(tags, said["said"]) if one} == set(said["text"].split(", ")) <= set(row["tags"])
        whole += said["text"] == ", ".join(row["tags"])
    assert 10 < whole < 30


def test_the_prompt_that_is_true_is_among_the_alternatives_once(rows):
    for row in rows.select(range(60)).remove_columns(["image"]).to_list():
        for name in TRUTH:
            offered = train_clip.alternatives(row, name)
            assert len(set(offered.values())) == len(offered) > 1
            assert set(offered[row[name]].split(", ")) <= set(row["tags"]), name


def test_every_answer_is_read_and_written_without_loss(rows):
    rows = rows.remove_columns(["image"]).to_list()
    answers = [train_vqa.answers_about(row) for row in rows]
    assert all(set(said) == {QUESTION, *train_vqa.QUESTIONS.values()} for said in answers)
    texts = [text for said in answers for pair in said.items() for text in pair]
    tokenizer = train_vqa.word_tokenizer(texts)
    assert tokenizer.get_vocab() == train_vqa.word_tokenizer(texts[::-1]).get_vocab()
    for text in [*texts, "a zebra, unseen"]:
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids and len(ids) <= train_vqa.LENGTH
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.lower()


def test_blip_is_asked_each_question_once_and_told_the_truth(rows):
    tags = sorted({tag for tags in rows["tags"] for tag in tags})
    asked = train_vqa.AskedFigures(rows, tags, arguments(VqaArguments, questions_per_picture=4))
    row = rows.remove_columns(["image"])[0]
    said = asked.describe(row, Random(0))
    assert len(set(said["questions"])) == 4 and said["questions"][0] == QUESTION
    assert {tag for tag, one in zip(tags, said["shown"]) if one} == set(row["tags"])
    truth = train_vqa.answers_about(row)
    assert said["answers"] == [truth[question] for question in said["questions"]]
    assert truth[train_vqa.QUESTIONS["hair"]] == row["hair"].replace("_", " ")


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (ClipArguments, {"vision_width": 100}, "vision_width: got 100, wanted a multiple of 32"),
        (ClipArguments, {"patch_size": 5}, "resolution: got 32, wanted a multiple of patch_size, 5"),
        (ClipArguments, {"tag_loss_weight": -1.0}, "tag_loss_weight: got -1.0, wanted at least 0"),
        (VqaArguments, {"text_width": 64}, "text_width: got 64, wanted vision_width, 160"),
        (VqaArguments, {"questions_per_picture": 0}, "questions_per_picture: got 0, wanted at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        arguments(kind, **options)


def test_one_picture_is_no_contrast():
    with pytest.raises(ValueError, match="train_batch_size: got 1, wanted at least 2"):
        ClipArguments(output_dir="out", train_batch_size=1)


def test_figures_without_the_truth_are_refused(rows):
    with pytest.raises(ValueError, match="got figures without hair"):
        train_vqa.AskedFigures(rows.remove_columns(["hair"]), [], arguments(VqaArguments))
