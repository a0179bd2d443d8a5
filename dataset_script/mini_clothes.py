"""Clothes of the trunk: top, collar, skirt, pants and shorts. Design units: chin at y = 78, waist at 124, soles at 206."""

import numpy as np

from .mini_body import SECOND, Limb
from .mini_palette import CLOTH, Outfit, mix
from .mini_pen import SIDES, WHITE, Ink, Pen, both, curve, flow, hem, line, oval, part, tube

# Right halves of outlines, from the top; a point given twice is a corner.
FITTED = (
    *((5, 82), (12, 85), (17, 88), (18, 96), (14.5, 106), (13, 115), (14.5, 124)),
    *((15.5, 130), (15.5, 130), (8, 131.5)),
)
LOOSE = ((6, 82), (13, 85), (18, 88), (19, 98), (18, 112), (19.5, 124), (18.5, 132), (18.5, 132), (8, 133))
TORSOS = {"shirt": FITTED, "sailor": FITTED, "hoodie": LOOSE, "sweater": LOOSE}
HEMS = {"hoodie": 127, "sweater": 126}
STRIPES = (97, 108, 119)
DOTS = (
    *((-10.5, 97), (10.5, 97), (0, 102), (-9.5, 108), (9.5, 108)),
    *((0, 114), (-9.5, 120), (9.5, 120), (0, 126)),
)
TORSO_SHADE = curve(((9, 84), (22, 84), (22, 134), (8, 134), (9, 118), (6, 104)))
CHIN_SHADE = curve(((-24, 80), (24, 80), (12, 91), (0, 94), (-12, 90)))

HOOD = curve(((2, 94), (2, 94), (8, 90), (11, 82), (17, 84), (18, 90), (12, 95)))
POCKET = curve(both(((9, 113), (9, 113), (13.5, 121), (13.5, 126.6), (13.5, 126.6))), rounds=2)
ROLL = curve(both(((3, 79), (7, 79.5), (7.6, 84), (6.4, 88.6), (3, 89.4))))
FLAP = curve(((5, 82), (5, 82), (15, 84), (17.5, 88), (16, 95), (16, 95), (8, 97), (0, 99), (0, 99)), rounds=2)
BOW_LOOP = curve(((0, 0), (0, 0), (6, -4.4), (9, -3.4), (9, 3.4), (6, 4.4)), rounds=2)
BOW_END = curve(((0, 0), (2.4, 2), (6, 12), (6, 12), (2.4, 10), (0.4, 4)), rounds=2)

PLEATS = (-26, -17.5, -9, 0, 9, 17.5, 26)
HIPS = curve(both(((14, 122), (14, 122), (16.6, 130), (16, 138), (4, 142))))
HIPS_SHADE = curve(((8, 120), (20, 120), (20, 146), (10, 146), (10, 132)))


def draw_top(pen: Pen, outfit: Outfit) -> None:
    cloth, second = pen.ink(CLOTH[outfit.top]), pen.ink(SECOND.get(outfit.top, WHITE)).base
    torso = curve(both(TORSOS[outfit.garment]))
    pen.shape(torso, cloth.base)
    if outfit.pattern == "stripes":
        for y in STRIPES:
            pen.clipped(line((-30, y), (30, y), (30, y + 4.4), (-30, y + 4.4)), torso, second)
    elif outfit.pattern == "dots":
        for x, y in DOTS:
            pen.clipped(oval(x, y, 2.9, 2.9, steps=16), torso, second)
    pen.darken(TORSO_SHADE, torso)
    pen.darken(CHIN_SHADE, torso)
    if outfit.pattern == "plain":
        pen.stroke(flow((13, 104), (9, 107), (5, 107)), 1.2, cloth.shade)
        pen.stroke(flow((-13, 112), (-9, 114), (-6, 113.6)), 1.2, cloth.shade)
    if outfit.garment in HEMS:
        y = HEMS[outfit.garment]
        pen.clipped(line((-22, y), (22, y), (22, 136), (-22, 136)), torso, cloth.shade)
        seam = tube(line((-22, y), (0, y), (22, y)), (0.9, 0.9))
        pen.clipped(seam, torso, mix(cloth.shade, pen.line, 0.4))


def draw_collar(pen: Pen, outfit: Outfit, skin: Ink) -> None:
    """What lies about the neck, and what hangs from it."""
    cloth, other = pen.ink(CLOTH[outfit.top]), pen.ink(CLOTH[outfit.bottom_colour])
    trim = other if outfit.top == "white" else pen.ink(CLOTH["white"])
    if outfit.garment == "sweater":
        pen.shape(ROLL, cloth.base)
        pen.shade(ROLL + 4, ROLL, cloth.shade)
    elif outfit.garment == "hoodie":
        for turn in SIDES:
            hood = turn(HOOD)
            pen.shape(hood, cloth.base)
            pen.shade(hood + 1.5 + 2.5j, hood, cloth.shade)
            pen.stroke(turn(line((4, 94), (4.6, 100), (4.4, 106))), 1.5, trim.base, thin=1.2)
        pen.shape(POCKET, cloth.base, 0.5)
    elif outfit.garment == "sailor":
        neckline = line((-5.6, 83), (5.6, 83), (0, 97))
        pen.fill(neckline, skin.base)
        pen.shade(neckline - 5j, neckline, skin.shade)
        for turn in SIDES:
            pen.shape(turn(FLAP), other.base)
            stripe = cloth.shade if outfit.bottom_colour == "white" else pen.ink(CLOTH["white"]).base
            pen.stroke(turn(flow((15.6, 92.6), (8, 94.4), (2.6, 96))), 1.2, stripe, thin=1.0)
        draw_bow(pen, 98.5, other)
    else:
        pen.fill(line((-5.2, 82), (5.2, 82), (0, 91)), skin.shade)
        pen.stroke(line((0, 90), (0.4, 112), (0, 131)), 0.9, mix(cloth.shade, pen.line, 0.4), thin=0.7)
        for turn in SIDES:
            pen.shape(turn(line((5, 80), (9, 84), (7.6, 93), (0, 89.6))), trim.base)
        draw_bow(pen, 92, other)


def draw_bow(pen: Pen, y: float, ink: Ink) -> None:
    for turn in SIDES:
        pen.shape(turn(BOW_END) + y * 1j, ink.shade)
    for turn in SIDES:
        pen.shape(turn(BOW_LOOP) + y * 1j, ink.base)
    pen.shape(oval(0, y, 2.4, 2.6, steps=14), ink.base)


def draw_bottom(pen: Pen, legs: list[Limb], outfit: Outfit, flare: float) -> None:
    """`flare` widens the hem of a skirt."""
    cloth = pen.ink(CLOTH[outfit.bottom_colour])
    crease = mix(cloth.shade, pen.line, 0.45)
    if outfit.bottom == "skirt":
        draw_skirt(pen, cloth, crease, flare)
    elif outfit.bottom == "pants":
        draw_trousers(pen, [part(leg.path, 0, 0.97) for leg in legs], (18, 16, 14, 13.4, 13.6), cloth, crease, 141)
    else:
        draw_trousers(pen, [part(leg.path, 0, 0.4) for leg in legs], (17.4, 17.4, 17.6), cloth, crease, 152)


def skirt_outline(flare: float) -> np.ndarray:
    """Hips, and a hem that hangs a little lower in the middle."""
    sides = ((12, 122), (14.5, 122), (14.5, 122), (21, 138))
    corner, hanging = (31 * flare, 151), [(1.19 * flare * x, 153.5 + 1.6 * (1 - (x / 31) ** 2)) for x in PLEATS]
    left = [(-x, y) for x, y in reversed(sides)]
    return curve((*left, *sides, corner, corner, *reversed(hanging), *[(-corner[0], corner[1])] * 2))


def draw_skirt(pen: Pen, cloth: Ink, crease, flare: float) -> None:
    skirt = skirt_outline(flare)
    pen.shape(skirt, cloth.base)
    for x in PLEATS:
        low = x * flare * 1.14
        pen.clipped(line((x * 0.46, 124), (low + 3.2, 158), (low - 1.6, 158)), skirt, cloth.shade)
        fold = tube(line((x * 0.46, 127), (x * 0.8, 140), (low - 1.6, 157)), (0.4, 0.9, 1.0))
        pen.clipped(fold, skirt, crease)
    pen.fill(line((-14.4, 122), (14.4, 122), (15.6, 126.4), (-15.6, 126.4)), cloth.shade)


def draw_trousers(pen: Pen, paths: list[np.ndarray], widths, cloth: Ink, crease, fly: float) -> None:
    """`fly` is how far down the seam between the legs is seen."""
    pen.outline(HIPS)
    for path in paths:
        pen.outline(tube(path, widths))
    for path in paths:
        pen.fill(tube(path, widths), cloth.base)
        pen.darken_band(path, widths)
        pen.fill(hem(path, widths, 0.9), cloth.shade)
    pen.fill(HIPS, cloth.base)
    pen.darken(HIPS_SHADE, HIPS)
    pen.stroke(line((0, 128), (0.3, (fly + 127) / 2), (0, fly)), 1.3, pen.line)
    for side in (1, -1):
        pen.stroke(flow((side * 15, 128), (side * 11, 133), (side * 12, 137)), 1.0, crease)
