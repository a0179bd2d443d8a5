"""The files of a Hub repository: Parquet that `datasets` reads without any code of ours, and the dataset card."""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import datasets
from datasets import DatasetInfo, Features
from huggingface_hub import HfApi
from tqdm import tqdm

from .card import UNKNOWN, dataset_card, dataset_info
from .figures import FIGURES_WITHOUT_PIXELS, SPLITS, TASK_LABELS, TASK_ROWS
from .files import replace_folder, replacing, replacing_folder
from .mini import CHARACTERS, SIZE, mini_edition
from .references import RECIPES
from .table import (
    FiguresTable,
    check_images,
    count_rows,
    read_columns,
    shard_files,
    table_features,
    write_shards,
)
from .tasks import POOLS, task_rows

CONFIGS = ("figures", *RECIPES)
MARK = ".retribooru-export"  # a digest of what a folder is made from; it also tells an export from other folders


@dataclass
class ExportReport:
    """What was written: rows by config and split; rows left out of the figures table, by reason."""

    out: Path
    infos: dict[str, DatasetInfo]
    ratings: tuple[str, ...]
    left_out: dict[str, int]

    def __str__(self) -> str:
        lines = [f"{self.out}, figures rated {', '.join(self.ratings)}"]
        for config, info in self.infos.items():
            rows = ", ".join(f"{split.num_examples} {name}" for name, split in info.splits.items())
            lines.append(f"{config}: {rows}; {info.download_size / 1e6:.1f} MB")
        lines += [f"left out: {count} figures {reason}" for reason, count in self.left_out.items()]
        return "\n".join(lines)


def export_dataset(
    out: Path,
    data_dir: Path | None = None,
    configs: Sequence[str] = CONFIGS,
    embed_images: bool | None = None,
    images: str | None = None,
    ratings: Sequence[str] | None = None,
    seed: int = 0,
    size: int = SIZE,
    characters: int = CHARACTERS,
    license: str | None = None,
) -> ExportReport:
    """Writes the files of a Hub repository to `out`: data/ (the figures), a folder for each task, README.md.

    Killed and called again with the same arguments, it goes on after the last config that was whole.

    Args:
        out: a new or empty folder, or an earlier export, which is replaced once the new one is whole.
        data_dir: a figures table; without, the mini edition (of `size` and `characters`).
        configs: tasks of `RECIPES`; "figures", which they are drawn from, is always written.
        embed_images: whether the files hold pixels. Without, the figures name their image files, which load_dataset
            joins from a local folder (images=FOLDER), and the tasks' rows have labels alone; masks come along in the
            figures always. None: yes for the mini edition, which is ours to give, no for any other.
        images: folder of the image files, for a `data_dir` that does not hold them; with `embed_images`.
        ratings: which figures are published, by their rating column ("unknown": those without one). None: the safest
            rating of the table's scheme, g where there is a g (then s is "sensitive"), s (then "safe") otherwise.
        seed: draws the references of the tasks.
        license: of the card. None: cc0-1.0 for the mini edition, other for any other.
    """
    out = Path(out) if Path(out).name else Path(out).resolve()  # of "." the name is wanted
    mini, images = data_dir is None, images and str(images)
    embed_images = mini if embed_images is None else embed_images
    unknown = [name for name in configs if name not in CONFIGS]
    if unknown:
        raise ValueError(f"configs: got {', '.join(unknown)}, wanted some of {', '.join(CONFIGS)}")
    if isinstance(ratings, str):
        raise ValueError(f"ratings: got {ratings!r}, wanted a list of ratings")
    # Beside `out` an export is made, and the one before is moved away.
    for folder in (out, *(out.with_name(out.name + suffix) for suffix in (".partial", ".old"))):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / MARK).is_file():
            raise ValueError(f"out: got {out}, but {folder} is there and no earlier export; wanted a new folder")
    if images is not None and not embed_images:
        raise ValueError(f"images: got {images}, wanted none without embed_images: no pixels are written")
    if mini:
        data_dir = mini_edition(Path(datasets.config.HF_DATASETS_CACHE), size, characters)
    shards = {split: files for split in SPLITS if (files := shard_files(data_dir, split))}
    if not shards:
        raise ValueError(
            f"data_dir: got {data_dir}, which has no figures; wanted a folder that `retribooru build` wrote"
        )
    every_file = list(chain(*shards.values()))
    if embed_images:
        check_images(every_file, images)
    ratings, reasons = choose(read_columns(every_file, ["rating", "image.path"]).to_pylist(), ratings, embed_images)

    table = [(file, os.stat(file).st_mtime_ns) for file in every_file]
    partial = _begin(out, (embed_images, ratings, seed, images, table))
    folders = {"figures": "data", **{task: task for task in RECIPES if task in configs}}
    for config, folder in folders.items():
        if not (partial / folder).is_dir():
            with replacing_folder(partial / folder) as unfinished:
                if config == "figures":
                    _write_figures(unfinished, shards, images, ratings, embed_images)
                else:
                    _write_task(unfinished, partial, config, seed, embed_images)
    infos = {config: dataset_info(partial / folder) for config, folder in folders.items()}
    infos = {config: info for config, info in infos.items() if info.splits}  # a small table may have no row of a task
    source = f"`retribooru export` wrote these files; the seed of the references is {seed}."
    if mini:
        source += (
            f' The figures are those of `load_dataset("retribooru", "figures", size={size}, characters={characters})`.'
        )
    if reasons:
        source += f" Left out: {'; '.join(f'{count:,} figures {reason}' for reason, count in reasons.items())}."
    with replacing(partial / "README.md") as readme:
        card = dataset_card(infos, folders, mini, embed_images, license, ratings, source)
        readme.write_text(card, encoding="utf-8")
    kept = {"README.md", MARK, *(folders[config] for config in infos)}
    for leftover in {path.name for path in partial.iterdir()} - kept:
        shutil.rmtree(partial / leftover)  # without rows, or of a config that an earlier, killed export was asked for
    replace_folder(partial, out)
    return ExportReport(out, infos, ratings, reasons)


def push_dataset(repo_id: str, private: bool = False, api: HfApi | None = None, **export: object) -> ExportReport:
    """Exports and uploads; the shards of an earlier push are removed. Large uploads may take several commits.

    Args:
        repo_id: "name" or "owner/name" of a dataset repository; it is made where there is none.
        private: whether one that is made is private.
        api: the Hub to upload to, and the token for it; the one that one is logged in to without.
        export: arguments of `export_dataset`, `out` optional.
    """
    api = api or HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        report = export_dataset(**{"out": Path(scratch) / "export", **export})
        repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=report.out,
            ignore_patterns=[MARK],
            delete_patterns=[f"{folder}/*.parquet" for folder in ("data", *RECIPES)],
            commit_message="RetriBooru, by `retribooru push`",
        )
    return report


def choose(
    rows: list[dict], ratings: Sequence[str] | None, embed_images: bool
) -> tuple[tuple[str, ...], dict[str, int]]:
    """(the ratings that are published, how many of `rows` are not and why); raises ValueError where none is."""
    known = Counter(row["rating"] or UNKNOWN for row in rows)
    ratings = tuple(ratings or (("g",) if "g" in known else ("s",)))
    reasons = Counter(reason for row in rows if (reason := why_not(row, ratings, embed_images)))
    if reasons.total() == len(rows):
        found = ", ".join(f"{count} {rating}" for rating, count in known.items())
        raise ValueError(f"ratings: got {', '.join(ratings)}, which leaves no figure to publish; there are {found}")
    return ratings, dict(reasons)


def why_not(row: dict, ratings: Sequence[str], embed_images: bool) -> str | None:
    """Why a figure is not published, None for one that is."""
    rating = row["rating"] or UNKNOWN
    if rating not in ratings:
        return f"rated {rating}"
    if not embed_images and not row["image"]["path"]:
        return "converted when the table was built, so that their files are not what it holds"
    return None


def published_rows(table: FiguresTable, ratings: Sequence[str], embed_images: bool) -> Iterator[dict]:
    """The rows that are published, with their pixels or with the names of their files."""
    for row in table:
        if why_not(row, ratings, embed_images) is None:
            data, path = row["image"]["bytes"], row["image"]["path"]
            if embed_images and data is None:
                data, path = Path(path).read_bytes(), Path(path).relative_to(table.images).as_posix()
            yield {**row, "image": {"bytes": data if embed_images else None, "path": path}}


def _begin(out: Path, settings: object) -> Path:
    """The folder to fill: that of a killed export with the same settings, or a new one."""
    partial = out.with_name(out.name + ".partial")
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    if not (partial / MARK).is_file() or (partial / MARK).read_text() != digest:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with replacing(partial / MARK) as mark:
            mark.write_text(digest)
    return partial


def _write_figures(folder: Path, shards: dict, images: str | None, ratings: Sequence[str], embed_images: bool) -> None:
    for split, files in shards.items():
        features = table_features(files)
        if not embed_images:
            features = Features({**features, **FIGURES_WITHOUT_PIXELS})
        rows = published_rows(FiguresTable(files, images), ratings, embed_images)
        _write(folder, "figures", split, rows, features, count_rows(files))


def _write_task(folder: Path, data_dir: Path, task: str, seed: int, embed_images: bool) -> None:
    image_format, features = ("PNG", TASK_ROWS) if embed_images else (None, TASK_LABELS)
    for split in SPLITS:
        files, pool = (shard_files(data_dir, name) for name in (split, POOLS.get(split, split)))
        if files:
            rows = task_rows(task, FiguresTable(files), FiguresTable(pool), seed, image_format)
            _write(folder, task, split, rows, features, count_rows(files))


def _write(folder: Path, config: str, split: str, rows: Iterator[dict], features: Features, total: int) -> None:
    with tqdm(rows, desc=f"{config}: {split}", unit="row", total=total) as progress:
        write_shards(split, progress, folder, features, total)
