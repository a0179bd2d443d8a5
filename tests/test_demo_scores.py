"""The demo's palette match on pictures whose answer is known."""

import pytest
from PIL import Image

from retribooru.demo_train import palette, palette_match

RED, BLUE = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
GREEN = Image.new("RGB", (64, 64), "green")
ROWS = [{"character": "a"}, {"character": "b"}]


def test_palette_sums_to_one_and_tells_colours_apart():
    assert palette(RED).sum() == pytest.approx(1) and (palette(RED) * palette(BLUE)).sum() == 0


@pytest.mark.parametrize("drawn, expected", [([RED, BLUE], 1.0), ([BLUE, RED], 0.0), ([GREEN, GREEN], 0.5)])
def test_palette_match(drawn, expected):
    assert palette_match(drawn, [RED, BLUE], ROWS) == expected


def test_only_other_characters_are_compared():
    rows = [{"character": "a"}, {"character": "a"}, {"character": "b"}]
    assert palette_match([RED, RED, GREEN], [RED, RED, BLUE], rows) == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)
