"""A benchmark of tiny models from end to end: its scores are those of the metrics' own functions."""

import csv
import json
import shutil
from statistics import fmean

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import PartialState
from launching import flags_of
from PIL import Image
from transformers import CLIPModel

from retribooru import RetriBooruPipeline
from retribooru.metrics.benchmark.families import PLAIN
from retribooru.metrics.benchmark.judges import weights_of
from retribooru.metrics.benchmark.leakage import typical_figure, typical_mask
from retribooru.metrics.benchmark.pictures import read_picture
from retribooru.metrics.benchmark.plan import make_plan
from retribooru.metrics.benchmark.run import benchmark, main
from retribooru.metrics.benchmark.scores import GROUPS, SCORES, unrelated_similarity
from retribooru.metrics.functional import (
    bootstrap_interval,
    clip_i,
    clip_t,
    leakage,
    question_answerer,
    swd,
    vqa_diversity,
)
from retribooru.metrics.modules import load_vqa

CHARACTERS, PROMPTS, SEEDS, IMAGES = 4, 2, 2, 2
METHODS = ["RetriBooru 0.5", "RetriBooru 1", "Stable Diffusion", "IP-Adapter 0.3", "IP-Adapter 1"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    """(output folder, what results.json holds, arguments)."""
    out = tmp_path_factory.mktemp("benchmark")
    args = arguments(out)
    return out, benchmark(args), args


@pytest.fixture(scope="module")
def tables(finished):
    """Rows of scores.parquet and of groups.parquet."""
    out, *_ = finished
    return pq.read_table(out / "scores.parquet").to_pylist(), pq.read_table(out / "groups.parquet").to_pylist()


@pytest.fixture(scope="module")
def judged(finished):
    """plan, and {method: pictures by character}, read from the files."""
    plan = make_plan(finished[2])
    pictures = {
        method.name: [[read_picture(plan, method, number, key)[0] for key in plan.pictures()] for number in range(4)]
        for method in plan.methods
    }
    return plan, pictures


def test_everything_is_there(finished, tables):
    out, result, _ = finished
    scores, groups = tables
    assert len(scores) == len(METHODS) * CHARACTERS * PROMPTS * SEEDS * IMAGES
    assert len(groups) == len(METHODS) * CHARACTERS * PROMPTS
    assert list(scores[0]) == SCORES.names and list(groups[0]) == GROUPS.names
    assert len({(row["method"], row["character"], row["prompt_number"], row["seed"], row["image"]) for row in scores}) \
        == len(scores)  # fmt: skip
    assert len({row["file"] for row in scores}) == len(scores) and all((out / row["file"]).is_file() for row in scores)
    assert all(len(row["answers"]) == 2 for row in scores) and all(row["pictures"] == 4 for row in groups)
    assert json.loads((out / "results.json").read_text()) == result
    slugs = ["retribooru-0.5", "retribooru-1", "stable-diffusion", "ip-adapter-0.3", "ip-adapter-1"]
    assert {path.name for path in out.iterdir()} == {
        "pictures", "scores", "settings.json", "scores.parquet", "groups.parquet", "frontier.png", "prompts.png",
        "grid.png",
        *(f"results.{suffix}" for suffix in ("json", "md", "csv", "tex")), *(f"grid-{slug}.png" for slug in slugs),
    }  # fmt: skip
    assert not list(out.rglob("*.partial"))
    for path in out.glob("*.png"):
        with Image.open(path) as plotted:
            assert len(plotted.convert("RGB").getcolors(10**6)) > 50
    with Image.open(out / "grid-ip-adapter-1.png") as grid:  # four references and two prompts, four characters
        assert grid.width > 6 * 96 and grid.height > 4 * 96
    with Image.open(out / "grid.png") as grid:  # four references and five methods, four characters
        assert 9 * 128 < grid.width < 10 * 128 and 4 * 128 < grid.height < 5 * 128
    assert not any("/" in text for text in (result["judges"]["clip"], result["judges"]["vqa"]))


def test_scores_of_pictures_are_those_of_the_metrics(tables, judged, clip):
    plan, pictures = judged
    for method, by_character in pictures.items():
        rows = [row for row in tables[0] if row["method"] == method]
        images = [image for images in by_character for image in images]
        references = [one.reference_images for one in plan.characters for _ in range(PROMPTS * SEEDS * IMAGES)]
        direct = clip_i(images, references, *clip)
        assert [row["clip_i"] for row in rows] == pytest.approx(direct.tolist(), abs=1e-5)
        direct = clip_t(images, [row["prompt"] for row in rows], *clip)
        assert [row["clip_t"] for row in rows] == pytest.approx(direct.tolist(), abs=1e-5)


def test_the_floor_is_the_mean_over_all_pairs_of_references_of_different_characters(tables, judged, clip):
    plan, _ = judged
    pairs = [
        clip_i(one.reference_images, [other.reference_images] * 4, *clip).mean().item()
        for one in plan.characters for other in plan.characters if other is not one
    ]  # fmt: skip
    (floor,) = {row["floor"] for row in tables[1]}
    assert floor == pytest.approx(fmean(pairs), abs=1e-5)
    vectors = [torch.nn.functional.normalize(torch.randn(k, 8), dim=-1) for k in (1, 3, 2)]
    slow = [(a @ b.T).mean().item() for i, a in enumerate(vectors) for j, b in enumerate(vectors) if i != j]
    assert unrelated_similarity(vectors) == pytest.approx(fmean(slow), abs=1e-6)


def test_scores_of_groups_are_those_of_the_metrics(tables, judged, clip, blip_folder):
    plan, pictures = judged
    answer, floor = question_answerer(*load_vqa(str(blip_folder)), max_new_tokens=4), tables[1][0]["floor"]
    of_group = SEEDS * IMAGES
    for method in ("RetriBooru 1", "IP-Adapter 0.3"):
        rows = [row for row in tables[1] if row["method"] == method]
        groups = [images[i : i + of_group] for images in pictures[method] for i in (0, of_group)]
        references = [plan.characters[i].reference_images for i in range(CHARACTERS) for _ in range(PROMPTS)]
        direct = vqa_diversity(groups, answer, *clip, plan.args.questions)
        found = [row["vqa_diversity_per_question"] for row in rows]
        assert np.array(found) == pytest.approx(direct.numpy(), abs=1e-5) and direct.std() > 0.01
        assert [row["vqa_diversity"] for row in rows] == pytest.approx(direct.mean(dim=1).tolist(), abs=1e-5)
        direct = swd(groups, references, answer, *clip, plan.args.questions, floor)
        assert [row["swd"] for row in rows] == pytest.approx(direct.mean(dim=1).tolist(), abs=1e-5)
        said = [row["answers"][1] for row in tables[0] if row["method"] == method]
        assert said == answer([image for images in pictures[method] for image in images], "where?")


def test_leakage_is_that_of_the_metric(tables, judged, clip):
    plan, pictures = judged
    mask = typical_mask(typical_figure(plan.args), (32, 32))
    assert 0.1 < mask.mean() < 0.9
    for method in ("RetriBooru 1", "IP-Adapter 1", "Stable Diffusion"):
        found = [row["leakage"] for row in tables[0] if row["method"] == method]
        images, plain = (
            [image for images in pictures[name] for image in images] for name in (method, "Stable Diffusion")
        )
        each = PROMPTS * SEEDS * IMAGES
        references = [one.reference_images for one in plan.characters for _ in range(each)]
        reference_masks = [one.reference_masks for one in plan.characters for _ in range(each)]
        masks = [mask] * len(images)
        direct = leakage(images, plain, references, masks, masks, reference_masks, *clip)
        assert found == pytest.approx(direct.tolist(), abs=1e-3)  # a share of a small difference
        assert (np.abs(found).max() < 1e-6) == (method == "Stable Diffusion")


def test_where_figures_typically_are(judged, arguments, tmp_path):
    percent = typical_figure(judged[0].args)
    assert percent.shape == (256, 256) and percent[:20, :20].max() == 0 and percent[100:150, 118:138].min() > 50
    mask = typical_mask(percent, (40, 20))
    assert mask.shape == (20, 40) and mask[10, 20] and not mask[0, 0]


def test_the_tables_are_means_over_the_scores(finished, tables):
    _, result, _ = finished
    assert list(result["tables"]) == ["all", "in_domain", "out_of_domain"]
    for domain, rows in result["tables"].items():
        assert list(rows) == METHODS
        for method, row in rows.items():
            assert list(row) == ["CLIP-I", "CLIP-T", "VQA avg", "P1", "P2", "SWD", "leakage"]
            scores, groups = (
                [one for one in table if one["method"] == method and domain in ("all", one["domain"])]
                for table in tables
            )
            for column, key, members in (
                ("CLIP-I", "clip_i", scores), ("CLIP-T", "clip_t", scores), ("leakage", "leakage", scores),
                ("VQA avg", "vqa_diversity", groups), ("SWD", "swd", groups),
                ("P2", "vqa_diversity", [group for group in groups if group["prompt_number"] == 2]),
            ):  # fmt: skip
                values, names = [one[key] for one in members], [one["character"] for one in members]
                found = row[column]
                assert found["mean"] == pytest.approx(fmean(values), abs=1e-12) and found["count"] == len(members)
                assert (found["low"], found["high"]) == bootstrap_interval(values, names, resamples=200)
                assert found["low"] <= found["mean"] <= found["high"] and found["undefined"] == 0


def test_the_domains_add_up(finished):
    _, result, _ = finished
    tables = result["tables"]
    for method, row in tables["all"].items():
        for column, found in row.items():
            parts = [tables[domain][method][column] for domain in ("in_domain", "out_of_domain")]
            assert sum(part["count"] for part in parts) == found["count"]
            total = sum(part["mean"] * part["count"] for part in parts)
            assert total / found["count"] == pytest.approx(found["mean"], abs=1e-12)


def test_the_csv_holds_the_same(finished):
    out, result, _ = finished
    with (out / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 5 * 7
    for line in lines:
        found = result["tables"][line["domain"]][line["method"]][line["column"]]
        assert float(line["mean"]) == found["mean"] and float(line["low"]) == found["low"]
        assert line["family"] == line["method"].removesuffix(f" {line['scale'].removesuffix('.0')}")


def test_a_second_run_draws_and_scores_nothing_and_says_the_same(finished, files, monkeypatch):
    out, result, args = finished
    before = files(out)

    def refuse(*_, **__):
        raise AssertionError("drawn or scored again")

    monkeypatch.setattr(RetriBooruPipeline, "__call__", refuse)
    monkeypatch.setattr("retribooru.metrics.benchmark.pictures.load_family", refuse)
    monkeypatch.setattr("retribooru.metrics.benchmark.scores.load_judges", refuse)
    assert benchmark(args) == result and files(out) == before


def test_other_judges_score_the_same_pictures(finished, arguments, monkeypatch, tmp_path):
    """And the first ones again, to the same."""
    out, result, args = finished
    monkeypatch.setattr("retribooru.metrics.benchmark.pictures.load_family", None)
    other = benchmark(arguments(out, questions=["what?"]))
    row, before = other["tables"]["all"]["RetriBooru 1"], result["tables"]["all"]["RetriBooru 1"]
    assert row["CLIP-I"] == before["CLIP-I"] and row["VQA avg"]["mean"] != before["VQA avg"]["mean"]
    assert other["judges"]["questions"] == ["what?"]
    assert benchmark(args) == result


def test_judges_of_the_same_name_and_other_weights_score_again(drawn_by_function, clip_folder, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "clip")
    few = {"plain": False, "in_domain": 1, "out_of_domain": 1, "clip": str(tmp_path / "clip")}
    first = drawn_by_function(**few)
    model = CLIPModel.from_pretrained(tmp_path / "clip")
    torch.nn.init.eye_(model.visual_projection.weight)
    model.save_pretrained(tmp_path / "clip")
    weights_of.cache_clear()  # a process reads them once
    second = drawn_by_function(**few)
    assert first["judges"]["clip"] == second["judges"]["clip"] == "clip"
    assert first["tables"]["all"]["mine"]["CLIP-I"]["mean"] != second["tables"]["all"]["mine"]["CLIP-I"]["mean"]


@pytest.fixture
def drawn_by_function(arguments, functions, tmp_path, described):
    """Function: the results of methods that take no time."""

    def drawn(plain=True, **more):
        methods = {"mine": {"function": f"{functions}:draw"}}
        methods |= {"base": described["Stable Diffusion"]} if plain else {}
        return benchmark(arguments(tmp_path / "out", methods, num_inference_steps=1, **more))

    return drawn


def test_without_a_plain_method_there_is_no_leakage(drawn_by_function):
    result = drawn_by_function(plain=False)
    assert result["tables"]["all"]["mine"]["leakage"] == {
        "mean": None, "low": None, "high": None, "count": 0, "undefined": 32,
    }  # fmt: skip
    assert any(note.startswith(f"Leakage is left out: no method is of kind {PLAIN}") for note in result["notes"])


def test_masks_of_a_function(drawn_by_function, functions, tmp_path):
    result = drawn_by_function(masks=f"{functions}:upper_half", in_domain=1, out_of_domain=1)
    row = result["tables"]["all"]["mine"]["leakage"]
    assert row["count"] == 16 and row["mean"] not in (None, 0)
    assert not any("5 %" in note for note in result["notes"])


def test_figures_that_leave_no_background(drawn_by_function, functions):
    result = drawn_by_function(masks=f"{functions}:everything", in_domain=1, out_of_domain=1)
    assert result["tables"]["all"]["mine"]["leakage"]["mean"] is None
    assert any(note.startswith("Leakage is undefined for 32 of 32 pictures") for note in result["notes"])


def test_too_few_masks(drawn_by_function, functions):
    with pytest.raises(
        ValueError, match="masks: got 1 of benchmark_functions:one_mask for 8 pictures, wanted a list of"
    ):
        drawn_by_function(masks=f"{functions}:one_mask", in_domain=1, out_of_domain=1)


def test_groups_of_one_picture_are_undefined_and_not_zero(drawn_by_function, tmp_path):
    result = drawn_by_function(plain=False, seeds=1, images_per_prompt=1, in_domain=1, out_of_domain=1)
    row = result["tables"]["all"]["mine"]
    assert all(row[column]["mean"] is None and row[column]["undefined"] for column in ("VQA avg", "P1", "P2", "SWD"))
    assert row["CLIP-I"]["mean"] is not None
    assert any("a group of one picture has no pair" in note for note in result["notes"])
    assert "| mine | " in (text := (tmp_path / "out" / "results.md").read_text()) and "| – | – |" in text
    assert result["tables"]["in_domain"]["mine"]["CLIP-I"]["low"] is None  # of one character there is no interval


def test_prompts_beyond_77_tokens_are_told(drawn_by_function, tmp_path):
    (tmp_path / "long.txt").write_text("a girl\n" + ", ".join(["scarf"] * 60) + "\n")
    result = drawn_by_function(prompts=str(tmp_path / "long.txt"), in_domain=1, out_of_domain=1)
    assert result["cut"] == {"prompts_by_method": {"base": [2]}, "prompts_by_clip": [2], "answers": 0}
    assert any(
        note.startswith("base does not see the end of 1 of 2 prompts, too long for it: P2") for note in result["notes"]
    )
    assert any(note.startswith("The CLIP that judges does not see the end of 1 of 2") for note in result["notes"])


def test_a_damaged_picture_is_named(drawn_by_function, tmp_path):
    drawn_by_function(plain=False, in_domain=1, out_of_domain=1)
    path = next((tmp_path / "out" / "pictures").rglob("2-0-1.png"))
    path.write_bytes(path.read_bytes()[:-70])
    with pytest.raises(
        ValueError, match="output_dir: got .*2-0-1.png, which cannot be read .*delete it, and it is drawn"
    ):
        drawn_by_function(plain=False, in_domain=1, out_of_domain=1, questions=["what?"])
    path.unlink()
    drawn_by_function(plain=False, in_domain=1, out_of_domain=1, questions=["what?"])


def test_by_command(settings, functions, tmp_path, capsys):
    """Every argument by its flag."""
    given = settings(tmp_path / "out", {"mine": {"function": f"{functions}:draw"}}, in_domain=1, out_of_domain=1)
    flags = flags_of(given)
    main(flags)
    printed = capsys.readouterr().out
    assert "| mine | " in printed and "; asked: what is she wearing?; where?)" in printed
    with pytest.raises(SystemExit):
        main([*flags, "--seed", "2"])
    assert "--seed" in capsys.readouterr().err


def test_processes_that_accelerate_does_not_join_are_refused(arguments, functions, tmp_path, monkeypatch):
    PartialState(cpu=True)  # of this process alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="WORLD_SIZE: got 2 processes, of which accelerate joins 1"):
        benchmark(arguments(tmp_path, {"mine": {"function": f"{functions}:draw"}}))
