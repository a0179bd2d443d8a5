"""Hair: what hangs behind the body, and crown, fringe and side locks in front of the face. Design units, head upright."""

from itertools import pairwise

import numpy as np

from .mini_palette import EYES, HAIR, Character, mix
from .mini_pen import SIDES, Ink, Pen, both, curve, flow, line, oval, smooth

CROWN = oval(0, 42, 37, 36, 180, 360)
CHIN = 78

# Right halves of what is behind the neck, from the top; a point given twice is a tip.
NAPE = curve(both(((10, 14), (31, 22), (37, 46), (36, 70), (32, 82), (32, 82), (24, 79), (12, 81))))
SHORT = curve(
    both(
        (
            *((10, 14), (30, 18), (38, 36), (41, 58), (45, 75), (45, 75), (39, 75), (37, 85), (37, 85), (28, 81)),
            *((24, 89), (24, 89), (12, 84)),
        )
    )
)
LONG = curve(
    both(
        (
            *((10, 14), (30, 18), (39, 40), (42, 76), (44, 112), (52, 140), (52, 140), (44, 139), (41, 155), (41, 155)),
            *((31, 146), (25, 159), (25, 159), (15, 150), (8, 156), (8, 156), (3, 151)),
        )
    )
)
TAIL = curve(
    (
        *((33, 16), (50, 10), (64, 28), (66, 62), (64, 92), (69, 118), (69, 118), (58, 112), (57, 132), (57, 132)),
        *((47, 112), (43, 82), (45, 52), (38, 34), (30, 28)),
    )
)
PONYTAIL = curve(
    (
        *((10, 8), (22, -1), (46, 2), (63, 24), (62, 58), (66, 86), (66, 86), (57, 84), (58, 108), (58, 108), (48, 92)),
        *((44, 64), (45, 38), (36, 24), (22, 18)),
    )
)
TAIL_SHADE = curve(((52, 22), (56, 60), (53, 90), (57, 132), (42, 104), (40, 70), (43, 40)))
TAIL_STRANDS = flow((46, 18), (57, 34), (58, 70), (60, 108)), flow((42, 22), (50, 44), (49, 80), (53, 112))
TAIL_LIGHT = flow((54, 20), (61, 36), (62, 58))
PONYTAIL_SHADE = curve(((60, 14), (68, 40), (70, 92), (58, 108), (52, 96), (55, 62), (54, 36)))
PONYTAIL_STRANDS = flow((30, 8), (46, 14), (54, 40), (53, 78)), flow((28, 13), (42, 22), (49, 46), (49, 72))
BRAID_END = curve(((39, 121), (46, 121), (49, 134), (43, 141), (43, 141), (37, 133)))
BUN = oval(30, 12, 13, 12.5)

# From the right side lock's tip to the left one's: tips and the notches between them by turns.
BANGS_EDGES = {
    "blunt_bangs": (
        *((34, 84), (27, 42), (23, 49), (18, 43), (10, 50), (4, 43), (-4, 50)),
        *((-10, 43), (-17, 50), (-22, 43), (-25, 49), (-28, 42), (-34, 84)),
    ),
    "swept_bangs": (
        *((41, 69), (37, 66), (34, 82), (29, 46), (26, 59), (20, 40), (14, 53), (9, 37), (2, 49)),
        *((-3, 33), (-10, 43), (-15, 24), (-25, 50), (-28, 40), (-33, 88), (-37, 66), (-41, 72)),
    ),
    "parted_bangs": (
        *((42, 76), (37, 72), (33, 92), (30, 52), (27, 62), (23, 42), (17, 49), (0, 15)),
        *((-17, 49), (-23, 42), (-27, 62), (-30, 52), (-33, 92), (-37, 72), (-42, 76)),
    ),
}
WHORLS = {"blunt_bangs": (0, 8), "swept_bangs": (-16, 9), "parted_bangs": (0, 7)}
PARTING = flow((0, 16), (0.6, 11), (0, 7))
RIGHT_SHADE = curve(((24, 6), (40, 20), (42, 60), (36, 96), (28, 96), (30, 60), (29, 34)))
LEFT_SHADE = curve(((-40, 60), (-26, 60), (-30, 96), (-40, 96)))
AHOGE = curve(((-8, 9), (-8, 9), (-8, 2), (-2, -3.4), (5, -1), (5, -1), (-1, 0.4), (-3.4, 4), (-2, 9), (-2, 9)))
RIBBON_LOOP = curve(((0, 0), (0, 0), (4, -5), (8.4, -5), (8.6, 3.4), (4.4, 3.6)))
RIBBON_END = curve(((0, 0), (3, 1.4), (6, 8), (6, 8), (3.4, 7.6), (2, 9.4), (2, 9.4)))
# Place and lean at the viewer's right; a ponytail has no other.
RIBBONS = {"twintails": (36, 20, 1.0), "double_bun": (25, 21, 1.0), "ponytail": (27, 11, 0.6)}


def leaf(start: tuple, stop: tuple) -> tuple:
    """The control point that rounds a lock's edge outward between a notch and a tip."""
    notch, tip = (start, stop) if start[1] < stop[1] else (stop, start)
    return 0.72 * notch[0] + 0.28 * tip[0], 0.35 * notch[1] + 0.65 * tip[1]


def fringe(bangs: str) -> np.ndarray:
    """The outline of all hair in front: over the crown and back along the edge of the bangs."""
    edge = BANGS_EDGES[bangs]
    locks = [point for here, there in pairwise(edge) for point in (here, here, leaf(here, there))]
    return np.concatenate([CROWN, flow((38, 54), *locks, edge[-1], edge[-1], (-38, 54))])


def sliver(notch: tuple, tip: tuple, whorl: tuple) -> np.ndarray:
    """The shadow along the right edge of a lock."""
    high, low = complex(*notch), complex(*tip)
    root, inner = high + (complex(*whorl) - high) * 0.3, low * 0.45 + high * 0.55 - 2.6 - 3j
    return smooth(np.array([root, root, high, complex(*leaf(notch, tip)), low, low, inner]), rounds=2)


def strand(notch: tuple, whorl: tuple) -> np.ndarray:
    """Straight up from a notch first, then over to the whorl."""
    (x, y), dx, dy = notch, whorl[0] - notch[0], whorl[1] - notch[1]
    return flow(notch, (x + dx * 0.06, y + dy * 0.4), (x + dx * 0.42, y + dy * 0.74))


def ring(start: float, stop: float, teeth: int) -> np.ndarray:
    """A piece of the sheen about the head, between two angles in degrees: smooth above, toothed below."""
    angles, tooth = np.radians(np.linspace(start, stop, 2 * teeth + 1)), np.arange(2 * teeth + 1)
    thick = np.sin(np.linspace(0, np.pi, 2 * teeth + 1)) ** 0.6 * np.where(tooth % 2, 8.4, 4.2)
    upper = np.cos(angles) * 29 + 1j * np.sin(angles) * 28
    return 51j + np.concatenate([upper, (upper - np.exp(1j * angles) * thick)[::-1]])


FRINGES = {bangs: fringe(bangs) for bangs in BANGS_EDGES}
SHEEN = ring(214, 262, 6), ring(268, 300, 4), ring(306, 318, 2)


def draw_back_hair(pen: Pen, character: Character) -> None:
    ink, style = pen.ink(HAIR[character.hair]), character.hair_style
    under = mix(ink.base, ink.shade, 0.75)
    if style == "ponytail":
        draw_tail(pen, PONYTAIL, PONYTAIL_SHADE, PONYTAIL_STRANDS, ink)
    pen.shape({"short_hair": SHORT, "long_hair": LONG}.get(style, NAPE), under)
    if style == "long_hair":
        draw_long_strands(pen, ink, under)
    for turn in SIDES:
        if style == "twintails":
            draw_tail(pen, turn(TAIL), turn(TAIL_SHADE), [turn(each) for each in TAIL_STRANDS], ink)
            pen.stroke(turn(TAIL_LIGHT), 2.0, ink.light)
        elif style == "double_bun":
            draw_bun(pen, turn, ink)
        elif style == "twin_braids":
            draw_braid(pen, turn, ink, pen.ink(EYES[character.eyes]).base)


def draw_tail(pen: Pen, outline: np.ndarray, shadow: np.ndarray, strands, ink: Ink) -> None:
    pen.shape(outline, ink.base)
    pen.shade(shadow, outline, ink.shade)
    for each in strands:
        pen.stroke(each, 1.1, ink.shade)


def draw_long_strands(pen: Pen, ink: Ink, under) -> None:
    """Dark behind the body, strands with lights between them at both sides."""
    pen.shade(oval(0, 96, 27, 52), LONG, mix(under, pen.line, 0.22))
    for x, y in ((13, 148), (24, 152), (34, 144), (42, 134)):
        for side in (1, -1):
            pen.stroke(
                flow((side * x * 0.8, 78), (side * (x + 1), 110), (side * x * 1.05, y)), 1.3, mix(under, pen.line, 0.38)
            )
            if x < 40:
                light = flow((side * (x + 4) * 0.84, 82), (side * (x + 4.6), 104), (side * (x + 4), 128))
                pen.stroke(light, 1.5, ink.base)


def draw_bun(pen: Pen, turn, ink: Ink) -> None:
    pen.shape(turn(BUN), ink.base)
    pen.shade(turn(oval(33, 17, 11, 9)), turn(BUN), ink.shade)
    pen.stroke(turn(oval(30, 12, 6.5, 6, 120, 400, 14)), 1.0, ink.shade)
    pen.stroke(turn(oval(29, 11, 9, 8.6, 200, 290, 10)), 2.0, ink.light)


def draw_braid(pen: Pen, turn, ink: Ink, band) -> None:
    """It hangs beside the shoulder: lobes by turns, and a tuft at the end."""
    for i in range(6):
        x, y = 34 + i * 1.4, 70 + i * 9.5
        pen.shape(turn(oval(x + (1.4 if i % 2 else -1.4), y, 7.2 - i * 0.3, 6.6, steps=16)), ink.base)
        pen.stroke(turn(line((x - 4, y - 2), (x + 1, y + 2), (x + 4, y + 1))), 1.0, ink.shade)
    pen.shape(turn(BRAID_END), ink.base)
    pen.shape(turn(oval(42.4, 121, 4.4, 2.6, steps=14)), band)


def draw_front_hair(pen: Pen, character: Character) -> None:
    """Crown, fringe and side locks with shadows, strands and a sheen, and ribbons of the eyes' colour."""
    ink, outline = pen.ink(HAIR[character.hair]), FRINGES[character.bangs]
    edge, whorl = BANGS_EDGES[character.bangs], WHORLS[character.bangs]
    if character.bangs == "swept_bangs":
        pen.shape(AHOGE, ink.base)
    pen.shape(outline, ink.base)
    pen.shade(RIGHT_SHADE, outline, ink.shade)
    pen.shade(LEFT_SHADE, outline, ink.shade)
    for notch, tip in zip(edge[1::2], edge[2::2]):
        pen.shade(sliver(notch, tip, whorl), outline, ink.shade)
    for side in (1, -1):
        for points in (((34, 34), (35.4, 50), (34, 66)), ((12, 8), (25, 16), (32, 30))):
            pen.stroke(flow(*((side * x, y) for x, y in points)), 0.85, mix(ink.shade, pen.line, 0.3))
    for piece in SHEEN:
        pen.clipped(piece, outline, mix(ink.base, ink.light, 0.8))
    dark = mix(ink.shade, pen.line, 0.45)
    for notch in edge[1::2]:
        # The notch of a middle parting has a line of its own.
        pen.stroke(strand(notch, whorl) if notch[0] else PARTING, 1.0, dark)
    if character.hair_style in RIBBONS:
        x, y, lean = RIBBONS[character.hair_style]
        for side in (1,) if character.hair_style == "ponytail" else (1, -1):
            draw_ribbon(pen, complex(side * x, y), pen.ink(EYES[character.eyes]), side * lean)


def draw_ribbon(pen: Pen, place: complex, ink: Ink, lean: float) -> None:
    """A bow, leaning to the right with a positive `lean`."""
    turned = pen.through(pen.frame.within(complex(1, 0.6 * lean), 0, place))
    for turn in SIDES:
        turned.shape(turn(RIBBON_END), ink.shade)
    for turn in SIDES:
        turned.shape(turn(RIBBON_LOOP), ink.base)
        turned.stroke(turn(line((2, 0), (4.4, -0.6), (6, -0.4))), 0.9, ink.shade)
    turned.shape(oval(0, 0, 2, 2.4, steps=12), ink.base)
