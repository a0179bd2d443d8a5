"""The body below the head: limbs, hands, shoes and clothes. Design units: neck at y = 78, soles at y = 206."""

from typing import NamedTuple

import numpy as np

from .mini_palette import CLOTH, Outfit, mix
from .mini_pen import Ink, Pen, both, curve, mirror, oval, part, sides, smooth, tube

# Right halves of outlines, from the top.
TORSO = (
    (5, 82),
    (12, 85),
    (17, 88),
    (18, 96),
    (14.5, 106),
    (13, 115),
    (14.5, 124),
    (15.5, 130),
    (15.5, 130),
    (8, 131.5),
)
LOOSE = ((6, 82), (13, 85), (18, 88), (19, 98), (18, 112), (19.5, 124), (18.5, 132), (18.5, 132), (8, 133))
SKIRT = ((12, 122), (14.5, 122), (14.5, 122), (21, 138), (31, 153), (31, 153))
PLEATS = (-26, -17.5, -9, 0, 9, 17.5, 26)
SHOE = curve(((-4.8, -4), (4.8, -4), (4.8, -4), (5.6, 2), (8.6, 7.4), (6.6, 11.4), (-3.6, 11.4), (-6, 8), (-5, 2)))
SOLE = curve(((-6, 9.2), (8.6, 9.2), (8.6, 9.2), (6.8, 11.8), (-3.8, 11.8), (-6, 9.2)))


RAISED = 93.5  # a hand above this is beside the head and in front of the hair


class Limb(NamedTuple):
    """A bent limb as a smooth path, from the trunk outward."""

    path: np.ndarray
    side: int  # 1 at the viewer's right, -1 at the left
    hand: str = ""


def limb(points, side: int, hand: str = "") -> Limb:
    path = smooth(np.array([complex(side * x, y) for x, y in points]), closed=False)
    return Limb(path, side, hand)


def shaded_tube(pen: Pen, path: np.ndarray, widths, ink: Ink) -> None:
    """A band without its line, dark along its right and lower edge."""
    pen.fill(tube(path, widths), ink.base)
    shade_tube(pen, path, widths)


def shade_tube(pen: Pen, path: np.ndarray, widths) -> None:
    left, right = sides(path, widths)
    if (left - right).real.sum() + 0.5 * (left - right).imag.sum() > 0:
        left, right = right, left
    inner = left * 0.34 + right * 0.66
    pen.darken(np.concatenate([inner, right[::-1]]), np.concatenate([left, right[::-1]]))


def direction(path: np.ndarray) -> complex:
    step = path[-1] - path[-2]
    return step / abs(step)


def draw_hand(pen: Pen, arm: Limb, skin: Ink) -> None:
    """At the end of the arm; fingers point along it."""
    wrist, along = arm.path[-1], direction(arm.path)
    # In a frame where fingers point to -y and the thumb to the body's middle.
    spin = along * 1j

    def at(points):
        points = np.asarray(points)
        return wrist + spin * (points.real * -arm.side + 1j * points.imag)

    def finger(x, length, lean):
        return tube(
            np.array([complex(x, -3), complex(x + lean / 2, -5 - length / 2), complex(x + lean, -5 - length)]),
            (2.9, 2.7, 2.0),
        )

    if arm.hand == "open":
        fingers = [finger(-2.8, 4.2, -2.8), finger(-1, 5.6, -0.9), finger(1.0, 5.4, 0.9), finger(2.8, 4, 2.8)]
        thumb = tube(np.array([2.6 - 1j, 5.6 - 2.4j, 8 - 4.2j]), (3.2, 3, 2.2))
    elif arm.hand == "v":
        fingers = [finger(-1.6, 6.4, -2.6), finger(1.4, 6.4, 2.2)]
        thumb = tube(np.array([3 - 3j, 1 - 3.6j, -1 - 3j]), (2.6, 2.6, 2.2))
    else:
        fingers = [curve(((-3.4, -2), (3.2, -2), (3.4, -6), (2, -9), (-1.6, -9), (-3.4, -6)))]
        thumb = tube(np.array([2.6 - 1.6j, 4.8 - 3.4j, 4.8 - 6j]), (2.8, 2.6, 2.0))
    palm = curve(((-3, 1), (3, 1), (4, -3), (3, -6), (-3, -6), (-4, -3)))
    pieces = [at(1.25 * piece) for piece in (palm, *fingers, thumb)]
    for piece in pieces:
        pen.outline(piece)
    for piece in pieces:
        pen.fill(piece, skin.base)
    if arm.hand == "v":
        pen.stroke(at(np.array([-3 - 4.6j, 0 - 5.2j, 3 - 4.6j])), 0.8)


def second_colour(colour):
    """What stripes and dots are drawn with: clearly lighter than a dark cloth, clearly darker than a light one."""
    return (252, 250, 246) if sum(colour) < 560 else mix(colour, (96, 104, 150), 0.62)


def draw_arm(pen: Pen, arm: Limb, outfit: Outfit, skin: Ink) -> None:
    cloth = pen.ink(CLOTH[outfit.sleeves])
    loose = 2.4 if outfit.garment == "hoodie" else 0.8 if outfit.garment == "sweater" else 0
    draw_hand(pen, arm, skin)
    pen.outline(tube(arm.path, (8, 7, 6)))
    shaded_tube(pen, arm.path, (8, 7, 6), skin)
    stop = 0.93 if outfit.length == "long_sleeves" else 0.46
    widths = (9, 11 + loose, 10.5 + loose, 9.5 + loose) if stop > 0.5 else (9, 11 + loose, 12 + loose, 12.6 + loose)
    sleeve = part(arm.path, 0, stop)
    pen.outline(tube(sleeve, widths))
    pen.fill(tube(sleeve, widths), cloth.base)
    if outfit.sleeves == outfit.top:
        draw_sleeve_pattern(pen, sleeve, widths, outfit, cloth)
    shade_tube(pen, sleeve, widths)
    if outfit.sleeves == outfit.top and outfit.pattern == "plain" and arm.path[-1].imag > RAISED:
        # No line between sleeve and shoulder.
        pen.fill(oval(arm.side * 10.6, 92.4, 4.4, 5, steps=16), cloth.base)
    left, right = sides(sleeve, widths)
    cuff = np.concatenate([part(left, 0.86, 1), part(right, 0.86, 1)[::-1]]) if stop > 0.5 else None
    if cuff is not None and outfit.garment in ("hoodie", "sweater"):
        pen.fill(cuff, cloth.shade)
    elif cuff is not None:
        pen.fill(cuff, pen.ink(CLOTH["white"] if outfit.top != "white" else CLOTH[outfit.bottom_colour]).base)


def draw_sleeve_pattern(pen: Pen, path: np.ndarray, widths, outfit: Outfit, cloth: Ink) -> None:
    colour = pen.ink(second_colour(CLOTH[outfit.sleeves])).base
    length = np.abs(np.diff(path)).sum()
    if outfit.pattern == "stripes":
        start = 8.0
        while start + 5 < length * 0.86:
            pen.fill(tube(path, widths, start / length, (start + 4) / length), colour)
            start += 10.4
    elif outfit.pattern == "dots":
        for i, at in enumerate(np.arange(7, length * 0.84, 7.5)):
            spot = part(path, at / length, 1)[0]
            pen.fill(spot + oval((2, -2)[i % 2], 0, 2.3, 2.3, steps=14), colour)


def draw_leg(pen: Pen, leg: Limb, outfit: Outfit, skin: Ink, under: np.ndarray) -> None:
    """`under` is what throws a shadow on the leg."""
    ankle, along = leg.path[-1], direction(leg.path)

    def at(points):
        return ankle + along * -1j * np.asarray(points * 1j * -1j if leg.side > 0 else mirror(points))

    bare = tube(leg.path, (14, 12, 10, 9.6, 8))
    pen.outline(bare)
    shaded_tube(pen, leg.path, (14, 12, 10, 9.6, 8), skin)
    pen.shade(under + 5j, bare, skin.shade)
    if outfit.socks:
        start = 0.52 if outfit.bottom == "skirt" else 0.74
        sock = part(leg.path, start, 1)
        widths = (10.8, 10.6, 8.8)
        pen.outline(tube(sock, widths))
        shaded_tube(pen, sock, widths, pen.ink(CLOTH[outfit.socks]))
    shoe = pen.ink(CLOTH[outfit.shoes])
    pen.shape(at(SHOE), shoe.base)
    pen.shade(at(curve(((3, -4), (10, 4), (9, 12), (4, 12), (5, 6)))), at(SHOE), shoe.shade)
    pen.fill(at(SOLE), mix(shoe.base, pen.line, 0.55))
    pen.stroke(at(np.array([-4.6 + 1.6j, 0 + 3.2j, 5.4 + 1.8j])), 1.2, mix(shoe.base, pen.line, 0.5))
    pen.stroke(at(curve(((-3.6, 6.6), (-1.4, 5), (1.4, 5)), closed=False)), 1.3, shoe.light)


def draw_bottom(pen: Pen, legs: list[Limb], outfit: Outfit, flare: float) -> None:
    """`flare` widens a skirt's hem."""
    cloth = pen.ink(CLOTH[outfit.bottom_colour])
    crease = mix(cloth.shade, pen.line, 0.45)
    if outfit.bottom == "skirt":
        skirt = skirt_outline(flare)
        pen.shape(skirt, cloth.base)
        for x in PLEATS:
            wedge = np.array(
                [complex(x * 0.46, 124), complex(x * flare * 1.14 + 3.2, 158), complex(x * flare * 1.14 - 1.6, 158)]
            )
            pen.clipped(wedge, skirt, cloth.shade)
            pen.clipped(
                tube(
                    np.array([complex(x * 0.46, 127), complex(x * 0.8, 140), complex(x * flare * 1.14 - 1.6, 157)]),
                    (0.4, 0.9, 1.0),
                ),
                skirt,
                crease,
            )
        pen.fill(np.array([-14.4 + 122j, 14.4 + 122j, 15.6 + 126.4j, -15.6 + 126.4j]), cloth.shade)
        return
    stop, widths = (1.0, (18, 16, 14, 13.4, 13.6)) if outfit.bottom == "pants" else (0.4, (17.4, 17.4, 17.6))
    paths = [part(leg.path, 0, stop if stop < 1 else 0.97) for leg in legs]
    hips = curve(both(((14, 122), (14, 122), (16.6, 130), (16, 138), (4, 142))))
    pen.outline(hips)
    for path in paths:
        pen.outline(tube(path, widths))
    for path in paths:
        shaded_tube(pen, path, widths, cloth)
        left, right = sides(path, widths)
        cuffs = np.concatenate([part(left, 0.9, 1), part(right, 0.9, 1)[::-1]])
        pen.fill(cuffs, cloth.shade)
    pen.fill(hips, cloth.base)
    pen.darken(curve(((8, 120), (20, 120), (20, 146), (10, 146), (10, 132))), hips)
    pen.stroke(np.array([0 + 128j, 0.3 + 134j, 0 + (141j if outfit.bottom == "pants" else 152j)]), 1.3, pen.line)
    for side in (1, -1):
        pen.stroke(curve(((side * 15, 128), (side * 11, 133), (side * 12, 137)), closed=False), 1.0, crease)


def skirt_outline(flare: float) -> np.ndarray:
    """Hips and a hem of shallow scallops."""
    hem = [(x * flare * 1.19, 153.5 + 1.6 * (1 - (x / 31) ** 2)) for x in (*PLEATS[::-1],)]
    points = [*((-x, y) for x, y in SKIRT[:4][::-1]), *SKIRT[:4]]
    return curve(
        tuple(points + [(31 * flare, 151), (31 * flare, 151)] + hem + [(-31 * flare, 151), (-31 * flare, 151)])
    )


def draw_top(pen: Pen, outfit: Outfit, skin: Ink) -> None:
    cloth = pen.ink(CLOTH[outfit.top])
    torso = curve(both(LOOSE if outfit.garment in ("hoodie", "sweater") else TORSO))
    pen.shape(torso, cloth.base)
    if outfit.pattern == "stripes":
        colour = pen.ink(second_colour(CLOTH[outfit.top])).base
        for y in (97, 108, 119):
            pen.clipped(np.array([-30 + y * 1j, 30 + y * 1j, 30 + (y + 4.4) * 1j, -30 + (y + 4.4) * 1j]), torso, colour)
    elif outfit.pattern == "dots":
        colour = pen.ink(second_colour(CLOTH[outfit.top])).base
        for x, y in (
            (-10.5, 97),
            (10.5, 97),
            (0, 102),
            (-9.5, 108),
            (9.5, 108),
            (0, 114),
            (-9.5, 120),
            (9.5, 120),
            (0, 126),
        ):
            pen.clipped(oval(x, y, 2.9, 2.9, steps=16), torso, colour)
    pen.darken(curve(((9, 84), (22, 84), (22, 134), (8, 134), (9, 118), (6, 104))), torso)
    pen.darken(curve(((-24, 80), (24, 80), (12, 91), (0, 94), (-12, 90))), torso)
    if outfit.pattern == "plain":
        for points in (((13, 104), (9, 107), (5, 107)), ((-13, 112), (-9, 114), (-6, 113.6))):
            pen.stroke(curve(points, closed=False), 1.2, cloth.shade)
    if outfit.garment in ("hoodie", "sweater"):
        low = 127 if outfit.garment == "hoodie" else 126
        pen.clipped(np.array([-22 + low * 1j, 22 + low * 1j, 22 + 136j, -22 + 136j]), torso, cloth.shade)
        pen.clipped(
            tube(np.array([-22 + low * 1j, low * 1j, 22 + low * 1j]), (0.9, 0.9)),
            torso,
            mix(cloth.shade, pen.line, 0.4),
        )


def draw_neck(pen: Pen, skin: Ink) -> None:
    neck = np.array([-4.6 + 70j, 4.6 + 70j, 5.4 + 86j, 0 + 90j, -5.4 + 86j])
    pen.shape(neck, skin.shade if pen.artist.shading != "flat" else mix(skin.base, skin.shade, 0.7))


def draw_collar(pen: Pen, outfit: Outfit, skin: Ink) -> None:
    """What lies about the neck, over the torso."""
    cloth = pen.ink(CLOTH[outfit.top])
    other = pen.ink(CLOTH[outfit.bottom_colour])
    dark = mix(cloth.shade, pen.line, 0.4)
    white = pen.ink(CLOTH["white"])
    if outfit.garment == "sweater":
        roll = curve(both(((3, 79), (7, 79.5), (7.6, 84), (6.4, 88.6), (3, 89.4))))
        pen.shape(roll, cloth.base)
        pen.shade(roll + 4, roll, cloth.shade)
    elif outfit.garment == "hoodie":
        for turn in (lambda points: points, mirror):
            hood = turn(curve(((2, 94), (2, 94), (8, 90), (11, 82), (17, 84), (18, 90), (12, 95))))
            pen.shape(hood, cloth.base)
            pen.shade(hood + 2.5j + 1.5, hood, cloth.shade)
            pen.stroke(
                turn(np.array([4 + 94j, 4.6 + 100j, 4.4 + 106j])),
                1.5,
                white.base if outfit.top != "white" else other.base,
                thin=1.2,
            )
        pocket = curve(both(((9, 113), (9, 113), (13.5, 121), (13.5, 126.6), (13.5, 126.6))), rounds=2)
        pen.shape(pocket, cloth.base, 0.5)
    elif outfit.garment == "sailor":
        cut = np.array([-5.6 + 83j, 5.6 + 83j, 0 + 97j])
        pen.fill(cut, skin.base)
        pen.shade(cut - 5j, cut, skin.shade)
        for turn in (lambda points: points, mirror):
            flap = turn(
                curve(((5, 82), (5, 82), (15, 84), (17.5, 88), (16, 95), (16, 95), (8, 97), (0, 99), (0, 99)), rounds=2)
            )
            pen.shape(flap, other.base)
            stripe = white.base if outfit.bottom_colour != "white" else cloth.shade
            pen.stroke(turn(curve(((15.6, 92.6), (8, 94.4), (2.6, 96)), closed=False)), 1.2, stripe, thin=1.0)
        draw_bow(pen, 98.5, other)
    else:
        cut = np.array([-5.2 + 82j, 5.2 + 82j, 0 + 91j])
        pen.fill(cut, skin.shade)
        line = np.array([0 + 90j, 0.4 + 112j, 0 + 131j])
        pen.stroke(line, 0.9, dark, thin=0.7)
        collar = white if outfit.top != "white" else other
        for turn in (lambda points: points, mirror):
            pen.shape(turn(np.array([5 + 80j, 9 + 84j, 7.6 + 93j, 0 + 89.6j])), collar.base)
        draw_bow(pen, 92, other)


def draw_bow(pen: Pen, y: float, ink: Ink) -> None:
    for turn in (lambda points: points, mirror):
        pen.shape(
            turn(curve(((0, y), (2.4, y + 2), (6, y + 12), (6, y + 12), (2.4, y + 10), (0.4, y + 4)), rounds=2)),
            ink.shade,
        )
    for turn in (lambda points: points, mirror):
        pen.shape(
            turn(curve(((0, y), (0, y), (6, y - 4.4), (9, y - 3.4), (9, y + 3.4), (6, y + 4.4)), rounds=2)), ink.base
        )
    pen.shape(oval(0, y, 2.4, 2.6, steps=14), ink.base)
