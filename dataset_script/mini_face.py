"""The face without hair. Design units, head upright: eyes at y = 56, chin at y = 78."""

import numpy as np

from .mini_palette import EYES, HAIR, SKIN, Character, mix
from .mini_pen import WHITE, Pen, both, curve, mirror, oval

FACE = curve(both(((0, 10), (20, 12), (29, 30), (30.5, 48), (29, 61), (19, 71), (7, 77.5), (2, 78.6))))
EYE = complex(14.6, 56)

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


def draw_head(pen: Pen, character: Character, expression: str, gaze: complex, shadow: np.ndarray) -> None:
    """`gaze` moves the irises (units); `shadow` is the outline of the hair that throws its shadow on the face."""
    skin = pen.ink(SKIN[character.skin], shadow=(170, 50, 70), depth=0.24)
    pen.shape(FACE, skin.base)
    pen.shade(curve(((30, 40), (32, 62), (8, 84), (4, 78), (20, 70), (27, 56))), FACE, skin.shade)
    if pen.artist.shading == "flat":
        pen.clipped(shadow + 1.6j, FACE, skin.shade)
    else:
        pen.shade(shadow + 3.4j, FACE, skin.shade)
    rose = mix(skin.base, painted_rose(character), 0.5 if expression == "blush" else 0.22)
    for side in (1, -1):
        pen.fill(oval(side * 20.5, 67.4, 5.6, 2.6, steps=16), rose)
        if expression == "blush":
            for x in (17.6, 20.4, 23.2):
                mark = np.array([complex(side * x - 0.8, 68.8), complex(side * x, 67.4), complex(side * x + 0.8, 66)])
                pen.stroke(mark, 0.9, mix(rose, (190, 40, 60), 0.6))
    pen.stroke(np.array([-0.6 + 66.2j, 0.4 + 67j, 0.9 + 66.6j]), 1.0, mix(skin.shade, pen.line, 0.5))
    for turn in (lambda points: points, mirror):
        if expression == "wink" and turn is not mirror:
            draw_closed_eye(pen)
        else:
            draw_eye(pen, turn, character, expression, gaze)
    draw_mouth(pen, expression)


def painted_rose(character: Character):
    return (226, 84, 84) if character.skin == "dark_skin" else (250, 96, 110)


def eye_points(pen: Pen, points) -> np.ndarray:
    """Places points of the right eye, given about its middle, as large and as slanted as the artist draws them."""
    artist = pen.artist
    z = np.asarray(points)
    z = z.real * artist.eye_width + 1j * (z.imag * artist.eye_height - artist.eye_slant * np.clip(z.real, -8, 8) / 8)
    return z + EYE


def draw_closed_eye(pen: Pen) -> None:
    pen.fill(
        eye_points(
            pen,
            curve(
                (
                    (-7.5, 3),
                    (-7.5, 3),
                    (-5, -2),
                    (0, -4),
                    (5, -2),
                    (8.6, 3.4),
                    (8.6, 3.4),
                    (4, 0.6),
                    (0, -1.2),
                    (-4, 0.4),
                )
            ),
        ),
        pen.line,
    )
    for points in (((6.4, 0.2), (8, 0), (9.6, -1)), ((7.4, 2), (9, 2.4), (10.4, 2))):
        pen.stroke(eye_points(pen, curve(points, closed=False)), 1.2)


def draw_eye(pen: Pen, turn, character: Character, expression: str, gaze: complex) -> None:
    """White, iris from dark to bright, pupil, lights and lashes; the lights stay on one side in both eyes."""
    wide = 1.06 if expression == "surprised" else 1.0
    flip = 1 if turn is not mirror else -1

    def at(points):
        points = np.asarray(points)
        return turn(eye_points(pen, points.real + 1j * points.imag * wide))

    eye = pen.ink(EYES[character.eyes])
    # Both irises move the same way, so the mirrored one is moved back first.
    moved = complex(gaze.real * flip, gaze.imag)
    white = at(curve(((-6.8, -3), (-5, -8.4), (2, -9.6), (7.2, -6), (7, 3), (4, 8.6), (-3, 8.8), (-6.6, 4))))
    pen.fill(white, (255, 253, 252))
    pen.clipped(at(curve(((-9, -12), (10, -12), (10, -5), (0, -7.4), (-9, -4)))), white, (214, 208, 226))
    iris = at(oval(-0.2 + moved.real, 0.3 + moved.imag, 5.5, 8.3))
    pen.fill(iris, mix(eye.base, pen.line, 0.62))
    pen.gradient(
        at(oval(-0.2 + moved.real, 0.9 + moved.imag, 4.8, 7.4)),
        mix(eye.base, pen.line, 0.42),
        mix(eye.base, WHITE, 0.18),
    )
    pen.fill(at(oval(-0.2 + moved.real, 5.2 + moved.imag, 3.0, 2.2, steps=14)), mix(eye.base, WHITE, 0.5))
    pen.fill(at(oval(-0.2 + moved.real, 0.4 + moved.imag, 2.0, 3.4, steps=14)), mix(eye.base, pen.line, 0.8))
    for x, y, rx, ry in ((-2.2, -3.4, 2.3, 2.7), (2.4, 3.6, 1.1, 1.3)):
        pen.fill(at(oval(-0.2 * flip + (moved.real + x * flip), y + moved.imag, rx, ry, steps=14)), WHITE)
    lash = curve(
        (
            *((-8, -2.6), (-8, -2.6), (-6, -9.8), (1, -12.2), (8, -8.6), (9, -5.4), (11.4, -6.4), (11.4, -6.4)),
            *((10, -2.2), (8, 0.6), (8, 0.6), (7.4, -4), (6, -7), (1, -9.2), (-4.6, -8)),
        )
    )
    pen.fill(at(lash), mix(pen.line, (30, 20, 34), 0.4))
    pen.stroke(
        at(curve(((-4, 9.8), (1, 10.6), (5.4, 8.6)), closed=False)), 0.9, mix(pen.line, SKIN[character.skin], 0.25)
    )
    pen.stroke(
        at(curve(((-5, -13), (1, -15), (7, -12.4)), closed=False)), 0.8, mix(pen.line, SKIN[character.skin], 0.4)
    )


def draw_brows(pen: Pen, character: Character, expression: str) -> None:
    """Drawn over the fringe, as is the custom."""
    inner, outer = BROWS.get(expression, (0, 0))
    colour = mix(pen.ink(HAIR[character.hair]).shade, pen.line, 0.6)
    path = np.array([complex(8, 40.6 - inner), complex(14, 38.6 - (inner + outer) / 2), complex(21.5, 40.6 - outer)])
    for turn in (lambda points: points, mirror):
        pen.stroke(turn(curve(tuple((p.real, p.imag) for p in path), closed=False)), 1.5, colour, thin=0.5)


def draw_mouth(pen: Pen, expression: str) -> None:
    red = mix((206, 74, 84), pen.line, 0.15)
    if expression == "laugh":
        mouth = curve(((-6, 69), (-6, 69), (0, 70), (6, 69), (6, 69), (4.6, 74.6), (0, 76.4), (-4.6, 74.6)))
        pen.shape(mouth, red, 0.55)
        pen.clipped(oval(0, 77, 4.2, 3, steps=14), mouth, (244, 144, 144))
        pen.clipped(np.array([-6 + 67j, 6 + 67j, 5 + 70.8j, -5 + 70.8j]), mouth, WHITE)
    elif expression == "surprised":
        pen.shape(oval(0, 72.4, 2.6, 3.2, steps=16), red, 0.55)
    elif expression == "frown":
        pen.stroke(curve(((-5, 73.6), (-2.4, 71.2), (2.4, 71.2), (5, 73.6)), closed=False), 1.5)
    elif expression == "angry":
        pen.stroke(curve(((-4.6, 73.2), (-2, 70.8), (0, 72.8), (2, 70.8), (4.6, 73.2)), closed=False, rounds=2), 1.5)
    elif expression == "blush":
        pen.stroke(curve(((-3, 71.6), (0, 72.2), (3, 71.6)), closed=False), 1.4)
    else:
        pen.stroke(curve(((-6, 70.4), (-3, 73.2), (3, 73.2), (6, 70.4)), closed=False), 1.5)
