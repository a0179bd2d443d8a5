"""Curves and the pen that draws them. Points are complex numbers x + iy in design units, x from the middle of the figure
to the right, y down; curves are arrays of them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .mini_palette import RGB, Artist, mix, painted

WHITE = (255, 255, 255)
SHADOW, DEPTH = (96, 60, 120), 0.26
# Where a coordinate falls between two pixels the last bit of a sine would decide; this far off, none does.
OFF_GRID = 0.0137


class Ink(NamedTuple):
    """A colour with its shadow and its light."""

    base: RGB
    shade: RGB
    light: RGB


@dataclass(frozen=True)
class Frame:
    """Maps a point in design units to canvas pixels: `scale` (complex, so it also turns) times the point + `shift`."""

    scale: complex
    shift: complex

    def at(self, points: np.ndarray | complex) -> np.ndarray | complex:
        return points * self.scale + self.shift

    def within(self, scale: complex, pivot: complex, shift: complex = 0) -> "Frame":
        """First `scale` about `pivot` and `shift` in design units, then this frame."""
        return Frame(self.scale * scale, self.scale * (pivot - pivot * scale + shift) + self.shift)


@lru_cache(maxsize=512)
def curve(points: tuple, closed: bool = True, rounds: int = 3) -> np.ndarray:
    """A smooth curve near `points` ((x, y), ...), by cutting corners; a point given twice is a sharp corner."""
    return smooth(line(*points), closed, rounds)


def flow(*points: tuple) -> np.ndarray:
    """A smooth open curve from the first point to the last."""
    return curve(points, closed=False)


def line(*points: tuple) -> np.ndarray:
    """The points themselves: corners of a polygon, or a bent line."""
    return np.array([complex(*point) for point in points])


def smooth(points: np.ndarray, closed: bool = True, rounds: int = 3) -> np.ndarray:
    for _ in range(rounds):
        following = np.roll(points, -1) if closed else points[1:]
        points_ = points if closed else points[:-1]
        cut = np.empty(2 * len(following), complex)
        cut[0::2] = points_ * 0.75 + following * 0.25
        cut[1::2] = points_ * 0.25 + following * 0.75
        points = cut if closed else np.concatenate([points[:1], cut, points[-1:]])
    return points


def mirror(points: np.ndarray) -> np.ndarray:
    """The other side's points, in the order that keeps a closed curve's direction."""
    return -np.conj(points[::-1])


def same(points: np.ndarray) -> np.ndarray:
    return points


SIDES = (same, mirror)


def both(points: tuple) -> tuple:
    """A left-right symmetric outline from its right half, given from top to bottom."""
    return (*points, *((-x, y) for x, y in reversed(points)))


def oval(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360, steps: int = 24) -> np.ndarray:
    """An ellipse or an arc of it; degrees run clockwise from the right."""
    angles = np.radians(np.linspace(start, stop, steps + 1))
    return x + rx * np.cos(angles) + 1j * (y + ry * np.sin(angles))


def sides(path: np.ndarray, widths) -> tuple[np.ndarray, np.ndarray]:
    """Both edges of a band along `path`; `widths` (whole, design units) are spread evenly over it."""
    step = np.gradient(path)
    width = np.interp(np.linspace(0, 1, len(path)), np.linspace(0, 1, len(widths)), widths)
    normal = 1j * step / np.maximum(np.abs(step), 1e-9) * width / 2
    return path + normal, path - normal


def tube(path: np.ndarray, widths, start: float = 0, stop: float = 1) -> np.ndarray:
    """The outline of a band along `path`, from share `start` to share `stop` of its length."""
    left, right = sides(path, widths)
    return np.concatenate([part(left, start, stop), part(right, start, stop)[::-1]])


def hem(path: np.ndarray, widths, start: float) -> np.ndarray:
    """The end of a band from share `start` on, as it lies in the whole band."""
    left, right = sides(path, widths)
    return np.concatenate([part(left, start, 1), part(right, start, 1)[::-1]])


def part(path: np.ndarray, start: float, stop: float) -> np.ndarray:
    """From share `start` to share `stop` of the points of `path`."""
    at = np.linspace(start, stop, max(3, round((stop - start) * len(path)))) * (len(path) - 1)
    return np.interp(at, np.arange(len(path)), path)


def whole(places: np.ndarray) -> list[float]:
    """x0, y0, x1, y1, ... as whole numbers."""
    return np.rint(places.view(float) + OFF_GRID).tolist()


def taper(path: np.ndarray, width: float, thin: float = 0.0) -> np.ndarray:
    """The outline of a brush stroke: `width` in the middle, `thin` at both ends."""
    return tube(path, (thin, width * 0.72, width, width * 0.72, thin))


@dataclass(frozen=True)
class Pen:
    """Draws into `canvas` (RGBX; X is 255 where something was drawn), through `frame`, as `artist` does."""

    canvas: Image.Image
    draw: ImageDraw.ImageDraw
    frame: Frame
    artist: Artist

    def through(self, frame: Frame) -> "Pen":
        return Pen(self.canvas, self.draw, frame, self.artist)

    @property
    def line(self) -> RGB:
        """The colour of lines."""
        return self.artist.line

    def ink(self, colour: RGB, shadow: RGB = SHADOW, depth: float = DEPTH) -> Ink:
        base = painted(colour, self.artist)
        return Ink(base, mix(base, shadow, depth), mix(base, WHITE, 0.5))

    def pixels(self, points: np.ndarray) -> list[float]:
        """x0, y0, x1, y1, ... in whole canvas pixels."""
        return whole(self.frame.at(points))

    def fill(self, points: np.ndarray, colour: RGB) -> None:
        self.draw.polygon(self.pixels(points), fill=(*colour, 255))

    def outline(self, points: np.ndarray, width: float | None = None) -> None:
        """A line around a closed curve, `width` (the artist's without) wide; what is inside is to be filled."""
        radius = max(1.0, (self.artist.line_width if width is None else width) * abs(self.frame.scale))
        place = self.frame.at(points)
        place = place[np.abs(np.roll(place, -1) - place) > 1e-6]
        before, after = place - np.roll(place, 1), np.roll(place, -1) - place
        area = (place.real * np.roll(place.imag, -1) - place.imag * np.roll(place.real, -1)).sum()
        turn = np.angle(after * np.conj(before)) * (1 if area > 0 else -1)
        across = before + after
        across = across / np.maximum(np.abs(across), 1e-9) * (-1j if area > 0 else 1j)
        colour = (*self.line, 255)
        # A wide line of short pieces would be bumpy, so the shape itself is grown.
        self.draw.polygon(whole(place + across * radius), fill=colour)
        # Grown, it is blunt at a sharp corner and crosses itself, which leaves a hole, in a sharp notch.
        for i in np.nonzero(turn < -0.5)[0]:
            near = whole(np.take(place, np.arange(i - 8, i + 9), mode="wrap"))
            self.draw.line(near, fill=colour, width=2 * round(radius))
        flat = whole(place[np.abs(turn) > 0.5])
        for x, y in zip(flat[0::2], flat[1::2]):
            self.draw.ellipse([round(v) for v in (x - radius, y - radius, x + radius, y + radius)], fill=colour)

    def shape(self, points: np.ndarray, colour: RGB, width: float | None = None) -> None:
        """A filled shape with its line outside."""
        self.outline(points, width)
        self.fill(points, colour)

    def stroke(self, path: np.ndarray, width: float, colour: RGB | None = None, thin: float = 0.0) -> None:
        self.fill(taper(path, width, thin), self.line if colour is None else colour)

    def window(self, points: np.ndarray, within: np.ndarray) -> tuple[int, int, int, int]:
        """The canvas pixels where both shapes can be."""
        a, b = (np.rint(self.frame.at(p).view(float).reshape(-1, 2) + OFF_GRID) for p in (points, within))
        low, high = np.maximum(a.min(0), b.min(0)), np.minimum(a.max(0), b.max(0)) + 1
        x0, y0 = (int(max(0, v)) for v in low)
        x1, y1 = (int(min(limit, v)) for limit, v in zip(self.canvas.size, high))
        return x0, y0, x1, y1

    def stencil(self, points: np.ndarray, box: tuple[int, int, int, int], mode: str, value: int = 255) -> Image.Image:
        image = Image.new(mode, (box[2] - box[0], box[3] - box[1]))
        shifted = Frame(self.frame.scale, self.frame.shift - complex(box[0], box[1]))
        ImageDraw.Draw(image).polygon(whole(shifted.at(points)), fill=1 if mode == "1" else value)
        return image

    def clipped(
        self, points: np.ndarray, within: np.ndarray, colour: RGB, blur: float = 0.0, strength: float = 1.0
    ) -> None:
        """Fills the part of a shape that lies within another one; `blur` in design units softens its own edge,
        `strength` (0..1) is how much of the colour covers what was there."""
        box = self.window(points, within)
        if box[0] >= box[2] or box[1] >= box[3]:
            return
        if not blur and strength == 1:
            mask = ImageChops.logical_and(self.stencil(points, box, "1"), self.stencil(within, box, "1"))
        else:
            mask = self.stencil(points, box, "L")
            radius = blur * abs(self.frame.scale)
            step = max(1, int(radius / 2))
            if blur:
                # A blur needs no more pixels than its radius has.
                small = mask.reduce(step).filter(ImageFilter.BoxBlur(radius / step))
                mask = small.resize(mask.size, Image.Resampling.BILINEAR)
            mask = ImageChops.multiply(mask, self.stencil(within, box, "L", round(255 * strength)))
        self.canvas.paste((*colour, 255), box, mask)

    def shade(self, points: np.ndarray, within: np.ndarray, colour: RGB) -> None:
        """A shadow as the artist casts it: none, with a hard edge or with a soft one."""
        if self.artist.shading != "flat":
            self.clipped(points, within, colour, 3.0 if self.artist.shading == "soft" else 0.0)

    def darken(self, points: np.ndarray, within: np.ndarray) -> None:
        """Like `shade`, over whatever colours are there."""
        if self.artist.shading != "flat":
            self.clipped(points, within, SHADOW, 3.0 if self.artist.shading == "soft" else 0.0, DEPTH)

    def band(self, path: np.ndarray, widths, colour: RGB) -> None:
        """A band along `path` with its line, in its shadow along the right and lower edge."""
        self.shape(tube(path, widths), colour)
        self.darken_band(path, widths)

    def darken_band(self, path: np.ndarray, widths) -> None:
        left, right = sides(path, widths)
        if (left - right).real.sum() + 0.5 * (left - right).imag.sum() > 0:
            left, right = right, left
        inner = left * 0.34 + right * 0.66
        self.darken(np.concatenate([inner, right[::-1]]), np.concatenate([left, right[::-1]]))

    def gradient(self, points: np.ndarray, upper: RGB, lower: RGB) -> None:
        """Fills a shape from one colour at its top to another at its bottom."""
        box = self.window(points, points)
        ramp = Image.linear_gradient("L").resize((1, box[3] - box[1])).resize((box[2] - box[0], box[3] - box[1]))
        bands = [ramp.point([round(a + (b - a) * i / 255) for i in range(256)]) for a, b in zip(upper, lower)]
        opaque = Image.new("L", ramp.size, 255)
        self.canvas.paste(Image.merge("RGBX", (*bands, opaque)), box, self.stencil(points, box, "1"))
