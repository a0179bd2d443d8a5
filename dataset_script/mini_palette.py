"""Who can be drawn: colours, tags, and the characters, outfits and artists made of them. Colours are RGB, 0 to 255."""

import random
from dataclasses import dataclass
from itertools import product

RGB = tuple[int, int, int]

HAIR = {
    "black": (56, 54, 74),
    "brown": (134, 84, 56),
    "blonde": (250, 216, 112),
    "red": (206, 52, 54),
    "orange": (246, 142, 54),
    "pink": (252, 160, 192),
    "purple": (146, 94, 200),
    "blue": (72, 122, 222),
    "green": (84, 178, 108),
    "white": (236, 236, 246),
}
EYES = {
    "blue": (46, 122, 240),
    "green": (34, 168, 82),
    "red": (218, 40, 52),
    "yellow": (244, 184, 28),
    "purple": (146, 70, 208),
    "brown": (134, 76, 44),
}
SKIN = {"pale_skin": (255, 230, 214), "tan": (236, 186, 144), "dark_skin": (164, 108, 80)}
CLOTH = {
    "white": (246, 246, 250),
    "black": (58, 56, 68),
    "red": (216, 52, 58),
    "orange": (246, 146, 48),
    "yellow": (252, 220, 84),
    "green": (72, 164, 92),
    "blue": (62, 112, 216),
    "purple": (140, 88, 190),
    "pink": (250, 158, 188),
    "brown": (138, 92, 62),
}
FOOTWEAR = ("brown", "black", "white", "red")
SOCKS = ("white", "black")

# Keys are what a truth table says, values what a booru's tagger would.
PATTERNS = {"plain": [], "stripes": ["striped_clothes"], "dots": ["polka_dot"]}
GARMENTS = {
    "shirt": ["shirt", "collared_shirt"],
    "hoodie": ["hoodie"],
    "sailor": ["shirt", "sailor_collar"],
    "sweater": ["sweater", "turtleneck"],
}
SLEEVES = ("long_sleeves", "short_sleeves")
BOTTOMS = ("skirt", "pants", "shorts")
HAIR_STYLES = ("short_hair", "long_hair", "twintails", "ponytail", "twin_braids", "double_bun")
BANGS = ("blunt_bangs", "swept_bangs", "parted_bangs")

# How much of a garment is seen, as measured in standing figures, in pixels of a picture of 128 by 128. Bows and a sailor's
# collar have the colour of the bottom.
TORSO_AREAS = {"shirt": 163, "hoodie": 400, "sailor": 126, "sweater": 420}
SLEEVE_AREAS = {"long_sleeves": 250, "short_sleeves": 145}
BOTTOM_AREAS = {"skirt": 215, "pants": 456, "shorts": 180}
ACCENT_AREAS = {"shirt": 112, "sailor": 182}
PATTERN_SHARES = {"plain": 1.0, "stripes": 0.62, "dots": 0.65}

GIVEN = (
    *("ai", "aka", "ayu", "chi", "ema", "fumi", "hana", "haru", "hino", "hiyo", "iku", "kana", "kaze", "kei"),
    *("kiri", "koto", "mayu", "mei", "michi", "mina", "mio", "miya", "nana", "nao", "natsu", "rei", "riko"),
    *("rin", "saki", "sato", "sena", "sora", "suzu", "toki", "tomo", "umi", "wata", "yori", "yuki", "yume"),
)
GIVEN_ENDS = ("ka", "ko", "mi", "na", "ne", "no", "ra", "ri", "ro", "ru", "se", "ha", "ya", "yo", "ki", "e")
FAMILY = (
    *("aka", "ama", "ao", "asa", "beni", "chiha", "endo", "fuji", "hana", "haya", "hina", "hoshi", "iwa"),
    *("izumi", "kane", "kiri", "kuro", "kusa", "machi", "matsu", "midori", "mizu", "mura", "naka", "nishi"),
    *("ogi", "sakura", "shiro", "shino", "sugi", "taka", "tama", "toki", "tsuki", "ume", "waka", "yama"),
    *("yoshi", "yuki"),
)
FAMILY_ENDS = (
    *("bane", "gawa", "hara", "hashi", "hata", "kawa", "kura", "mine", "mori", "moto", "oka", "saki", "sato"),
    *("shima", "take", "tani", "tori", "ura", "yama", "zaki"),
)


def pick(rng, options):
    """One of `options`; only `random()` is promised to stay the same in later versions of Python."""
    options = list(options)
    return options[int(rng.random() * len(options))]


def between(rng, low, high):
    return low + (high - low) * rng.random()


def shuffled(rng, options):
    return sorted(options, key=lambda _: rng.random())


@dataclass(frozen=True)
class Character:
    """What stays in every outfit. `name` is a tag; the rest are keys of `HAIR`, `EYES`, `SKIN` and members of
    `HAIR_STYLES`, `BANGS`."""

    name: str
    hair: str
    hair_style: str
    bangs: str
    eyes: str
    skin: str

    def tags(self) -> list[str]:
        return [f"{self.hair}_hair", self.hair_style, self.bangs, f"{self.eyes}_eyes", self.skin]


@dataclass(frozen=True)
class Outfit:
    """`garment` is a key of `GARMENTS`, `pattern` of `PATTERNS`; `length` one of `SLEEVES`, `bottom` one of `BOTTOMS`;
    the others are colours, keys of `CLOTH`. `socks` is "" under pants."""

    garment: str
    top: str
    sleeves: str
    length: str
    pattern: str
    bottom: str
    bottom_colour: str
    socks: str
    shoes: str

    def tags(self) -> list[str]:
        kind, *details = GARMENTS[self.garment]
        return [
            f"{self.top}_{kind}",
            *details,
            self.length,
            *([f"{self.sleeves}_sleeves"] if self.sleeves != self.top else []),
            *PATTERNS[self.pattern],
            f"{self.bottom_colour}_{self.bottom}",
            *([f"{self.socks}_socks"] if self.socks else []),
            f"{self.shoes}_footwear",
        ]

    def colours(self) -> list[str]:
        """The two colours that cover most of the clothes, the larger first; a pattern's second colour is not counted."""
        sleeves = SLEEVE_AREAS[self.length] if self.sleeves == self.top else 0
        top = (TORSO_AREAS[self.garment] + sleeves) * PATTERN_SHARES[self.pattern]
        bottom = BOTTOM_AREAS[self.bottom] + ACCENT_AREAS.get(self.garment, 0)
        return [self.top, self.bottom_colour] if top >= bottom else [self.bottom_colour, self.top]


@dataclass(frozen=True)
class Artist:
    """How somebody draws.

    `line` and `line_width` (design units, of which a picture has some 210) are the outline; `saturation` multiplies,
    `warmth` (-1 cold to 1 warm) shifts every colour; `shading` is flat, cel or soft; `eye_width` and `eye_height`
    multiply the eyes, `eye_slant` lifts their outer corners by design units; `head` multiplies the head.
    """

    name: str
    line: RGB
    line_width: float
    saturation: float
    warmth: float
    shading: str
    eye_width: float
    eye_height: float
    eye_slant: float
    head: float


ARTISTS = (
    Artist("momo_ink", (74, 44, 60), 0.9, 1.0, 0.2, "cel", 1.0, 1.0, 0.0, 1.08),
    Artist("kurosen", (34, 30, 44), 1.35, 1.1, 0.0, "cel", 0.95, 0.94, 1.4, 1.02),
    Artist("aquarelle_rin", (112, 78, 88), 0.6, 0.88, 0.3, "soft", 1.04, 1.06, -0.8, 1.08),
    Artist("flat_tomato", (90, 50, 50), 1.1, 1.05, 0.5, "flat", 1.08, 0.92, 0.0, 1.14),
    Artist("hakumei", (44, 48, 88), 0.75, 0.92, -0.5, "cel", 0.92, 1.08, 0.8, 1.0),
    Artist("popsugar", (120, 36, 84), 1.2, 1.14, 0.1, "soft", 1.1, 1.1, 0.0, 1.15),
    Artist("sepia_note", (92, 62, 44), 0.8, 0.86, 0.7, "flat", 0.94, 0.98, -1.4, 1.03),
)


def mix(colour: RGB, other: RGB, share: float) -> RGB:
    """`colour` with `share` (0..1) of `other`."""
    return tuple(round(a + (b - a) * share) for a, b in zip(colour, other))


def painted(colour: RGB, artist: Artist) -> RGB:
    """`colour` as `artist` mixes it: mild enough to keep its name."""
    grey = sum(colour) / 3
    warm = (6 * artist.warmth, 1 * artist.warmth, -8 * artist.warmth)
    return tuple(max(0, min(255, round(grey + (c - grey) * artist.saturation + w))) for c, w in zip(colour, warm))


def check_count(count: int, limit: int) -> None:
    if not isinstance(count, int) or not 0 <= count <= limit:
        raise ValueError(f"count: got {count!r}, wanted a whole number from 0 to {limit}")


def cast(seed: int, count: int) -> list[Character]:
    """The first `count` (at most 100000) characters; no two are alike before all combinations are used up, and no two
    share a name."""
    check_count(count, 100_000)
    every = shuffled(random.Random(f"{seed}/characters"), product(HAIR, HAIR_STYLES, BANGS, EYES, SKIN))
    rng, names = random.Random(f"{seed}/names"), {}
    while len(names) < count:
        given, end, family, place = (pick(rng, words) for words in (GIVEN, GIVEN_ENDS, FAMILY, FAMILY_ENDS))
        names.setdefault(f"{given}{end}_{family}{place}")
    return [Character(name, *every[i % len(every)]) for i, name in enumerate(names)]


def wardrobe(seed: int, number: int, count: int) -> list[Outfit]:
    """The first `count` (at most 1000) outfits of the character with this number: no two alike, and a colour of the
    top comes back only after all the others."""
    check_count(count, 1000)
    rng, found = random.Random(f"{seed}/{number}/outfits"), {}
    tops = shuffled(rng, CLOTH)
    while len(found) < count:
        found.setdefault(dress(rng, tops[len(found) % len(tops)]))
    return list(found)


def dress(rng: random.Random, top: str) -> Outfit:
    """A random outfit with a top of this colour."""
    garment, length, bottom = pick(rng, GARMENTS), pick(rng, SLEEVES), pick(rng, BOTTOMS)
    # A third colour must not cover more than the first two: only on short sleeves of what has no other collar.
    contrast = length == "short_sleeves" and garment in ("hoodie", "sweater")
    sleeves = pick(rng, (top, top, "white", "black") if contrast else (top,))
    return Outfit(
        garment=garment,
        top=top,
        sleeves=sleeves,
        length=length,
        pattern=pick(rng, PATTERNS),
        bottom=bottom,
        bottom_colour=pick(rng, [colour for colour in CLOTH if colour != top]),
        socks="" if bottom == "pants" else pick(rng, SOCKS),
        shoes=pick(rng, FOOTWEAR),
    )
