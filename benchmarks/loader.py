"""How fast rows of compose are loaded, as a ratio to the bare decoding of their five images, and in how much memory.

python benchmarks/loader.py --work DIR [--parts rates memory full]

rates: rows per second (median of rounds that take turns) against Pillow decoding the same target and references, bytes
    in memory, in the same run. A row of `datasets` decodes five masks on top.
memory: peak of the process's own memory (RssAnon, Linux) over the first 1,000 and over 20,000 rows.
full: time and peak memory (VmHWM: of the whole process) from `import retribooru` to the first compose row of a
    table of 116,729 figures that names its images, with masks of 512 x 512, in a new process with an empty cache.
"""

import argparse
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from random import Random

FULL = 116_729
BATCH = 8  # rows that a worker hands over at once
# Of the authors' images: how many have this many partners (METHOD); the rest of the table has 6 to 20.
PARTNERS = {1: 65_594, 2: 19_636, 3: 9_125, 4: 5_227, 5: 3_434}


def rates(work: Path, size: int, rows: int, rounds: int) -> None:
    """Prints a line for each way of loading."""
    import torch
    from datasets import Features, Image, load_dataset
    from PIL import Image as PIL
    from torch.utils.data import DataLoader

    import retribooru  # noqa: F401
    from retribooru.dataset_script.export import export_dataset
    from retribooru.training.data import TrainingFigures, load_figures

    torch.set_num_threads(1)  # as in a worker
    exported = work / f"export-{size}"
    if not exported.is_dir():
        export_dataset(exported, size=size, characters=150, configs=["compose"])
    options = {"split": "train", "data_dir": str(exported), "cache_dir": str(work / "cache")}
    mapped = load_dataset("retribooru", "compose", **options)
    mapped = mapped.select(range(min(rows, len(mapped))))
    rows = len(mapped)
    undecoded = mapped.cast(Features({**mapped.features, "target": Image(decode=False),
                                      "reference_images": [Image(decode=False)]}))  # fmt: skip
    encoded = [
        [image["bytes"] for image in (row["target"], *row["reference_images"])]
        for row in undecoded.select_columns(["target", "reference_images"])
    ]
    streamed = load_dataset("retribooru", "compose", streaming=True, **options)
    parquet = load_dataset(str(exported), "compose", split="train", streaming=True, cache_dir=str(work / "cache"))
    training = TrainingFigures(load_figures(str(exported), "train"), ["compose"], size)

    def bare():
        for images in encoded:
            for image in images:
                PIL.open(io.BytesIO(image)).load()

    def workers(dataset, count):
        loader = DataLoader(dataset, batch_size=BATCH, collate_fn=list, num_workers=count)
        return lambda: consume(itertools.chain.from_iterable(loader), rows)

    ways = {
        "Pillow, five images in memory": bare,
        "map-style, no worker": lambda: consume(mapped, rows),
        "map-style, 1 worker": workers(mapped, 1),
        "map-style, 2 workers": workers(mapped, 2),
        "streaming Parquet": lambda: consume(parquet, rows),
        "streaming Parquet, 2 workers": workers(parquet, 2),
        "streaming by name (crops cut on the way)": lambda: consume(streamed, rows),
        "training examples, no worker": lambda: consume((training[0, i] for i in range(rows)), rows),
    }
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, load in ways.items():
            began = time.perf_counter()
            load()
            seconds[name].append(time.perf_counter() - began)
    reference = statistics.median(seconds["Pillow, five images in memory"])
    print(f"\n| {size} px, {rows} rows of compose, median of {rounds} | rows/s | ratio |\n|---|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {rows / statistics.median(taken):.0f} | {reference / statistics.median(taken):.2f} |")


def consume(rows, count: int) -> None:
    seen = sum(1 for _ in itertools.islice(rows, count))
    assert seen == count, f"wanted {count} rows, got {seen}"


def memory(work: Path) -> None:
    """Prints the peak of this process's own memory at 1,000 and at 20,000 rows, for three ways of loading."""
    print("\n| 128 px, peak of RssAnon in MB | before | 1,000 rows | 20,000 rows |\n|---|---|---|---|")
    big_table(work / "20000", 20_000)
    for way in ("map-style", "streaming by name", "streaming Parquet"):
        done = subprocess.run(
            [sys.executable, __file__, "--work", work, "--one", way], stdout=subprocess.PIPE, check=True
        )
        print(f"| {way} | {' | '.join(f'{value:.0f}' for value in json.loads(done.stdout.splitlines()[-1]))} |")


def memory_of_one(work: Path, way: str) -> None:
    from datasets import load_dataset

    import retribooru  # noqa: F401

    table = work / "20000"
    options = {"split": "train", "cache_dir": str(work / "cache"), "streaming": way != "map-style"}
    if way == "streaming Parquet":
        rows = load_dataset(str(table), "compose", **options)
    else:
        rows = load_dataset("retribooru", "compose", data_dir=str(table), **options)
    peaks, peak = [megabytes("RssAnon")], 0.0
    for number, _ in enumerate(rows, start=1):
        if number % 20 == 0:
            peak = max(peak, megabytes("RssAnon"))
        if number in (1_000, 20_000):
            peaks.append(peak)
    print(json.dumps(peaks))


def megabytes(what: str) -> float:
    """A line of the kernel's account of this process, in MB.

    RssAnon is what is the process's own: pages of a mapped file, which the system can take back, do not count.
    """
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(what))


def big_table(folder: Path, count: int) -> None:
    """An export of `count` figures of train, made of fewer drawings by giving them new names."""
    from retribooru.dataset_script.export import export_dataset
    from retribooru.dataset_script.figures import FIGURES
    from retribooru.dataset_script.mini import draw_edition
    from retribooru.dataset_script.table import FiguresTable, shard_files, write_shards

    if folder.is_dir():
        return
    drawn = list(FiguresTable(shard_files(draw_edition(folder.with_name("drawn"), 128, 60), "train")))
    copies = (
        {**row, "image_id": f"{copy}-{row['image_id']}", "character": f"{row['character']}_{copy}"}
        for copy in itertools.count()
        for row in drawn
    )
    built = folder.with_name("built")
    write_shards("train", itertools.islice(copies, count), built / "data", FIGURES, count)
    export_dataset(folder, built, ["compose"], embed_images=True)


def full(work: Path) -> None:
    """Prints time and memory of a table of the paper's size."""
    table, images = work / "full", work / "full-images"
    full_table(table, images)
    for what in ("figures, map-style, and a row drawn", "compose, streaming"):
        cache = work / f"cache-{time.time_ns()}"  # empty
        done = subprocess.run([sys.executable, __file__, "--work", work, "--one", what], stdout=subprocess.PIPE,
                              check=True, env={**os.environ, "HF_HOME": str(cache)})  # fmt: skip
        seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
        print(f"{FULL:,} figures without pixels, {what}: {seconds:.1f} s to the first row, peak {megabytes:.0f} MB")


def full_of_one(work: Path, what: str) -> None:
    began = time.perf_counter()
    from datasets import load_dataset

    import retribooru  # noqa: F401

    options = {"data_dir": str(work / "full"), "images": str(work / "full-images"), "split": "train"}
    if what == "compose, streaming":
        row = next(iter(load_dataset("retribooru", "compose", streaming=True, **options)))
        assert len(row["reference_images"]) == 4
    else:
        from retribooru.training.data import TrainingFigures

        figures = load_dataset("retribooru", "figures", **options)
        example = TrainingFigures(figures, ["compose"], 512)[0, 0]
        assert len(example["reference_pixel_values"]) == 4
    print(json.dumps([time.perf_counter() - began, megabytes("VmHWM")]))


def full_table(folder: Path, images: Path) -> None:
    """116,729 figures in identities as large as the authors', without pixels; all image files are one, linked."""
    from retribooru.dataset_script.figures import FIGURES, FIGURES_WITHOUT_PIXELS
    from retribooru.dataset_script.files import replacing_folder
    from retribooru.dataset_script.mini import draw_rows, identities
    from retribooru.dataset_script.table import write_shards

    if folder.is_dir():
        return
    drawn = [row for identity in identities(0, 8) for row in draw_rows(identity, 512, 0)]
    images.mkdir(exist_ok=True)
    (images / "figure.png").write_bytes(drawn[0]["image"]["bytes"])
    rng = Random(0)

    def rows():
        number = 0
        for identity in itertools.count():
            sizes = [*PARTNERS, rng.randint(6, 20)]
            weights = [images / (partners + 1) for partners, images in PARTNERS.items()]
            size = rng.choices(sizes, [*weights, (FULL - sum(PARTNERS.values())) / 14])[0] + 1
            for _ in range(size):
                if number == FULL:
                    return
                row = {name: value for name, value in drawn[number % len(drawn)].items() if name in FIGURES}
                name = f"{number}.png"
                if not (images / name).exists():
                    (images / name).symlink_to("figure.png")
                yield {**row, "image_id": str(number), "character": f"character_{identity:06d}",
                       "image": {"bytes": None, "path": name}}  # fmt: skip
                number += 1

    with replacing_folder(folder) as partial:
        write_shards("train", rows(), partial / "data", FIGURES_WITHOUT_PIXELS, FULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made once: some GB")
    parser.add_argument("--parts", nargs="+", default=["rates", "memory", "full"], choices=["rates", "memory", "full"])
    parser.add_argument("--rows", type=int, default=1500, help="rows of a round of rates")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a process of its own measures
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.one:
        (full_of_one if "row" in args.one or "compose" in args.one else memory_of_one)(args.work, args.one)
        return
    if "rates" in args.parts:
        for size in (256, 512):
            rates(args.work, size, args.rows, args.rounds)
    if "memory" in args.parts:
        memory(args.work)
    if "full" in args.parts:
        full(args.work)


if __name__ == "__main__":
    main()
