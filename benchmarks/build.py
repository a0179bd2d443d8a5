"""From a dump to outfits: how long filter and cluster take beside the bare parse of the same file; in how much memory.

python benchmarks/build.py --work DIR [--records 213970] [--times 1 2 4] [--processes 2] [--rounds 3]

Dumps are generated in DIR (3 GB), in the form of Danbooru2019: 20 to 45 general tags a record, as frequent as tags of a
booru are; characters and artists repeat. Every measurement is a process of its own, timed from when its libraries are
imported, and the ways take turns. CPU is that of the whole process and its children; memory is the peak of what they
hold together (PSS, Linux). The readers are not in any extra: pip install polars duckdb orjson psutil.

bare parse: every reader that is installed (pyarrow, polars, duckdb, orjson by line), every column of the file, on
    --processes threads where it has threads; the fastest is the reference. Not a reader by itself, and no reference:
    orjson in as many processes, each its part of the lines.
filter + cluster: `filter_dump` in --processes processes, then outfits of given answers: from the dump to both's files.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

RECORDS = 213_970  # a quarter of Danbooru2019 Figures
CHUNK = 10_000  # records that are generated at once, from a seed of their own
TAGS = (20, 45)  # general tags of a record, at least and at most
WORDS = 20_000  # general tags that are neither clothes nor common ones
COMMON = """1girl solo long_hair looking_at_viewer smile short_hair blush open_mouth bangs blue_eyes
simple_background blonde_hair white_background brown_hair gloves standing black_hair ribbon hair_ornament bow thighhighs
brown_eyes red_eyes twintails hat 1boy closed_mouth purple_eyes green_eyes sitting animal_ears ponytail full_body holding tail
yellow_eyes silver_hair pink_hair very_long_hair blue_hair weapon boots flower braid upper_body socks red_hair purple_hair
choker belt sword necktie outdoors glasses wings sky hair_ribbon tears earrings food cloud hairband one_eye_closed""".split()
COLOURS = "black white blue red brown green pink purple grey yellow orange gold".split()
CLOTHES = """skirt dress shirt school_uniform jacket white_shirt serafuku pleated_skirt kimono pants cape shorts sweater
black_dress red_skirt hoodie blue_dress cardigan apron coat armor cloak blue_jacket white_dress uniform plaid_skirt""".split()


def tag_lists() -> tuple[list[str], np.ndarray]:
    """General tags and how likely each is: Zipf's law, clothes among the common ones."""
    common = [tag for pair in zip(COMMON, CLOTHES, strict=False) for tag in pair] + COMMON[len(CLOTHES) :]
    names = common + [f"{'_'.join(('small', 'detail', 'of', 'it')[: 1 + i % 4])}_{i}" for i in range(WORDS)]
    weights = 1 / (np.arange(len(names)) + 10.0)
    return names, weights / weights.sum()


def records(chunk: int, count: int) -> Iterator[str]:
    """`count` lines, always the same for `chunk`: the form of Danbooru2019."""
    rng = np.random.default_rng([4, chunk])
    names, weights = tag_lists()
    tags = [f'{{"id":"{370_000 + 7 * i}","name":"{name}","category":"0"}}' for i, name in enumerate(names)]
    sizes = rng.integers(TAGS[0], TAGS[1] + 1, count)
    drawn = np.searchsorted(np.cumsum(weights), rng.random(sizes.sum())).clip(max=len(names) - 1)
    ends = np.cumsum(sizes)
    characters = rng.zipf(1.6, count) % 60_000
    artists = rng.zipf(1.3, count) % 40_000
    fates = rng.random(count)
    for i, (begin, end) in enumerate(zip(ends - sizes, ends, strict=True)):
        number = chunk * CHUNK + i
        parts = [tags[j] for j in np.unique(drawn[begin:end])]
        fate, who, by = fates[i], characters[i], artists[i]
        if fate < 0.12:
            parts.append(f'{{"id":"513","name":"{("monochrome", "sketch", "greyscale")[i % 3]}","category":"0"}}')
        if fate < 0.95:
            parts.append(f'{{"id":"{40_000 + by}","name":"artist_number_{by}","category":"1"}}')
        parts.append(f'{{"id":"{500_000 + who % 900}","name":"series_{who % 900}","category":"3"}}')
        parts.append(f'{{"id":"{600_000 + who}","name":"character_number_{who}_(series_{who % 900})","category":"4"}}')
        if 0.85 < fate < 0.93:
            parts.append(f'{{"id":"{600_001 + who}","name":"character_number_{who + 1}","category":"4"}}')
        yield (
            f'{{"id":"{number + 1}","rating":"{"sssssqe"[i % 7]}","file_ext":"jpg","image_width":"{512 + i % 900}",'
            f'"image_height":"{512 + i % 1300}","score":"{i % 70}","created_at":"2019-{1 + i % 12:02d}-{1 + i % 28:02d} '
            f'11:22:33.44 UTC","tags":[{",".join(parts)}]}}\n'
        )


def generate(path: Path, count: int) -> None:
    """The dump, and beside it an answer about the clothes of each image."""
    if path.is_file():
        return
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file, tqdm(total=count, desc=path.name, unit="record") as bar:
        for chunk in range(-(-count // CHUNK)):
            size = min(CHUNK, count - chunk * CHUNK)
            file.writelines(records(chunk, size))
            bar.update(size)
    colours = np.random.default_rng(5).zipf(1.5, (count, 2)) % len(COLOURS)
    answers = [f"{COLOURS[first]} and {COLOURS[second]}" for first, second in colours.tolist()]
    ids = [str(number + 1) for number in range(count)]
    pq.write_table(pa.table({"image_id": ids, "answer": answers}), path.with_suffix(".answers.parquet"))
    os.replace(partial, path)


def timed(work: Callable[[], int]) -> tuple[float, int]:
    began = time.perf_counter()
    count = work()
    return time.perf_counter() - began, count


def parse_pyarrow(path: Path, processes: int) -> tuple[float, int]:
    import pyarrow.json

    pa.set_cpu_count(processes)
    options = pyarrow.json.ReadOptions(block_size=16 << 20)  # the fastest of 1, 4, 16 MB
    return timed(lambda: pyarrow.json.read_json(path, read_options=options).num_rows)


def parse_polars(path: Path, processes: int) -> tuple[float, int]:
    import polars

    return timed(lambda: polars.read_ndjson(path).height)  # threads: POLARS_MAX_THREADS


def parse_duckdb(path: Path, processes: int) -> tuple[float, int]:
    import duckdb

    duckdb.sql(f"set threads = {processes}")
    query = f"select * from read_json('{path}', format = 'newline_delimited')"
    return timed(lambda: duckdb.sql(query).to_arrow_table().num_rows)


def parse_orjson(path: Path, processes: int) -> tuple[float, int]:
    return timed(lambda: parse_lines(path, 0, path.stat().st_size))


def parse_lines(path: Path, first: int, last: int) -> int:
    """How many lines start in bytes [first, last), each parsed by orjson."""
    import orjson

    count, position = 0, first
    with path.open("rb") as file:
        if first:
            file.seek(first - 1)
            position += len(file.readline()) - 1
        for line in file:
            if position >= last:
                break
            orjson.loads(line)
            position += len(line)
            count += 1
    return count


def parse_orjson_processes(path: Path, processes: int) -> tuple[float, int]:
    bounds = [path.stat().st_size * i // processes for i in range(processes + 1)]
    with ProcessPoolExecutor(processes) as pool:
        return timed(lambda: sum(pool.map(parse_lines, [path] * processes, bounds[:-1], bounds[1:])))


def filter_and_cluster(path: Path, processes: int) -> tuple[float, int]:
    from retribooru.dataset_script.build.filter import FilterRules, filter_dump
    from retribooru.dataset_script.build.outfits import cluster
    from retribooru.dataset_script.build.stage import Runner, begin, read_rows, write_part
    from retribooru.dataset_script.build.write import aligned

    out = path.with_suffix(".out")
    shutil.rmtree(out, ignore_errors=True)

    def work() -> int:
        seconds, counts = timed(
            lambda: filter_dump([path], out / "filter", FilterRules.from_files(), Runner(processes))
        )
        labels = read_rows(out / "filter", ["image_id", "character", "artist"])
        answers = aligned(pq.read_table(path.with_suffix(".answers.parquet")), labels["image_id"])
        done = cluster(labels.append_column("answer", answers["answer"]))
        begin(out / "outfits", None)
        write_part(out / "outfits", "outfits", done)
        kept = f"kept {counts['kept']:,}, with a partner {len(done.rows):,}"
        print(f"filter {seconds:.1f} s, {kept}", file=sys.stderr)
        return counts.total()

    return timed(work)


READERS = {"pyarrow": parse_pyarrow, "polars": parse_polars, "duckdb": parse_duckdb, "orjson": parse_orjson}
OURS = "filter + cluster"
WAYS = {**READERS, "orjson, processes": parse_orjson_processes, OURS: filter_and_cluster}


def measure(path: Path, way: str, processes: int) -> tuple[float, float, float, int]:
    """(seconds, seconds of CPU, peak of memory in MB, records) of a process of its own and its children."""
    command = [sys.executable, __file__, "--one", way, str(path), str(processes)]
    cpu = cpu_of_children()
    environment = {**os.environ, "POLARS_MAX_THREADS": str(processes)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, held(psutil.Process(process.pid)))
            time.sleep(0.05)
        printed = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{way}: ended with {process.returncode}")
    seconds, count = json.loads(printed)
    return seconds, cpu_of_children() - cpu, peak, count


def cpu_of_children() -> float:
    """Seconds of the processes that have ended, and of those that they waited for."""
    times = os.times()
    return times.children_user + times.children_system


def held(process: psutil.Process) -> float:
    """MB that a process and its children hold, what they share counted once."""
    total = 0.0
    try:
        for each in [process, *process.children(recursive=True)]:
            total += each.memory_full_info().pss / 2**20
    except psutil.NoSuchProcess:
        pass  # it ended in between
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for what is generated: some GB")
    parser.add_argument("--records", type=int, default=RECORDS, help="of the smallest dump")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # what a process of its own measures
    args = parser.parse_args()
    if args.one:
        way, path, processes = args.one
        print(json.dumps(WAYS[way](Path(path), int(processes))))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    ways = [way for way in WAYS if way == OURS or importlib.util.find_spec(way.split(",")[0])]
    versions = ", ".join(f"{way} {version(way)}" for way in ways if way in READERS)
    print(f"{versions}; {args.processes} processes or threads, median of {args.rounds}\n")
    print("| records | MB | way | s | s / fastest bare parse | s of CPU | peak MB |\n|---|---|---|---|---|---|---|")
    for times in args.times:
        count = args.records * times
        path = args.work / f"{count}.jsonl"
        generate(path, count)
        taken = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way in ways:
                taken[way].append(measure(path, way, args.processes))
                assert taken[way][-1][-1] == count, f"{way}: wanted {count} records, got {taken[way][-1][-1]}"
        seconds = {way: statistics.median(each[0] for each in taken[way]) for way in ways}
        fastest = min(seconds[way] for way in ways if way in READERS)
        for way in ways:
            cpu, peak = statistics.median(each[1] for each in taken[way]), max(each[2] for each in taken[way])
            row = f"| {count:,} | {path.stat().st_size / 1e6:.0f} | {way} | {seconds[way]:.1f} "
            print(f"{row}| {seconds[way] / fastest:.2f} | {cpu:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
