"""`load_dataset("retribooru", ...)`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset
from PIL import Image

import retribooru  # noqa: F401
from handmade import HEAD_BOX
from retribooru.dataset_script import figures as figures_module
from retribooru.dataset_script.build import build_figures
from retribooru.dataset_script.concepts import crop_concept
from retribooru.dataset_script.figures import FIGURES, IDENTITY, SPLITS, TASK_ROWS, identity_of
from retribooru.dataset_script.references import BORROWED, RECIPES


def pixels(image):
    return image.mode, image.size, image.tobytes()


def shown(value):
    """A row with its images as what they show, whatever files they are from."""
    if isinstance(value, dict):
        return {name: shown(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shown(item) for item in value]
    return pixels(value) if isinstance(value, Image.Image) else value


@pytest.fixture(scope="module")
def figures(data_dir):
    return load_dataset("retribooru", "figures", data_dir=str(data_dir))


def test_figures(figures):
    assert set(figures) == set(SPLITS)
    assert sum(figures.num_rows.values()) == 48
    assert set(figures["train"].features) == set(FIGURES)
    row = figures["train"][0]
    assert row["image"].size == row["mask"].size == (40, 60) and row["head_box"] == HEAD_BOX
    held_out = set(figures["out_of_domain"]["character"])
    assert held_out and not held_out & {*figures["train"]["character"], *figures["in_domain"]["character"]}


@pytest.mark.parametrize("task", RECIPES)
def test_tasks(data_dir, figures, task):
    dataset = load_dataset("retribooru", task, data_dir=str(data_dir))
    rows_of = {split: {row["image_id"]: row for row in figures[split]} for split in SPLITS}
    for split, rows in dataset.items():
        assert set(rows.features) == set(TASK_ROWS)
        assert set(rows["target_id"]) == set(rows_of[split])
        # In-domain targets are new images of trained characters.
        pool = rows_of["train" if split == "in_domain" else split]
        for row in rows:
            assert tuple(row["reference_concepts"]) == RECIPES[task]
            assert row["target_id"] not in row["reference_ids"]
            assert row["target"] == rows_of[split][row["target_id"]]["image"]
            others = set()
            for i, (image_id, concept) in enumerate(zip(row["reference_ids"], row["reference_concepts"])):
                source = pool[image_id]
                identity = identity_of(source)
                assert identity == tuple(row[f"reference_{key}s"][i] for key in IDENTITY)
                if concept == BORROWED.get(task):
                    others.add(identity)
                else:
                    assert identity == identity_of(row)
                expected = crop_concept(concept, source["image"], source["mask"], source["head_box"])
                found = row["reference_images"][i], row["reference_masks"][i]
                assert [pixels(image) for image in found] == [pixels(crop) for crop in expected]
            assert len(others) == (task in BORROWED)  # one other identity, of another character
            assert row["character"] not in {character for character, _, _ in others}


def test_same_rows_every_time_and_others_for_another_seed(data_dir, tmp_path):
    def ids(cache, **options):
        rows = load_dataset(
            "retribooru", "compose", data_dir=str(data_dir), split="train", cache_dir=str(cache), **options
        )
        return list(zip(rows["target_id"], rows["reference_ids"]))

    assert ids(tmp_path / "a") == ids(tmp_path / "b") != ids(tmp_path / "a", seed=1)


def test_streaming_gives_the_same_rows(data_dir):
    options = {"data_dir": str(data_dir), "split": "train"}
    for config in ("figures", "reconstruct", "compose"):
        streamed = load_dataset("retribooru", config, streaming=True, **options)
        assert list(map(shown, streamed)) == list(map(shown, load_dataset("retribooru", config, **options)))


def test_a_built_folder_loads_without_our_code(data_dir, figures, tmp_path):
    plain = load_dataset("parquet", data_dir=str(data_dir), cache_dir=str(tmp_path))
    assert plain.num_rows == figures.num_rows
    assert plain["train"][0] == figures["train"][0]


def test_data_dir_without_figures(tmp_path):
    (tmp_path / "notes.txt").write_text("no figures")
    with pytest.raises(
        ValueError, match="data_dir: got .* which has no figures; wanted a folder that `retribooru build"
    ):
        load_dataset("retribooru", "compose", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="data_dir: got .*nothing, which has no figures"):
        load_dataset("retribooru", "compose", data_dir=str(tmp_path / "nothing"))


def test_unknown_config(data_dir):
    with pytest.raises(ValueError, match="reconstruct"):
        load_dataset("retribooru", "paint", data_dir=str(data_dir))


def test_import_is_light():
    heavy = ("torch", "diffusers", "transformers", "evaluate")
    code = f"import sys, retribooru; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_real_figures_through_every_config(real_figures, tmp_path):
    built = tmp_path / "built"
    folders = (real_figures / name for name in ("retribooru.json", "images", "masks"))
    report = build_figures(*folders, built)
    options = {"data_dir": str(built), "cache_dir": str(tmp_path / "cache")}
    figures = load_dataset("retribooru", "figures", **options)
    assert sum(figures.num_rows.values()) == 608
    split_by_id = {image_id: split for split, rows in figures.items() for image_id in rows["image_id"]}
    for task, recipe in RECIPES.items():
        for split, rows in load_dataset("retribooru", task, **options).items():
            assert 0 < len(rows) <= report.figures[split]
            for row in rows:
                assert tuple(row["reference_concepts"]) == recipe and row["target_id"] not in row["reference_ids"]
                home = "train" if split == "in_domain" else split
                assert {split_by_id[image_id] for image_id in row["reference_ids"]} == {home}
                assert all(image.mode == "RGB" and min(image.size) > 0 for image in row["reference_images"])
                assert all(mask.mode == "L" for mask in row["reference_masks"])
                sizes = [image.size for image in (row["target"], *row["reference_images"])]
                assert sizes == [mask.size for mask in (row["target_mask"], *row["reference_masks"])]


def test_the_script_names_every_file_that_it_needs():
    """`datasets` 3 copies the files that the script itself imports, each in a line of its own without a comment."""
    folder = Path(figures_module.__file__).parent

    def siblings(path):
        return {node.module for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "level", 0) == 1}

    script = folder / "retribooru.py"
    lines = [line for line in script.read_text().splitlines() if line.startswith("from .")]
    named = {line.split()[1].removeprefix(".") for line in lines}
    assert not [line for line in lines if "#" in line]
    needed, found = set(), {"retribooru"}
    while found - needed:
        needed |= found
        found = set().union(*(siblings(folder / f"{name}.py") for name in needed))
    assert needed - {"retribooru"} == named == siblings(script)
