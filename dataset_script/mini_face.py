"""The face without hair. Design units, head upright: eyes at y = 56, chin at y = 78."""

import numpy as np

from .mini_palette import EYES, HAIR, RGB, SKIN, Character, mix
from .mini_pen import SIDES, WHITE, Ink, Pen, both, curve, flow, line, mirror, oval

EXPRESSIONS = {
    "smile": ["smile"],
    "laugh": ["open_mouth", "smile"],
    "frown": ["frown"],
    "wink": ["one_eye_closed", "smile"],
    "blush": ["blush", "closed_mouth"],
    "surprised": ["surprised", "open_mouth"],
    "angry": ["angry"],
}
# How far the brows are lifted at their inner and outer ends, in units.
BROWS = {"frown": (2.4, -0.6), "angry": (-2.6, 1.2), "surprised": (2.4, 2.4), "laugh": (1.0, 1.0)}
MOUTHS = {
    "smile": flow((-6, 70.4), (-3, 73.2), (3, 73.2), (6, 70.4)),
    "wink": flow((-6, 70.4), (-3, 73.2), (3, 73.2), (6, 70.4)),
    "frown": flow((-5, 73.6), (-2.4, 71.2), (2.4, 71.2), (5, 73.6)),
    "angry": curve(((-4.6, 73.2), (-2, 70.8), (0, 72.8), (2, 70.8), (4.6, 73.2)), closed=False, rounds=2),
    "blush": flow((-3, 71.6), (0, 72.2), (3, 71.6)),
}
LAUGH = curve(((-6, 69), (-6, 69), (0, 70), (6, 69), (6, 69), (4.6, 74.6), (0, 76.4), (-4.6, 74.6)))

FACE = curve(both(((0, 10), (20, 12), (29, 30), (30.5, 48), (29, 61), (19, 71), (7, 77.5), (2, 78.6))))
CHEEK_SHADE = curve(((30, 40), (32, 62), (8, 84), (4, 78), (20, 70), (27, 56)))
NOSE = line((-0.6, 66.2), (0.4, 67), (0.9, 66.6))

# The right eye about its middle, `EYE`.
EYE = complex(14.6, 56)
EYE_WHITE = curve(((-6.8, -3), (-5, -8.4), (2, -9.6), (7.2, -6), (7, 3), (4, 8.6), (-3, 8.8), (-6.6, 4)))
LID_SHADE = curve(((-9, -12), (10, -12), (10, -5), (0, -7.4), (-9, -4)))
LASHES = curve(
    (
        *((-8, -2.6), (-8, -2.6), (-6, -9.8), (1, -12.2), (8, -8.6), (9, -5.4), (11.4, -6.4), (11.4, -6.4)),
        *((10, -2.2), (8, 0.6), (8, 0.6), (7.4, -4), (6, -7), (1, -9.2), (-4.6, -8)),
    )
)
LOWER_LID, CREASE = flow((-4, 9.8), (1, 10.6), (5.4, 8.6)), flow((-5, -13), (1, -15), (7, -12.4))
CLOSED_EYE = curve(
    (
        *((-7.5, 3), (-7.5, 3), (-5, -2), (0, -4), (5, -2), (8.6, 3.4), (8.6, 3.4)),
        *((4, 0.6), (0, -1.2), (-4, 0.4)),
    )
)
CLOSED_LASHES = flow((6.4, 0.2), (8, 0), (9.6, -1)), flow((7.4, 2), (9, 2.4), (10.4, 2))


def skin_ink(pen: Pen, character: Character) -> Ink:
    """Skin is redder in its shadow."""
    return pen.ink(SKIN[character.skin], shadow=(170, 50, 70), depth=0.24)


def draw_head(pen: Pen, character: Character, expression: str, gaze: complex, shadow: np.ndarray) -> None:
    """`gaze` moves the irises (units); `shadow` is the outline of the hair that throws its shadow on the face."""
    skin = skin_ink(pen, character)
    pen.shape(FACE, skin.base)
    pen.shade(CHEEK_SHADE, FACE, skin.shade)
    if pen.artist.shading == "flat":
        pen.clipped(shadow + 1.6j, FACE, skin.shade)
    else:
        pen.shade(shadow + 3.4j, FACE, skin.shade)
    draw_cheeks(pen, character, skin, expression == "blush")
    pen.stroke(NOSE, 1.0, mix(skin.shade, pen.line, 0.5))
    for turn in SIDES:
        if expression == "wink" and turn is not mirror:
            draw_closed_eye(pen)
        else:
            draw_eye(pen, turn, character, gaze, wide=1.06 if expression == "surprised" else 1.0)
    draw_mouth(pen, expression)


def draw_cheeks(pen: Pen, character: Character, skin: Ink, blushing: bool) -> None:
    rose = (226, 84, 84) if character.skin == "dark_skin" else (250, 96, 110)
    rose = mix(skin.base, rose, 0.5 if blushing else 0.22)
    for side in (1, -1):
        pen.fill(oval(side * 20.5, 67.4, 5.6, 2.6, steps=16), rose)
        for x in (17.6, 20.4, 23.2) if blushing else ():
            mark = line((side * x - 0.8, 68.8), (side * x, 67.4), (side * x + 0.8, 66))
            pen.stroke(mark, 0.9, mix(rose, (190, 40, 60), 0.6))


def eye_points(pen: Pen, points: np.ndarray) -> np.ndarray:
    """Puts points of the right eye in their place, as large and as slanted as the artist draws them."""
    artist = pen.artist
    lift = artist.eye_slant * np.clip(points.real, -8, 8) / 8
    return EYE + points.real * artist.eye_width + 1j * (points.imag * artist.eye_height - lift)


def draw_closed_eye(pen: Pen) -> None:
    pen.fill(eye_points(pen, CLOSED_EYE), pen.line)
    for lash in CLOSED_LASHES:
        pen.stroke(eye_points(pen, lash), 1.2)


def draw_eye(pen: Pen, turn, character: Character, gaze: complex, wide: float) -> None:
    """White, iris from dark to bright, pupil, lights and lashes; `turn` is one of `SIDES`, `wide` multiplies the height."""
    flip = -1 if turn is mirror else 1

    def at(points):
        return turn(eye_points(pen, points.real + 1j * points.imag * wide))

    def round_at(x, y, rx, ry, steps=14):
        # Both irises move the same way, so what will be mirrored moves the other way.
        return at(oval(x + gaze.real * flip, y + gaze.imag, rx, ry, steps=steps))

    eye, skin = pen.ink(EYES[character.eyes]).base, SKIN[character.skin]
    white = at(EYE_WHITE)
    pen.fill(white, (255, 253, 252))
    pen.clipped(at(LID_SHADE), white, (214, 208, 226))
    pen.fill(round_at(-0.2, 0.3, 5.5, 8.3, steps=24), mix(eye, pen.line, 0.62))
    pen.gradient(round_at(-0.2, 0.9, 4.8, 7.4, steps=24), mix(eye, pen.line, 0.42), mix(eye, WHITE, 0.18))
    pen.fill(round_at(-0.2, 5.2, 3.0, 2.2), mix(eye, WHITE, 0.5))
    pen.fill(round_at(-0.2, 0.4, 2.0, 3.4), mix(eye, pen.line, 0.8))
    # The light comes from one side in both eyes.
    for x, y, rx, ry in ((-2.4, -3.4, 2.3, 2.7), (2.2, 3.6, 1.1, 1.3)):
        pen.fill(round_at(x * flip, y, rx, ry), WHITE)
    pen.fill(at(LASHES), mix(pen.line, (30, 20, 34), 0.4))
    pen.stroke(at(LOWER_LID), 0.9, mix(pen.line, skin, 0.25))
    pen.stroke(at(CREASE), 0.8, mix(pen.line, skin, 0.4))


def draw_brows(pen: Pen, character: Character, expression: str) -> None:
    """Drawn over the fringe, as is the custom."""
    inner, outer = BROWS.get(expression, (0, 0))
    brow = flow((8, 40.6 - inner), (14, 38.6 - (inner + outer) / 2), (21.5, 40.6 - outer))
    for turn in SIDES:
        pen.stroke(turn(brow), 1.5, mix(pen.ink(HAIR[character.hair]).shade, pen.line, 0.6), thin=0.5)


def draw_mouth(pen: Pen, expression: str) -> None:
    red: RGB = mix((206, 74, 84), pen.line, 0.15)
    if expression == "laugh":
        pen.shape(LAUGH, red, 0.55)
        pen.clipped(oval(0, 77, 4.2, 3, steps=14), LAUGH, (244, 144, 144))
        pen.clipped(line((-6, 67), (6, 67), (5, 70.8), (-5, 70.8)), LAUGH, WHITE)
    elif expression == "surprised":
        pen.shape(oval(0, 72.4, 2.6, 3.2, steps=16), red, 0.55)
    else:
        pen.stroke(MOUTHS[expression], 1.5)
