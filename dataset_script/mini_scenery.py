"""Backgrounds, drawn in shares of the picture (x to the right, y down, 0 to 1) at twice the wanted size."""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageOps

from .mini_palette import RGB, between, mix, pick

WHITE = (255, 255, 255)
PASTELS = ((250, 224, 226), (222, 236, 250), (224, 246, 232), (252, 244, 216), (236, 226, 248), (236, 236, 238))
# Upper and lower colour of the sky or wall.
SKIES = {
    "day": ((112, 186, 246), (236, 248, 255)),
    "night": ((38, 46, 112), (140, 124, 190)),
    "sunset": ((118, 98, 176), (255, 204, 148)),
    "beach": ((92, 178, 246), (232, 248, 254)),
    "room": ((250, 240, 222), (246, 230, 208)),
    "cherry_blossoms": ((178, 214, 250), (255, 240, 246)),
}
BACKGROUNDS = {
    "plain": ["simple_background"],
    "gradient": ["gradient_background"],
    "day": ["outdoors", "day"],
    "night": ["outdoors", "night"],
    "sunset": ["outdoors", "sunset"],
    "beach": ["outdoors", "beach"],
    "room": ["indoors"],
    "cherry_blossoms": ["outdoors", "cherry_blossoms"],
}
FINER = 2


@dataclass(frozen=True)
class Brush:
    """Paints on `image`, which is `side` pixels wide and high."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    side: int

    def polygon(self, points, colour: RGB) -> None:
        self.draw.polygon([round(v * self.side) for point in points for v in point], fill=colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        box = (x - rx, y - ry, x + rx, y + ry)
        self.draw.ellipse([round(v * self.side) for v in box], fill=colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: RGB) -> None:
        self.draw.rectangle([round(v * self.side) for v in (x0, y0, x1, y1)], fill=colour)

    def ramp(self, y0: float, y1: float, upper: RGB, lower: RGB) -> None:
        """A band as wide as the picture, from one colour to another."""
        low, high = round(y0 * self.side), round(y1 * self.side)
        strip = Image.linear_gradient("L").resize((1, high - low)).resize((self.side, high - low))
        self.image.paste(ImageOps.colorize(strip, upper, lower), (0, low))


def draw_background(kind: str, rng: random.Random, size: int, ground: tuple[float, float]) -> Image.Image:
    """RGB, `size` x `size`; `kind` is a key of `BACKGROUNDS`; a shadow lies at `ground` (x, y)."""
    side = size * FINER
    pastel, second = pick(rng, PASTELS), pick(rng, PASTELS)
    upper, lower = SKIES.get(kind, (pastel, pastel))
    if kind == "gradient":
        upper, lower = mix(pastel, (120, 140, 214), 0.5), mix(second, WHITE, 0.3)
    image = Image.new("RGB", (side, side), upper)
    brush = Brush(image, ImageDraw.Draw(image), side)
    if upper != lower:
        brush.ramp(0, 1, upper, lower)
    PAINTERS.get(kind, paint_nothing)(brush, rng)
    cast_shadow(image, ground)
    return image.reduce(FINER)


def cast_shadow(image: Image.Image, ground: tuple[float, float]) -> None:
    """Darkens the floor under the feet."""
    side = image.width
    x, y = ground[0] * side, (ground[1] - 0.012) * side
    box = tuple(max(0, min(side, round(v))) for v in (x - 0.2 * side, y - 0.05 * side, x + 0.2 * side, y + 0.05 * side))
    patch = image.crop(box)
    mask = Image.new("L", patch.size)
    left, top = x - box[0] - 0.16 * side, y - box[1] - 0.024 * side
    ImageDraw.Draw(mask).ellipse([round(v) for v in (left, top, left + 0.32 * side, top + 0.048 * side)], fill=110)
    image.paste(ImageOps.colorize(patch.convert("L"), (30, 20, 50), (130, 120, 160)), box[:2], mask)


def paint_nothing(brush: Brush, rng: random.Random) -> None:
    pass


def paint_cloud(brush: Brush, x: float, y: float, scale: float, colour: RGB = WHITE) -> None:
    for dx, dy, r in ((-0.09, 0.02, 0.045), (-0.035, -0.012, 0.065), (0.04, 0, 0.055), (0.095, 0.022, 0.04)):
        brush.oval(x + dx * scale, y + dy * scale, r * scale * 1.1, r * scale * 0.9, colour)
    brush.oval(x, y + 0.035 * scale, 0.14 * scale, 0.03 * scale, colour)


def paint_day(brush: Brush, rng: random.Random) -> None:
    x = between(rng, 0.1, 0.9)
    paint_cloud(brush, x, between(rng, 0.12, 0.25), 1.3)
    paint_cloud(brush, (x + 0.5) % 1, between(rng, 0.2, 0.42), 0.9)
    brush.oval(1 - x, 1.12, 0.75, 0.44, (150, 214, 150))
    brush.oval(x, 1.3, 1.0, 0.52, (124, 196, 112))
    for _ in range(14):
        at, high = between(rng, 0, 1), between(rng, 0.86, 0.98)
        brush.polygon(
            [
                (at - 0.012, high),
                (at - 0.004, high - 0.03),
                (at + 0.002, high - 0.004),
                (at + 0.01, high - 0.024),
                (at + 0.014, high),
            ],
            (98, 172, 92),
        )


def paint_night(brush: Brush, rng: random.Random) -> None:
    x = between(rng, 0.1, 0.9)
    for _ in range(36):
        r = between(rng, 0.002, 0.006)
        brush.oval(between(rng, 0, 1), between(rng, 0, 0.66), r, r, (250, 246, 214))
    brush.oval(x, 0.16, 0.085, 0.085, (255, 242, 190))
    brush.oval(x + 0.035, 0.145, 0.072, 0.072, (45, 53, 117))
    place = between(rng, -0.08, 0)
    while place < 1:
        wide, top = between(rng, 0.09, 0.17), between(rng, 0.52, 0.74)
        brush.box(place, top, place + wide, 0.9, (62, 64, 128))
        for row in range(4):
            for column in range(3):
                if rng.random() < 0.4:
                    left = place + wide * (0.16 + column * 0.27)
                    brush.box(
                        left, top + 0.03 + row * 0.05, left + wide * 0.15, top + 0.053 + row * 0.05, (248, 216, 130)
                    )
        place += wide + 0.01
    brush.ramp(0.87, 1, (92, 88, 148), (118, 110, 170))


def paint_sunset(brush: Brush, rng: random.Random) -> None:
    x = between(rng, 0.15, 0.85)
    brush.oval(x, 0.56, 0.14, 0.14, (255, 238, 190))
    for y in (0.16, 0.3, 0.42):
        at, wide = between(rng, 0, 1), between(rng, 0.2, 0.34)
        brush.oval(at, y, wide, 0.018, (250, 176, 160))
        brush.oval(at + 0.1, y + 0.024, wide * 0.7, 0.013, (252, 196, 170))
    brush.polygon(
        [(0, 0.7), (0.2, 0.6), (0.4, 0.69), (0.62, 0.58), (0.84, 0.68), (1, 0.62), (1, 1), (0, 1)], (134, 98, 150)
    )
    brush.ramp(0.76, 1, (146, 112, 138), (176, 134, 140))


def paint_beach(brush: Brush, rng: random.Random) -> None:
    x = between(rng, 0.1, 0.9)
    paint_cloud(brush, x, between(rng, 0.14, 0.3), 1.1)
    brush.ramp(0.56, 0.8, (52, 138, 212), (122, 214, 226))
    for _ in range(9):
        at, y = between(rng, 0, 1), between(rng, 0.58, 0.74)
        brush.oval(at, y, between(rng, 0.02, 0.06), 0.004, (214, 242, 250))
    brush.oval(0.5, 1.3, 1.1, 0.53, WHITE)
    brush.oval(0.5, 1.31, 1.1, 0.53, (250, 226, 176))
    brush.oval(x, 1.2, 0.7, 0.3, (242, 212, 156))


def paint_room(brush: Brush, rng: random.Random) -> None:
    x = between(rng, 0.2, 0.8)
    brush.box(x - 0.17, 0.1, x + 0.17, 0.48, (186, 138, 104))
    brush.box(x - 0.15, 0.12, x + 0.15, 0.46, (178, 222, 250))
    paint_cloud(brush, x - 0.03, 0.26, 0.6)
    brush.box(x - 0.008, 0.12, x + 0.008, 0.46, (186, 138, 104))
    brush.box(x - 0.15, 0.28, x + 0.15, 0.295, (186, 138, 104))
    for side in (-1, 1):
        edge = x + side * 0.23
        brush.polygon(
            [(x + side * 0.11, 0.07), (edge, 0.07), (edge, 0.52), (x + side * 0.17, 0.52), (x + side * 0.15, 0.3)],
            (240, 196, 196),
        )
    brush.box(x - 0.25, 0.055, x + 0.25, 0.075, (150, 106, 80))
    brush.box(0, 0.78, 1, 0.805, (255, 250, 240))
    brush.ramp(0.805, 1, (198, 150, 110), (222, 176, 132))
    for y in (0.85, 0.91, 0.965):
        brush.box(0, y, 1, y + 0.004, (178, 130, 94))


def paint_cherry_blossoms(brush: Brush, rng: random.Random) -> None:
    side = pick(rng, (-1, 1))
    brush.oval(0.5, 1.28, 1.0, 0.48, (166, 214, 150))

    def at(x):
        return 0.5 + side * (x - 0.5)

    trunk = ((0.86, 0.95), (0.89, 0.6), (0.84, 0.3), (0.9, 0.3), (0.95, 0.55), (0.99, 0.95))
    brush.polygon([(at(px), py) for px, py in trunk], (146, 104, 96))
    for cx, cy, r in ((0.98, 0.24, 0.2), (0.76, 0.13, 0.17), (0.5, 0.03, 0.14), (0.9, 0.04, 0.2), (0.24, -0.02, 0.1)):
        for shade, shift in (((244, 176, 200), 0.0), ((252, 202, 220), -0.03)):
            for _ in range(7):
                dx, dy = between(rng, -r, r) * 0.7, between(rng, -r, r) * 0.6
                brush.oval(at(cx + dx), cy + dy + shift, r * 0.5, r * 0.46, shade)
    for _ in range(26):
        px, py = between(rng, 0, 1), between(rng, 0.15, 0.97)
        brush.oval(px, py, 0.009, 0.006, (248, 180, 204))


PAINTERS = {
    "day": paint_day,
    "night": paint_night,
    "sunset": paint_sunset,
    "beach": paint_beach,
    "room": paint_room,
    "cherry_blossoms": paint_cherry_blossoms,
}
