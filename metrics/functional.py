"""CLIP-I and CLIP-T as plain functions of images, prompts and a CLIP model the caller has loaded.

Both are cosines in [-1, 1]. "Retrieving Conditions from Reference Images for Diffusion Models" (arXiv:2312.02521,
section 5.3 and table 3) prints 100 times these values: its CLIP-I 71.54 is 0.7154 here, its CLIP-T 18.61 is 0.1861.
"""

import warnings
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor


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
        ValueError: no predictions, another number of references than predictions, or an empty reference list.

    Source: arXiv:2312.02521, section 5.3.

    Example:
        >>> from transformers import CLIPModel, CLIPProcessor
        >>> name = "openai/clip-vit-base-patch32"
        >>> model, processor = CLIPModel.from_pretrained(name), CLIPProcessor.from_pretrained(name)
        >>> scores = clip_i([generated], [[front, side, back]], model, processor)
        >>> 100 * scores.mean().item()  # the paper's scale
    """
    predictions = _checked_images(predictions, "predictions")
    references = _checked_list(references, "references")
    _check_same_length(predictions, references, "references")
    references = [_checked_images(images, f"references[{i}]") for i, images in enumerate(references)]

    distinct = {id(image): image for images in references for image in images}
    row = {key: index for index, key in enumerate(distinct)}
    generated = image_embeddings(predictions, model, processor, batch_size)
    embedded = image_embeddings(list(distinct.values()), model, processor, batch_size)
    return torch.stack(
        [
            (embedded[[row[id(image)] for image in images]] @ vector).mean()
            for vector, images in zip(generated, references, strict=True)
        ]
    )


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
        ValueError: no predictions, or another number of prompts than predictions.

    Source: arXiv:2312.02521, section 5.3.

    Example:
        >>> clip_t([generated], ["1girl, solo, red scarf"], model, processor)  # model, processor as for clip_i
    """
    predictions = _checked_images(predictions, "predictions")
    prompts = _checked_texts(prompts, "prompts")
    _check_same_length(predictions, prompts, "prompts")
    images = image_embeddings(predictions, model, processor, batch_size)
    texts = text_embeddings(prompts, model, processor, batch_size)
    return (images * texts).sum(dim=-1)


def image_embeddings(images, model, processor, batch_size: int = 32) -> Tensor:
    """CLIP image embeddings scaled to length 1.

    The model runs on the device and in the precision it has, without gradients and in evaluation mode; its training
    mode is put back afterwards. The processor alone decides how an image is resized and made RGB (CLIP's drops an
    alpha channel: put transparent images on a background first).

    Args:
        images: n images (``PIL.Image.Image``), n >= 1.
        model, processor: as for :func:`clip_i`.
        batch_size: images per forward pass.

    Returns:
        Tensor (n, d), float32, on the CPU, rows of length 1; d is the model's ``projection_dim``.

    Raises:
        ValueError: an embedding cannot be scaled to length 1 (zero, infinite or not a number).

    Example:
        >>> image_embeddings([Image.new("RGB", (512, 512))], model, processor).shape
        torch.Size([1, 512])
    """
    images = _checked_images(images, "images")
    device = next(model.parameters()).device

    def features(batch):
        pixels = processor(images=batch, return_tensors="pt")["pixel_values"]
        return model.get_image_features(pixel_values=pixels.to(device))

    return _unit_vectors(images, features, model, batch_size, "images")


def text_embeddings(texts, model, processor, batch_size: int = 32) -> Tensor:
    """CLIP text embeddings scaled to length 1.

    A text longer than the model reads (77 tokens with start and end for CLIP) is cut at the end, and a
    ``UserWarning`` says how many were. Device, precision and training mode as for :func:`image_embeddings`.

    Args:
        texts: n strings, n >= 1.
        model, processor: as for :func:`clip_t`.
        batch_size: texts per forward pass.

    Returns:
        Tensor (n, d), float32, on the CPU, rows of length 1.

    Example:
        >>> text_embeddings(["1girl, solo"], model, processor).shape
        torch.Size([1, 512])
    """
    texts = _checked_texts(texts, "texts")
    device = next(model.parameters()).device
    limit = _text_limit(model, processor)
    lengths = [len(ids) for ids in processor.tokenizer(texts, truncation=False, verbose=False)["input_ids"]]
    cut = sum(length > limit for length in lengths)
    if cut:
        warnings.warn(
            f"{cut} of {len(texts)} texts are longer than the {limit} tokens that the model reads and were cut "
            f"(the longest has {max(lengths)} tokens).",
            stacklevel=2,
        )

    def features(batch):
        encoded = processor(text=batch, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        names = ("input_ids", "attention_mask")
        return model.get_text_features(**{name: encoded[name].to(device) for name in names})

    return _unit_vectors(texts, features, model, batch_size, "texts")


def _text_limit(model, processor) -> int:
    """How many tokens the model reads: its positions, or fewer where the tokenizer's own maximum is lower."""
    return min(model.config.text_config.max_position_embeddings, processor.tokenizer.model_max_length)


def _unit_vectors(items: list, features, model, batch_size: int, name: str) -> Tensor:
    """``features(batch)`` over ``items`` in batches, rows scaled to length 1."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; wanted a whole number of at least 1.")
    with _inference(model):
        batches = [_pooled(features(items[i : i + batch_size])) for i in range(0, len(items), batch_size)]
    vectors = torch.cat([batch.float().cpu() for batch in batches])
    lengths = vectors.norm(dim=-1, keepdim=True)
    bad = [i for i, length in enumerate(lengths.flatten().tolist()) if not 0 < length < float("inf")]
    if bad:
        raise ValueError(
            f"The model's embedding of {name}[{bad[0]}] has length {lengths[bad[0]].item()} and no direction "
            f"({len(bad)} of {len(items)} {name}); wanted a finite length above 0."
        )
    return vectors / lengths


def _pooled(output) -> Tensor:
    """What ``get_*_features`` returned as a tensor: transformers 4 returns it, 5 an output with ``pooler_output``."""
    return output if isinstance(output, Tensor) else output.pooler_output


@contextmanager
def _inference(model):
    """No gradients and evaluation mode; every submodule's training mode is put back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _checked_list(values, name: str) -> list:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(f"{name} is of type {type(values).__name__}; wanted a list.")
    if len(values) == 0:
        raise ValueError(f"{name} is empty; wanted at least one item.")
    return list(values)


def _checked_images(values, name: str) -> list[Image.Image]:
    images = _checked_list(values, name)
    for i, image in enumerate(images):
        if not isinstance(image, Image.Image):
            raise TypeError(f"{name}[{i}] is of type {type(image).__name__}; wanted a PIL.Image.Image.")
    return images


def _checked_texts(values, name: str) -> list[str]:
    texts = _checked_list(values, name)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{i}] is of type {type(text).__name__}; wanted a string.")
    return texts


def _check_same_length(predictions: list, others: list, name: str) -> None:
    if len(others) != len(predictions):
        raise ValueError(
            f"{name} has {len(others)} items and predictions {len(predictions)}; wanted as many of both, "
            f"{name}[i] belonging to predictions[i]."
        )
