import json
import random
import re
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image, ImageFilter

from retribooru.dataset_script import mini
from retribooru.dataset_script.files import encode_png
from retribooru.dataset_script.mini import (
    BACKGROUNDS,
    Character,
    Outfit,
    cast,
    draw_edition,
    draw_figure,
    wardrobe,
)

GIRL = Character(hair="blue", style="long_hair", bangs="blunt_bangs", eyes="green", skin="tan")
DRESSED = Outfit(top="red", sleeves="white", pattern="stripes", bottom="skirt", bottom_colour="black")


def drawn(seed, **options):
    return draw_figure(GIRL, DRESSED, random.Random(seed), **options)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def identity(record):
    return record["character"], tuple(record["artists"]), tuple(record["cloths"])


@pytest.fixture(scope="module")
def edition(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edition")
    records = draw_edition(folder, characters=4, outfits=2, images=3, size=48, seed=7)
    return folder, json.loads(records.read_text())


def many():
    for number, character in enumerate(cast(1, 40)):
        yield draw_figure(character, wardrobe(1, number, 1)[0], random.Random(f"many/{number}"))


def test_figure_has_the_promised_form():
    figure = drawn("a", size=64)
    assert (figure.image.mode, figure.image.size) == ("RGB", (64, 64))
    assert (figure.mask.mode, figure.mask.size) == ("L", (64, 64))
    assert set(np.unique(np.asarray(figure.mask))) == {0, 255}
    assert figure.tags[:2] == ["1girl", "solo"]
    assert set(figure.identity_tags) == {
        "blue_hair",
        "long_hair",
        "blunt_bangs",
        "green_eyes",
        "tan",
        "red_shirt",
        "striped",
        "white_sleeves",
        "black_skirt",
    }


def test_same_rng_same_figure_and_another_rng_another():
    assert drawn("a").image.tobytes() == drawn("a").image.tobytes()
    assert drawn("a").image.tobytes() != drawn("b").image.tobytes()


@pytest.mark.parametrize("seed", range(4))
def test_mask_parts_figure_from_background(seed):
    day, night = drawn(seed, background="day"), drawn(seed, background="night")
    assert day.mask.tobytes() == night.mask.tobytes()
    differs = (np.asarray(day.image) != np.asarray(night.image)).any(axis=2)
    inner = np.asarray(day.mask.filter(ImageFilter.MinFilter(3))) == 255
    outer = np.asarray(day.mask.filter(ImageFilter.MaxFilter(3))) == 0
    assert inner.sum() > 1000 and not differs[inner].any()
    assert outer.sum() > 1000 and differs[outer].mean() > 0.99


def test_background_says_itself_in_the_tags():
    for name, tags in BACKGROUNDS.items():
        assert drawn("a", background=name).free_tags[-len(tags) :] == tags


def test_figures_stay_inside_and_heads_on_the_mask():
    for figure in many():
        mask = np.asarray(figure.mask) == 255
        assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
        assert 0.1 < mask.mean() < 0.7
        x0, y0, x1, y1 = figure.head_box
        assert 0 <= x0 < x1 <= 96 and 0 <= y0 < y1 <= 96
        assert 0.3 < (x1 - x0) / 96 < 0.6 and 0.3 < (y1 - y0) / 96 < 0.6
        assert mask[y0:y1, x0:x1].mean() > 0.75


def test_head_box_holds_the_eyes_and_not_the_feet():
    figure = draw_figure(GIRL, DRESSED, random.Random("a"), background="plain")
    iris = np.abs(np.asarray(figure.image).astype(int) - mini.EYES["green"]).sum(axis=2) < 90
    rows, columns = np.nonzero(iris)
    x0, y0, x1, y1 = figure.head_box
    assert len(rows) > 5 and columns.min() >= x0 and columns.max() < x1 and rows.min() >= y0 and rows.max() < y1
    assert y1 < np.nonzero(np.asarray(figure.mask))[0].max() - 20


def test_identity_colours_are_in_the_picture():
    pixels = np.asarray(drawn("a", background="plain").image).astype(int).reshape(-1, 3)
    for colour in (mini.HAIR["blue"], mini.CLOTH["red"], mini.CLOTH["black"], mini.SKIN["tan"]):
        assert (np.abs(pixels - colour).sum(axis=1) < 20).sum() > 10


def test_prompts_leave_the_identity_out():
    colours = re.compile("|".join({*mini.HAIR, *mini.EYES, *mini.CLOTH}))
    for figure in many():
        assert not set(figure.prompt.split(", ")) & set(figure.identity_tags)
        assert not colours.search(figure.prompt)
        assert figure.prompt.startswith("1girl, solo, ")
        assert figure.tags == ["1girl", "solo", *figure.identity_tags, *figure.free_tags]


def test_characters_and_outfits_are_not_repeated():
    every = len(mini.HAIR) * len(mini.BACK_HAIR) * len(mini.BANGS) * len(mini.EYES) * len(mini.SKIN)
    characters = cast(0, every + 1)
    assert len(set(characters[:every])) == every and characters[every] == characters[0]
    assert len({tuple(outfit.tags()) for outfit in wardrobe(0, 0, 1000)}) == 1000
    assert cast(0, 5) == characters[:5] and wardrobe(0, 3, 2) == wardrobe(0, 3, 9)[:2]


def test_records_match_the_files(edition):
    folder, records = edition
    assert len(records) == 4 * 2 * 3 and len({record["id"] for record in records}) == len(records)
    names = {f"{kind}/{record['id']}.png" for record in records for kind in ("images", "masks")}
    assert set(files(folder)) == names | {"retribooru.json"}
    for record in records:
        assert set(record) == {"id", "character", "artists", "cloths", "prompts", "bbox", "similar"}
        assert record["id"].isdecimal()
        number = int(record["id"]) // 10**6
        assert record["character"] == f"chibi_{number - 1:03d}"
        colours = {*mini.HAIR, *mini.EYES, *mini.CLOTH}
        assert record["prompts"].startswith("1girl, solo, ")
        assert not {tag.split("_")[0] for tag in record["prompts"].split(", ")} & colours
        with Image.open(folder / "images" / f"{record['id']}.png") as image:
            assert (image.mode, image.size) == ("RGB", (48, 48))
            image.load()
        with Image.open(folder / "masks" / f"{record['id']}.png") as mask:
            inside = np.asarray(mask)
        cx, cy, w, h = record["bbox"]
        assert 0 <= cx - w / 2 < cx + w / 2 <= 1 and 0 <= cy - h / 2 < cy + h / 2 <= 1
        assert inside[int(cy * 48), int(cx * 48)] == 255


def test_similar_is_exactly_the_rest_of_the_identity(edition):
    _, records = edition
    groups = defaultdict(set)
    for record in records:
        groups[identity(record)].add(record["id"])
    assert len(groups) == 4 * 2
    for record in records:
        assert set(record["similar"]) == groups[identity(record)] - {record["id"]}
        assert len(record["similar"]) == 2


def test_edition_is_the_same_each_time_and_another_with_another_seed(edition, tmp_path):
    folder, _ = edition
    draw_edition(tmp_path / "again", characters=4, outfits=2, images=3, size=48, seed=7)
    draw_edition(tmp_path / "other", characters=4, outfits=2, images=3, size=48, seed=8)
    first, again, other = files(folder), files(tmp_path / "again"), files(tmp_path / "other")
    assert first == again
    assert first.keys() == other.keys() and not any(first[name] == other[name] for name in first)


def test_larger_editions_keep_the_earlier_images(edition, tmp_path):
    folder, records = edition
    draw_edition(tmp_path, characters=5, outfits=3, images=4, size=48, seed=7)
    earlier, grown = files(folder), files(tmp_path)
    del earlier["retribooru.json"]
    assert earlier.items() <= grown.items()
    later = {record["id"]: record for record in json.loads(grown["retribooru.json"])}
    for record in records:
        assert set(record.pop("similar")) < set(later[record["id"]].pop("similar"))
        assert record == later[record["id"]]


def test_a_killed_run_leaves_no_records(tmp_path, monkeypatch):
    draw_edition(tmp_path, characters=1, outfits=1, images=2, size=32)
    left = iter(range(1))
    whole = mini.draw_figure
    monkeypatch.setattr(mini, "draw_figure", lambda *args: next(left) + 1 and whole(*args))
    with pytest.raises(StopIteration):
        draw_edition(tmp_path, characters=1, outfits=1, images=2, size=32, seed=1)
    assert not (tmp_path / "retribooru.json").exists()


@pytest.mark.parametrize("mode, size", [("L", (5, 3)), ("RGB", (5, 3)), ("RGB", (300, 200))])
def test_png_is_read_back(mode, size, tmp_path):
    image = Image.frombytes(mode, size, random.Random(0).randbytes(size[0] * size[1] * len(mode)))
    (tmp_path / "a.png").write_bytes(encode_png(image))
    with Image.open(tmp_path / "a.png") as read:
        assert (read.mode, read.size, read.tobytes()) == (mode, size, image.tobytes())


@pytest.mark.parametrize(
    "name, value",
    [
        ("size", 31),
        ("size", 48.0),
        ("characters", 0),
        ("outfits", 0),
        ("outfits", 1001),
        ("images", -1),
        ("images", 1001),
    ],
)
def test_bad_arguments_are_named(name, value, tmp_path):
    with pytest.raises(ValueError, match=rf"^{name}: got {value}, wanted .* from \d+ to \d+"):
        draw_edition(tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


def test_bad_figure_arguments_are_named():
    with pytest.raises(ValueError, match="^size: got 16, wanted"):
        drawn("a", size=16)
    with pytest.raises(ValueError, match="^background: got 'moon', wanted"):
        drawn("a", background="moon")
