"""Concept crops: the face, the body and the whole figure of an image (paper section 3.3)."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from .figures import check_box

CONCEPTS = ("figure", "face", "body")
FILL = (255, 255, 255)

# The share of the figure's height, from its top, that the head may reach down to before "too little is left" below it
# (somebody lying down or upside down). The paper's number is lost; this one is ours.
MAX_HEAD_BOTTOM = 0.6


def crop_concept(
    concept: str,
    image: Image.Image,
    mask: Image.Image,
    head_box: Sequence[int] | None,
    fill: tuple[int, int, int] = FILL,
) -> tuple[Image.Image, Image.Image]:
    """Cuts one concept out of a figure.

    Args:
        concept: "figure" (the image as it is), "face" (the head box, made square) or "body" (what is below it).
        image: RGB, any size.
        mask: L, the size of `image`, 255 where the figure is.
        head_box: (x_min, y_min, x_max, y_max) in pixels; "figure" alone can do without.
        fill: RGB that a head is painted over with where it cannot be cut off; the padding colour.

    Returns:
        (crop, its mask), of equal size.

    Raises:
        ValueError: unknown concept, mask of another size, no head box or one outside the image.
    """
    if concept not in CONCEPTS:
        raise ValueError(f"concept: got {concept!r}, wanted one of {', '.join(CONCEPTS)}")
    if mask.size != image.size:
        raise ValueError(f"mask: got size {mask.size}, wanted the image's {image.size}")
    if concept == "figure":
        return image, mask
    if not head_box:
        raise ValueError(f"head_box: got {head_box}, wanted a box, to cut out the {concept}")
    check_box(head_box, image.size)
    if concept == "face":
        box = square_box(head_box, image.size)
        return image.crop(box), mask.crop(box)
    return _crop_body(image, mask, head_box, fill)


def square_box(box: Sequence[int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """`box` widened about its centre to a square, and moved inside an image of `size` (width, height).

    Where the image is narrower than the square, the box takes the image's whole width or height.
    """
    side = max(box[2] - box[0], box[3] - box[1])
    starts_and_ends = []
    for low, high, limit in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        length = min(side, limit)
        start = min(max((low + high - length) // 2, 0), limit - length)
        starts_and_ends.append((start, start + length))
    (left, right), (top, bottom) = starts_and_ends
    return left, top, right, bottom


def _crop_body(image, mask, head_box, fill):
    """Everything below the head; the figure with its head painted over where too little would be left.

    A head box that covers the whole figure leaves a body of `fill` alone, with an empty mask.
    """
    _, top, _, bottom = mask.getbbox() or (0, 0, *image.size)
    if head_box[3] <= top + MAX_HEAD_BOTTOM * (bottom - top):
        below = (0, head_box[3], *image.size)
        return image.crop(below), mask.crop(below)
    x_min, y_min, x_max, y_max = head_box
    inside = (x_min, y_min, x_max - 1, y_max - 1)  # ImageDraw counts the last pixel in
    image, mask = image.copy(), mask.copy()
    ImageDraw.Draw(image).rectangle(inside, fill=fill)
    ImageDraw.Draw(mask).rectangle(inside, fill=0)
    return image, mask
