"""A small edition drawn by code: chibi figures with known identity, exact masks and head boxes, without a network.

Figures are drawn in a design space of 100 x 100 units (x to the right, y down) at four times the wanted size and
then downsampled. An identity is a `Character` in an `Outfit`; pose, expression and background vary by image.
"""

import json
import math
import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

from .files import encode_png, replacing

ARTIST = "retribooru_mini"
OVERSAMPLING = 4
MAX_SIZE = 4096
INK = (66, 44, 62)
WHITE = (252, 250, 246)

HAIR = {
    "black": (58, 56, 74),
    "brown": (132, 84, 56),
    "blonde": (248, 214, 110),
    "red": (206, 52, 52),
    "orange": (246, 142, 54),
    "pink": (250, 158, 190),
    "purple": (146, 92, 196),
    "blue": (70, 120, 220),
    "green": (84, 176, 104),
    "white": (236, 236, 244),
}
EYES = {
    "blue": (50, 120, 235),
    "green": (40, 165, 80),
    "red": (215, 40, 50),
    "yellow": (240, 180, 30),
    "purple": (145, 70, 205),
    "brown": (130, 75, 45),
}
SKIN = {"pale_skin": (255, 229, 212), "tan": (233, 182, 140), "dark_skin": (158, 104, 76)}
CLOTH = {
    "white": (246, 246, 248),
    "black": (62, 60, 72),
    "red": (216, 54, 60),
    "orange": (244, 146, 52),
    "yellow": (250, 218, 84),
    "green": (76, 164, 92),
    "blue": (64, 112, 214),
    "purple": (142, 90, 190),
    "pink": (248, 156, 186),
    "brown": (140, 94, 64),
}
PATTERNS = {"plain": [], "stripes": ["striped"], "dots": ["polka_dot"]}
BOTTOMS = ("skirt", "pants")
PASTELS = ((250, 226, 226), (226, 238, 250), (228, 246, 230), (252, 244, 218), (238, 228, 248), (238, 238, 238))

# The arm at the viewer's left, from shoulder over elbow to hand; the other one is its mirror image.
DOWN = ((42, 58), (36, 66), (34, 74))
UP = ((42, 58), (29, 58), (19, 45))
HIP = ((42, 58), (31, 65), (40, 71))
OUT = ((42, 58), (32, 60), (21, 63))
POSES = {
    "standing": (DOWN, DOWN),
    "arms_up": (UP, UP),
    "waving": (DOWN, UP),
    "hand_on_own_hip": (HIP, DOWN),
    "outstretched_arms": (OUT, OUT),
}
EXPRESSIONS = {
    "smile": ["smile"],
    "open_mouth": ["open_mouth", "smile"],
    "frown": ["frown"],
    "wink": ["one_eye_closed", "smile"],
    "blush": ["blush", "closed_mouth"],
}
BACKGROUNDS = {
    "plain": ["simple_background"],
    "gradient": ["gradient_background"],
    "day": ["outdoors", "day"],
    "night": ["outdoors", "night"],
    "room": ["indoors"],
}


def mirror(points):
    return [(100 - x, y) for x, y in points]


# What hangs from the head behind the body, as control points of closed curves.
TAIL = [(28, 22), (18, 20), (10, 34), (9, 52), (14, 68), (14, 68), (21, 58), (25, 44), (28, 32)]
BACK_HAIR = {
    "short_hair": [[(25, 28), (22, 44), (25, 56), (36, 57), (64, 57), (75, 56), (78, 44), (75, 28)]],
    "long_hair": [
        [
            (26, 24),
            (22, 44),
            (21, 62),
            (18, 80),
            (18, 80),
            (28, 82),
            (34, 79),
            (42, 82),
            (58, 82),
            (66, 79),
            (72, 82),
            (82, 80),
            (82, 80),
            (79, 62),
            (78, 44),
            (74, 24),
        ]
    ],
    "twintails": [TAIL, mirror(TAIL)],
    "ponytail": [[(60, 12), (72, 5), (86, 13), (91, 32), (87, 52), (79, 66), (79, 66), (78, 50), (78, 34), (70, 24)]],
}
# The lower edge of the front hair, from the tip of the right side lock to that of the left one.
BANGS = {
    "blunt_bangs": [
        (72, 52),
        (68, 42),
        (68.5, 33),
        (63, 34),
        (62, 31),
        (61, 34.5),
        (54, 35),
        (53, 32),
        (52, 35),
        (42, 35),
        (41, 31.5),
        (40, 34.5),
        (31.5, 33),
        (32, 42),
        (28, 52),
    ],
    "swept_bangs": [
        (73, 50),
        (69, 40),
        (67, 29),
        (61, 20),
        (57, 29),
        (50, 33),
        (51, 30),
        (44, 35),
        (36, 38),
        (38, 34),
        (33, 39),
        (32, 43),
        (27, 52),
    ],
    "parted_bangs": [
        (74, 54),
        (69, 46),
        (68, 37),
        (64, 31),
        (57, 26),
        (50, 16),
        (43, 26),
        (36, 31),
        (32, 37),
        (31, 46),
        (26, 54),
    ],
}


@dataclass(frozen=True)
class Character:
    """What stays with a character in every outfit; fields are keys of `HAIR`, `BACK_HAIR`, `BANGS`, `EYES`, `SKIN`."""

    hair: str
    style: str
    bangs: str
    eyes: str
    skin: str

    def tags(self):
        return [f"{self.hair}_hair", self.style, self.bangs, f"{self.eyes}_eyes", self.skin]


@dataclass(frozen=True)
class Outfit:
    """Colours are keys of `CLOTH`, `pattern` one of `PATTERNS`, `bottom` one of `BOTTOMS`."""

    top: str
    sleeves: str
    pattern: str
    bottom: str
    bottom_colour: str

    def tags(self):
        sleeves = [f"{self.sleeves}_sleeves"] if self.sleeves != self.top else []
        return [f"{self.top}_shirt", *PATTERNS[self.pattern], *sleeves, f"{self.bottom_colour}_{self.bottom}"]


@dataclass(frozen=True)
class Figure:
    """One drawing: `image` RGB and `mask` L (0 or 255), both size x size; `head_box` in pixels."""

    image: Image.Image
    mask: Image.Image
    head_box: tuple[int, int, int, int]
    identity_tags: list[str]
    free_tags: list[str]

    @property
    def tags(self):
        return ["1girl", "solo", *self.identity_tags, *self.free_tags]

    @property
    def prompt(self):
        """Without the identity, which a model is to take from reference images."""
        return ", ".join(["1girl", "solo", *self.free_tags])


@dataclass(frozen=True)
class Frame:
    """Maps design units to canvas pixels: turn by `angle` (radians) about `pivot`, then scale and shift."""

    unit: float
    shift: tuple[float, float]
    angle: float = 0.0
    pivot: tuple[float, float] = (50.0, 52.0)

    def at(self, point):
        x, y = point[0] - self.pivot[0], point[1] - self.pivot[1]
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        x, y = x * cos - y * sin + self.pivot[0], x * sin + y * cos + self.pivot[1]
        # Whole pixels, so that the last bit of a sine does not decide about a pixel.
        return round(x * self.unit + self.shift[0]), round(y * self.unit + self.shift[1])


def pick(rng, options):
    """One of `options`; only `random()` is promised to stay the same in later versions of Python."""
    options = list(options)
    return options[int(rng.random() * len(options))]


def between(rng, low, high):
    return low + (high - low) * rng.random()


def shuffled(rng, options):
    return sorted(options, key=lambda _: rng.random())


def mix(colour, other, share):
    """`colour` with `share` (0..1) of `other`."""
    return tuple(round(a + (b - a) * share) for a, b in zip(colour, other))


def oval(x, y, rx, ry, start=0, stop=360, steps=28):
    """Points of an ellipse or of an arc of it; degrees run clockwise from the right."""
    angles = (math.radians(start + (stop - start) * i / steps) for i in range(steps + 1))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def smooth(points, rounds=3):
    """A closed curve by cutting corners (Chaikin); a control point given twice stays a sharper tip."""
    for _ in range(rounds):
        pairs = zip(points, points[1:] + points[:1])
        points = [p for a, b in pairs for p in (mix_points(a, b, 0.25), mix_points(a, b, 0.75))]
    return points


def mix_points(a, b, share):
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share


def stroke(draw, frame, points, colour, width):
    """A line of `width` units with round ends."""
    radius = max(1, round(width * frame.unit / 2))
    points = [frame.at(p) for p in points]
    draw.line(points, fill=colour, width=2 * radius + 1)
    for x, y in points:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def fill(draw, frame, points, colour):
    draw.polygon([frame.at(p) for p in points], fill=colour)


def shape(draw, frame, points, colour, line=0.9):
    """A filled polygon with a border of `line` units outside of it."""
    stroke(draw, frame, [*points, points[0]], INK, 2 * line)
    fill(draw, frame, points, colour)


def limb(draw, frame, points, colour, width, line=0.9):
    stroke(draw, frame, points, INK, width + 2 * line)
    stroke(draw, frame, points, colour, width)


def draw_clothes(draw, frame, outfit, skin, pose, stance):
    """Everything below the head; `stance` is half the distance of the feet in units."""
    top, sleeves, bottom = CLOTH[outfit.top], CLOTH[outfit.sleeves], CLOTH[outfit.bottom_colour]
    for leg in ([(46.5, 76), (50 - stance, 91)], [(53.5, 76), (50 + stance, 91)]):
        foot = leg[1]
        limb(draw, frame, leg, skin if outfit.bottom == "skirt" else bottom, 5.4 if outfit.bottom == "skirt" else 6.6)
        shape(draw, frame, oval(foot[0] + (foot[0] - 50) * 0.12, 93.4, 4.2, 2.7), (104, 70, 66))
    shape(draw, frame, [(43.5, 54), (56.5, 54), (58.5, 58), (58.5, 73), (41.5, 73), (41.5, 58)], top)
    second = WHITE if sum(top) < 560 else (90, 130, 200)
    if outfit.pattern == "stripes":
        for y in (60.2, 65.6):
            fill(draw, frame, [(41.5, y - 1), (58.5, y - 1), (58.5, y + 1), (41.5, y + 1)], second)
    if outfit.pattern == "dots":
        for x, y in ((45, 60), (55, 60), (50, 64), (45, 68), (55, 68)):
            fill(draw, frame, oval(x, y, 1.5, 1.5), second)
    fill(draw, frame, [(46, 53), (54, 53), (50, 58)], skin)
    if outfit.bottom == "skirt":
        shape(draw, frame, [(41.5, 70.5), (58.5, 70.5), (65, 82), (58, 84), (50, 84.6), (42, 84), (35, 82)], bottom)
        for x in (-7.5, -2.5, 2.5, 7.5):
            stroke(draw, frame, [(50 + x * 0.75, 75), (50 + x * 1.2, 83)], mix(bottom, INK, 0.35), 0.7)
    else:
        shape(draw, frame, [(41.5, 71), (58.5, 71), (59, 79), (50, 80.5), (41, 79)], bottom)
        for x in (46.5, 53.5):
            stroke(draw, frame, [(x, 77), (50 + (stance if x > 50 else -stance), 89)], bottom, 6.6)
    for shoulder, elbow, hand in (POSES[pose][0], mirror(POSES[pose][1])):
        cuff = mix_points(elbow, hand, 0.45)
        limb(draw, frame, [elbow, hand], skin, 4.6)
        limb(draw, frame, [shoulder, elbow, cuff], sleeves, 5.6)


def draw_face(draw, frame, character, expression, gaze):
    """Face without hair; `gaze` shifts the irises, in units."""
    skin, eye = SKIN[character.skin], EYES[character.eyes]
    shape(draw, frame, smooth([(30, 28), (31, 43), (39, 52), (50, 56), (61, 52), (69, 43), (70, 28), (50, 14)]), skin)
    for x in (40.5, 59.5):
        if expression == "wink" and x > 50:
            stroke(draw, frame, oval(x, 43.5, 4.4, 3.4, 200, 340, 8), INK, 1.3)
            continue
        fills = (
            (oval(x, 41.5, 4.6, 5.6), WHITE),
            (oval(x + gaze, 41.8, 3.7, 5.2), mix(eye, INK, 0.3)),
            (oval(x + gaze, 43, 3.3, 3.8), mix(eye, WHITE, 0.12)),
            (oval(x + gaze, 41.2, 1.7, 2.6), INK),
            (oval(x + gaze - 1.5, 39, 1.5, 1.7), WHITE),
            (oval(x + gaze + 1.4, 44.8, 0.8, 0.8), WHITE),
        )
        for points, colour in fills:
            fill(draw, frame, points, colour)
        stroke(draw, frame, oval(x, 41.5, 4.9, 5.9, 195, 345, 10), INK, 1.5)
    if expression == "blush":
        for x in (36, 64):
            fill(draw, frame, oval(x, 48.2, 3.2, 1.7), mix(skin, (240, 70, 80), 0.45))
    if expression == "open_mouth":
        shape(draw, frame, oval(50, 48.6, 3.2, 3.6, 0, 180, 10), (222, 92, 92), line=0.6)
    elif expression == "frown":
        stroke(draw, frame, oval(50, 51.4, 2.6, 2.2, 205, 335, 8), INK, 0.9)
    elif expression == "blush":
        stroke(draw, frame, [(48.6, 50), (51.4, 50)], INK, 0.9)
    else:
        stroke(draw, frame, oval(50, 48, 3, 2.4, 20, 160, 8), INK, 0.9)


CROWN = oval(50, 33, 25, 25, 180, 360, 24)


def draw_back_hair(draw, frame, character):
    colour = mix(HAIR[character.hair], INK, 0.16)
    for points in [*BACK_HAIR[character.style], oval(50, 33, 24, 22)]:
        shape(draw, frame, smooth(points, 2), colour)


def draw_front_hair(draw, frame, character):
    """Crown, fringe and side locks with a sheen; the head box is that of the crown and the chin."""
    colour = HAIR[character.hair]
    shape(draw, frame, [*CROWN, (75, 40), *BANGS[character.bangs], (25, 40)], colour)
    stroke(draw, frame, oval(50, 34, 18, 18, 215, 285, 10), mix(colour, WHITE, 0.45), 2.2)
    if character.style == "twintails":
        for x in (27, 73):
            shape(draw, frame, oval(x, 21, 3, 3), mix(colour, INK, 0.45))


def draw_person(character, outfit, rng, size):
    """The figure alone: RGBA at `OVERSAMPLING` times `size` and transparent around it, its head box in pixels of
    the final image, and the tags of what `rng` chose."""
    pose, expression = pick(rng, POSES), pick(rng, EXPRESSIONS)
    scale = between(rng, 0.86, 0.97)
    # The point between the feet stays near the middle of the lower edge, whatever the scale.
    feet, place = (50, 97.5), (50 + between(rng, -3, 3), 97.5 + between(rng, -1.5, 0.5))
    pixels = size * OVERSAMPLING / 100
    shift = tuple((there - scale * here) * pixels for here, there in zip(feet, place))
    body = Frame(scale * pixels, shift)
    head = Frame(scale * pixels, shift, math.radians(between(rng, -7, 7)))
    # Transparent pixels hold the ink of the outline, so that downsampling brings no foreign colour to the border.
    canvas = Image.new("RGBA", (size * OVERSAMPLING,) * 2, (*INK, 0))
    draw = ImageDraw.Draw(canvas)
    stance, gaze = between(rng, 3, 6), between(rng, -1, 1)
    draw_back_hair(draw, head, character)
    draw_clothes(draw, body, outfit, SKIN[character.skin], pose, stance)
    draw_face(draw, head, character, expression, gaze)
    draw_front_hair(draw, head, character)
    xs, ys = zip(*(head.at(p) for p in [*CROWN, (50, 54)]))
    box = (min(xs) // OVERSAMPLING, min(ys) // OVERSAMPLING, -(-max(xs) // OVERSAMPLING), -(-max(ys) // OVERSAMPLING))
    return canvas, box, [*EXPRESSIONS[expression], pose]


def draw_background(kind, rng, size):
    """RGB, `size` x `size`; `kind` is a key of `BACKGROUNDS`."""
    side = size * OVERSAMPLING
    frame = Frame(side / 100, (0.0, 0.0))
    colours = {
        "gradient": (pick(rng, PASTELS), (176, 190, 226)),
        "day": ((120, 190, 246), (226, 242, 252)),
        "night": ((26, 30, 72), (86, 78, 140)),
    }
    upper, lower = colours.get(kind, (pick(rng, PASTELS),) * 2)
    image = ImageOps.colorize(Image.linear_gradient("L").resize((side, side)), upper, lower)
    draw = ImageDraw.Draw(image)
    x = between(rng, 12, 88)
    if kind == "day":
        for dx, y, r in ((-7, 18, 6), (0, 15, 8), (8, 18, 6)):
            fill(draw, frame, oval(x + dx, y, r, r * 0.8), WHITE)
        fill(draw, frame, oval(100 - x, 112, 90, 40), (150, 208, 120))
        fill(draw, frame, oval(x, 118, 70, 34), (122, 190, 104))
    elif kind == "night":
        for _ in range(24):
            fill(draw, frame, oval(between(rng, 0, 100), between(rng, 0, 70), 0.6, 0.6, steps=8), (255, 244, 190))
        fill(draw, frame, oval(x, 16, 8, 8), (255, 240, 180))
        fill(draw, frame, oval(100 - x, 120, 100, 40), (40, 58, 84))
    elif kind == "room":
        fill(draw, frame, [(0, 80), (100, 80), (100, 100), (0, 100)], (200, 160, 120))
        fill(draw, frame, [(x - 14, 12), (x + 14, 12), (x + 14, 46), (x - 14, 46)], WHITE)
        for dx, y in ((-12, 14), (1, 14), (-12, 30), (1, 30)):
            fill(draw, frame, [(x + dx, y), (x + dx + 11, y), (x + dx + 11, y + 14), (x + dx, y + 14)], (170, 214, 246))
    return image.resize((size, size), Image.Resampling.LANCZOS)


def draw_figure(
    character: Character, outfit: Outfit, rng: random.Random, size: int = 96, background: str | None = None
) -> Figure:
    """A `Figure` of `character` in `outfit`, `size` pixels wide and high, everything else chosen by `rng`.

    `background`, a key of `BACKGROUNDS`, replaces the chosen one and leaves the figure as it is.
    """
    check("size", size, 32, MAX_SIZE)
    if background is not None and background not in BACKGROUNDS:
        raise ValueError(f"background: got {background!r}, wanted None or one of {', '.join(BACKGROUNDS)}")
    canvas, box, tags = draw_person(character, outfit, rng, size)
    chosen = pick(rng, BACKGROUNDS)
    background = chosen if background is None else background
    coverage = canvas.getchannel("A").reduce(OVERSAMPLING)
    colour = canvas.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    image = Image.composite(colour, draw_background(background, rng, size), coverage)
    mask = coverage.point(lambda value: 255 if value >= 128 else 0)
    return Figure(image, mask, box, [*character.tags(), *outfit.tags()], [*tags, *BACKGROUNDS[background]])


def check(name, value, low, high):
    if not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}: got {value!r}, wanted a whole number from {low} to {high}")


def cast(seed, count):
    """The first `count` characters; no two are alike before all combinations are used up."""
    every = shuffled(random.Random(f"{seed}/characters"), product(HAIR, BACK_HAIR, BANGS, EYES, SKIN))
    return [Character(*every[i % len(every)]) for i in range(count)]


def wardrobe(seed, character, count):
    """The first `count` outfits of the character with this number, no two alike."""
    every = [
        Outfit(top, sleeves, pattern, bottom, colour)
        for top, pattern, bottom, colour in product(CLOTH, PATTERNS, BOTTOMS, CLOTH)
        if colour != top
        for sleeves in dict.fromkeys((top, "white", "black"))
    ]
    return shuffled(random.Random(f"{seed}/{character}/outfits"), every)[:count]


def put(path, data):
    with replacing(path) as partial:
        partial.write_bytes(data)


def draw_edition(
    out: Path, characters: int = 60, outfits: int = 2, images: int = 6, size: int = 96, seed: int = 0
) -> Path:
    """Draw an edition into `out` and return the path of its `retribooru.json`.

    Writes `images/ID.png`, `masks/ID.png` and at last the records. An image depends on `seed` and on its own
    character, outfit and number only, so larger counts add to an edition and change none of its images.
    """
    for name, value, low, high in (
        ("characters", characters, 1, 10**6),
        ("outfits", outfits, 1, 1000),
        ("images", images, 1, 1000),
        ("size", size, 32, MAX_SIZE),
    ):
        check(name, value, low, high)
    out = Path(out)
    records = out / "retribooru.json"
    for folder in (out / "images", out / "masks"):
        folder.mkdir(parents=True, exist_ok=True)
    # Records of an earlier edition would describe images that are being replaced.
    records.unlink(missing_ok=True)
    rows = []
    with tqdm(total=characters * outfits * images, desc="drawing", unit="image") as bar:
        for number, character in enumerate(cast(seed, characters)):
            for worn, outfit in enumerate(wardrobe(seed, number, outfits)):
                # A thousand numbers per outfit and a thousand outfits per character keep ids unique and stable.
                ids = [str(10**6 * (number + 1) + 1000 * worn + index) for index in range(images)]
                for index, name in enumerate(ids):
                    figure = draw_figure(character, outfit, random.Random(f"{seed}/{number}/{worn}/{index}"), size)
                    put(out / "images" / f"{name}.png", encode_png(figure.image))
                    put(out / "masks" / f"{name}.png", encode_png(figure.mask))
                    x0, y0, x1, y1 = (edge / size for edge in figure.head_box)
                    rows.append(
                        {
                            "id": name,
                            "character": f"chibi_{number:03d}",
                            "artists": [ARTIST],
                            "cloths": outfit.tags(),
                            "prompts": figure.prompt,
                            "bbox": [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0],
                            "similar": [other for other in ids if other != name],
                        }
                    )
                    bar.update()
    put(records, (json.dumps(rows, indent=1) + "\n").encode())
    return records
