"""From annotated rows to answers: a model is asked what each figure wears."""

import functools
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..table import plain_file
from . import pixels
from .annotate import ROWS_PER_PART, checked_folder, cut, settings_of
from .annotations import Reject, reject
from .stage import ANSWERED, Done, Runner, rejects_table, run_stage
from .vqa import Answer, GivenAnswers, ModelSpec

QUESTION = "List top two colors of the character's cloths"  # the paper's words

SHOWN = ["image_id", "file", "mask"]


def ask(
    annotated: Path,
    images: Path | None,
    out: Path,
    model: ModelSpec,
    runner: Runner,
    question: str = QUESTION,
    on_mask: bool = True,
) -> Counter:
    """Asks about each figure; returns what `count_stage` does. The answers are kept as the model gave them.

    Args:
        annotated: folder of a stage whose rows are `ANNOTATED`; for given answers any stage's whose have an image_id.
        images: the folder that was annotated; not needed for given answers.
        out: folder of this stage: its rows are `ANSWERED`.
        model: what answers, see `model_named`. Every process of the runner loads it.
        question: as the model is asked; given answers have had theirs.
        on_mask: the background is painted white.

    Raises:
        ConnectionError: an endpoint is dead. What was answered before is kept, part by part.
    """
    if isinstance(model, GivenAnswers):
        made_with = ["ask", settings_of(annotated), model.settings()]
        parts = cut(annotated, None)
    else:
        if images is None:
            raise ValueError("images: got none, wanted the folder that was annotated")
        if not question.strip():
            raise ValueError("question: got nothing, wanted what the model is to be asked")
        images = str(checked_folder(images, "images"))
        made_with = ["ask", settings_of(annotated), model.settings(), images, question, on_mask]
        parts = cut(annotated, ROWS_PER_PART)
    return run_stage(out, parts, functools.partial(AskWork, images, model, question, on_mask), made_with, runner)


class AskWork:
    """Asks about the figures of one part, {"path": a file of `ANNOTATED` rows, "start", "rows"}: which of them."""

    def __init__(self, images: str | None, model: ModelSpec, question: str = QUESTION, on_mask: bool = True):
        self.images, self.question, self.on_mask = images, question, on_mask
        self.given = model if isinstance(model, GivenAnswers) else None
        self.model = None if self.given else model.load()

    def __call__(self, item: dict) -> Done:
        columns = ["image_id"] if self.given else SHOWN
        rows = pq.read_table(item["path"], columns=columns).slice(item["start"], item["rows"]).to_pylist()
        kept, rejects = [], []
        for row, answer in zip(rows, self._answers(rows), strict=True):
            if isinstance(answer, Reject):
                rejects.append(reject({name: row[name] for name in row if name != "mask"}, answer))
            else:
                kept.append({"image_id": row["image_id"], "answer": answer})
        return Done(pa.Table.from_pylist(kept, schema=ANSWERED), rejects_table(rejects))

    def _answers(self, rows: Sequence[dict]) -> list[Answer]:
        if self.given:
            return self.given.of([row["image_id"] for row in rows])
        shows = [functools.partial(show_figures, Path(self.images), [row], self.on_mask) for row in rows]
        return self.model(shows, self.question)


def show_figures(images: Path, rows: Sequence[dict], on_mask: bool) -> list[Image.Image]:
    """The RGB images of some `ANNOTATED` rows, on white where `on_mask`.

    Raises:
        Reject: one cannot be read any more, or is not of its mask's size.
    """
    return [_show_figure(images, row, on_mask) for row in rows]


def _show_figure(images: Path, row: dict, on_mask: bool) -> Image.Image:
    try:
        file = images / plain_file(row["file"])
    except ValueError:
        raise Reject(f"image: {row['file']!r:.100} is no relative path of plain names") from None
    image, _ = pixels.read_image(file)
    if not on_mask:
        return image
    mask = Image.open(io.BytesIO(row["mask"])).convert("L")
    if mask.size != image.size:
        raise Reject(f"image: {file.name} has size {image.size}, its mask {mask.size}: it was changed")
    return Image.composite(image, Image.new("RGB", image.size, "white"), mask)
