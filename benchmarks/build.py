"""From a dump to outfits: how long filter and cluster take beside the bare parse of the same file, and in how much memory.

python benchmarks/build.py --work DIR [--records 213970] [--times 1 2 4] [--processes 2] [--rounds 3]

Dumps are generated in DIR (some GB): 20 to 45 general tags a record, as frequent as tags of a booru are; characters and
artists repeat, so that most identities are pairs (METHOD). Every measurement is a process of its own, and the ways take
turns. Memory is the peak of what the process and its children hold together (their PSS, Linux).

bare parse: every fast reader that is installed (pyarrow, polars, duckdb, orjson) on as many threads as --processes, reading
    every column of the file; the fastest is the reference.
filter + cluster: `filter_dump`, then outfits of given answers; from the dump to the files of both stages.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from tqdm import tqdm

PAPER = 855_880  # of Danbooru2019 Figures: four times 213,970
CHUNK = 10_000  # records that are generated at once, from a seed of their own
TAGS = (20, 45)  # general tags of a record, at least and at most
WORDS = 20_000  # general tags that are neither clothes nor common ones
COMMON = """1girl solo long_hair looking_at_viewer smile short_hair blush open_mouth bangs blue_eyes
simple_background blonde_hair white_background brown_hair gloves standing black_hair ribbon hair_ornament bow thighhighs
brown_eyes red_eyes twintails hat 1boy closed_mouth purple_eyes green_eyes sitting animal_ears ponytail full_body holding tail
yellow_eyes silver_hair pink_hair very_long_hair blue_hair weapon boots flower braid upper_body socks red_hair purple_hair
choker belt sword necktie outdoors glasses wings sky hair_ribbon tears earrings food cloud hairband one_eye_closed""".split()
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
            parts.append(
                f'{{"id":"{513 + i % 2}","name":"{("monochrome", "sketch", "greyscale")[i % 3]}","category":"0"}}'
            )
        if fate < 0.95:
            parts.append(f'{{"id":"{40_000 + by}","name":"artist_number_{by}","category":"1"}}')
        parts.append(f'{{"id":"{500_000 + who % 900}","name":"series_{who % 900}","category":"3"}}')
        parts.append(
            f'{{"id":"{600_000 + who}","name":"character_number_{who}_(series_{who % 900})","category":"4"}}'
        )
        if 0.85 < fate < 0.93:
            parts.append(f'{{"id":"{600_001 + who}","name":"character_number_{who + 1}","category":"4"}}')
        yield (
            f'{{"id":"{number + 1}","rating":"{"sssssqe"[i % 7]}","file_ext":"jpg","image_width":"{512 + i % 900}",'
            f'"image_height":"{512 + i % 1300}","score":"{i % 70}","created_at":"2019-{1 + i % 12:02d}-{1 + i % 28:02d} '
            f'11:22:33.44 UTC","tags":[{",".join(parts)}]}}\n'
        )


def generate(path: Path, count: int) -> None:
    if path.is_file():
        return
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file, tqdm(total=count, desc=path.name, unit="record") as bar:
        for chunk in range(-(-count // CHUNK)):
            size = min(CHUNK, count - chunk * CHUNK)
            file.writelines(records(chunk, size))
            bar.update(size)
    os.replace(partial, path)


if __name__ == "__main__":
    generate(Path(sys.argv[1]), int(sys.argv[2]))
