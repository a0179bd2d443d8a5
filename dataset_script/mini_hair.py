"""Hair: what hangs behind the body, and crown, fringe and side locks in front of the face. Design units, head upright."""

from itertools import pairwise

import numpy as np

from .mini_palette import EYES, HAIR, Character, mix
from .mini_pen import Pen, both, curve, mirror, oval, smooth

CROWN = oval(0, 42, 37, 36, 180, 360)
CHIN = 78

# Right halves of outlines, from the top; a point given twice is a tip.
NAPE = ((10, 14), (31, 22), (37, 46), (36, 70), (32, 82), (32, 82), (24, 79), (12, 81))
SHORT = (
    *((10, 14), (30, 18), (38, 36), (41, 58), (45, 75), (45, 74), (39, 75), (37, 85), (37, 85), (28, 81)),
    *((24, 89), (24, 89), (12, 84)),
)
LONG = (
    *((10, 14), (30, 18), (39, 40), (42, 76), (44, 112), (52, 140), (52, 140), (44, 139), (41, 155), (41, 155)),
    *((31, 146), (25, 159), (25, 159), (15, 150), (8, 156), (8, 156), (3, 151)),
)
TAIL = (
    *((33, 16), (50, 10), (64, 28), (66, 62), (64, 92), (69, 118), (69, 118), (58, 112), (57, 132), (57, 132)),
    *((47, 112), (43, 82), (45, 52), (38, 34), (30, 28)),
)
PONYTAIL = (
    *((10, 8), (22, -1), (46, 2), (63, 24), (62, 58), (66, 86), (66, 86), (57, 84), (58, 108), (58, 108), (48, 92)),
    *((44, 64), (45, 38), (36, 24), (22, 18)),
)
BACK_HAIR = {
    "short_hair": (SHORT,),
    "long_hair": (LONG,),
    "twintails": (NAPE,),
    "ponytail": (NAPE,),
    "twin_braids": (NAPE,),
    "double_bun": (NAPE,),
}
# From the right side lock's tip to the left one's: tips and the notches between them by turns.
BANGS_EDGES = {
    "blunt_bangs": (
        *((34, 84), (27, 42), (23, 49), (18, 43), (10, 50), (4, 43), (-4, 50), (-10, 43), (-17, 50), (-22, 43)),
        *((-25, 49), (-28, 42), (-34, 84)),
    ),
    "swept_bangs": (
        *(
            (41, 69),
            (37, 66),
            (34, 82),
            (29, 46),
            (26, 59),
            (20, 40),
            (14, 53),
            (9, 37),
            (2, 49),
            (-3, 33),
            (-10, 43),
            (-15, 24),
        ),
        *((-25, 50), (-28, 40), (-33, 88), (-37, 66), (-41, 72)),
    ),
    "parted_bangs": (
        *(
            (42, 76),
            (37, 72),
            (33, 92),
            (30, 52),
            (27, 62),
            (23, 42),
            (17, 49),
            (0, 15),
            (-17, 49),
            (-23, 42),
            (-27, 62),
            (-30, 52),
        ),
        *((-33, 92), (-37, 72), (-42, 76)),
    ),
}
WHORLS = {"blunt_bangs": (0, 8), "swept_bangs": (-16, 9), "parted_bangs": (0, 7)}


def leaf(start: tuple, stop: tuple) -> tuple:
    """The control point that rounds a lock's edge outward between a notch and a tip."""
    notch, tip = (start, stop) if start[1] < stop[1] else (stop, start)
    return 0.72 * notch[0] + 0.28 * tip[0], 0.35 * notch[1] + 0.65 * tip[1]


def fringe(bangs: str) -> np.ndarray:
    """The outline of all hair in front: over the crown and back along the edge of the bangs."""
    edge = BANGS_EDGES[bangs]
    controls = [(38, 54)]
    for here, there in pairwise(edge):
        controls += [here, here, leaf(here, there)]
    controls += [edge[-1], edge[-1], (-38, 54)]
    return np.concatenate([CROWN, curve(tuple(controls), closed=False)])


def sliver(notch: complex, tip: complex, bulge: tuple, whorl: complex) -> np.ndarray:
    """The shadow along the right edge of a lock."""
    root, inner = notch + (whorl - notch) * 0.3, tip * 0.45 + notch * 0.55 - 2.6 - 3j
    points = [root, root, notch, complex(*bulge), tip, tip, inner]
    return smooth(np.array(points), rounds=2)


FRINGES = {bangs: fringe(bangs) for bangs in BANGS_EDGES}


def ring(start: float, stop: float, teeth: int) -> np.ndarray:
    """A piece of the sheen about the head, between two angles in degrees: smooth above, toothed below."""
    angles = np.radians(np.linspace(start, stop, 2 * teeth + 1))
    thick = np.sin(np.linspace(0, np.pi, 2 * teeth + 1)) ** 0.6 * np.where(np.arange(2 * teeth + 1) % 2, 8.4, 4.2)
    upper, lower = np.cos(angles) * 29 + 1j * np.sin(angles) * 28, np.exp(1j * angles) * thick
    return 51j + np.concatenate([upper, (upper - lower)[::-1]])


SHEEN = (ring(214, 262, 6), ring(268, 300, 4), ring(306, 318, 2))


RIBBON_LOOP = curve(((0, 0), (0, 0), (4, -5), (8.4, -5), (8.6, 3.4), (4.4, 3.6)))
RIBBON_END = curve(((0, 0), (3, 1.4), (6, 8), (6, 8), (3.4, 7.6), (2, 9.4), (2, 9.4)))
AHOGE = curve(((-8, 9), (-8, 9), (-8, 2), (-2, -3.4), (5, -1), (5, -1), (-1, 0.4), (-3.4, 4), (-2, 9), (-2, 9)))


def braid(pen: Pen, ink, band) -> None:
    """Both braids hang beside the shoulders: lobes by turns, a tuft at the end."""
    for turn in (lambda points: points, mirror):
        for i in range(6):
            x, y = 34 + i * 1.4, 70 + i * 9.5
            pen.shape(turn(oval(x + (1.4 if i % 2 else -1.4), y, 7.2 - i * 0.3, 6.6, steps=16)), ink.base)
            pen.stroke(
                turn(np.array([complex(x - 4, y - 2), complex(x + 1, y + 2), complex(x + 4, y + 1)])), 1.0, ink.shade
            )
        end = ((39, 121), (46, 121), (49, 134), (43, 141), (43, 141), (37, 133))
        pen.shape(turn(curve(end)), ink.base)
        pen.shape(turn(oval(42.4, 121, 4.4, 2.6, steps=14)), band)


def draw_back_hair(pen: Pen, character: Character) -> None:
    ink = pen.ink(HAIR[character.hair])
    band = pen.ink(EYES[character.eyes]).base
    under = mix(ink.base, ink.shade, 0.75)
    if character.hair_style == "ponytail":
        tail = curve(PONYTAIL)
        pen.shape(tail, ink.base)
        pen.shade(curve(((60, 14), (68, 40), (70, 92), (58, 108), (52, 96), (55, 62), (54, 36))), tail, ink.shade)
        for points in (((30, 8), (46, 14), (54, 40), (53, 78)), ((28, 13), (42, 22), (49, 46), (49, 72))):
            pen.stroke(curve(points, closed=False), 1.1, ink.shade)
    for points in BACK_HAIR[character.hair_style]:
        outline = curve(both(points))
        pen.shape(outline, under)
        if character.hair_style == "long_hair":
            pen.shade(oval(0, 96, 27, 52), outline, mix(under, pen.line, 0.22))
            for x, y in ((13, 148), (24, 152), (34, 144), (42, 134)):
                for side in (1, -1):
                    path = ((side * x * 0.8, 78), (side * (x + 1), 110), (side * x * 1.05, y))
                    pen.stroke(curve(path, closed=False), 1.3, mix(under, pen.line, 0.38))
                    light = ((side * (x + 4) * 0.84, 82), (side * (x + 4.6), 104), (side * (x + 4), 128))
                    pen.stroke(curve(light, closed=False), 1.5, ink.base)
    for turn in (lambda points: points, mirror):
        if character.hair_style == "twintails":
            tail = turn(curve(TAIL))
            pen.shape(tail, ink.base)
            pen.shade(
                turn(curve(((52, 22), (56, 60), (53, 90), (57, 132), (42, 104), (40, 70), (43, 40)))), tail, ink.shade
            )
            for points in (((46, 18), (57, 34), (58, 70), (60, 108)), ((42, 22), (50, 44), (49, 80), (53, 112))):
                pen.stroke(turn(curve(points, closed=False)), 1.1, ink.shade)
            pen.stroke(turn(curve(((54, 20), (61, 36), (62, 58)), closed=False)), 2.0, ink.light)
        if character.hair_style == "double_bun":
            bun = turn(oval(30, 12, 13, 12.5))
            pen.shape(bun, ink.base)
            pen.shade(turn(oval(33, 17, 11, 9)), bun, ink.shade)
            pen.stroke(turn(oval(30, 12, 6.5, 6, 120, 400, 14)), 1.0, ink.shade)
            pen.stroke(turn(oval(29, 11, 9, 8.6, 200, 290, 10)), 2.0, ink.light)
    if character.hair_style == "twin_braids":
        braid(pen, ink, band)


def draw_front_hair(pen: Pen, character: Character) -> None:
    """Crown, fringe and side locks with strands and a sheen."""
    ink = pen.ink(HAIR[character.hair])
    outline = FRINGES[character.bangs]
    if character.bangs == "swept_bangs":
        pen.shape(AHOGE, ink.base)
    pen.shape(outline, ink.base)
    pen.shade(curve(((24, 6), (40, 20), (42, 60), (36, 96), (28, 96), (30, 60), (29, 34))), outline, ink.shade)
    pen.shade(curve(((-40, 60), (-26, 60), (-30, 96), (-40, 96))), outline, ink.shade)
    whorl = complex(*WHORLS[character.bangs])
    edge = BANGS_EDGES[character.bangs]
    for notch, tip in zip(edge[1::2], edge[2::2]):
        pen.shade(sliver(complex(*notch), complex(*tip), leaf(notch, tip), whorl), outline, ink.shade)
    lock = mix(ink.shade, pen.line, 0.3)
    for side in (1, -1):
        pen.stroke(curve(((side * 34, 34), (side * 35.4, 50), (side * 34, 66)), closed=False), 0.9, lock)
        pen.stroke(curve(((side * 12, 8), (side * 25, 16), (side * 32, 30)), closed=False), 0.8, lock)
    for piece in SHEEN:
        pen.clipped(piece, outline, mix(ink.base, ink.light, 0.8))
    for start, notch, stop in zip(edge, edge[1:], edge[2:]):
        if notch[1] < min(start[1], stop[1]) and notch != (0, 15):
            here = complex(*notch)
            way = whorl - here
            path = curve(
                tuple((p.real, p.imag) for p in (here, here + way * 0.35 + here.real * 0.10, here + way * 0.6)),
                closed=False,
            )
            pen.stroke(path, 1.0, mix(ink.shade, pen.line, 0.45))
    if character.bangs == "parted_bangs":
        pen.stroke(curve(((0, 16), (0.6, 11), (0, 7)), closed=False), 0.9, mix(ink.shade, pen.line, 0.45))
    band = pen.ink(EYES[character.eyes])
    if character.hair_style == "ponytail":
        draw_ribbon(pen, 27 + 11j, band, 0.6)
    if character.hair_style in ("twintails", "double_bun"):
        for side in (1, -1):
            draw_ribbon(
                pen,
                complex(side * 36, 20) if character.hair_style == "twintails" else complex(side * 25, 21),
                band,
                side,
            )


def draw_ribbon(pen: Pen, place: complex, ink, lean: float) -> None:
    """A bow, leaning to the right with a positive `lean`."""
    turned = pen.through(pen.frame.within(complex(1, 0.6 * lean), 0, place))
    for turn in (lambda points: points, mirror):
        turned.shape(turn(RIBBON_END), ink.shade)
    for turn in (lambda points: points, mirror):
        turned.shape(turn(RIBBON_LOOP), ink.base)
        turned.stroke(turn(np.array([2 + 0j, 4.4 - 0.6j, 6 - 0.4j])), 0.9, ink.shade)
    turned.shape(oval(0, 0, 2, 2.4, steps=12), ink.base)
