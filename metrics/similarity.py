"""CLIP-I and CLIP-T: how close generated images are to their references and to their prompts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_same_length, checked_image_lists, checked_images, checked_list, checked_texts
from .embeddings import image_embeddings, text_embeddings, unit_vectors


def clip_i(predictions, references, model, processor, batch_size: int = 32) -> Tensor:
    r"""Mean cosine similarity of each generated image and its own reference images, in CLIP's image space.

    .. math:: \text{CLIP-I}(x, R) = \frac{1}{|R|} \sum_{r \in R} \frac{E_I(x) \cdot E_I(r)}{\|E_I(x)\| \|E_I(r)\|}

    Args:
        predictions: n generated images (``PIL.Image.Image``).
        references: n lists of one or more reference images; ``references[i]`` belongs to ``predictions[i]`` and the
            lists may differ in length. An image object that occurs several times is embedded once.
        model: a ``transformers.CLIPModel`` or what has its ``get_image_features``.
        processor: the ``transformers.CLIPProcessor`` of that model.
        batch_size: images per forward pass; the values do not depend on it.

    Returns:
        Tensor (n,), float32, on the CPU: cosines in [-1, 1] up to rounding, higher is closer, 1 for an image that is
        its own only reference. The paper prints 100 times the mean over all generated images.

    Raises:
        TypeError: an image is not a ``PIL.Image.Image``, or a list is not a list.
        ValueError: no predictions, another number of references than predictions, an empty reference list, or an
            image that cannot be read.

    Source: arXiv:2312.02521, section 5.3.

    Example:
        >>> from transformers import CLIPModel, CLIPProcessor
        >>> name = "openai/clip-vit-base-patch32"
        >>> model, processor = CLIPModel.from_pretrained(name), CLIPProcessor.from_pretrained(name)
        >>> scores = clip_i([generated], [[front, side, back]], model, processor)
        >>> 100 * scores.mean().item()  # the paper's scale
    """
    predictions = checked_images(predictions, "predictions")
    references = checked_list(references, "references")
    check_same_length(predictions, references, "references")
    references = checked_image_lists(references, "references")
    generated = image_embeddings(predictions, model, processor, batch_size)
    return clip_i_from_embeddings(generated, embed_image_lists(references, model, processor, batch_size))


def clip_i_from_embeddings(predictions: Tensor, references: Sequence[Tensor]) -> Tensor:
    """:func:`clip_i` of images that are embedded already.

    Args:
        predictions: (n, d), vectors of any length above 0.
        references: n tensors (k_i, d), or one (n, k, d).

    Returns:
        Tensor (n,) in [-1, 1] up to rounding, on the device of the embeddings; float64 stays, all else is float32.

    Example:
        >>> clip_i_from_embeddings(torch.tensor([[1.0, 0.0]]), [torch.tensor([[3.0, 4.0], [0.0, 1.0]])])
        tensor([0.3000])
    """
    predictions = unit_vectors(predictions, "predictions")
    check_same_length(predictions, references, "references")
    means = []
    for i, vectors in enumerate(references):
        if len(vectors) == 0:
            raise ValueError(f"references[{i}] is empty; wanted at least one embedding.")
        means.append(unit_vectors(vectors, f"references[{i}]").mean(dim=0))
    return (predictions * torch.stack(means)).sum(dim=-1)


def clip_t(predictions, prompts, model, processor, batch_size: int = 32) -> Tensor:
    r"""Cosine similarity of each generated image and the prompt it was generated from, in CLIP's joint space.

    .. math:: \text{CLIP-T}(x, t) = \frac{E_I(x) \cdot E_T(t)}{\|E_I(x)\| \|E_T(t)\|}

    Args:
        predictions: n generated images (``PIL.Image.Image``).
        prompts: n prompts; one longer than the model reads is cut, with a warning (see :func:`text_embeddings`).
        model: a ``transformers.CLIPModel`` or what has its ``get_image_features`` and ``get_text_features``.
        processor: the ``transformers.CLIPProcessor`` of that model.
        batch_size: images or prompts per forward pass; the values do not depend on it.

    Returns:
        Tensor (n,), float32, on the CPU: cosines in [-1, 1] up to rounding, higher is closer. The paper prints
        100 times the mean over all generated images.

    Raises:
        TypeError: an image is not a ``PIL.Image.Image``, or a prompt not a string.
        ValueError: no predictions, another number of prompts than predictions, or an image that cannot be read.

    Source: arXiv:2312.02521, section 5.3.

    Example:
        >>> clip_t([generated], ["1girl, solo, red scarf"], model, processor)  # model, processor as for clip_i
    """
    predictions = checked_images(predictions, "predictions")
    prompts = checked_texts(prompts, "prompts")
    check_same_length(predictions, prompts, "prompts")
    images = image_embeddings(predictions, model, processor, batch_size)
    return clip_t_from_embeddings(images, text_embeddings(prompts, model, processor, batch_size))


def clip_t_from_embeddings(predictions: Tensor, prompts: Tensor) -> Tensor:
    """:func:`clip_t` of images and prompts that are embedded already.

    Args:
        predictions, prompts: (n, d), vectors of any length above 0.

    Returns:
        Tensor (n,) in [-1, 1] up to rounding, on the device of the embeddings; float64 stays, all else is float32.

    Example:
        >>> clip_t_from_embeddings(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([0.6000])
    """
    predictions, prompts = unit_vectors(predictions, "predictions"), unit_vectors(prompts, "prompts")
    check_same_length(predictions, prompts, "prompts")
    return (predictions * prompts).sum(dim=-1)


def embed_image_lists(lists, model, processor, batch_size: int = 32) -> list[Tensor]:
    """CLIP embeddings of lists of images: one tensor (k_i, d) for each list, every image object embedded once."""
    distinct = {id(image): image for images in lists for image in images}
    row = {key: index for index, key in enumerate(distinct)}
    embedded = image_embeddings(list(distinct.values()), model, processor, batch_size)
    return [embedded[[row[id(image)] for image in images]] for images in lists]
