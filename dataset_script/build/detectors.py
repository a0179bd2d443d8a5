"""Finds a figure's mask and its head, by what the user names: a network, the image's alpha channel, given labels.

What is named is a specification, small and picklable; `load` makes the detector itself, in the process that works.
A detector answers for each picture of a batch, and a picture that it cannot judge spoils no other.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from PIL import Image

from . import pixels
from .annotations import Reject
from .given import Given, file_stamp, read_given
from .onnx_models import IsnetMasks, Network, YoloHeads

ISNET_SIDE, YOLO_SIDE = 1024, 640  # pixels, of models that take any
MASKS = "isnet, isnet:FILE.onnx, alpha or given:FOLDER"
HEADS = "yolo:FILE.onnx, given:FILE or none"

Mask = Image.Image | None | Reject  # L, the picture's size, 255 where the figure is; None: there is no figure
Head = list[int] | None | Reject  # [x_min, y_min, x_max, y_max] in pixels, inside the picture; None: no head was found


@dataclass(frozen=True)
class Picture:
    """An image that could be read, upright, in RGB; and where it lies."""

    image_id: str
    file: Path
    image: Image.Image


class MaskDetector(Protocol):
    """Finds the figures of a batch."""

    def __call__(self, pictures: Sequence[Picture]) -> Sequence[Mask]: ...


class HeadDetector(Protocol):
    """Finds the heads of a batch of figures, whose masks are known."""

    def __call__(self, pictures: Sequence[Picture], masks: Sequence[Image.Image]) -> Sequence[Head]: ...


@dataclass(frozen=True)
class Isnet:
    """IS-Net for anime: input (1, 3, 1024, 1024) in [0, 1], output (1, 1, 1024, 1024) in [0, 1].

    Args:
        file: ONNX; without, the one that rembg fetches once and keeps.
        threshold: from which value on a pixel is figure.
    """

    file: str | None = None
    threshold: float = 0.5

    def prepared(self) -> "Isnet":
        """The same with its file there: fetched once, not by every process."""
        return self if self.file else replace(self, file=_rembg_model("isnet-anime"))

    def settings(self) -> list:
        """What the masks depend on."""
        return ["isnet", file_stamp(self.file), self.threshold]

    def load(self, threads: int) -> MaskDetector:
        """The detector."""
        return IsnetMasks(Network(self.file, "masks", ISNET_SIDE, threads), self.threshold)


@dataclass(frozen=True)
class Alpha:
    """The image's own alpha channel."""

    def prepared(self) -> "Alpha":
        """Nothing is to be fetched."""
        return self

    def settings(self) -> list:
        """What the masks depend on."""
        return ["alpha"]

    def load(self, threads: int) -> MaskDetector:
        """The detector."""
        return lambda pictures: [_or_reject(_alpha, picture) for picture in pictures]


@dataclass(frozen=True)
class GivenMasks:
    """Masks from a folder with ID.png (or .jpg, .jpeg, .webp)."""

    folder: str

    def prepared(self) -> "GivenMasks":
        """Nothing is to be fetched."""
        return self

    def settings(self) -> list:
        """What the masks depend on."""
        return ["given", str(Path(self.folder).resolve())]

    def load(self, threads: int) -> MaskDetector:
        """The detector."""
        return lambda pictures: [_or_reject(_given_mask, picture, Path(self.folder)) for picture in pictures]


@dataclass(frozen=True)
class Yolo:
    """A YOLO for anime heads: input (1, 3, 640, 640) in [0, 1], output (1, N, 5 + C) or (1, 4 + C, N).

    Args:
        file: ONNX.
        confidence: the lowest score that counts, in [0, 1].
        head_class: the index of the class "head".
    """

    file: str
    confidence: float = 0.3
    head_class: int = 0

    def settings(self) -> list:
        """What the boxes depend on."""
        return ["yolo", file_stamp(self.file), self.confidence, self.head_class]

    def load(self, threads: int) -> HeadDetector:
        """The detector."""
        return YoloHeads(Network(self.file, "heads", YOLO_SIDE, threads), self.confidence, self.head_class)


@dataclass(frozen=True)
class GivenHeads:
    """Boxes from a file: (centre x, centre y, width, height) in shares of 1 per image id. A wrong one is refused."""

    file: str
    boxes: Given

    @classmethod
    def read(cls, file: str) -> "GivenHeads":
        """From `bbox` (a list, in CSV as JSON) or from the columns cx, cy, w, h; retribooru.json is such a file."""
        return cls(file, read_given(file, "heads", "bbox", _bbox_of))

    def settings(self) -> list:
        """What the boxes depend on."""
        return ["given", file_stamp(self.file)]

    def load(self, threads: int) -> HeadDetector:
        """The detector."""
        return self._heads

    def _heads(self, pictures: Sequence[Picture], masks: Sequence[Image.Image]) -> list[Head]:
        boxes = self.boxes.of([picture.image_id for picture in pictures])
        return [_or_reject(pixels.pixel_box, boxes.get(picture.image_id), picture.image.size) for picture in pictures]


@dataclass(frozen=True)
class NoHeads:
    """No head boxes at all."""

    def settings(self) -> list:
        """What the boxes depend on."""
        return ["none"]

    def load(self, threads: int) -> HeadDetector:
        """The detector."""
        return lambda pictures, masks: [None] * len(pictures)


MaskSpec = Isnet | Alpha | GivenMasks
HeadSpec = Yolo | GivenHeads | NoHeads


def masks_named(text: str, threshold: float = 0.5) -> MaskSpec:
    """The specification that the user's `--masks` names."""
    name, _, path = text.partition(":")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold: got {threshold}, wanted a number between 0 and 1")
    if name == "isnet":
        return Isnet(str(_existing(path, "masks", Path.is_file)) if path else None, threshold)
    if text == "alpha":
        return Alpha()
    if name == "given" and path:
        return GivenMasks(str(_existing(path, "masks", Path.is_dir)))
    raise ValueError(f"masks: got {text!r}, wanted {MASKS}")


def heads_named(text: str, confidence: float = 0.3, head_class: int = 0) -> HeadSpec:
    """The specification that the user's `--heads` names."""
    name, _, path = text.partition(":")
    if not 0 < confidence <= 1:
        raise ValueError(f"confidence: got {confidence}, wanted a number between 0 and 1")
    if head_class < 0:
        raise ValueError(f"head_class: got {head_class}, wanted an index from 0 on")
    if name == "yolo" and path:
        return Yolo(str(_existing(path, "heads", Path.is_file)), confidence, head_class)
    if name == "given" and path:
        return GivenHeads.read(path)
    if text == "none":
        return NoHeads()
    raise ValueError(f"heads: got {text!r}, wanted {HEADS}")


def _existing(path: str, argument: str, is_there) -> Path:
    if not is_there(Path(path)):
        raise FileNotFoundError(
            f"{argument}: got {path}, which is not there; wanted {MASKS if argument == 'masks' else HEADS}"
        )
    return Path(path).resolve()


def _or_reject(find, *arguments):
    """What `find` returns, or why it refused."""
    try:
        return find(*arguments)
    except Reject as reason:
        return reason


def _alpha(picture: Picture) -> Image.Image:
    name = f"mask: {picture.file.name}"
    alpha = pixels.read_alpha(picture.file, "mask")
    if alpha is None:
        raise Reject(f"{name} has no alpha channel, wanted one that shows where the figure is")
    if alpha.getextrema()[0] == 255:
        raise Reject(f"{name} is opaque everywhere, wanted an alpha channel that shows where the figure is")
    return alpha


def _given_mask(picture: Picture, folder: Path) -> Image.Image:
    mask, _ = pixels.read_mask(pixels.find_file(folder, picture.image_id, "mask"))
    return mask


def _bbox_of(record: dict) -> object:
    """Four numbers, or whatever stands there, for `pixel_box` to judge."""
    if "bbox" not in record and all(name in record for name in ("cx", "cy", "w", "h")):
        return [_number(record[name]) for name in ("cx", "cy", "w", "h")]
    bbox = record["bbox"]
    if isinstance(bbox, str):  # CSV
        try:
            return json.loads(bbox) if bbox.strip() else None
        except ValueError:
            return bbox
    return bbox


def _number(value: object) -> object:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _rembg_model(name: str) -> str:
    """The file of one of rembg's models, fetched where it is not there yet."""
    try:
        import onnxruntime  # noqa: F401  rembg ends the process where it is missing
        from rembg.sessions import sessions
    except ImportError as error:
        raise ImportError("rembg: got none, wanted `pip install retribooru[annotate]`, or isnet:FILE.onnx") from error
    try:
        return sessions[name].download_models()
    except Exception as error:  # of the network
        raise OSError(f"masks: {name} cannot be fetched ({error}); wanted a network, or isnet:FILE.onnx") from None
