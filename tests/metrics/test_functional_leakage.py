"""Leakage: known answers on vectors and on coloured backgrounds, what is masked, what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from retribooru.metrics.functional import (
    clip_i_from_embeddings,
    image_embeddings,
    leakage,
    leakage_from_embeddings,
    without_figure,
)


def unit(*values):
    return torch.nn.functional.normalize(torch.tensor(values, dtype=torch.float64), dim=-1)


def test_known_answers():
    r, plain, away = unit(1, 0, 0), unit(1, 2, 0), unit(-1, 2, 0)
    predictions = torch.stack([plain, r, away])
    found = leakage_from_embeddings(predictions, plain.expand(3, 3), r.expand(3, 1, 3))
    close = 5**-0.5
    assert found.tolist() == pytest.approx([0, 1, -2 * close / (1 - close)], abs=1e-12)
    assert found.dtype == torch.float64


def test_half_of_the_way_is_one_half():
    r, plain = unit(1, 0), unit(0.2, (1 - 0.04) ** 0.5)
    halfway = unit(0.6, 0.8)
    assert leakage_from_embeddings(halfway[None], plain[None], r[None, None]).item() == pytest.approx(0.5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_the_definition_on_random_vectors(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    x, plain = torch.randn(2, 6, 12, generator=generator, dtype=torch.float64).unbind()
    references = [torch.randn(k, 12, generator=generator, dtype=torch.float64) for k in (1, 2, 3, 1, 2, 3)]
    found = leakage_from_embeddings(x.to(dtype), plain.to(dtype), [own.to(dtype) for own in references])
    for i, own in enumerate(references):
        c = [
            sum(float(y @ r) / float(y.norm() * r.norm()) for r in own) / len(own) for y in (x[i], plain[i])
        ]  # fmt: skip
        assert found[i].item() == pytest.approx((c[0] - c[1]) / (1 - c[1]), abs=tolerance)


def test_undefined_where_the_plain_model_is_there_already():
    r, x = unit(1, 0), unit(1, 2)
    nearly = unit(1, 1e-3)  # 1 - cosine = 5e-7
    found = leakage_from_embeddings(x.expand(3, 2), torch.stack([r, nearly, x]), r.expand(3, 1, 2))
    assert found.isnan().tolist() == [True, True, False] and found[2] == 0
    assert not leakage_from_embeddings(x[None], nearly[None], r[None, None], undefined_within=1e-9).isnan().any()


def figure(ground, colour="black", box=(12, 8, 24, 40), size=(40, 40)):
    """(image, mask): a figure on a coloured ground."""
    image, mask = Image.new("RGB", size, ground), Image.new("L", size)
    ImageDraw.Draw(image).rectangle(box, colour)
    ImageDraw.Draw(mask).rectangle(box, 255)
    return image, mask


def test_no_silhouette_is_left_on_a_plain_ground():
    image, mask = figure("orange", "blue")
    assert np.array_equal(np.asarray(without_figure(image, mask)), np.asarray(Image.new("RGB", image.size, "orange")))
    as_bits, as_array = mask.convert("1"), np.asarray(mask) > 127
    assert without_figure(image, as_bits) == without_figure(image, as_array) == without_figure(image, mask)
    assert image.getpixel((15, 15)) == (0, 0, 255)  # the image itself is left alone


def test_the_figure_takes_the_mean_colour_outside_it():
    pixels = np.array([[[0, 0, 0], [10, 20, 30], [20, 41, 61], [255, 255, 255]]], dtype=np.uint8)
    mask = Image.fromarray(np.array([[0, 127, 127, 128]], dtype=np.uint8))  # more than half is figure
    found = np.asarray(without_figure(Image.fromarray(pixels), mask))
    assert found.tolist() == [[[0, 0, 0], [10, 20, 30], [20, 41, 61], [10, 20, 30]]]


def test_coloured_backgrounds_with_a_real_clip(clip):
    grounds = ["red", "green", "blue", "yellow"]
    boxes = [(12, 8, 24, 39), (2, 2, 10, 30), (20, 20, 39, 39), (5, 0, 30, 12)]
    (reference, mask), *_ = others = [figure(ground, box=box) for ground, box in zip(grounds, boxes)]
    copied, copied_mask = figure("red", "white", box=(0, 0, 15, 20))  # another figure before the reference's ground
    plain, plain_mask = others[1]
    third, third_mask = others[2]

    found = leakage(
        [copied, plain, third], [plain] * 3, [[reference]] * 3,
        [copied_mask, plain_mask, third_mask], [plain_mask] * 3, [[mask]] * 3, *clip,
    )  # fmt: skip
    assert found.dtype == torch.float32
    assert found[:2].tolist() == pytest.approx([1, 0], abs=1e-4)
    vectors = image_embeddings([Image.new("RGB", (40, 40), ground) for ground in grounds[:3]], *clip)
    c, plainly = (vectors[2] @ vectors[0]).item(), (vectors[1] @ vectors[0]).item()
    assert found[2].item() == pytest.approx((c - plainly) / (1 - plainly), abs=1e-3)

    several = leakage([copied], [plain], [[reference, third]], [copied_mask], [plain_mask], [[mask, third_mask]], *clip)
    two = vectors[[0, 2]][None]
    expected = leakage_from_embeddings(vectors[:1], vectors[1:2], two)
    assert several.item() == pytest.approx(expected.item(), abs=1e-3) and several.item() < 1
    assert clip_i_from_embeddings(vectors[:1], two).item() < 1

    same = leakage([copied], [reference], [[reference]], [copied_mask], [mask], [[mask]], *clip)
    assert same.isnan().all()


def test_masks_are_held_to_their_own_images(table, vector_image):
    """A reference shared by two images under other masks is cleared twice, under one mask once."""
    model, processor = table
    shared, mask, other = Image.new("RGB", (4, 4)), np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    other[0] = True

    class ByColour(type(processor)):
        def __call__(self, images=None, **options):
            return {"pixel_values": torch.tensor([[1.0, image.getpixel((0, 0))[0]] for image in images])}

    leakage(
        [shared] * 3, [shared] * 3, [[shared]] * 3, [mask] * 3, [mask] * 3, [[mask], [mask], [other]], model, ByColour()
    )
    assert model.embedded == 3 + 3 + 2


GOOD, MASK = figure("red")
ALL = Image.new("L", GOOD.size, 255)
WRONG = {
    "plain": ({"plain": []}, ValueError, "plain is empty"),
    "too many masks": ({"masks": [MASK, MASK]}, ValueError, "masks has 2 items and predictions 1"),
    "too many lists": ({"reference_masks": [[MASK], [MASK]]}, ValueError, "reference_masks has 2 items and"),
    "too few masks": (
        {"references": [[GOOD, GOOD]]}, ValueError, r"reference_masks\[0\] has 1 items and its images 2",
    ),
    "no list": ({"masks": MASK}, TypeError, "masks is of type Image; wanted a list"),
    "no list of lists": ({"reference_masks": [MASK]}, TypeError, r"reference_masks\[0\] is of type Image"),
    "size": ({"plain_masks": [MASK.resize((40, 20))]}, ValueError, r"plain_masks\[0\] is 40 x 20 pixels and its"),
    "no background": ({"reference_masks": [[ALL]]}, ValueError, r"reference_masks\[0\]\[0\] covers its whole image"),
    "mode": ({"masks": [MASK.convert("RGB")]}, TypeError, r'masks\[0\] is an image of mode "RGB"; wanted mode "L"'),
    "floats": ({"masks": [np.zeros((40, 40))]}, TypeError, r"masks\[0\] is an array \(40, 40\) of float64; wanted"),
    "nothing": ({"masks": [None]}, TypeError, r"masks\[0\] is NoneType; wanted"),
    "image": ({"plain": ["a.png"]}, TypeError, r"plain\[0\] is of type str; wanted a PIL.Image.Image"),
}  # fmt: skip


@pytest.mark.parametrize("change, error, message", WRONG.values(), ids=WRONG)
def test_what_is_refused(clip, change, error, message):
    arguments = {"predictions": [GOOD], "plain": [GOOD], "references": [[GOOD]], "masks": [MASK],
                 "plain_masks": [MASK], "reference_masks": [[MASK]]}  # fmt: skip
    with pytest.raises(error, match=message):
        leakage(**{**arguments, **change}, model=clip[0], processor=clip[1])
