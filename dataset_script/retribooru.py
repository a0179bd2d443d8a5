"""The loading script: a `datasets` builder with one config per task.

load_dataset("retribooru", "compose", data_dir="built/", split="train")
"""

import io
import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from .concepts import crop_concept
from .figures import FIGURES, SPLITS, TASK_ROWS, identity_of
from .files import encode_png
from .references import RECIPES, draw_references, row_rng

logger = logging.getLogger(__name__)


@dataclass
class RetriBooruConfig(datasets.BuilderConfig):
    """`seed` draws the references of the tasks' rows."""

    seed: int = 0


class RetriBooru(datasets.GeneratorBasedBuilder):
    """Anime figures grouped by character, artist and outfit.

    `figures` has one row per image. `reconstruct` (references: four whole figures) and `compose` (two faces, two
    bodies) have one row per target that has an image of its identity to be drawn from. References of `train` and
    `out_of_domain` come from the same split; those of `in_domain`, whose targets are held-out images of trained
    characters, come from `train`.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = RetriBooruConfig
    BUILDER_CONFIGS = [RetriBooruConfig(name=name) for name in ("figures", *RECIPES)]

    def _info(self):
        return datasets.DatasetInfo(
            description=self.__doc__,
            features=FIGURES if self.config.name == "figures" else TASK_ROWS,
            citation="Tang et al., Retrieving Conditions from Reference Images for Diffusion Models, arXiv:2312.02521",
        )

    def _split_generators(self, dl_manager):
        if not self.config.data_dir:
            raise ValueError("data_dir: got none, wanted the folder that `retribooru build --out` wrote")
        data_dir = Path(self.config.data_dir)
        shards = {split: sorted(map(str, (data_dir / "data").glob(f"{split}-*.parquet"))) for split in SPLITS}
        if not any(shards.values()):
            raise ValueError(
                f"data_dir: got {data_dir}, which has no figures; wanted a folder that `retribooru build --out` wrote, "
                f"with data/SPLIT-*.parquet for a SPLIT of {', '.join(SPLITS)}"
            )
        # Of these two only the list is shared out among processes and workers; the tuple stays whole.
        return [
            datasets.SplitGenerator(
                name=split,
                gen_kwargs={"files": files, "pool": tuple(shards["train"]) if split == "in_domain" else None},
            )
            for split, files in shards.items()
            if files
        ]

    def _generate_examples(self, files, pool):
        if self.config.name == "figures":
            for row in read_rows(files):
                yield row["image_id"], row
            return
        alone = 0
        for targets, images in read_identities(files, pool):
            for row in task_rows(self.config.name, targets, images, self.config.seed):
                if row is None:
                    alone += 1
                else:
                    yield row["target_id"], row
        if alone:
            logger.warning("%s: %d images have no image to draw references from, no rows", self.config.name, alone)


def read_rows(files: list[str]) -> Iterator[dict]:
    """Rows of the figures table, images as encoded bytes."""
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=32):
            yield from batch.to_pylist()


def read_identities(files: list[str], pool: tuple[str] | None) -> Iterator[tuple[list[dict], list[dict]]]:
    """(targets, images to draw their references from) of one identity after the other.

    The rows of an identity stand together in one file. Without a `pool` the targets are each other's references.
    """
    if pool is None:
        for _, rows in itertools.groupby(read_rows(files), key=identity_of):
            rows = list(rows)
            yield rows, rows
        return
    targets = defaultdict(list)
    for row in read_rows(files):
        targets[identity_of(row)].append(row)
    for identity, rows in itertools.groupby(read_rows(pool), key=identity_of):
        if identity in targets:
            yield targets.pop(identity), list(rows)
    for rows in targets.values():
        yield rows, []


def task_rows(task: str, targets: list[dict], images: list[dict], seed: int) -> Iterator[dict | None]:
    """The task's row of each target, None for one without references."""
    by_id = {row["image_id"]: row for row in images}
    has_head = {image_id: bool(row["head_box"]) for image_id, row in by_id.items()}
    crops = {}  # each image is cropped once, however many rows refer to it
    for target in targets:
        rng = row_rng(seed, task, target["image_id"])
        drawn = draw_references(target["image_id"], has_head, RECIPES[task], rng)
        if not drawn:
            yield None
            continue
        for image_id, concept in drawn:
            if (image_id, concept) not in crops:
                crops[image_id, concept] = encoded_crop(concept, by_id[image_id])
        yield {
            "target_id": target["image_id"],
            "target": target["image"],
            "target_mask": target["mask"],
            **{key: target[key] for key in ("head_box", "prompt", "character", "artist", "outfit")},
            "reference_images": [crops[draw][0] for draw in drawn],
            "reference_masks": [crops[draw][1] for draw in drawn],
            "reference_concepts": [concept for _, concept in drawn],
            "reference_ids": [image_id for image_id, _ in drawn],
        }


def encoded_crop(concept: str, row: dict) -> tuple[dict, dict]:
    """(image, mask) of a concept, encoded; a whole figure as it came."""
    if concept == "figure":
        return row["image"], row["mask"]
    image, mask = (ImageOps.exif_transpose(Image.open(io.BytesIO(row[key]["bytes"]))) for key in ("image", "mask"))
    crop = crop_concept(concept, image.convert("RGB"), mask.convert("L"), row["head_box"])
    return tuple({"bytes": encode_png(part), "path": None} for part in crop)
