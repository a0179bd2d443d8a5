"""What a pipeline read from reference images: kept in memory or in a file, reused for any prompt."""

import importlib
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

FORMAT = "retribooru-features-1"


@dataclass
class RetrievedFeatures:
    """The references of I items (I characters, say), to be retrieved from.

    Made by `encode_references`. All tokens of an item's references stand in one row; an item with fewer tokens is
    filled up to S. Levels are those of the retrieval encoder, from the finest.

    Args:
        tokens: per level, (I, S, C). Empty where the encoder reads anew at every step (`reference_timestep` is
            "denoising").
        masks: per level, (I, S) bool: True where there is a token, False where the row is filled up.
        weights: per level, (I, S) float32 > 0: of the token's reference.
        fingerprint: (K,) float32, of the model that the features are for; see `fingerprint`.
        indices: per level, (I, S, 2) int64, and
        encoder_inputs: what the retrieval encoder reads for all R references, by argument: both only where `tokens` is
            empty. A token is then named by the number of its reference and that of its cell in the level's h x w.
    """

    tokens: tuple[torch.Tensor, ...]
    masks: tuple[torch.Tensor, ...]
    weights: tuple[torch.Tensor, ...]
    fingerprint: torch.Tensor
    indices: tuple[torch.Tensor, ...] = ()
    encoder_inputs: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of items."""
        return len(self.masks[0])

    def __repr__(self) -> str:
        counts = [f"{mask.sum(dim=1).tolist()}" for mask in self.masks]
        kind = "tokens" if self.tokens else "tokens read at every step"
        return f"RetrievedFeatures(items={len(self)}, {kind} per level: {', '.join(counts)})"

    @property
    def biases(self) -> tuple[torch.Tensor | None, ...]:
        """Per level, what is added to the attention's logits, (I, S) float32, or None where that is 0 everywhere.

        A weight w multiplies the share of its tokens: log(w). What fills a row up: -inf.
        """
        return tuple(
            None if mask.all() and (weights == 1).all() else torch.where(mask, weights.log(), -torch.inf)
            for mask, weights in zip(self.masks, self.weights)
        )

    def to(self, *args, **kwargs) -> "RetrievedFeatures":
        """The features on another device or in another dtype (of what the models read), as `torch.Tensor.to`."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)

        def place(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device=device, non_blocking=non_blocking)

        def model_input(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device=device, dtype=dtype, non_blocking=non_blocking)

        return RetrievedFeatures(
            tokens=tuple(map(model_input, self.tokens)),
            masks=tuple(map(place, self.masks)),
            weights=tuple(map(place, self.weights)),
            fingerprint=self.fingerprint,
            indices=tuple(map(place, self.indices)),
            encoder_inputs={name: model_input(tensor) for name, tensor in self.encoder_inputs.items()},
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes a safetensors file, beside its final name and then moved into place."""
        tensors = {"fingerprint": self.fingerprint}
        for name in ("tokens", "masks", "weights", "indices"):
            tensors |= {f"{name}.{level}": tensor for level, tensor in enumerate(getattr(self, name))}
        tensors |= {f"encoder_inputs.{name}": tensor for name, tensor in self.encoder_inputs.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        path = Path(path)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            save_file(tensors, partial, metadata={"format": FORMAT})
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike, device: str | torch.device = "cpu") -> "RetrievedFeatures":
        """Reads what `save` wrote. Raises ValueError for any other file."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"path: got {path}, wanted a file that RetrievedFeatures.save wrote")
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                found = (file.metadata() or {}).get("format")
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"path: got {path}, which is no safetensors file ({error})") from error
        if found != FORMAT:
            raise ValueError(f"path: got {path}, whose format is {found!r}, wanted {FORMAT!r}: no saved features")

        def levels(name: str) -> tuple[torch.Tensor, ...]:
            return tuple(tensors[f"{name}.{i}"] for i in range(len(tensors)) if f"{name}.{i}" in tensors)

        prefix = "encoder_inputs."
        features = cls(
            tokens=levels("tokens"),
            masks=levels("masks"),
            weights=levels("weights"),
            fingerprint=tensors.get("fingerprint", torch.empty(0)).cpu(),
            indices=levels("indices"),
            encoder_inputs={name.removeprefix(prefix): value for name, value in tensors.items()
                            if name.startswith(prefix)},
        )  # fmt: skip
        features.check(f"path: got {path}, whose")
        return features

    def check(self, of: str) -> None:
        """Raises ValueError, beginning with `of`, unless the shapes fit each other."""
        shapes = [mask.shape for mask in self.masks]
        rows = [level.shape[:2] for level in self.tokens or self.indices]
        wanted = f"(items, tokens) as of masks: {[tuple(shape) for shape in shapes]}"
        if not shapes or len({shape[0] for shape in shapes}) != 1:
            raise ValueError(f"{of} masks have the shapes {shapes}, wanted (items, tokens) of each level")
        for name, found in (("tokens", rows), ("weights", [level.shape for level in self.weights])):
            if found != shapes:
                raise ValueError(f"{of} {name} have the shapes {[tuple(shape) for shape in found]}, wanted {wanted}")

    @staticmethod
    def stack(features: Sequence["RetrievedFeatures"]) -> "RetrievedFeatures":
        """The items of all, one below the other: a batch of characters."""
        return _combine(features, dim=0)

    @staticmethod
    def join(features: Sequence["RetrievedFeatures"], weights: Sequence[float] | None = None) -> "RetrievedFeatures":
        """Item by item the references of all: as if they had been encoded together.

        Args:
            features: of one character the face, of another the clothes, say; all with as many items.
            weights: of each, multiplies the weights of its references; above 0.
        """
        if len({len(part) for part in features}) > 1:
            raise ValueError(f"features: got {[len(part) for part in features]} items, wanted as many in each")
        if weights is not None:
            if len(weights) != len(features):
                raise ValueError(f"weights: got {len(weights)}, wanted as many as features: {len(features)}")
            if not all(0 < weight < float("inf") for weight in weights):
                raise ValueError(f"weights: got {list(weights)}, wanted finite numbers above 0")
            features = [
                replace(part, weights=tuple(level * weight for level in part.weights))
                for part, weight in zip(features, weights)
            ]
        return _combine(features, dim=1)


def _combine(features: Sequence[RetrievedFeatures], dim: int) -> RetrievedFeatures:
    if not features:
        raise ValueError("features: got an empty list, wanted at least one")
    first = features[0]
    for other in features[1:]:
        if not same_fingerprint(first.fingerprint, other.fingerprint):
            raise ValueError("features: got some of one model and some of another, wanted all of one")
    starts = [0]  # what comes after R references of others is counted from there
    for part in features[:-1]:
        starts.append(starts[-1] + len(next(iter(part.encoder_inputs.values()), ())))
    features = [
        replace(part, indices=tuple(level + level.new_tensor([start, 0]) for level in part.indices))
        for part, start in zip(features, starts)
    ]
    levels = {
        name: tuple(_concatenate(level, dim) for level in zip(*(getattr(part, name) for part in features)))
        for name in ("tokens", "masks", "weights", "indices")
    }
    inputs = {name: torch.cat([part.encoder_inputs[name] for part in features]) for name in first.encoder_inputs}
    return RetrievedFeatures(**levels, fingerprint=first.fingerprint, encoder_inputs=inputs)


def _concatenate(levels: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """(I, S, ...) tensors after each other; rows are first filled up with zeros where items are put together."""
    if dim == 0:
        longest = max(level.shape[1] for level in levels)
        levels = [F.pad(level, [0, 0] * (level.dim() - 2) + [0, longest - level.shape[1]]) for level in levels]
    return torch.cat(list(levels), dim)


def cells_with_content(content: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(R, 1, H, W) bool -> (R, h w) bool: the cells, and so the tokens, that have some content in them."""
    return F.adaptive_max_pool2d(content.float(), size).flatten(1) > 0


def kept_tokens(
    content: torch.Tensor, counts: Sequence[int], weights: torch.Tensor, sizes: Sequence[tuple[int, int]]
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Which tokens of each item are kept: those whose cell has some content in it.

    Args:
        content: (R, 1, H, W) bool, of the references of all items, one item's after the other's.
        counts: of each item, how many references it has.
        weights: (R,).
        sizes: (h, w) of each level.

    Returns:
        Per level: indices (I, S, 2) of reference and cell, masks (I, S) and weights (I, S), filled up with zeros.
    """
    found = []
    for size in sizes:
        kept = cells_with_content(content, size).split(list(counts))
        items = [part.nonzero() for part in kept]  # (S, 2) each
        starts = [sum(counts[:i]) for i in range(len(counts))]
        items = [indices + indices.new_tensor([start, 0]) for indices, start in zip(items, starts)]
        fill = nn.utils.rnn.pad_sequence
        found.append((
            fill(items, batch_first=True),
            fill([torch.ones(len(indices), dtype=torch.bool) for indices in items], batch_first=True),
            fill([weights[indices[:, 0]] for indices in items], batch_first=True),
        ))  # fmt: skip
    return tuple(map(list, zip(*found)))


def take_tokens(features: Sequence[torch.Tensor], indices: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Per level, from the encoder's (R, C, h, w) the tokens that `indices` (I, S, 2) name: (I, S, C)."""
    return tuple(
        level.flatten(2).transpose(1, 2)[chosen[..., 0], chosen[..., 1]] for level, chosen in zip(features, indices)
    )


def fingerprint(*modules: nn.Module) -> torch.Tensor:
    """(K,) float32: a few weights of every parameter, at fixed places. Tells models apart, at any precision.

    Adapters (LoRA) are left out: features may be used with and without them.
    """
    samples = []
    for module in modules:
        for path, child in module.named_modules():
            if "lora_" in path:
                continue
            with _weights_at_hand(child):
                for parameter in child.parameters(recurse=False):
                    places = torch.linspace(0, parameter.numel() - 1, 3).long().to(parameter.device)
                    samples.append(parameter.detach().flatten()[places].float())
    return torch.cat(samples).cpu()


def _weights_at_hand(module: nn.Module):
    """Where weights wait elsewhere (sequential offload), brings those of this module for a moment."""
    if hasattr(module, "_hf_hook"):
        # Not by name: loading this file as a checkpoint's own code would ask for accelerate.
        return importlib.import_module("accelerate.utils").align_module_device(module)
    return nullcontext()


def same_fingerprint(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both are of one model, which may have been rounded to half precision."""
    # bfloat16 keeps 8 bits, float16 nothing below 2^-24.
    return one.shape == other.shape and torch.allclose(one, other, rtol=2**-8, atol=2**-24)
