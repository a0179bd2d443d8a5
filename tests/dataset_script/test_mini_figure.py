import random
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import ImageFilter
from retribooru.dataset_script.mini_face import EXPRESSIONS
from retribooru.dataset_script.mini_figure import POSES, draw_figure, draw_person
from retribooru.dataset_script.mini_palette import (
    ARTISTS,
    BANGS,
    BOTTOMS,
    CLOTH,
    EYES,
    GARMENTS,
    HAIR,
    HAIR_STYLES,
    PATTERNS,
    SKIN,
    SLEEVES,
    Character,
    Outfit,
    cast,
    painted,
    wardrobe,
)
from retribooru.dataset_script.mini_scenery import BACKGROUNDS

GIRL = Character("akane_shirotori", "blonde", "long_hair", "blunt_bangs", "green", "tan")
DRESSED = Outfit("shirt", "red", "white", "short_sleeves", "plain", "skirt", "blue", "black", "brown")
SIZES = (32, 33, 64, 128, 255)


def drawn(seed, artist=ARTISTS[0], **options):
    return draw_figure(GIRL, DRESSED, artist, random.Random(seed), **options)


def many(count=60, size=96, **options):
    """Figures of different characters, outfits and artists."""
    for number, character in enumerate(cast(1, count)):
        outfit, artist = wardrobe(1, number, 1)[0], ARTISTS[number % len(ARTISTS)]
        yield draw_figure(character, outfit, artist, random.Random(f"many/{number}"), size, **options)


def near(image, colour, distance=24):
    return np.abs(np.asarray(image).astype(int) - colour).sum(axis=2) < distance


@cache
def seed_of(wanted, key):
    """A seed whose figure has this pose or expression."""
    return next(seed for seed in range(1000) if drawn(seed, size=32).truth[key] == wanted)


def test_figure_has_the_promised_form():
    figure = drawn("a", size=64)
    assert (figure.image.mode, figure.image.size) == ("RGB", (64, 64))
    assert (figure.mask.mode, figure.mask.size) == ("L", (64, 64))
    assert set(np.unique(np.asarray(figure.mask))) == {0, 255}
    assert figure.tags[:2] == ["1girl", "solo"]
    identity = "blonde_hair long_hair blunt_bangs green_eyes tan red_shirt collared_shirt short_sleeves white_sleeves"
    assert {*identity.split(), "blue_skirt", "black_socks", "brown_footwear"} <= set(figure.tags)
    assert {key: figure.truth[key] for key in ("hair", "hair_style", "eyes", "skin", "top", "bottom", "pattern")} == {
        "hair": "blonde",
        "hair_style": "long_hair",
        "eyes": "green",
        "skin": "tan",
        "top": "red",
        "bottom": "blue",
        "pattern": "plain",
    }
    assert figure.truth["pose"] in POSES and figure.truth["expression"] in EXPRESSIONS
    assert figure.truth["background"] in BACKGROUNDS and len(figure.truth) == 10


def test_same_rng_same_figure_and_another_rng_another():
    assert drawn("a").image.tobytes() == drawn("a").image.tobytes()
    assert drawn("a").image.tobytes() != drawn("b").image.tobytes()


def test_every_artist_draws_differently():
    assert len({drawn("a", artist).image.tobytes() for artist in ARTISTS}) == len(ARTISTS) >= 6


@pytest.mark.parametrize("seed", range(6))
def test_mask_parts_figure_from_background(seed):
    day, night = (drawn(seed, ARTISTS[seed], background=name, size=128) for name in ("day", "night"))
    assert day.mask.tobytes() == night.mask.tobytes() and day.head_box == night.head_box
    differs = (np.asarray(day.image) != np.asarray(night.image)).any(axis=2)
    inner = np.asarray(day.mask.filter(ImageFilter.MinFilter(3))) == 255
    outer = np.asarray(day.mask.filter(ImageFilter.MaxFilter(3))) == 0
    # A gap between two limbs that is narrower than a pixel lets a little of the background through.
    assert inner.sum() > 1000 and differs[inner].mean() < 0.005
    assert outer.sum() > 1000 and differs[outer].mean() > 0.99


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_background_says_itself(background):
    figure = drawn("a", background=background, size=64)
    assert figure.tags[-len(BACKGROUNDS[background]) :] == BACKGROUNDS[background]
    assert figure.truth["background"] == background


@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize("artist", ARTISTS, ids=lambda artist: artist.name)
def test_figures_stay_inside_and_heads_on_the_mask(pose, artist):
    seed = seed_of(pose, "pose")
    for number, style in enumerate(HAIR_STYLES):
        size, outfit = SIZES[number % len(SIZES)], wardrobe(2, number, 1)[0]
        figure = draw_figure(replace(GIRL, hair_style=style), outfit, artist, random.Random(seed), size)
        assert figure.truth["pose"] == pose
        mask = np.asarray(figure.mask) == 255
        assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
        assert 0.1 < mask.mean() < 0.6
        x0, y0, x1, y1 = figure.head_box
        assert 0 <= x0 < x1 <= size and 0 <= y0 < y1 <= size
        assert 0.25 < (x1 - x0) / size < 0.5 and 0.25 < (y1 - y0) / size < 0.5
        assert mask[y0:y1, x0:x1].mean() > 0.75


@pytest.mark.parametrize("size, count", [(32, 100), (64, 100), (300, 20), (1024, 3), (1500, 3)])
def test_not_even_a_faint_trace_of_the_figure_is_on_the_border(size, count):
    for number, character in enumerate(cast(2, count)):
        outfit, artist = wardrobe(2, number, 1)[0], ARTISTS[number % len(ARTISTS)]
        coverage = np.asarray(draw_person(character, outfit, artist, random.Random(number), size).coverage)
        assert coverage.max() == 255
        assert not (coverage[0].any() or coverage[-1].any() or coverage[:, 0].any() or coverage[:, -1].any())


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_head_box_holds_the_eyes_and_not_the_feet(expression):
    figure = drawn(seed_of(expression, "expression"), background="plain")
    rows, columns = np.nonzero(near(figure.image, painted(EYES["green"], ARTISTS[0]), 70))
    x0, y0, x1, y1 = figure.head_box
    assert len(rows) > 40 and columns.min() >= x0 and columns.max() < x1 and rows.min() >= y0 and rows.max() < y1
    assert y1 < np.nonzero(np.asarray(figure.mask))[0].max() - 80


@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize("artist", ARTISTS, ids=lambda artist: artist.name)
def test_identity_colours_are_in_the_picture_whatever_the_pose(pose, artist):
    figure = drawn(seed_of(pose, "pose"), artist, background="plain", size=128)
    for table, key, least in ((HAIR, "blonde", 400), (CLOTH, "red", 80), (CLOTH, "blue", 100), (SKIN, "tan", 250)):
        assert near(figure.image, painted(table[key], artist), 60).sum() > least


def test_colours_are_far_apart_for_every_artist():
    for artist in ARTISTS:
        for table in (HAIR, EYES, SKIN, CLOTH):
            shades = [np.array(painted(colour, artist)) for colour in table.values()]
            assert min(np.abs(a - b).max() for i, a in enumerate(shades) for b in shades[:i]) > 40
            for colour, shade in zip(table.values(), shades):
                assert np.abs(shade - colour).max() < 40


def test_colours_of_an_outfit_are_those_that_cover_most():
    for number in range(60):
        outfit = replace(wardrobe(3, number, 1)[0], socks="", shoes="brown")
        outfit = replace(
            outfit, top="red", bottom_colour="blue", sleeves="red" if outfit.sleeves == outfit.top else "white"
        )
        girl = replace(GIRL, hair="blonde", hair_style="short_hair", eyes="brown")
        flat = replace(ARTISTS[0], shading="flat")
        figure = draw_figure(girl, outfit, flat, random.Random(seed_of("standing", "pose")), 128, "plain")
        inside = np.asarray(figure.mask) == 255
        areas = {
            name: (inside & near(figure.image, painted(CLOTH[name], flat), 60)).sum()
            for name in ("red", "blue", "white")
        }
        first, second = outfit.colours()
        assert {first, second} == {"red", "blue"}
        assert areas[first] > 0.85 * areas[second], (outfit, areas)
        if outfit.pattern == "plain":
            assert areas["white"] < areas[second], (outfit, areas)


def test_prompts_leave_the_identity_out():
    colours = re.compile("|".join({*HAIR, *EYES, *CLOTH}))
    for number, figure in enumerate(many(size=32)):
        free = figure.prompt.split(", ")
        identity = {*cast(1, 60)[number].tags(), *wardrobe(1, number, 1)[0].tags()}
        assert not set(free) & identity and not colours.search(figure.prompt)
        assert free[:2] == ["1girl", "solo"] and free[2:] == figure.tags[-len(free[2:]) :]
        assert set(figure.tags) == {*free, *identity} and len(figure.tags) == len(set(figure.tags))
        pose, expression = POSES[figure.truth["pose"]].tags, EXPRESSIONS[figure.truth["expression"]]
        assert {*pose, *expression, *BACKGROUNDS[figure.truth["background"]]} <= set(free)


def test_characters_are_not_repeated_and_no_two_share_a_name():
    every = len(HAIR) * len(HAIR_STYLES) * len(BANGS) * len(EYES) * len(SKIN)
    characters = cast(0, every + 1)
    assert len({tuple(character.tags()) for character in characters[:every]}) == every
    assert characters[every].tags() == characters[0].tags()
    assert len({character.name for character in characters}) == every + 1
    assert all(re.fullmatch(r"[a-z]+_[a-z]+", character.name) for character in characters)
    assert cast(0, 5) == characters[:5] and cast(1, 5) != characters[:5]


def test_outfits_are_not_repeated_and_change_the_colour_of_the_top():
    outfits = wardrobe(0, 3, 1000)
    assert len({tuple(outfit.tags()) for outfit in outfits}) == 1000
    assert wardrobe(0, 3, 2) == outfits[:2] and wardrobe(0, 4, 2) != outfits[:2]
    assert {outfit.top for outfit in outfits[: len(CLOTH)]} == set(CLOTH)
    for outfit in outfits:
        assert outfit.top != outfit.bottom_colour
        assert outfit.garment in GARMENTS and outfit.pattern in PATTERNS and outfit.bottom in BOTTOMS
        assert outfit.length in SLEEVES and {outfit.top, outfit.bottom_colour} == set(outfit.colours())


@pytest.mark.parametrize("size", [31, 4097, 64.0, True, "64"])
def test_bad_sizes_are_named(size):
    with pytest.raises(ValueError, match=f"^size: got {re.escape(repr(size))}, wanted a whole number from 32 to 4096"):
        drawn("a", size=size)


def test_bad_backgrounds_and_counts_are_named():
    with pytest.raises(ValueError, match="^background: got 'moon', wanted"):
        drawn("a", background="moon")
    with pytest.raises(ValueError, match="^count: got 1001, wanted"):
        wardrobe(0, 0, 1001)
    with pytest.raises(ValueError, match="^count: got -1, wanted"):
        cast(0, -1)
