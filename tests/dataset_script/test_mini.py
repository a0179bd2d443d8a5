"""The mini edition: who is drawn how often, and the table it makes."""

import io
import multiprocessing
import os
from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

import retribooru  # noqa: F401
from retribooru.dataset_script import mini
from retribooru.dataset_script.figures import SPLITS, identity_of, split_of
from retribooru.dataset_script.mini import MINI_FIGURES, TRUTH, draw_edition, identities, mini_edition
from retribooru.dataset_script.mini_palette import ARTISTS, CLOTH, EYES, HAIR, SKIN
from retribooru.dataset_script.table import FiguresTable, shard_files

SMALL = {"size": 48, "characters": 24}


def rows_of(folder):
    return {split: list(FiguresTable(shard_files(folder, split))) for split in SPLITS if shard_files(folder, split)}


@pytest.fixture(scope="module")
def edition(tmp_path_factory):
    return rows_of(draw_edition(tmp_path_factory.mktemp("edition"), **SMALL))


@pytest.fixture
def every(edition):
    return [row for rows in edition.values() for row in rows]


def test_the_whole_edition_is_as_promised():
    found = identities(0, mini.CHARACTERS)
    outfits = defaultdict(set)
    for identity in found:
        outfits[identity.character.name].add(identity.outfit)
    assert len(outfits) == mini.CHARACTERS >= 200
    assert Counter(map(len, outfits.values())).keys() == {2, 3}  # no two outfits of a character are alike
    images = Counter(identity.images for identity in found)
    assert set(images) == set(range(4, 13)) and images[4] > images[5] > images[6]
    assert {identity.artist for identity in found} == set(ARTISTS)
    ids = [identity.first_id + i for identity in found for i in range(identity.images)]
    assert len(ids) == len(set(ids))


def test_the_authors_distribution_stands_behind_the_counts():
    partners = {1: 65_594, 2: 19_636, 3: 9_125, 4: 5_227, 5: 3_434}
    for count, images in partners.items():
        assert mini.IMAGES[count + 3] == pytest.approx(images / 116_729, abs=5e-4)
    assert mini.IMAGES[12] == pytest.approx(4_232 / 116_729, abs=1e-3)
    assert sum(mini.IMAGES.values()) == pytest.approx(1)


def test_more_characters_change_nothing_about_the_first():
    assert identities(0, 40)[: len(identities(0, 24))] == identities(0, 24)
    assert identities(1, 24) != identities(0, 24)


def test_rows(every):
    assert set(every[0]) == set(MINI_FIGURES)
    for row in every:
        image, mask = (Image.open(io.BytesIO(row[key]["bytes"])) for key in ("image", "mask"))
        assert image.mode == "RGB" and image.size == mask.size == (48, 48)
        inside = np.asarray(mask.convert("L"))
        x_min, y_min, x_max, y_max = row["head_box"]
        assert 0 <= x_min < x_max <= 48 and 0 <= y_min < y_max <= 48
        assert inside[(y_min + y_max) // 2, (x_min + x_max) // 2] == 255
        assert row["rating"] == "g" and row["image"]["path"] == f"{row['image_id']}.png"
        assert row["hair"] in HAIR and row["eyes"] in EYES and row["skin"] in SKIN
        assert row["top"] in CLOTH and row["bottom"] in CLOTH
        assert f"{row['hair']}_hair" in row["tags"] and row["hair_style"] in row["tags"]
        answer = row["outfit_answer"].split(", ")
        assert 1 <= len(answer) <= 2 and set(answer) <= set(CLOTH)
        assert not {tag.split("_")[0] for tag in row["prompt"].split(", ")} & {*HAIR, *EYES, *CLOTH}


def test_truth_stays_with_an_identity_and_varies_within_it(every):
    members = defaultdict(list)
    for row in every:
        members[identity_of(row)].append(row)
    assert all(len(rows) >= 4 for rows in members.values())
    for rows in members.values():
        for name in ("hair", "hair_style", "eyes", "skin", "top", "bottom", "pattern", "outfit_answer"):
            assert len({row[name] for row in rows}) == 1
    for name in ("pose", "expression", "background"):
        assert sum(len({row[name] for row in rows}) > 1 for rows in members.values()) > 0.9 * len(members)
        assert len({row[name] for row in every}) >= 5
    pictures = {row["image"]["bytes"] for row in every}
    assert len(pictures) == len(every)


def test_splits_are_a_function_of_the_names(edition):
    for split, rows in edition.items():
        assert {split_of(row["character"], row["image_id"]) for row in rows} == {split}
        assert [identity_of(row) for row in rows] == sorted(identity_of(row) for row in rows)
    characters = {split: {row["character"] for row in rows} for split, rows in edition.items()}
    assert not characters["out_of_domain"] & (characters["train"] | characters["in_domain"])


def test_the_same_each_time_in_one_process_or_many(edition, tmp_path, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    alone = rows_of(draw_edition(tmp_path / "again", **SMALL))
    assert alone == edition
    other = rows_of(draw_edition(tmp_path / "other", **SMALL, seed=1))
    assert not {row["image"]["bytes"] for row in other["train"]} & {row["image"]["bytes"] for row in edition["train"]}


def test_a_killed_drawing_leaves_no_edition(tmp_path, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    whole, drawn = mini.draw_rows, []

    def killed(*args):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(args)
        return whole(*args)

    monkeypatch.setattr(mini, "draw_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        mini_edition(tmp_path, 32, 4)
    assert not list(tmp_path.glob("*/data"))
    monkeypatch.setattr(mini, "draw_rows", whole)
    folder = mini_edition(tmp_path, 32, 4)
    before = {file: os.stat(file).st_mtime_ns for file in shard_files(folder, "train")}
    assert before and mini_edition(tmp_path, 32, 4) == folder
    assert before == {file: os.stat(file).st_mtime_ns for file in shard_files(folder, "train")}  # drawn once


def test_loads_by_name_without_a_data_dir(edition, tmp_path):
    figures = load_dataset("retribooru", "figures", cache_dir=str(tmp_path), **SMALL)
    assert {split: rows["image_id"][:] for split, rows in figures.items()} == {
        split: [row["image_id"] for row in rows] for split, rows in edition.items()
    }
    assert set(TRUTH) < set(figures["train"].features)
    row = figures["train"][0]
    assert row["image"].mode == "RGB" and row["mask"].mode == "L" and row["image"].size == (48, 48)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 31}, "size: got 31, wanted a whole number from 32 to 1024"),
        ({"size": 48.0}, "size: got 48.0, wanted"),
        ({"characters": 0}, "characters: got 0, wanted a whole number from 1 to 10000"),
        ({"images": "folder"}, "images: got 'folder', wanted none: the mini edition"),
        ({"data_dir": "built", "size": 64}, "size: got 64, wanted none: a table in a data_dir"),
        ({"data_dir": "built", "characters": 64}, "characters: got 64, wanted none"),
        ({"data_files": ["a.parquet"]}, "data_files: got .* wanted none"),
    ],
)
def test_bad_arguments_are_named(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        load_dataset("retribooru", "figures", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet"]


def test_shards_for_workers(tmp_path):
    folder = draw_edition(tmp_path, size=32, characters=60)
    files = shard_files(folder, "train")
    assert len(files) >= 4
    assert sum(pq.read_metadata(file).num_rows for file in files) > 500
