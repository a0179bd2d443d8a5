"""Neck, arms, hands, legs and shoes, with the sleeves and socks on them. Design units: chin at y = 78, soles at 206."""

from typing import NamedTuple

import numpy as np

from .mini_palette import CLOTH, Outfit, mix
from .mini_pen import WHITE, Ink, Pen, curve, flow, hem, line, mirror, oval, part, smooth, tube

RAISED = 93.5  # a hand above this is beside the head and in front of the hair
# What stripes and dots are drawn with: a deeper tone on light cloth, white on the others.
SECOND = {"white": (150, 160, 200), "yellow": (222, 146, 46), "pink": (204, 92, 140)}
# How much wider than a shirt's the sleeves are.
LOOSENESS = {"hoodie": 2.4, "sweater": 0.8}
ARM_WIDTHS = (8, 7, 6)
LEG_WIDTHS = (14, 12, 10, 9.6, 8)

# Seen from the front, about the ankle, at the viewer's right.
SHOE = curve(((-4.8, -4), (4.8, -4), (4.8, -4), (5.6, 2), (8.6, 7.4), (6.6, 11.4), (-3.6, 11.4), (-6, 8), (-5, 2)))
SHOE_SHADE = curve(((3, -4), (10, 4), (9, 12), (4, 12), (5, 6)))
SOLE = curve(((-6, 9.2), (8.6, 9.2), (8.6, 9.2), (6.8, 11.8), (-3.8, 11.8), (-6, 9.2)))


def finger(x: float, length: float, lean: float) -> np.ndarray:
    return tube(line((x, -3), (x + lean / 2, -5 - length / 2), (x + lean, -5 - length)), (2.9, 2.7, 2.0))


# About the wrist: fingers point to -y, the thumb to +x.
PALM = curve(((-3, 1), (3, 1), (4, -3), (3, -6), (-3, -6), (-4, -3)))
FINGERS = {
    "rest": (
        curve(((-3.4, -2), (3.2, -2), (3.4, -6), (2, -9), (-1.6, -9), (-3.4, -6))),
        tube(line((2.6, -1.6), (4.8, -3.4), (4.8, -6)), (2.8, 2.6, 2.0)),
    ),
    "open": (
        *(finger(-2.8, 4.2, -2.8), finger(-1, 5.6, -0.9), finger(1, 5.4, 0.9), finger(2.8, 4, 2.8)),
        tube(line((2.6, -1), (5.6, -2.4), (8, -4.2)), (3.2, 3, 2.2)),
    ),
    "v": (
        *(finger(-1.6, 6.4, -2.6), finger(1.4, 6.4, 2.2)),
        tube(line((3, -3), (1, -3.6), (-1, -3)), (2.6, 2.6, 2.2)),
    ),
}


class Limb(NamedTuple):
    """A bent arm or leg."""

    path: np.ndarray  # from the trunk outward
    side: int  # 1 at the viewer's right, -1 at the left
    hand: str = ""  # a key of `FINGERS`

    @property
    def raised(self) -> bool:
        return self.path[-1].imag <= RAISED

    @property
    def along(self) -> complex:
        """The direction of its end, of length 1."""
        step = self.path[-1] - self.path[-2]
        return step / abs(step)


def limb(points, side: int, hand: str = "") -> Limb:
    """`points` ((x, y), ...) are those of a limb at the viewer's right."""
    return Limb(smooth(line(*((side * x, y) for x, y in points)), closed=False), side, hand)


def draw_neck(pen: Pen, skin: Ink) -> None:
    shaded = skin.shade if pen.artist.shading != "flat" else mix(skin.base, skin.shade, 0.7)
    pen.shape(line((-4.6, 70), (4.6, 70), (5.4, 86), (0, 90), (-5.4, 86)), shaded)


def draw_hand(pen: Pen, arm: Limb, skin: Ink) -> None:
    """At the end of the arm; fingers point along it."""

    def at(points):
        return arm.path[-1] + arm.along * 1j * (points.real * -arm.side + 1j * points.imag)

    pieces = [at(1.25 * piece) for piece in (PALM, *FINGERS[arm.hand])]
    for piece in pieces:
        pen.outline(piece)
    for piece in pieces:
        pen.fill(piece, skin.base)
    if arm.hand == "v":
        pen.stroke(at(line((-3, -4.6), (0, -5.2), (3, -4.6))), 0.8)


def draw_arm(pen: Pen, arm: Limb, outfit: Outfit, skin: Ink) -> None:
    cloth, loose = pen.ink(CLOTH[outfit.sleeves]), LOOSENESS.get(outfit.garment, 0)
    draw_hand(pen, arm, skin)
    pen.band(arm.path, ARM_WIDTHS, skin.base)
    is_long = outfit.length == "long_sleeves"
    widths = (9, 11 + loose, 10.5 + loose, 9.5 + loose) if is_long else (9, 11 + loose, 12 + loose, 12.6 + loose)
    sleeve = part(arm.path, 0, 0.93 if is_long else 0.46)
    pen.shape(tube(sleeve, widths), cloth.base)
    if outfit.sleeves == outfit.top:
        draw_sleeve_pattern(pen, sleeve, widths, outfit)
    pen.darken_band(sleeve, widths)
    if outfit.sleeves == outfit.top and outfit.pattern == "plain":
        # No line between sleeve and shoulder.
        pen.fill(oval(arm.side * 10.6, 92.4, 4.4, 5, steps=16), cloth.base)
    if is_long and outfit.garment in ("hoodie", "sweater"):
        pen.fill(hem(sleeve, widths, 0.86), cloth.shade)
    elif is_long:
        cuff = CLOTH[outfit.bottom_colour] if outfit.top == "white" else CLOTH["white"]
        pen.fill(hem(sleeve, widths, 0.86), pen.ink(cuff).base)


def draw_sleeve_pattern(pen: Pen, path: np.ndarray, widths, outfit: Outfit) -> None:
    colour = pen.ink(SECOND.get(outfit.top, WHITE)).base
    length = np.abs(np.diff(path)).sum()
    if outfit.pattern == "stripes":
        for start in np.arange(8, length * 0.86 - 5, 10.4):
            pen.fill(tube(path, widths, start / length, (start + 4) / length), colour)
    elif outfit.pattern == "dots":
        for i, start in enumerate(np.arange(7, length * 0.84, 7.5)):
            place = part(path, start / length, 1)[0]
            pen.fill(place + oval((2, -2)[i % 2], 0, 2.3, 2.3, steps=14), colour)


def draw_leg(pen: Pen, leg: Limb, outfit: Outfit, skin: Ink, above: np.ndarray) -> None:
    """`above` is the outline of what throws its shadow on the leg."""

    def at(points):
        return leg.path[-1] + leg.along * -1j * (points if leg.side > 0 else mirror(points))

    pen.band(leg.path, LEG_WIDTHS, skin.base)
    pen.shade(above + 5j, tube(leg.path, LEG_WIDTHS), skin.shade)
    if outfit.socks:
        sock = part(leg.path, 0.52 if outfit.bottom == "skirt" else 0.74, 1)
        pen.band(sock, (10.8, 10.6, 8.8), pen.ink(CLOTH[outfit.socks]).base)
    shoe = pen.ink(CLOTH[outfit.shoes])
    pen.shape(at(SHOE), shoe.base)
    pen.shade(at(SHOE_SHADE), at(SHOE), shoe.shade)
    pen.fill(at(SOLE), mix(shoe.base, pen.line, 0.55))
    pen.stroke(at(line((-4.6, 1.6), (0, 3.2), (5.4, 1.8))), 1.2, mix(shoe.base, pen.line, 0.5))
    pen.stroke(at(flow((-3.6, 6.6), (-1.4, 5), (1.4, 5))), 1.3, shoe.light)
