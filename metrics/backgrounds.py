"""Leakage: how much of the references' backgrounds stands in the generated images."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .checks import check_image, check_same_length, checked_image_lists, checked_images, checked_list
from .embeddings import image_embeddings
from .similarity import clip_i_from_embeddings, embed_image_lists


def leakage(
    predictions,
    plain,
    references,
    masks,
    plain_masks,
    reference_masks,
    model,
    processor,
    batch_size: int = 32,
) -> Tensor:
    r"""How much closer the background of a generated image is to its references' than the plain model's is.

    Ours, not the paper's: the question "how much of the reference leaks?" as a number,

    .. math:: \text{leakage}(x) = \frac{c(x) - c(x_0)}{1 - c(x_0)}, \quad
        c(y) = \frac{1}{|R|} \sum_{r \in R} \cos\big(E_I(B(y)), E_I(B(r))\big)

    where :math:`x_0` is what the plain model (Stable Diffusion without references) draws from the same prompt and
    seed and :math:`B` takes the figure away (:func:`without_figure`).

    Args:
        predictions: n generated images.
        plain: n images of the plain model; ``plain[i]`` has the prompt and the seed of ``predictions[i]``.
        references: n lists of one or more reference images.
        masks, plain_masks: n masks of the figures in ``predictions`` and ``plain``, of the size of their images:
            PIL images of mode "L" or "1", or bool arrays (height, width).
        reference_masks: n lists of masks, parallel to ``references``.
        model, processor, batch_size: as for :func:`~retribooru.metrics.similarity.clip_i`.

    Returns:
        Tensor (n,), float32, on the CPU, at most 1 up to rounding: 0 where the background is as far from the
        references' as the plain model's, 1 where it is the background of the references (of all of them: of
        several that differ, none is reached), negative where it is further. Not a number where it is undefined: where
        the plain model's background is the references' already (see :func:`leakage_from_embeddings`).

    Raises:
        TypeError: an image or a mask of another type.
        ValueError: lists of different lengths, an empty one, an image that cannot be read, a mask of another size
            than its image, or one that leaves no background.

    Example:
        >>> leakage([generated], [plain], [[front]], [mask], [plain_mask], [[front_mask]], model, processor)
    """
    predictions, plain = checked_images(predictions, "predictions"), checked_images(plain, "plain")
    references = checked_image_lists(references, "references")
    masks, plain_masks = checked_list(masks, "masks"), checked_list(plain_masks, "plain_masks")
    reference_masks = checked_list(reference_masks, "reference_masks")
    for name, others in (
        ("plain", plain), ("references", references), ("masks", masks), ("plain_masks", plain_masks),
        ("reference_masks", reference_masks),
    ):  # fmt: skip
        check_same_length(predictions, others, name)
    seen = {}
    grounds = _backgrounds(predictions, masks, "masks", seen)
    plain_grounds = _backgrounds(plain, plain_masks, "plain_masks", seen)
    reference_grounds = [
        _backgrounds(images, their_masks, f"reference_masks[{i}]", seen)
        for i, (images, their_masks) in enumerate(zip(references, reference_masks))
    ]
    return leakage_from_embeddings(
        image_embeddings(grounds, model, processor, batch_size),
        image_embeddings(plain_grounds, model, processor, batch_size),
        embed_image_lists(reference_grounds, model, processor, batch_size),
    )


def leakage_from_embeddings(
    predictions: Tensor, plain: Tensor, references: Sequence[Tensor], undefined_within: float = 1e-4
) -> Tensor:
    """:func:`leakage` of backgrounds that are embedded already.

    Args:
        predictions, plain: (n, d), vectors of any length above 0.
        references: n tensors (k_i, d), or one (n, k, d).
        undefined_within: where :math:`1 - c(x_0)` is below this there is no way left to leak, and the value would be
            rounding: it is not a number there.

    Returns:
        Tensor (n,), at most 1 up to rounding, NaN where undefined; on the device of the embeddings; float64 stays, all
        else is float32.

    Example:
        >>> x, plain, r = torch.eye(3)
        >>> leakage_from_embeddings(torch.stack([r, plain, x + r]), plain.expand(3, 3), r.expand(3, 1, 3))
        tensor([1.0000, 0.0000, 0.7071])
    """
    check_same_length(predictions, plain, "plain")
    close, plainly = clip_i_from_embeddings(predictions, references), clip_i_from_embeddings(plain, references)
    way = 1 - plainly
    return torch.where(way < undefined_within, torch.nan, (close - plainly) / way)


def without_figure(image: Image.Image, mask) -> Image.Image:
    """The image with its figure filled by the mean colour of what is outside it: no silhouette on a plain ground.

    Args:
        image: any mode; made RGB.
        mask: of the size of the image, a PIL image of mode "L" or "1" or a bool array (height, width): the figure is
            where it is more than half.

    Returns:
        RGB image of the same size.

    Raises:
        TypeError: the mask is of another type or mode.
        ValueError: the mask has another size, or leaves nothing outside the figure.

    Example:
        >>> without_figure(Image.new("RGB", (2, 1), "red"), np.array([[True, False]]))
    """
    check_image(image, "image")
    return _without_figure(image, mask, "mask")


def _backgrounds(images: list[Image.Image], masks, name: str, seen: dict) -> list[Image.Image]:
    """Images without their figures. An image object that `seen` has with the same mask object is taken from there."""
    masks = checked_list(masks, name)
    check_same_length(images, masks, name, "its images")
    for i, (image, mask) in enumerate(zip(images, masks)):
        if (id(image), id(mask)) not in seen:
            seen[id(image), id(mask)] = _without_figure(image, mask, f"{name}[{i}]")
    return [seen[id(image), id(mask)] for image, mask in zip(images, masks)]


def _without_figure(image: Image.Image, mask, name: str) -> Image.Image:
    pixels, figure = np.array(image.convert("RGB")), _figure(mask, name)
    if figure.shape != pixels.shape[:2]:
        raise ValueError(
            f"{name} is {figure.shape[1]} x {figure.shape[0]} pixels and its image {image.width} x {image.height}; "
            "wanted the same size."
        )
    if figure.all():
        raise ValueError(f"{name} covers its whole image; wanted one that leaves some background.")
    pixels[figure] = pixels[~figure].mean(axis=0).round()
    return Image.fromarray(pixels)


def _figure(mask, name: str) -> np.ndarray:
    """(height, width) bool: where the mask is more than half."""
    if isinstance(mask, Image.Image):
        check_image(mask, name)
        if mask.mode not in ("L", "1"):
            raise TypeError(f'{name} is an image of mode "{mask.mode}"; wanted mode "L" or "1".')
        return np.asarray(mask.convert("L")) > 127
    if isinstance(mask, np.ndarray) and mask.dtype == bool and mask.ndim == 2:
        return mask
    what = f"an array {mask.shape} of {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
    raise TypeError(f'{name} is {what}; wanted an image of mode "L" or "1" or a bool array (height, width).')
