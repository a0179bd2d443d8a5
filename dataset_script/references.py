"""Who may be whose reference: drawn from a seed, the same on every machine (paper section 3.3)."""

import bisect
from collections.abc import Mapping, Sequence
from operator import itemgetter
from random import Random

# The concept of each reference of a task, four by default (paper section 5.1).
RECIPES = {
    "reconstruct": ("figure", "figure", "figure", "figure"),
    "compose": ("face", "face", "body", "body"),
    "face": ("face", "face", "face", "face"),
    "swap": ("face", "face", "body", "body"),
}
# Concepts that a task takes from another character. Of what it asks for there is no picture: nothing to train on.
BORROWED = {"swap": "body"}
TRAINABLE = tuple(task for task in RECIPES if task not in BORROWED)


def row_rng(seed: int, task: str, target_id: str, epoch: int = 0) -> Random:
    """The random numbers of one row: of no other row's, and not of the order in which rows are made."""
    return Random(f"{seed}/{epoch}/{task}/{target_id}")


def draw_references(
    target_id: str, images: Mapping[str, bool], recipe: Sequence[str], rng: Random
) -> list[tuple[str, str]]:
    """Draws references for a target from the images of its identity.

    Each concept draws on its own, so a face and a body may come from different images. Within a concept no image comes
    twice before every other one has come once: most identities are pairs, whose four references are one image.

    Args:
        target_id: image id of the target; it is never drawn.
        images: {image_id: has a head box} of the identity, the target among them or not.
        recipe: the concept of each reference, as in `RECIPES`.
        rng: consumed.

    Returns:
        [(image_id, concept), ...] as long as `recipe`, or [] where some concept has no image to come from.
    """
    others = sorted(image_id for image_id in images if image_id != target_id)
    drawn = {}
    for concept in dict.fromkeys(recipe):
        candidates = [image_id for image_id in others if _shows(concept, images[image_id])]
        if not candidates:
            return []
        drawn[concept] = _draw_in_rounds(candidates, recipe.count(concept), rng)
    return [(drawn[concept].pop(0), concept) for concept in recipe]


def has_references(target_id: str, images: Mapping[str, bool], recipe: Sequence[str]) -> bool:
    """Whether `draw_references` finds any, whatever it draws."""
    return all(
        any(image_id != target_id and _shows(concept, has_head) for image_id, has_head in images.items())
        for concept in set(recipe)
    )


def draw_other(identities: Sequence[tuple], character: str, rng: Random) -> tuple | None:
    """One of `identities` (sorted, character first), each as likely, of another character; None where there is none."""
    start = bisect.bisect_left(identities, character, key=itemgetter(0))
    own = bisect.bisect_right(identities, character, key=itemgetter(0)) - start
    if own == len(identities):
        return None
    number = rng.randrange(len(identities) - own)
    return identities[number if number < start else number + own]


def _shows(concept: str, has_head: bool) -> bool:
    return concept == "figure" or has_head


def _draw_in_rounds(candidates: list[str], count: int, rng: Random) -> list[str]:
    drawn = []
    while len(drawn) < count:
        drawn += rng.sample(candidates, min(len(candidates), count - len(drawn)))
    return drawn
