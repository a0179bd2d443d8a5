"""Unit vectors of images and texts from a CLIP model that the caller has loaded."""

import warnings
from contextlib import contextmanager

import torch
from torch import Tensor

from .checks import check_batch_size, checked_images, checked_texts


def image_embeddings(images, model, processor, batch_size: int = 32) -> Tensor:
    """CLIP image embeddings scaled to length 1.

    The model runs on the device and in the precision it has, without gradients and in evaluation mode; its training
    mode is put back afterwards. The processor alone decides how an image is resized and made RGB (CLIP's drops an
    alpha channel: put transparent images on a background first).

    Args:
        images: n images (``PIL.Image.Image``), n >= 1.
        model: a ``transformers.CLIPModel`` or what has its ``get_image_features``.
        processor: the ``transformers.CLIPProcessor`` of that model.
        batch_size: images per forward pass.

    Returns:
        Tensor (n, d), float32, on the CPU, rows of length 1; d is the model's ``projection_dim``.

    Raises:
        TypeError: an image is not a ``PIL.Image.Image``.
        ValueError: no images, one that cannot be read, or an embedding that cannot be scaled to length 1 (zero,
            infinite or not a number).

    Example:
        >>> image_embeddings([Image.new("RGB", (512, 512))], model, processor).shape
        torch.Size([1, 512])
    """
    images = checked_images(images, "images")

    def features(batch):
        inputs = on_device(processor(images=batch, return_tensors="pt"), model)
        return model.get_image_features(pixel_values=inputs["pixel_values"])

    return _embed(images, features, model, batch_size, "images")


def text_embeddings(texts, model, processor, batch_size: int = 32) -> Tensor:
    """CLIP text embeddings scaled to length 1.

    A text longer than the model reads (77 tokens with start and end for CLIP) is cut at the end, and a
    ``UserWarning`` says how many were (:func:`truncated_texts` says which). Device, precision and training mode as for
    :func:`image_embeddings`.

    Args:
        texts: n strings, n >= 1.
        model: a ``transformers.CLIPModel`` or what has its ``get_text_features``.
        processor: the ``transformers.CLIPProcessor`` of that model.
        batch_size: texts per forward pass.

    Returns:
        Tensor (n, d), float32, on the CPU, rows of length 1.

    Example:
        >>> text_embeddings(["1girl, solo"], model, processor).shape
        torch.Size([1, 512])
    """
    texts = checked_texts(texts, "texts")
    limit, lengths = _text_limit(model, processor), _token_counts(texts, processor)
    cut = sum(length > limit for length in lengths)
    if cut:
        warnings.warn(
            f"{cut} of {len(texts)} texts are longer than the {limit} tokens that the model reads and were cut "
            f"(the longest has {max(lengths)} tokens).",
            stacklevel=2,
        )

    def features(batch):
        encoded = processor(text=batch, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        encoded = on_device(encoded, model)
        return model.get_text_features(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])

    return _embed(texts, features, model, batch_size, "texts")


def truncated_texts(texts, model, processor) -> list[int]:
    """Positions of the texts that :func:`text_embeddings` cuts, being longer than the model reads.

    Example:
        >>> truncated_texts(["1girl, solo", "scarf " * 200], model, processor)
        [1]
    """
    limit = _text_limit(model, processor)
    lengths = _token_counts(checked_texts(texts, "texts"), processor)
    return [i for i, length in enumerate(lengths) if length > limit]


def unit_vectors(vectors: Tensor, name: str = "vectors") -> Tensor:
    """Vectors scaled to length 1, in float32 or, where they are finer, in their own precision.

    Args:
        vectors: (..., d), on any device.
        name: how the error calls them.

    Returns:
        Tensor (..., d), on the same device.

    Raises:
        TypeError: not a tensor.
        ValueError: a vector has no direction: its length is zero, infinite or not a number.
    """
    if not isinstance(vectors, Tensor):
        raise TypeError(f"{name} is of type {type(vectors).__name__}; wanted a torch.Tensor of embeddings.")
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    lengths = vectors.norm(dim=-1, keepdim=True)
    bad = (~((lengths > 0) & lengths.isfinite())).squeeze(-1).nonzero().tolist()
    if bad:
        place = ", ".join(map(str, bad[0]))
        raise ValueError(
            f"{name}[{place}] has length {lengths[tuple(bad[0])].item()} and no direction ({len(bad)} of "
            f"{lengths.numel()} {name}); wanted a finite length above 0."
        )
    return vectors / lengths


@contextmanager
def inference(model):
    """No gradients and evaluation mode; every submodule's training mode is put back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def on_device(inputs, model) -> dict[str, Tensor]:
    """The tensors of a processor's output, on the device of the model."""
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in inputs.items()}


def _text_limit(model, processor) -> int:
    """How many tokens the model reads: its positions, or fewer where the tokenizer's own maximum is lower."""
    return min(model.config.text_config.max_position_embeddings, processor.tokenizer.model_max_length)


def _token_counts(texts: list[str], processor) -> list[int]:
    return [len(ids) for ids in processor.tokenizer(texts, truncation=False, verbose=False)["input_ids"]]


def _embed(items: list, features, model, batch_size: int, name: str) -> Tensor:
    """``features(batch)`` over ``items`` in batches, rows scaled to length 1."""
    check_batch_size(batch_size)
    with inference(model):
        batches = [_pooled(features(items[i : i + batch_size])) for i in range(0, len(items), batch_size)]
    return unit_vectors(torch.cat([batch.float().cpu() for batch in batches]), name)


def _pooled(output) -> Tensor:
    """What ``get_*_features`` returned as a tensor: transformers 4 returns it, 5 an output with ``pooler_output``."""
    return output if isinstance(output, Tensor) else output.pooler_output
