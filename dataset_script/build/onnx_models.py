"""The two networks that annotate a figure, as ONNX files: IS-Net for its mask, a YOLO for its head.

Where a network takes batches of any size, the images of a batch are run together; where its file says 1, one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..figures import check_box

# A head's box is part hair, part background: so much of it at least is figure.
MIN_INSIDE = 0.3

Box = tuple[int, int, int, int]  # left, top, right, bottom
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Network:
    """An ONNX model of images, on CUDA where onnxruntime has it, else on the CPU.

    Args:
        file: of the model.
        argument: the name of the user's argument, for errors.
        side: pixels, of both sides of the input where the model leaves them free.
        threads: on the CPU.
    """

    def __init__(self, file: str, argument: str, side: int, threads: int):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("onnxruntime: got none, wanted `pip install retribooru[annotate]`") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        there = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]
        try:
            self.session = onnxruntime.InferenceSession(file, options, providers=providers)
        except Exception as error:  # onnxruntime's own classes, which share no base
            raise ValueError(f"{argument}: {file} is no ONNX model that can be loaded: {error}") from None
        given = self.session.get_inputs()[0]
        if (
            len(given.shape) != 4
            or given.shape[1] != 3
            or given.type not in DTYPES
            or len(self.session.get_inputs()) > 1
        ):
            raise ValueError(
                f"{argument}: {file} takes {given.type} {given.shape}, wanted one float input (B, 3, H, W)"
            )
        batch, _, height, width = (size if isinstance(size, int) else None for size in given.shape)
        if batch not in (None, 1):
            raise ValueError(f"{argument}: {file} takes batches of {batch}, wanted 1 or any")
        self.name, self.dtype, self.one_by_one = given.name, DTYPES[given.type], batch == 1
        self.frame = (width or side, height or side)

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For each input (3, H, W), values in [0, 1]: the model's first output, without its batch dimension."""
        stacks = [array[None] for array in inputs] if self.one_by_one else [np.stack(inputs)]
        outputs = [self.session.run(None, {self.name: stack.astype(self.dtype)})[0] for stack in stacks]
        return [output.astype(np.float32) for stack in outputs for output in stack]


def letterbox(size: tuple[int, int], frame: tuple[int, int]) -> Box:
    """Where a picture of `size` lies in a frame: as large as fits, in the middle; both (width, height) in pixels."""
    scale = min(frame[0] / size[0], frame[1] / size[1])
    width, height = (max(1, round(side * scale)) for side in size)
    left, top = (frame[0] - width) // 2, (frame[1] - height) // 2
    return left, top, left + width, top + height


def framed(image: Image.Image, frame: tuple[int, int], ground: int) -> np.ndarray:
    """(3, H, W) float32 in [0, 1]: an RGB picture in its letterbox, on grey of 0 to 255."""
    left, top, right, bottom = letterbox(image.size, frame)
    canvas = Image.new("RGB", frame, (ground,) * 3)
    canvas.paste(image.resize((right - left, bottom - top), Image.Resampling.BILINEAR), (left, top))
    return np.asarray(canvas, np.float32).transpose(2, 0, 1) / 255


def unframed(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) of a frame -> (h, w) of the picture of `size` (width, height) in it."""
    box = letterbox(size, values.shape[::-1])
    return np.asarray(Image.fromarray(values, "F").resize(size, Image.Resampling.BILINEAR, box=box))


def unframed_boxes(boxes: np.ndarray, size: tuple[int, int], frame: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) in a frame -> (N, 4) in whole pixels of the picture in it, cut at its edges.

    A box is (x_min, y_min, x_max, y_max); `size` and `frame` are (width, height).
    """
    left, top, right, bottom = letterbox(size, frame)
    scale = np.array([size[0] / (right - left), size[1] / (bottom - top)] * 2)
    pixels = np.rint((boxes - [left, top, left, top]) * scale)
    return pixels.clip(0, [*size, *size]).astype(int)


def decode_yolo(output: np.ndarray, head_class: int) -> tuple[np.ndarray, np.ndarray]:
    """The boxes (N, 4), as (x_min, y_min, x_max, y_max) in the frame, and scores (N,) of what a YOLO puts out.

    YOLOv5's has a row per box, (N, 5 + C): centre x, centre y, width, height, how surely there is something, and of
    each class how surely it is that. From YOLOv8 on it is a column per box, (4 + C, N): the same without the fifth.
    Which it is, the shape tells: there are more boxes than numbers of a box.

    Raises:
        ValueError: it is neither, or has no class `head_class`.
    """
    if output.ndim != 2:
        raise ValueError(
            f"heads: the model puts out {output.ndim + 1} dimensions, wanted (1, N, 5 + C) or (1, 4 + C, N)"
        )
    if output.shape[0] > output.shape[1]:
        rows, sure, first = output, output[:, 4:5], 5
    else:
        rows, sure, first = output.T, 1.0, 4
    if rows.shape[1] <= first + head_class:
        raise ValueError(f"heads: the model has {rows.shape[1] - first} classes, wanted one of index {head_class}")
    middle, half = rows[:, :2], rows[:, 2:4] / 2
    scores = (rows[:, first + head_class : first + head_class + 1] * sure)[:, 0]
    return np.hstack([middle - half, middle + half]), scores


def best_head(boxes: np.ndarray, scores: np.ndarray, mask: np.ndarray, confidence: float) -> list[int] | None:
    """The box of the highest score that lies on the figure, or None.

    Boxes that overlap need not be thinned out first: of one head's boxes the best is the one wanted.

    Args:
        boxes: (N, 4), whole pixels.
        scores: (N,), in [0, 1].
        mask: (h, w), true where the figure is.
        confidence: the lowest score that counts.
    """
    height, width = mask.shape
    for number in np.argsort(-scores, kind="stable"):
        if not scores[number] >= confidence:  # or not a number
            return None
        box = boxes[number].tolist()
        try:
            check_box(box, (width, height))
        except ValueError:
            continue
        if mask[box[1] : box[3], box[0] : box[2]].mean() >= MIN_INSIDE:
            return box
    return None


@dataclass(frozen=True)
class IsnetMasks:
    """Masks by IS-Net, as the authors of the one for anime run it: letterboxed on black, in [0, 1], no mean taken off.

    (rembg itself stretches the image, subtracts a mean, and spreads the output to 0 and 1, which finds a figure in
    every image.)
    """

    network: Network
    threshold: float

    def __call__(self, pictures: Sequence) -> list[Image.Image | None]:
        """0 or 255; None where nothing reaches the threshold."""
        outputs = self.network([framed(picture.image, self.network.frame, 0) for picture in pictures])
        return [self._mask(output, picture.image.size) for output, picture in zip(outputs, pictures)]

    def _mask(self, output: np.ndarray, size: tuple[int, int]) -> Image.Image | None:
        if output.ndim != 3 or output.shape[0] != 1:
            raise ValueError(f"masks: the model puts out {(1, *output.shape)}, wanted (1, 1, H, W)")
        figure = unframed(output[0], size) >= self.threshold
        return Image.fromarray(figure.astype(np.uint8) * 255) if figure.any() else None


@dataclass(frozen=True)
class YoloHeads:
    """Heads by a YOLO: the surest box on the figure."""

    network: Network
    confidence: float
    head_class: int

    def __call__(self, pictures: Sequence, masks: Sequence[Image.Image]) -> list[list[int] | None]:
        """[x_min, y_min, x_max, y_max] in pixels; None where no box is sure enough or lies on the figure."""
        frame = self.network.frame
        outputs = self.network([framed(picture.image, frame, 114) for picture in pictures])
        heads = []
        for output, picture, mask in zip(outputs, pictures, masks):
            boxes, scores = decode_yolo(output, self.head_class)
            pixels = unframed_boxes(np.nan_to_num(boxes), picture.image.size, frame)
            heads.append(best_head(pixels, scores, np.asarray(mask) >= 128, self.confidence))
        return heads
