"""Concept crops on images made by hand, whose boxes are known."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from retribooru.dataset_script.concepts import CONCEPTS, crop_concept, square_box

FILL = (1, 2, 3)


def figure(size=(40, 60), body=(8, 20, 32, 55), head=(12, 5, 28, 20)):
    """Blue body, red head, on green; the mask; the head box."""
    image, mask = Image.new("RGB", size, (0, 255, 0)), Image.new("L", size, 0)
    for box, color in ((body, (0, 0, 255)), (head, (255, 0, 0))):
        inside = (box[0], box[1], box[2] - 1, box[3] - 1)
        ImageDraw.Draw(image).rectangle(inside, fill=color)
        ImageDraw.Draw(mask).rectangle(inside, fill=255)
    return image, mask, list(head)


def colors(image):
    return {color for _, color in image.getcolors()}


def test_figure_is_the_image_as_it_is():
    image, mask, box = figure()
    for head_box in (box, None, []):
        crop, crop_mask = crop_concept("figure", image, mask, head_box)
        assert crop == image and crop_mask == mask


def test_face_is_the_head_box_made_square():
    image, mask, box = figure()  # 16 x 15
    crop, crop_mask = crop_concept("face", image, mask, box)
    assert crop.size == crop_mask.size == (16, 16)
    assert np.asarray(crop)[1:15].reshape(-1, 3).tolist() == [[255, 0, 0]] * 16 * 14


def test_body_is_everything_below_the_head_box():
    image, mask, box = figure()
    crop, crop_mask = crop_concept("body", image, mask, box)
    assert crop.size == crop_mask.size == (40, 40)
    assert crop == image.crop((0, 20, 40, 60))
    assert (255, 0, 0) not in colors(crop)


def test_lying_figure_keeps_its_place_and_loses_its_head():
    image, mask, box = figure(size=(60, 40), body=(20, 10, 55, 30), head=(4, 10, 20, 28))
    crop, crop_mask = crop_concept("body", image, mask, box, FILL)
    assert crop.size == image.size
    assert colors(crop.crop(box)) == {FILL}
    assert (255, 0, 0) not in colors(crop)
    assert crop.crop((20, 10, 55, 30)) == image.crop((20, 10, 55, 30))
    assert crop_mask.crop(box).getbbox() is None
    assert crop_mask.getbbox() == (20, 10, 55, 30)


def test_upside_down_figure_loses_its_head():
    image, mask, box = figure(body=(8, 5, 32, 40), head=(12, 40, 28, 55))
    crop, _ = crop_concept("body", image, mask, box, FILL)
    assert crop.size == image.size and colors(crop.crop(box)) == {FILL}


@pytest.mark.parametrize("box", [(0, 0, 10, 14), (30, 0, 40, 14), (0, 50, 14, 60), (26, 46, 40, 60)])
def test_face_at_the_border_stays_square_and_inside(box):
    image, mask, _ = figure()
    crop, _ = crop_concept("face", image, mask, box)
    assert crop.size == (14, 14)
    left, top, right, bottom = square_box(box, image.size)
    assert left <= box[0] and top <= box[1] and right >= box[2] and bottom >= box[3]
    assert 0 <= left and right <= 40 and 0 <= top and bottom <= 60


def test_face_wider_than_the_image_is_high_takes_the_whole_height():
    assert square_box((5, 2, 55, 18), (60, 20)) == (5, 0, 55, 20)


def test_box_that_covers_the_figure():
    image, mask, _ = figure()
    whole = (0, 0, 40, 60)
    face, _ = crop_concept("face", image, mask, whole)
    assert face == image
    body, body_mask = crop_concept("body", image, mask, whole, FILL)
    assert colors(body) == {FILL} and body_mask.getbbox() is None


def test_body_of_an_image_without_figure_goes_by_the_image():
    image, _, box = figure()
    crop, _ = crop_concept("body", image, Image.new("L", image.size, 0), box)
    assert crop.size == (40, 40)


def test_images_are_not_changed():
    image, mask, box = figure(size=(60, 40), body=(20, 10, 55, 30), head=(4, 10, 20, 28))
    before = image.tobytes(), mask.tobytes()
    for concept in CONCEPTS:
        crop_concept(concept, image, mask, box)
    assert (image.tobytes(), mask.tobytes()) == before


@pytest.mark.parametrize("concept", ["face", "body"])
@pytest.mark.parametrize("box", [None, []])
def test_no_box(concept, box):
    image, mask, _ = figure()
    with pytest.raises(ValueError, match=f"head_box: got .* wanted a box, to cut out the {concept}"):
        crop_concept(concept, image, mask, box)


@pytest.mark.parametrize("box", [(-1, 0, 10, 10), (0, 0, 41, 10), (0, 0, 10, 61), (10, 10, 10, 20), (20, 10, 10, 20)])
def test_box_outside_the_image(box):
    image, mask, _ = figure()
    with pytest.raises(ValueError, match="head_box: got .* <= 40 .* <= 60"):
        crop_concept("face", image, mask, box)


def test_unknown_concept_and_mask_of_another_size():
    image, mask, box = figure()
    with pytest.raises(ValueError, match="concept: got 'hat', wanted one of figure, face, body"):
        crop_concept("hat", image, mask, box)
    with pytest.raises(ValueError, match=r"mask: got size \(3, 3\), wanted the image's \(40, 60\)"):
        crop_concept("face", image, Image.new("L", (3, 3)), box)
