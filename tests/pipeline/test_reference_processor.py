"""From reference images to the tensor that the VAE reads."""

import pytest
import torch
from PIL import Image

from handmade import draw
from retribooru import ReferenceProcessor
from retribooru.pipeline.reference_processor import pad_to_square, remove_background


def test_padding_is_even_and_of_the_colour():
    padded = pad_to_square(Image.new("RGB", (10, 20), "red"), (0, 0, 255))
    assert padded.size == (20, 20)
    assert sorted(padded.getcolors()) == [(200, (0, 0, 255)), (200, (255, 0, 0))]
    assert padded.crop((5, 0, 15, 20)).getcolors() == [(200, (255, 0, 0))]


def test_background_removed_and_figure_kept():
    image, mask = draw("red")
    removed = remove_background(image, mask, (1, 2, 3))
    assert Image.composite(image, Image.new("RGB", image.size), mask) == Image.composite(
        removed, Image.new("RGB", image.size), mask
    )
    background = mask.point(lambda value: 255 - value)
    assert {
        c for _, c in Image.composite(removed, Image.new("RGB", image.size, (1, 2, 3)), background).getcolors()
    } == {(1, 2, 3)}


def test_tensor():
    images = [Image.new("RGB", (10, 20), "black"), Image.new("L", (8, 8), 255)]
    pixels, content = ReferenceProcessor(16)(images)
    assert pixels.shape == (2, 3, 16, 16) and pixels.dtype == torch.float32
    assert pixels[0, :, 8, 8].tolist() == [-1, -1, -1] and pixels[0, :, 8, 0].tolist() == [1, 1, 1]  # padded white
    assert (pixels[1] == 1).all()
    assert content.shape == (2, 1, 16, 16) and content.dtype == torch.bool
    assert content[0, 0, :, 4:12].all() and content[0].sum() == 16 * 8 and content[1].all()  # not on the padding


def test_mask_of_another_size():
    with pytest.raises(
        ValueError, match=r"reference_masks: got a mask of size \(4, 4\), wanted the image's \(40, 60\)"
    ):
        ReferenceProcessor(16)([draw("red")[0]], [Image.new("L", (4, 4))])
