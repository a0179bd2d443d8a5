"""Anime figures drawn by code, with known identity, exact masks and head boxes.

A figure is drawn in design units at several times the wanted size, downsampled and laid over its background."""

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .mini_body import Limb, draw_arm, draw_leg, draw_neck, limb
from .mini_clothes import draw_bottom, draw_collar, draw_top, skirt_outline
from .mini_face import EXPRESSIONS, draw_brows, draw_head, skin_ink
from .mini_hair import CHIN, CROWN, FRINGES, draw_back_hair, draw_front_hair
from .mini_palette import Artist, Character, Outfit, between, pick
from .mini_pen import Frame, Pen
from .mini_scenery import BACKGROUNDS, draw_background

MIN_SIZE, MAX_SIZE = 32, 4096
SOLES = 207
# Where limbs begin, elbow and hand, knee and ankle, all at the viewer's right; the other side is a mirror image.
SHOULDER, HIP = (11.5, 91.5), (8, 130)
DOWN, UP, AKIMBO = ((23, 110), (27, 128)), ((39, 94), (49, 63)), ((36, 108), (20, 121))
OUT, PEACE, BALANCE = ((33, 98), (53, 94)), ((34, 113), (42, 92)), ((32, 106), (48, 112))
STRAIGHT, APART, STEP = ((9, 164), (9, 193)), ((13, 163), (18, 192)), ((11, 163), (13.5, 192))
KICK, TUCK = ((14, 160), (32, 174)), ((17, 154), (12, 178))


class Pose(NamedTuple):
    """Limbs at the viewer's right and left, or the other way round."""

    arms: tuple  # elbow and hand
    hands: tuple  # keys of `FINGERS`
    legs: tuple  # knee and ankle
    flare: float  # how wide a skirt's hem flies, 1 at rest
    tags: list[str]


POSES = {
    "standing": Pose((DOWN, DOWN), ("rest", "rest"), (STRAIGHT, STRAIGHT), 1.0, ["standing"]),
    "waving": Pose((UP, DOWN), ("open", "rest"), (STEP, STRAIGHT), 1.0, ["waving"]),
    "arms_up": Pose((UP, UP), ("open", "open"), (STEP, STEP), 1.0, ["arms_up"]),
    "hands_on_own_hips": Pose((AKIMBO, AKIMBO), ("rest", "rest"), (APART, APART), 1.0, ["hands_on_own_hips"]),
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
    pose, signs = POSES[name], pick(rng, ((1, -1), (-1, 1)))
    # Large pictures are smooth enough with fewer pixels, and memory is not endless.
    finer = 4 if size <= 1024 else 2
    body = placed(artist, rng, size, finer)
    tilt = math.radians(between(rng, -7, 7))
    head = body.within(artist.head * complex(math.cos(tilt), math.sin(tilt)), pivot=80j)
    gaze = complex(pick(rng, (0, 0, -1.5, 1.5)), between(rng, -0.3, 0.5))
    arms = [limb((SHOULDER, *loose(rng, p)), s, h) for p, s, h in zip(pose.arms, signs, pose.hands)]
    legs = [limb((HIP, *loose(rng, p)), s) for p, s in zip(pose.legs, signs)]

    canvas = Image.new("RGBX", (size * finer,) * 2, (*artist.line, 0))
    pen = Pen(canvas, ImageDraw.Draw(canvas), body, artist)
    draw_all(pen, pen.through(head), character, outfit, arms, legs, pose.flare, expression, gaze)
    small = canvas.reduce(finer)
    ground = body.at(SOLES * 1j) / (size * finer)
    return Person(
        colour=small.convert("RGB"),
        coverage=small.getchannel(3),
        head_box=box_of(head.at(np.append(CROWN, CHIN * 1j)) / finer, size),
        ground=(ground.real, ground.imag),
        pose=name,
        expression=expression,
        tags=[*pose.tags, *EXPRESSIONS[expression], "looking_to_the_side" if gaze.real else "looking_at_viewer"],
    )


def placed(artist: Artist, rng: random.Random, size: int, finer: int) -> Frame:
    """Where and how large the figure is on a canvas of `size` times `finer` pixels."""
    # Above the crown there is room for a bun or a lock that stands off.
    top, bottom = CHIN - (CHIN + 6) * artist.head - 1, SOLES + 1
    # One pixel stays free on every side, and half of one for the outline.
    room = (size - 3) * finer
    unit = between(rng, 0.92, 1.0) * room / (bottom - top)
    x = (0.5 + between(rng, -0.07, 0.07)) * size * finer
    y = 1.5 * finer + between(rng, 0.5, 1.0) * (room - unit * (bottom - top))
    return Frame(complex(unit), complex(x, y - unit * top))


def box_of(places: np.ndarray, size: int) -> tuple[int, int, int, int]:
    """The whole pixels that hold all `places`."""
    edges = (places.real.min(), places.imag.min(), places.real.max(), places.imag.max())
    x0, y0, x1, y1 = (round_(edge) for round_, edge in zip((math.floor, math.floor, math.ceil, math.ceil), edges))
    return max(0, x0), max(0, y0), min(size, x1), min(size, y1)


def loose(rng: random.Random, points) -> list[tuple[float, float]]:
    """`points` a little off their place, as nobody stands twice in the same way."""
    return [(x + between(rng, -1.4, 1.4), y + between(rng, -1, 1)) for x, y in points]


def draw_all(
    pen: Pen,
    head: Pen,
    character: Character,
    outfit: Outfit,
    arms: list[Limb],
    legs: list[Limb],
    flare: float,
    expression: str,
    gaze: complex,
) -> None:
    """From back to front; `head` draws what turns with the head."""
    skin = skin_ink(pen, character)
    draw_back_hair(head, character)
    for leg in legs:
        draw_leg(pen, leg, outfit, skin, above=skirt_outline(flare))
    tucked = outfit.garment in ("shirt", "sailor")
    if not tucked:
        draw_bottom(pen, legs, outfit, flare)
    draw_neck(pen, skin)
    draw_top(pen, outfit)
    if tucked:
        draw_bottom(pen, legs, outfit, flare)
    raised = [arm for arm in arms if arm.raised]
    for arm in arms:
        if not arm.raised:
            draw_arm(pen, arm, outfit, skin)
    draw_collar(pen, outfit, skin)
    draw_head(head, character, expression, gaze, shadow=FRINGES[character.bangs])
    draw_front_hair(head, character)
    draw_brows(head, character, expression)
    for arm in raised:
        draw_arm(pen, arm, outfit, skin)
    if raised and outfit.garment != "sweater":
        # The shoulders were drawn over it.
        draw_collar(pen, outfit, skin)
