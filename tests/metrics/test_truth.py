"""The truth about the pictures of a tiny pipeline, on a small mini edition."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from retribooru import RetriBooruPipeline
from retribooru.dataset_script.mini import TRUTH
from retribooru.metrics.attributes import AttributeClassifier
from retribooru.metrics.truth.run import curve, main, measure
from retribooru.metrics.truth.arguments import TruthArguments
from retribooru.metrics.truth.figures import Figures, Setting, chance, expected_truth
from retribooru.metrics.truth.pictures import draw_missing
from retribooru.metrics.truth.report import COLUMNS, summary, with_means
from retribooru.training.data import load_figures
from retribooru.training.grids import spread
from retribooru.training.train_attributes import attribute_values

PICTURES = 6


@pytest.fixture(scope="module")
def retribooru_dir(stable_diffusion_dir, tmp_path_factory):
    """Its retrieval layers retrieve: all zero convolutions are filled."""
    pipeline = RetriBooruPipeline.from_stable_diffusion(str(stable_diffusion_dir))
    torch.manual_seed(0)
    for layer in pipeline.unet.retrieval_layers:
        torch.nn.init.normal_(layer.zero_conv.weight, std=10.0)
    folder = tmp_path_factory.mktemp("retribooru")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier_dir(edition, tmp_path_factory):
    torch.manual_seed(0)
    values = attribute_values(load_figures(str(edition), "train"))
    folder = tmp_path_factory.mktemp("classifier")
    AttributeClassifier(values, resolution=32, block_out_channels=[8, 16]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def arguments(edition, retribooru_dir, classifier_dir, stable_diffusion_dir):
    def arguments(out, **more):
        settings = {
            "checkpoint": str(retribooru_dir), "classifier": str(classifier_dir), "base": str(stable_diffusion_dir),
            "output_dir": str(out), "data_dir": str(edition), "pictures": PICTURES, "seeds": 2,
            "num_inference_steps": 1, "batch_size": 4, "scales": [0.0, 1.0], "references": [1, 2, 4],
            "curve_pictures": 3,
        }  # fmt: skip
        return TruthArguments(**{**settings, **more})

    return arguments


@pytest.fixture(scope="module")
def measured(arguments, tmp_path_factory):
    out = tmp_path_factory.mktemp("truth")
    return out, measure(arguments(out))


@pytest.fixture(scope="module")
def figures(arguments):
    return Figures(arguments("out", pictures=20))


def folders(out):
    """{folder below a pipeline's: its pictures}."""
    found = {}
    for path in sorted((out / "pictures").rglob("*.png")):
        found.setdefault("/".join(path.parent.parts[-2:]), []).append(path)
    return found


def test_everything_is_drawn_once_and_measured(measured):
    out, result = measured
    assert json.loads((out / "truth.json").read_text()) == result
    drawn = {name: len(paths) for name, paths in folders(out).items()}
    targets = drawn.pop("vae/targets")
    expected = {f"base/seed-{seed}": targets for seed in (0, 1)}
    for task in ("reconstruct", "compose", "swap"):
        expected |= {f"{task}_scale-1_references-4/seed-{seed}": PICTURES for seed in (0, 1)}
        expected |= {f"{task}_scale-0_references-4/seed-0": 3, f"{task}_scale-1_references-2/seed-0": 3}
    assert drawn == {**expected, "reconstruct_scale-1_references-1/seed-0": 3}
    for task, methods in result["tasks"].items():
        for method in ("base", "retribooru"):
            seeds = methods[method]["seeds"]
            assert seeds.keys() == {"0", "1"}
            for shares in seeds.values():
                assert tuple(shares) == COLUMNS
                assert all(share * PICTURES == pytest.approx(round(share * PICTURES)) for share in
                           (shares[name] for name in TRUTH))  # fmt: skip
    assert list(result["curves"]["references"]["compose"]) == ["2", "4"]
    assert result["settings"]["checkpoint"] and "/" not in result["settings"]["checkpoint"]


def test_tables_and_curves_are_written(measured):
    out, result = measured
    said, empty, *lines = (out / "truth.md").read_text().splitlines()
    assert "of each task and seed" in said and not empty
    assert all(line.count("|") == len(COLUMNS) + 2 for line in lines)
    first = [line.split("|")[1].strip() for line in lines[2:]]
    assert first[:2] == ["real pictures", "through the VAE (the ceiling)"]
    assert first[2:6] == [f"reconstruct: {m}" for m in ("chance", "base", "retribooru", "share of the ceiling")]
    assert f"{100 * result['real']['hair']:.1f}" == lines[2].split("|")[2].strip()
    for name in ("scale.png", "references.png"):
        with Image.open(out / name) as plotted:
            assert len(plotted.convert("RGB").getcolors(10**6)) > 50
    assert not list(out.rglob("*.partial"))


def test_a_second_run_draws_nothing_and_says_the_same(measured, arguments, monkeypatch):
    out, result = measured

    def refuse(*_, **__):
        raise AssertionError("drawn again")

    monkeypatch.setattr(RetriBooruPipeline, "__call__", refuse)
    assert measure(arguments(out)) == result


def test_what_a_killed_run_left_out_is_drawn_as_it_would_have_been(measured, arguments):
    out, result = measured
    lost = [folders(out)["compose_scale-1_references-4/seed-1"][i] for i in (1, 4)]
    before = [path.read_bytes() for path in lost]
    for path in lost:
        path.unlink()
    assert measure(arguments(out)) == result
    assert [path.read_bytes() for path in lost] == before


def test_other_settings_are_drawn_beside(measured, arguments):
    out, _ = measured
    before = {path for path in (out / "pictures").iterdir()}
    measure(arguments(out, guidance_scale=1.0, tasks=["compose"], seeds=1, curve_pictures=0, base=None, pictures=1))
    (new,) = {path for path in (out / "pictures").iterdir()} - before
    assert new.name.endswith("steps-1_guidance-1")


def test_without_retrieval_the_base_is_drawn(measured):
    """The same noise and prompts: only what is retrieved makes a difference."""
    drawn = folders(measured[0])
    base = {path.name: np.asarray(Image.open(path)) for path in drawn["base/seed-0"]}
    for scale, alike in ((0, True), (1, False)):
        for path in drawn[f"compose_scale-{scale}_references-4/seed-0"]:
            same = (np.asarray(Image.open(path)) == base[path.name]).mean()
            assert (same > 0.99) == alike  # but for rounding: the batches are others


def test_batches_do_not_change_which_picture_is_whose(tmp_path):
    calls = []

    def draw(numbers):
        calls.append(numbers)
        return [Image.new("RGB", (2, 2), (i, 0, 0)) for i in numbers]

    ids = list("abcde")
    found = draw_missing(tmp_path / "x", ids, 2, draw)
    assert calls == [[0, 1], [2, 3], [4]] and [picture.getpixel((0, 0))[0] for picture in found] == [0, 1, 2, 3, 4]
    (tmp_path / "x" / "d.png").unlink()
    draw_missing(tmp_path / "x", ids, 2, draw)
    assert calls[3:] == [[2, 3]]


def test_of_a_swap_the_clothes_of_the_other_are_expected(figures):
    differing = 0
    for row, expected in zip(figures.rows["swap"], figures.expected["swap"]):
        faces, bodies = (
            {figures.truth[i][name] for i, c in zip(row["reference_ids"], row["reference_concepts"]) if c == concept}
            for concept, name in (("face", "hair"), ("body", "top"))
        )
        assert {expected["hair"]} == faces and {expected["top"]} == bodies
        target = figures.truth[row["target_id"]]
        assert all(expected[name] == target[name] for name in ("pose", "expression", "background", "eyes"))
        differing += expected["top"] != target["top"]
    assert differing > 10
    for task in ("reconstruct", "compose"):
        targets = [figures.truth[image_id] for image_id in figures.rows[task]["target_id"]]
        assert figures.expected[task] == targets


def test_expected_truth():
    truth = {"a": {name: "a" for name in TRUTH}, "b": {name: "b" for name in TRUTH}}
    row = {"target_id": "a", "reference_ids": ["a", "b"], "reference_concepts": ["face", "body"]}
    found = expected_truth(row, truth)
    assert {name for name in TRUTH if found[name] == "b"} == {"top", "bottom", "pattern"}


def test_more_and_fewer_references_are_of_the_same_identities(figures):
    for task, count in (("reconstruct", 1), ("compose", 8), ("swap", 2)):
        for i in range(5):
            own, other = figures.rows[task][i], figures.row(Setting(task, 1.0, count), i)
            assert [len(other[f"reference_{name}"]) for name in ("images", "masks", "concepts")] == [count] * 3
            assert set(other["reference_concepts"]) == set(own["reference_concepts"])
            for image, mask in zip(other["reference_images"], other["reference_masks"]):
                assert image.size == mask.size and mask.mode == "L"
            assert own["target_id"] == other["target_id"]
    same = figures.row(Setting("compose", 1.0, 4), 0)
    assert same["reference_ids"] == figures.rows["compose"][0]["reference_ids"]


def test_rows_are_spread_over_characters_then_outfits():
    characters, outfits = list("aaaabbc"), list("xxyyzzw")
    order = spread(list(zip(characters, ["artist"] * 7, outfits)))
    assert [characters[i] + outfits[i] for i in order] == ["ax", "bz", "cw", "ay", "ax", "bz", "ay"]
    assert sorted(order) == list(range(7))


def test_numbers():
    rows = [{name: value for name in TRUTH} for value in "aab"]
    assert chance(rows)["hair"] == chance(rows)["identity"] == pytest.approx(2 / 3)
    low, high = (with_means({name: share for name in TRUTH}) for share in (0.4, 0.6))
    low["pose"] = 0.3
    found = summary([low, high], with_means({**{name: 0.8 for name in TRUTH}, "eyes": 0.0}))
    assert found["mean"]["hair"] == pytest.approx(0.5) and found["spread"]["pose"] == pytest.approx(0.3)
    assert found["share_of_ceiling"]["hair"] == pytest.approx(0.625) and found["share_of_ceiling"]["eyes"] is None
    shares = with_means({name: float(name in ("pose", "hair")) for name in TRUTH})
    assert shares["identity"] == pytest.approx(1 / 7) and shares["obedience"] == pytest.approx(1 / 3)


def test_points_of_the_curve_over_references(arguments):
    args = arguments("out")
    assert [value for value, _ in curve("references", [1, 2, 4, 8], "reconstruct", args)] == [1, 2, 4, 8]
    assert [value for value, _ in curve("references", [1, 2, 3, 8], "swap", args)] == [2, 8]


WRONG = {
    "task": ({"tasks": ["paint"]}, r"tasks: got \['paint'\], wanted some of reconstruct"),
    "pictures": ({"pictures": 0, "curve_pictures": 0}, "pictures: got 0, wanted at least 1"),
    "too many pictures": ({"pictures": 5000}, r"pictures: got 5000, wanted at most \d+, the rows of reconstruct"),
    "curve": ({"curve_pictures": 7}, "curve_pictures: got 7, wanted a number from 0 to pictures, 6"),
    "scales": ({"scales": [-1.0]}, r"scales: got \[-1.0\], wanted numbers of at least 0"),
    "references": ({"references": [0]}, r"references: got \[0\], wanted numbers of at least 1"),
    "two editions": ({"characters": 40}, "characters: got 40, wanted none with data_dir"),
    "no checkpoint": ({"checkpoint": "no/such/folder"}, "checkpoint: got no/such/folder, wanted a RetriBooruPipeline"),
    "no classifier": (
        {"classifier": "no/such/folder"},
        "classifier: got no/such/folder, wanted an AttributeClassifier",
    ),
}


@pytest.mark.parametrize("wrong, message", WRONG.values(), ids=WRONG)
def test_wrong_arguments(arguments, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        measure(arguments(tmp_path, **wrong))


def test_pipelines_of_other_kinds_are_refused(arguments, tmp_path, stable_diffusion_dir, retribooru_dir):
    with pytest.raises(ValueError, match="checkpoint: .*, which is a StableDiffusion.*; wanted a RetriBooruPipeline"):
        measure(arguments(tmp_path, checkpoint=str(stable_diffusion_dir)))
    with pytest.raises(ValueError, match="base: .*, which is a RetriBooruPipeline; wanted a StableDiffusionPipeline"):
        measure(arguments(tmp_path, base=str(retribooru_dir)))


def test_a_classifier_of_other_things_is_refused(arguments, tmp_path):
    AttributeClassifier({"hair": ["red", "black"]}, 32, [8, 16]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="classifier: got .*, wanted one that also reads hair_style, eyes"):
        measure(arguments(tmp_path, classifier=str(tmp_path)))


def test_a_table_without_the_truth_is_refused(arguments, tmp_path, data_dir):
    with pytest.raises(ValueError, match="data_dir: got figures without hair, .*, wanted those of the mini edition"):
        measure(arguments(tmp_path, data_dir=str(data_dir)))


def test_by_command(arguments, tmp_path, capsys):
    args = arguments(tmp_path)
    flags = ["--checkpoint", args.checkpoint, "--classifier", args.classifier, "--output_dir", str(tmp_path),
             "--data_dir", args.data_dir]  # fmt: skip
    more = ["--tasks", "swap", "--pictures", "2", "--seeds", "1", "--num_inference_steps", "1"]
    main([*flags, *more, "--curve_pictures", "0"])
    assert "swap: retribooru" in capsys.readouterr().out
    assert not (tmp_path / "scale.png").exists() and (tmp_path / "truth.json").exists()
    with pytest.raises(SystemExit):
        main([*flags, "--picture", "2"])
    assert "--picture" in capsys.readouterr().err
