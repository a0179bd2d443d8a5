"""The drawing of references."""

from collections import Counter

import pytest

from retribooru.dataset_script.references import (
    RECIPES,
    draw_other,
    draw_references,
    has_references,
    row_rng,
)

IMAGES = {"a": True, "b": True, "c": True, "d": False}


@pytest.mark.parametrize("task", RECIPES)
@pytest.mark.parametrize("target", IMAGES)
def test_never_the_target_and_the_recipe_kept(task, target):
    for seed in range(50):
        drawn = draw_references(target, IMAGES, RECIPES[task], row_rng(seed, task, target))
        assert tuple(concept for _, concept in drawn) == RECIPES[task]
        assert target not in [image_id for image_id, _ in drawn]


def test_faces_and_bodies_come_from_images_with_a_head_box():
    for seed in range(50):
        drawn = draw_references("a", IMAGES, RECIPES["compose"], row_rng(seed, "compose", "a"))
        assert {image_id for image_id, _ in drawn} <= {"b", "c"}


def test_faces_and_bodies_are_drawn_independently():
    images = {name: True for name in "abcdefgh"}
    pairs = set()
    for seed in range(200):
        drawn = draw_references("a", images, RECIPES["compose"], row_rng(seed, "compose", "a"))
        pairs.add((drawn[0][0], drawn[2][0]))
    assert any(face == body for face, body in pairs) and any(face != body for face, body in pairs)


def test_no_image_twice_before_every_other_once():
    drawn = draw_references("a", IMAGES, RECIPES["reconstruct"], row_rng(0, "reconstruct", "a"))
    assert sorted(Counter(image_id for image_id, _ in drawn).values()) == [1, 1, 2]


def test_a_pair_gives_its_one_other_image_four_times():
    drawn = draw_references("a", {"a": True, "b": True}, RECIPES["reconstruct"], row_rng(0, "reconstruct", "a"))
    assert drawn == [("b", "figure")] * 4


def test_no_row_without_candidates():
    assert draw_references("a", {"a": True}, RECIPES["reconstruct"], row_rng(0, "reconstruct", "a")) == []
    assert draw_references("a", {"a": True, "d": False}, RECIPES["compose"], row_rng(0, "compose", "a")) == []


def test_the_same_on_every_machine_and_in_any_order():
    expected = [("c", "face"), ("b", "face"), ("b", "body"), ("c", "body")]
    for images in (IMAGES, dict(reversed(IMAGES.items()))):
        assert draw_references("a", images, RECIPES["compose"], row_rng(7, "compose", "a")) == expected


def test_another_epoch_draws_anew():
    images = {name: True for name in "abcdefgh"}
    draws = {tuple(draw_references("a", images, RECIPES["compose"], row_rng(0, "compose", "a", e))) for e in range(20)}
    assert len(draws) > 10


@pytest.mark.parametrize("images", [{"a": True}, {"a": True, "d": False}, {"a": True, "b": True}, IMAGES])
@pytest.mark.parametrize("task", RECIPES)
def test_has_references_says_what_drawing_finds(task, images):
    drawn = draw_references("a", images, RECIPES[task], row_rng(0, task, "a"))
    assert has_references("a", images, RECIPES[task]) == bool(drawn)


def test_another_character_is_drawn_evenly():
    identities = [("a", "x", "1"), ("b", "x", "1"), ("b", "x", "2"), ("b", "y", "1"), ("c", "x", "1"), ("d", "x", "1")]
    for character, others in (("a", 5), ("b", 3), ("c", 5), ("d", 5), ("0", 6), ("bb", 6), ("z", 6)):
        drawn = Counter(draw_other(identities, character, row_rng(seed, "swap", "t")) for seed in range(200 * others))
        assert set(drawn) == {identity for identity in identities if identity[0] != character}
        assert min(drawn.values()) > 140
    assert draw_other([("a", "x", "1"), ("a", "x", "2")], "a", row_rng(0, "swap", "t")) is None
    assert draw_other([], "a", row_rng(0, "swap", "t")) is None
