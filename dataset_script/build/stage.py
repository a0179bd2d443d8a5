"""Work that is cut into parts: done here or on a cluster, killed at any moment and taken up again.

A stage's folder holds, for each part, NAME.parquet (the rows that go on) and NAME.rejects.parquet (image_id, reason and
what came in, as JSON). A part whose first file is there is done; every file is written beside its name and moved.

A reason is "FIELD: got this, wanted that": rejects are counted by what stands before the colon.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from ..files import replacing
from ..table import count_rows

# What the stages hand on, a row per image that is still in.
FILTERED = pa.schema(
    [
        ("image_id", pa.string()),
        ("character", pa.string()),
        ("artist", pa.string()),
        ("copyright", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("prompt", pa.string()),
        ("rating", pa.string()),
    ]
)
ANNOTATED = pa.schema(
    [
        ("image_id", pa.string()),
        ("file", pa.string()),  # below the folder of images
        ("mask", pa.binary()),  # PNG
        ("head_box", pa.list_(pa.int32())),  # null where no head was found
    ]
)
ANSWERED = pa.schema([("image_id", pa.string()), ("answer", pa.string())])  # as the model gave it
OUTFITS = pa.schema([("image_id", pa.string()), ("outfit_answer", pa.string()), ("outfit", pa.string())])
REJECTS = pa.schema([("image_id", pa.string()), ("reason", pa.string()), ("record", pa.string())])
SETTINGS = "settings.json"
REPEATED = ["character", "artist", "copyright", "tags.list.element", "rating", "outfit", "outfit_answer", "reason"]


def rejects_table(rejects: Iterable[dict]) -> pa.Table:
    """`REJECTS` of what `annotations.reject` returns."""
    rows = [{**line, "record": json.dumps(line["record"])} for line in rejects]
    return pa.Table.from_pylist(rows, schema=REJECTS)


@dataclass(frozen=True)
class Part:
    """One piece of a stage's work: its name, which is a file name, and what the work is to be done on (picklable)."""

    name: str
    item: Any


@dataclass(frozen=True)
class Done:
    """What the work on a part gives: the rows that go on, and `REJECTS`."""

    rows: pa.Table
    rejects: pa.Table


Work = Callable[[Any], Done]


def run_stage(
    folder: Path, parts: Sequence[Part], make_work: Callable[[], Work], settings: object, runner: "Runner"
) -> Counter:
    """Does the parts that are not done yet; returns what `count_stage` does.

    Args:
        folder: of the stage. What other settings left there is thrown away.
        parts: in the order in which they are read later.
        make_work: called once in every process that works, which may be on another machine; what it returns is called
            with the item of one part after the other. Both must be picklable.
        settings: all that the rows depend on beside the parts, as JSON: other settings are another stage.
        runner: where the work is done.
    """
    begin(folder, [settings, [part.name for part in parts]])
    todo = [part for part in parts if not (folder / f"{part.name}.parquet").is_file()]
    work = functools.partial(_PartWork, make_work, str(folder))
    with tqdm(total=len(parts), initial=len(parts) - len(todo), desc=folder.name, unit="part") as bar:
        for _ in runner.map(work, todo):
            bar.update()
    return count_stage(folder)


def begin(folder: Path, settings: object) -> None:
    """Makes the folder, empty if what is there was made with other settings."""
    wanted = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    file = folder / SETTINGS
    if not file.is_file() or file.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with replacing(file) as partial:
            partial.write_text(wanted)


def part_files(folder: Path) -> list[Path]:
    """The rows of a stage, part by part."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.endswith(".rejects.parquet"))


def read_rows(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a stage, part after part."""
    return pa.concat_tables(pq.read_table(path, columns=columns) for path in part_files(folder))


def read_rejects(folder: Path) -> Iterator[dict]:
    """What a stage rejected: image_id, reason, record."""
    for path in sorted(folder.glob("*.rejects.parquet")):
        for row in pq.read_table(path).to_pylist():
            yield {**row, "record": json.loads(row["record"])}


def count_stage(folder: Path) -> Counter:
    """{"kept": rows, reason's field: rejects, ...} of a stage; the field is what stands before the reason's colon."""
    counts = Counter(kept=count_rows(part_files(folder)))
    for path in folder.glob("*.rejects.parquet"):
        reasons = pc.value_counts(pq.read_table(path, columns=["reason"])["reason"])
        for reason in reasons.to_pylist():
            counts[reason["values"].split(":")[0]] += reason["counts"]
    return counts


def write_part(folder: Path, name: str, done: Done) -> None:
    """The files of a part, the rows last: with them the part is done."""
    write_parquet(folder / f"{name}.rejects.parquet", done.rejects)
    write_parquet(folder / f"{name}.parquet", done.rows)


def write_parquet(path: Path, table: pa.Table) -> None:
    """A whole file, or none."""
    with replacing(path) as partial:
        pq.write_table(table, partial, use_dictionary=REPEATED, write_statistics=False)


class _PartWork:
    """Does a part and writes its files; made in the process that works."""

    def __init__(self, make_work: Callable[[], Work], folder: str):
        self.work, self.folder = make_work(), Path(folder)

    def __call__(self, part: Part) -> str:
        write_part(self.folder, part.name, self.work(part.item))
        return part.name


class Runner:
    """Work on this machine, in `processes` processes; in this one alone where that is 1."""

    def __init__(self, processes: int | None = None):
        self.processes = os.cpu_count() if processes is None else processes
        if self.processes < 1:
            raise ValueError(f"processes: got {processes}, wanted at least 1")

    def map(self, make_work: Callable[[], Callable], items: Sequence) -> Iterable:
        """Results, in any order, of the work on each item."""
        if not items:
            return
        if self.processes == 1:
            yield from map(make_work(), items)
            return
        # Forked processes begin at once, but would inherit torch's threads as dead ones, and wait for them.
        forked = "torch" not in sys.modules and "fork" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("fork" if forked else "spawn")
        options = {"mp_context": context, "initializer": _remember, "initargs": (make_work,)}
        with ProcessPoolExecutor(min(self.processes, len(items)), **options) as pool:
            yield from pool.map(_do_work, items)


class RayRunner(Runner):
    """The same work as Ray Data over a cluster, whose machines see the folders under the same paths.

    Args:
        address: of the cluster, "auto" for the one that this machine belongs to, "local" for a new one on this machine.
        processes: workers; as many as the cluster has cores without.
    """

    def __init__(self, address: str, processes: int | None = None):
        try:
            import ray
        except ImportError as error:
            raise ImportError("ray: got none, wanted `pip install retribooru[cluster]`") from error
        ray.init(address=address, ignore_reinit_error=True)
        super().__init__(processes or int(ray.cluster_resources()["CPU"]))

    def map(self, make_work: Callable[[], Callable], items: Sequence) -> Iterable:
        """Results, in any order, of the work on each item."""
        import ray

        if not items:
            return
        size = min(self.processes, len(items))
        todo = ray.data.from_items([{"item": item} for item in items], override_num_blocks=len(items))
        yield from (
            row["result"] for row in todo.map(_RayWork, fn_constructor_args=(make_work,), concurrency=size).iter_rows()
        )


class _RayWork:
    def __init__(self, make_work: Callable[[], Callable]):
        self.work = make_work()

    def __call__(self, row: dict) -> dict:
        return {"result": self.work(row["item"])}


_MAKE_WORK = _WORK = None  # of a process of the pool


def _remember(make_work: Callable[[], Callable]) -> None:
    global _MAKE_WORK
    _MAKE_WORK = make_work


def _do_work(item: Any) -> Any:
    global _WORK
    if _WORK is None:
        _WORK = _MAKE_WORK()  # not above: what is wrong there would be told as a broken pool
    return _WORK(item)
