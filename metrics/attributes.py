"""A classifier that reads off a figure what a truth table says of it: hair, eyes, clothes, pose and the like."""

from collections.abc import Mapping, Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from PIL import Image
from torch import Tensor, nn

from retribooru.pipeline.reference_processor import PADDING, pad_to_square, to_tensor


class AttributeClassifier(ModelMixin, ConfigMixin):
    """A small convolutional network with one head per attribute. Each head looks where it has learned to look.

    Args:
        attributes: {attribute: its values}, at least two values each.
        resolution: R, side in pixels that pictures are read at; a multiple of 2 to the number of levels.
        block_out_channels: of the levels, the first at half the resolution; each of the others halves it.

    Example:
        >>> classifier = AttributeClassifier({"hair": ["black", "red"], "skin": ["tan", "pale_skin", "dark_skin"]})
        >>> classifier.classify([Image.new("RGB", (256, 256))])[0].keys()
        dict_keys(['hair', 'skin'])
    """

    @register_to_config
    def __init__(
        self,
        attributes: Mapping[str, Sequence[str]],
        resolution: int = 128,
        block_out_channels: Sequence[int] = (48, 96, 160),
    ):
        super().__init__()
        if not attributes or min(map(len, attributes.values())) < 2:
            raise ValueError(f"attributes: got {dict(attributes)}, wanted one or more, of at least two values each")
        reduction = 2 ** len(block_out_channels)
        if resolution < reduction or resolution % reduction:
            raise ValueError(f"resolution: got {resolution}, wanted a multiple of {reduction}")
        first, last, side = block_out_channels[0], block_out_channels[-1], resolution // reduction
        blocks, channels = [_convolution(3, first // 2, kernel=5)], first // 2
        for out in block_out_channels:
            blocks += [_convolution(channels, out, stride=2), Residual(out)]
            channels = out
        self.features = nn.Sequential(*blocks)
        # Where something is says as much as what it is: of a raised arm, say.
        self.position = nn.Parameter(0.02 * torch.randn(last, side, side))
        self.attention = nn.Conv2d(last, len(attributes), kernel_size=1)
        # Sorted, as the saved configuration is: each head has a place in the attention.
        self.heads = nn.ModuleDict({name: nn.Linear(last, len(attributes[name])) for name in sorted(attributes)})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels (B, 3, R, R) in [-1, 1] -> {attribute: logits (B, V)}."""
        features = self.features(pixels) + self.position  # (B, C, s, s)
        attention = self.attention(features).flatten(2).softmax(dim=-1)  # (B, A, s * s)
        seen = attention @ features.flatten(2).mT  # (B, A, C)
        return {name: head(seen[:, i]) for i, (name, head) in enumerate(self.heads.items())}

    @torch.no_grad()
    def classify(self, images: Sequence[Image.Image], batch_size: int = 64) -> list[dict[str, str]]:
        """What each picture shows, {attribute: value} each, on the device and in the precision that the model has.

        Args:
            images: pictures of any size; what is not square is padded.
            batch_size: pictures per forward pass.

        Raises:
            TypeError: an image is not a `PIL.Image.Image`.
            ValueError: batch_size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, wanted at least 1")
        training, found = self.training, []
        self.eval()
        for start in range(0, len(images), batch_size):
            pixels = torch.stack([self.read(image) for image in images[start : start + batch_size]])
            logits = self(pixels.to(self.device, self.dtype))
            names = [
                [self.config.attributes[name][i] for i in logit.argmax(dim=1).tolist()]
                for name, logit in logits.items()
            ]
            found += [dict(zip(logits, values)) for values in zip(*names)]
        self.train(training)
        return found

    def read(self, image: Image.Image) -> Tensor:
        """(3, R, R) float32 in [-1, 1]."""
        if not isinstance(image, Image.Image):
            raise TypeError(f"images: got a {type(image).__name__} in the list, wanted PIL images")
        return to_tensor(square(image, self.config.resolution))


def square(image: Image.Image, side: int) -> Image.Image:
    """RGB, `side` pixels wide and high; what is not square is padded."""
    return pad_to_square(image.convert("RGB"), PADDING).resize((side, side), Image.BICUBIC)


def accuracy(found: Sequence[Mapping[str, str]], expected: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Share of the pictures of which each attribute was read as expected, 0 to 1, by attribute of the expected.

    Raises ValueError where there are no pictures, or not as many as expected.
    """
    if not expected or len(found) != len(expected):
        raise ValueError(f"found: got {len(found)} pictures, wanted as many as expected, {len(expected)}, and some")
    return {name: sum(a[name] == b[name] for a, b in zip(found, expected)) / len(expected) for name in expected[0]}


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.first, self.second = _convolution(channels, channels), _convolution(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return features + self.second(self.first(features))


def _convolution(channels: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    # Batch statistics, not a picture's own: colours are to be told by how light or red they are, not by contrast.
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )
