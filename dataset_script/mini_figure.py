"""Anime figures drawn by code, with known identity, exact masks and head boxes.

A figure is drawn in design units at several times the wanted size, downsampled and laid over its background."""

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .mini_clothes import RAISED, draw_arm, draw_bottom, draw_collar, draw_leg, draw_neck, draw_top, limb, skirt_outline
from .mini_face import EXPRESSIONS, draw_brows, draw_head
from .mini_hair import CHIN, CROWN, FRINGES, draw_back_hair, draw_front_hair
from .mini_palette import SKIN, Artist, Character, Outfit, between, pick
from .mini_pen import Frame, Pen
from .mini_scenery import BACKGROUNDS, draw_background

MIN_SIZE, MAX_SIZE = 32, 4096
SOLES = 207
# Elbow and hand, knee and ankle at the viewer's right; the other side is a mirror image.
DOWN, UP, HIP = ((23, 110), (27, 128)), ((39, 94), (49, 63)), ((36, 108), (20, 121))
OUT, PEACE, BALANCE = ((33, 98), (53, 94)), ((34, 113), (42, 92)), ((32, 106), (48, 112))
STRAIGHT, APART, STEP = ((9, 164), (9, 193)), ((13, 163), (18, 192)), ((11, 163), (13.5, 192))
KICK, TUCK = ((14, 160), (32, 174)), ((17, 154), (12, 178))


class Pose(NamedTuple):
    """Right and left arm, right and left leg, how wide a skirt flies, and tags."""

    arms: tuple
    hands: tuple
    legs: tuple
    flare: float
    tags: list


POSES = {
    "standing": Pose((DOWN, DOWN), ("rest", "rest"), (STRAIGHT, STRAIGHT), 1.0, ["standing"]),
    "waving": Pose((UP, DOWN), ("open", "rest"), (STEP, STRAIGHT), 1.0, ["waving"]),
    "arms_up": Pose((UP, UP), ("open", "open"), (STEP, STEP), 1.0, ["arms_up"]),
    "hands_on_own_hips": Pose((HIP, HIP), ("rest", "rest"), (APART, APART), 1.0, ["hands_on_own_hips"]),
    "outstretched_arms": Pose((OUT, OUT), ("open", "open"), (STEP, STEP), 1.0, ["outstretched_arms"]),
    "v": Pose((PEACE, DOWN), ("v", "rest"), (STRAIGHT, STEP), 1.0, ["v"]),
    "standing_on_one_leg": Pose((BALANCE, BALANCE), ("open", "open"), (KICK, STRAIGHT), 1.0, ["standing_on_one_leg"]),
    "jumping": Pose((UP, OUT), ("open", "open"), (KICK, TUCK), 1.15, ["jumping"]),
}


@dataclass(frozen=True)
class Figure:
    """One drawing: `image` RGB and `mask` L (0 or 255), both square; `head_box` [x_min, y_min, x_max, y_max) in pixels,
    crown to chin; `tags` with and `prompt` without the identity; `truth` what was drawn, by name."""

    image: Image.Image
    mask: Image.Image
    head_box: tuple[int, int, int, int]
    tags: list[str]
    prompt: str
    truth: dict[str, str]


def draw_figure(
    character: Character,
    outfit: Outfit,
    artist: Artist,
    rng: random.Random,
    size: int = 256,
    background: str | None = None,
) -> Figure:
    """A `Figure` of `character` in `outfit`, `size` pixels wide and high, everything else chosen by `rng`.

    `background`, a key of `BACKGROUNDS`, replaces the chosen one and leaves the figure as it is.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"size: got {size!r}, wanted a whole number from {MIN_SIZE} to {MAX_SIZE}")
    if background is not None and background not in BACKGROUNDS:
        raise ValueError(f"background: got {background!r}, wanted None or one of {', '.join(BACKGROUNDS)}")
    person = draw_person(character, outfit, artist, rng, size)
    chosen = pick(rng, BACKGROUNDS)
    background = chosen if background is None else background
    scenery = draw_background(background, rng, size, person.ground)
    mask = person.coverage.point([0] * 128 + [255] * 128)
    free = [*person.tags, *BACKGROUNDS[background]]
    return Figure(
        image=Image.composite(person.colour, scenery, person.coverage),
        mask=mask,
        head_box=person.head_box,
        tags=["1girl", "solo", *character.tags(), *outfit.tags(), *free],
        prompt=", ".join(["1girl", "solo", *free]),
        truth={
            "hair": character.hair,
            "hair_style": character.hair_style,
            "eyes": character.eyes,
            "skin": character.skin,
            "top": outfit.top,
            "bottom": outfit.bottom_colour,
            "pattern": outfit.pattern,
            "pose": person.pose,
            "expression": person.expression,
            "background": background,
        },
    )


class Person(NamedTuple):
    """A figure without its background: RGB and L at the final size, and what was chosen. `ground` is where the figure
    stands: x, y in shares of the picture."""

    colour: Image.Image
    coverage: Image.Image
    head_box: tuple[int, int, int, int]
    ground: tuple[float, float]
    pose: str
    expression: str
    tags: list[str]


def draw_person(character: Character, outfit: Outfit, artist: Artist, rng: random.Random, size: int) -> Person:
    name, expression = pick(rng, POSES), pick(rng, EXPRESSIONS)
    pose, flip = POSES[name], rng.random() < 0.5
    gaze = pick(rng, (0, 0, -1.5, 1.5))
    # Large pictures are smooth enough with fewer pixels, and memory is not endless.
    finer = 4 if size <= 1024 else 2
    crown = CHIN - (CHIN + 6) * artist.head
    # One pixel stays free on every side, and half of one for the outline.
    unit = between(rng, 0.92, 1.0) * (size - 3) * finer / (SOLES + 2 - crown)
    middle = size / 2 + between(rng, -0.07, 0.07) * size
    slack = (size - 3) * finer - unit * (SOLES + 2 - crown)
    top = 1.5 * finer + between(rng, 0.5, 1.0) * slack
    body = Frame(complex(unit), complex(middle * finer, top - unit * (crown - 1)))
    tilt = math.radians(between(rng, -7, 7))
    head = body.within(artist.head * complex(math.cos(tilt), math.sin(tilt)), 80j)
    canvas = Image.new("RGBX", (size * finer,) * 2, (*artist.line, 0))
    pen = Pen(canvas, ImageDraw.Draw(canvas), body, artist)
    gaze = complex(gaze, between(rng, -0.3, 0.5))
    signs = (-1, 1) if flip else (1, -1)
    arms = [limb(((11.5, 91.5), *loose(rng, p)), s, h) for p, s, h in zip(pose.arms, signs, pose.hands)]
    legs = [limb(((8, 130), *loose(rng, p)), s) for p, s in zip(pose.legs, signs)]
    draw_all(pen, pen.through(head), character, outfit, arms, legs, pose.flare, expression, gaze)

    edge = head.at(np.append(CROWN, complex(0, CHIN)))
    box = tuple(
        int(max(0, min(size, v)))
        for v in (
            math.floor(edge.real.min() / finer),
            math.floor(edge.imag.min() / finer),
            math.ceil(edge.real.max() / finer),
            math.ceil(edge.imag.max() / finer),
        )
    )
    ground = body.at(np.array([complex(0, SOLES)]))[0] / (size * finer)
    small = canvas.reduce(finer)
    tags = [*pose.tags, *EXPRESSIONS[expression], "looking_to_the_side" if gaze.real else "looking_at_viewer"]
    return Person(small.convert("RGB"), small.getchannel(3), box, (ground.real, ground.imag), name, expression, tags)


def loose(rng: random.Random, points) -> list[tuple[float, float]]:
    """`points` a little off their place, as nobody stands twice in the same way."""
    return [(x + between(rng, -1.4, 1.4), y + between(rng, -1, 1)) for x, y in points]


def draw_all(pen, head, character, outfit, arms, legs, flare, expression, gaze) -> None:
    """From back to front."""
    skin = pen.ink(SKIN[character.skin], shadow=(170, 50, 70), depth=0.24)
    draw_back_hair(head, character)
    under = skirt_outline(flare)
    for leg in legs:
        draw_leg(pen, leg, outfit, skin, under)
    tucked = outfit.garment in ("shirt", "sailor")
    if not tucked:
        draw_bottom(pen, legs, outfit, flare)
    draw_neck(pen, skin)
    draw_top(pen, outfit, skin)
    if tucked:
        draw_bottom(pen, legs, outfit, flare)
    for arm in arms:
        if arm.path[-1].imag > RAISED:
            draw_arm(pen, arm, outfit, skin)
    draw_collar(pen, outfit, skin)
    draw_head(head, character, expression, gaze, FRINGES[character.bangs])
    draw_front_hair(head, character)
    draw_brows(head, character, expression)
    for arm in arms:
        if arm.path[-1].imag <= RAISED:
            draw_arm(pen, arm, outfit, skin)
