"""The loading script: a `datasets` builder with one config per task.

load_dataset("retribooru", "compose", split="train")                      the embedded mini edition
load_dataset("retribooru", "compose", data_dir="built/", split="train")   an edition that `retribooru build` wrote
"""
# ruff: noqa: F401 (`datasets` 3 copies the files that the script itself imports, and no others: each file beside it is
# named below, those too that only the others need; and it takes a comment behind such a line for an address)

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import datasets

from .concepts import crop_concept
from .figures import FIGURES, SPLITS, TASK_ROWS
from .files import encode_image
from .mini import CHARACTERS, MINI_FIGURES, SIZE, mini_edition
from .mini_body import draw_arm
from .mini_clothes import draw_top
from .mini_face import draw_head
from .mini_figure import draw_figure
from .mini_hair import draw_front_hair
from .mini_palette import cast
from .mini_pen import Pen
from .mini_scenery import draw_background
from .references import RECIPES
from .table import FiguresTable, check_images, shard_files, table_features
from .tasks import POOLS, task_rows, task_tables

logger = logging.getLogger(__name__)


@dataclass
class RetriBooruConfig(datasets.BuilderConfig):
    """What `load_dataset` takes beside the usual.

    Args:
        seed: draws the references of the tasks' rows.
        images: folder with the image files, for a `data_dir` that names its images and does not hold them.
        size: of the mini edition (without `data_dir`): side of its images in pixels.
        characters: of the mini edition: how many.
    """

    seed: int = 0
    images: str | None = None
    size: int = SIZE
    characters: int = CHARACTERS

    def check(self) -> None:
        """Raises ValueError where an argument is for another edition than the one that is asked for."""
        if self.data_files:
            raise ValueError(f"data_files: got {self.data_files}, wanted none; name the folder of a table as data_dir")
        for name, default in (("size", SIZE), ("characters", CHARACTERS)) if self.data_dir else (("images", None),):
            if getattr(self, name) != default:
                edition = "a table in a data_dir" if self.data_dir else "the mini edition, without data_dir,"
                raise ValueError(f"{name}: got {getattr(self, name)!r}, wanted none: {edition} has no such choice")

    def create_config_id(self, config_kwargs, custom_features=None):
        """Names the cache: a table that was built anew is another one."""
        if self.data_dir:
            files = [os.stat(file) for split in SPLITS for file in shard_files(self.data_dir, split)]
            state = str([(file.st_size, file.st_mtime_ns) for file in files])
            config_kwargs = {**config_kwargs, "table": hashlib.sha256(state.encode()).hexdigest()}
        return super().create_config_id(config_kwargs, custom_features)


class RetriBooru(datasets.ArrowBasedBuilder):
    """Anime figures grouped by character, artist and outfit.

    `figures` has one row per image. The tasks have one row per target that has images to draw its references from, all
    of one schema: `reconstruct` (four whole figures), `compose` (two faces, two bodies), `face` (four faces) and `swap`
    (two faces of the target's identity, two bodies of another character's; of the one in the other's clothes there is
    no picture, so the target is the picture of the faces' identity). References of `train` and `out_of_domain` come
    from the same split; those of `in_domain`, whose targets are held-out images of trained characters, from `train`.
    """

    VERSION = datasets.Version("2.0.0")
    BUILDER_CONFIG_CLASS = RetriBooruConfig
    BUILDER_CONFIGS = [RetriBooruConfig(name=name) for name in ("figures", *RECIPES)]

    def _info(self):
        self.config.check()
        features = TASK_ROWS
        if self.config.name == "figures":
            features = table_features(next(iter(self._shards().values()))) if self.config.data_dir else MINI_FIGURES
        return datasets.DatasetInfo(
            description=self.__doc__,
            features=features,
            citation="Tang et al., Retrieving Conditions from Reference Images for Diffusion Models, arXiv:2312.02521",
        )

    def _shards(self) -> dict[str, list[str]]:
        """The files of the splits that the table has."""
        if self.config.data_dir:
            data_dir = Path(self.config.data_dir)
        else:
            data_dir = mini_edition(Path(self._cache_dir_root), self.config.size, self.config.characters)
        shards = {split: shard_files(data_dir, split) for split in SPLITS}
        if not any(shards.values()):
            raise ValueError(
                f"data_dir: got {data_dir}, which has no figures; wanted a folder that `retribooru build --out` wrote, "
                f"with data/SPLIT-*.parquet for a SPLIT of {', '.join(SPLITS)}"
            )
        return {split: files for split, files in shards.items() if files}

    def _split_generators(self, dl_manager):
        shards = self._shards()
        check_images([file for files in shards.values() for file in files], self.config.images)
        # What is streamed is decoded at once: there, compressing the crops would be wasted.
        image_format = "PPM" if dl_manager.is_streaming else "PNG"
        splits = []
        for split, files in shards.items():
            pool = tuple(shards.get(POOLS.get(split, split), ()))
            if self.config.name != "figures" and not any(self._task_rows(files, pool, None)):
                logger.warning("%s: no row of %s has references, the split is left out", split, self.config.name)
                continue
            # Of these only the list is shared out among processes and workers; the tuple stays whole.
            kwargs = {"files": files, "pool": pool, "image_format": image_format}
            splits.append(datasets.SplitGenerator(name=split, gen_kwargs=kwargs))
        if not splits:
            raise ValueError(f"name: got {self.config.name}, which has no rows here: no image has images to refer to")
        return splits

    def _generate_tables(self, files, pool, image_format):
        if self.config.name == "figures":
            yield from enumerate(FiguresTable(files, self.config.images).tables())
        else:
            yield from enumerate(task_tables(self._task_rows(files, pool, image_format)))

    def _task_rows(self, files, pool, image_format):
        targets, pool = (FiguresTable(part, self.config.images) for part in (files, pool))
        return task_rows(self.config.name, targets, pool, self.config.seed, image_format)
