"""From answers to outfits."""

import json
from collections import Counter, defaultdict
from random import Random

import pyarrow as pa
import pytest

from retribooru.dataset_script.build.outfits import COLOURS, cluster, group_sizes, parse_colours
from retribooru.dataset_script.mini import identities


@pytest.mark.parametrize(
    "answer, colours",
    [
        ("blue and white", ("blue", "white")),
        ("White, Blue.", ("white", "blue")),
        ("Light blue and dark GREY", ("blue", "gray")),
        ("black, black, red", ("black", "red")),
        ("red, green and blue", ("red", "green")),
        ("red_cape, blue_sash", ("red", "blue")),
        ("pink", ("pink",)),
        ("the blackboard", ()),
        ("a nice dress", ()),
        ("", ()),
        (None, ()),
        ("x" * 100_000 + " red", ()),
        ("1. red\n2. gold", ("red", "gold")),
    ],
)
def test_colours_of_an_answer(answer, colours):
    assert parse_colours(answer) == colours


def answered(rows):
    return pa.Table.from_pylist(
        [dict(zip(("image_id", "character", "artist", "answer"), row)) for row in rows],
        schema=pa.schema([(name, pa.string()) for name in ("image_id", "character", "artist", "answer")]),
    )


def test_images_whose_answers_match_wear_the_same():
    done = cluster(
        answered(
            [
                ("1", "a", "x", "red and blue"),
                ("2", "a", "x", "Red, dark blue"),
                ("3", "a", "x", "blue and red"),  # another order, another outfit
                ("4", "a", "y", "red and blue"),  # another artist
                ("5", "b", "x", "red and blue"),  # another character
                ("6", "b", "x", "a dress"),
                ("7", "b", "x", None),
                ("8", "b", "x", "red, blue"),
            ]
        )
    )
    assert done.rows.to_pylist() == [
        {"image_id": image_id, "outfit_answer": "red, blue", "outfit": "red, blue"} for image_id in ("1", "2", "5", "8")
    ]
    reasons = {row["image_id"]: row["reason"] for row in done.rejects.to_pylist()}
    assert reasons == {
        "3": "alone: no other image of this character by this artist in these colours",
        "4": "alone: no other image of this character by this artist in these colours",
        "6": "answer: got 'a dress', wanted one or two colours",
        "7": "answer: got None, wanted one or two colours",
    }
    assert [json.loads(row["record"]) for row in done.rejects.to_pylist()] == [
        "a dress",
        None,
        "blue, red",
        "red, blue",
    ]


def test_alone_may_be_kept():
    rows = [("1", "a", "x", "red"), ("2", "a", "x", "blue"), ("3", "a", "x", "?")]
    done = cluster(answered(rows), keep_alone=True)
    assert done.rows["image_id"].to_pylist() == ["1", "2"] and done.rejects["image_id"].to_pylist() == ["3"]
    assert cluster(answered(rows)).rows.num_rows == 0


def test_nothing():
    done = cluster(answered([]))
    assert done.rows.num_rows == done.rejects.num_rows == 0


def test_sizes_are_those_of_a_count():
    rng = Random(0)
    rows = [tuple(rng.choice("abcdefgh") for _ in range(3)) for _ in range(2000)]
    counts = Counter(rows)
    sizes = group_sizes([pa.array(column) for column in zip(*rows)])
    assert sizes.tolist() == [counts[row] for row in rows]


def pairs(groups):
    """Unordered pairs of the members of each group."""
    return {(a, b) for members in groups.values() for a in members for b in members if a < b}


def garbled(answers, share, rng):
    """The answers, a share of them replaced by two colours at random."""
    names = sorted(set(COLOURS.values()))
    return [", ".join(rng.sample(names, 2)) if rng.random() < share else answer for answer in answers]


@pytest.mark.parametrize("share, precision, recall", [(0.0, 1.0, 1.0), (0.1, 0.99, 0.78), (0.3, 0.99, 0.46)])
def test_outfits_of_the_mini_edition_are_recovered(share, precision, recall):
    """Precision and recall of same-outfit pairs, the truth being known; answers of 0, 10 and 30 % garbled."""
    truth = defaultdict(list)
    rows = []
    for identity in identities(0, 300):
        for number in range(identity.images):
            image_id = str(identity.first_id + number)
            truth[identity.character.name, identity.artist.name, identity.outfit].append(image_id)
            rows.append((image_id, identity.character.name, identity.artist.name, ", ".join(identity.outfit.colours())))
    answers = garbled([answer for *_, answer in rows], share, Random(0))
    done = cluster(answered([(*row[:3], answer) for row, answer in zip(rows, answers)]))
    labels = {row[0]: row[1:3] for row in rows}
    found = defaultdict(list)
    for row in done.rows.to_pylist():
        found[*labels[row["image_id"]], row["outfit"]].append(row["image_id"])
    same, right = pairs(found), pairs(truth)
    got = len(same & right) / len(same), len(same & right) / len(right)
    print(f"garbled {share:.0%}: precision {got[0]:.3f}, recall {got[1]:.3f}")
    assert got[0] >= precision and got[1] >= recall
    if share == 0:
        assert got == (1.0, 1.0)
