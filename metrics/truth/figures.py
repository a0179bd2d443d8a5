"""Held-out characters of the mini edition, and what is true of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import datasets
from PIL import Image

from retribooru.dataset_script.concepts import crop_concept
from retribooru.dataset_script.figures import IdentityIndex
from retribooru.dataset_script.mini import TRUTH
from retribooru.dataset_script.references import draw_references, row_rng
from retribooru.training.arguments import check_argument
from retribooru.training.data import check_truth, load_figures
from retribooru.training.grids import spread

from .arguments import TruthArguments
from .report import with_means

OF_CLOTHES = ("top", "bottom", "pattern")
PIXELS = ["target", "target_mask", "reference_images", "reference_masks"]


@dataclass(frozen=True)
class Setting:
    """One way of drawing the rows of a task."""

    task: str
    retrieval_scale: float
    references: int  # of each row

    @property
    def name(self) -> str:
        return f"{self.task}_scale-{self.retrieval_scale:g}_references-{self.references}"


class Figures:
    """Held-out characters: their pictures, the truth about them, and rows of the tasks.

    Raises ValueError for a table without the truth.
    """

    def __init__(self, args: TruthArguments):
        self.args = args
        self.table = load_figures(args.data_dir, "out_of_domain", args.images, args.characters)
        check_truth(self.table)
        self.index = IdentityIndex.from_dataset(self.table)
        self.truth = dict(zip(self.index.image_ids, self.table.select_columns(list(TRUTH)).to_list()))
        self.rows = {task: self._rows(task) for task in args.tasks}
        self.expected = {
            task: [expected_truth(row, self.truth) for row in rows.remove_columns(PIXELS).to_list()]
            for task, rows in self.rows.items()
        }
        self.target_ids = sorted({image_id for rows in self.rows.values() for image_id in rows["target_id"]})

    def _rows(self, task: str) -> datasets.Dataset:
        """As many rows of a task as there are to be pictures, of as many characters and outfits as there are."""
        count = self.args.pictures
        rows = load_figures(self.args.data_dir, "out_of_domain", self.args.images, self.args.characters, task)
        limit = f"at most {len(rows)}, the rows of {task} of held-out characters; more characters have more"
        check_argument("pictures", count <= len(rows), count, limit)
        return rows.select(spread(list(zip(rows["character"], rows["artist"], rows["outfit"])))[:count])

    def target(self, image_id: str) -> Image.Image:
        return self.table[self.index.positions[image_id]]["image"].convert("RGB")

    def row(self, setting: Setting, number: int) -> dict:
        """A row of the task, with as many references as the setting has."""
        row = self.rows[setting.task][number]
        if setting.references != len(row["reference_ids"]):
            row |= self._other_references(row, setting)
        return row

    def _other_references(self, row: dict, setting: Setting) -> dict[str, list]:
        """References of the same identities, drawn anew: more of them, or fewer."""
        drawn, rng = [], row_rng(0, setting.task, row["target_id"])
        sources = dict(zip(row["reference_concepts"], row["reference_ids"]))
        for concept, source in sources.items():
            like = self.index.images_like(self.index.positions[source])
            recipe = [concept] * (setting.references // len(sources))
            drawn += draw_references(row["target_id"], like, recipe, rng)
        figures = [(self.table[self.index.positions[image_id]], concept) for image_id, concept in drawn]
        crops = [
            crop_concept(concept, figure["image"].convert("RGB"), figure["mask"].convert("L"), figure["head_box"])
            for figure, concept in figures
        ]
        images, masks = zip(*crops)
        return {
            "reference_images": list(images),
            "reference_masks": list(masks),
            "reference_concepts": [concept for _, concept in drawn],
        }


def expected_truth(row: Mapping, truth: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What a picture of a row should show: clothes of whose bodies are the references, the rest of the target.

    Args:
        row: target_id, reference_ids, reference_concepts.
        truth: {image_id: {attribute: value}}.
    """
    bodies = [i for i, concept in zip(row["reference_ids"], row["reference_concepts"]) if concept == "body"]
    clothes = truth[bodies[0] if bodies else row["target_id"]]
    return {**truth[row["target_id"]], **{name: clothes[name] for name in OF_CLOTHES}}


def chance(expected: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Share of the pictures of which the most frequent value is true, by attribute."""
    most = {name: Counter(row[name] for row in expected).most_common(1)[0][1] for name in TRUTH}
    return with_means({name: count / len(expected) for name, count in most.items()})
