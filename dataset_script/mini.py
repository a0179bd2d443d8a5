"""The mini edition: figures drawn by code, with known identity, exact masks and head boxes, and without a network.

It is a figures table like any other, with the truth about each figure in extra columns; who draws whom in what, and how
often, is settled here, how it looks in mini_figure.py and mini_scenery.py.
"""

import concurrent.futures
import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from datasets import Features, Value
from filelock import FileLock
from tqdm import tqdm

from .figures import FIGURES, SPLITS, identity_of, split_of
from .files import encode_image, replacing_folder
from .mini_figure import draw_figure
from .mini_palette import ARTISTS, Artist, Character, Outfit, between, cast, pick, wardrobe
from .table import write_shards

SIZE = 256
CHARACTERS = 300
COPYRIGHT = "retribooru_mini"

# What can be read off a figure of the mini edition, a column each.
TRUTH = ("hair", "hair_style", "eyes", "skin", "top", "bottom", "pattern", "pose", "expression", "background")
MINI_FIGURES = Features({**FIGURES, **{name: Value("string") for name in TRUTH}})

# How many images an identity has: 4 to 12, as likely as 1, 2, 3, 4, 5, 6 to 8 more, 15 more of the authors' images have
# partners (METHOD: 65,594, 19,636, 9,125, 5,227, 3,434 of 116,729 ...), so pairs become fours.
IMAGES = {4: 0.562, 5: 0.168, 6: 0.078, 7: 0.045, 8: 0.029, 9: 0.027, 10: 0.027, 11: 0.027, 12: 0.037}


@dataclass(frozen=True)
class Identity:
    """One character in one outfit as one artist draws them; image ids begin at `first_id`."""

    character: Character
    outfit: Outfit
    artist: Artist
    first_id: int
    images: int


def identities(seed: int, characters: int) -> list[Identity]:
    """Who is drawn by whom in what: 2 or 3 outfits of each character. More characters change nothing about the first."""
    found = []
    for number, character in enumerate(cast(seed, characters)):
        rng = Random(f"{seed}/{number}/identities")
        for worn, outfit in enumerate(wardrobe(seed, number, 2 if rng.random() < 0.6 else 3)):
            # A thousand numbers per outfit and a thousand outfits per character keep ids unique and stable.
            first_id = 10**6 * (number + 1) + 1000 * worn
            found.append(Identity(character, outfit, pick(rng, ARTISTS), first_id, _count(rng)))
    return found


def _count(rng: Random) -> int:
    share = between(rng, 0, sum(IMAGES.values()))
    for images, weight in IMAGES.items():
        share -= weight
        if share < 0:
            break
    return images


def draw_rows(identity: Identity, size: int, seed: int) -> list[dict]:
    """The rows of an identity; an image is a function of the seed, its identity and its own number alone."""
    rows = []
    for number in range(identity.images):
        image_id = str(identity.first_id + number)
        figure = draw_figure(identity.character, identity.outfit, identity.artist, Random(f"{seed}/{image_id}"), size)
        rows.append(
            {
                "image_id": image_id,
                "image": {"bytes": encode_image(figure.image), "path": f"{image_id}.png"},
                "mask": {"bytes": encode_image(figure.mask), "path": None},
                "head_box": list(figure.head_box),
                "character": identity.character.name,
                "artist": identity.artist.name,
                "copyright": COPYRIGHT,
                "outfit": ", ".join(identity.outfit.tags()),
                "outfit_answer": ", ".join(identity.outfit.colours()),
                "tags": figure.tags,
                "prompt": figure.prompt,
                "rating": "g",
                **figure.truth,
            }
        )
    return rows


def draw_edition(out: Path, size: int = SIZE, characters: int = CHARACTERS, seed: int = 0) -> Path:
    """Draws an edition as a figures table, `out`/data/SPLIT-*.parquet; returns `out`. An earlier one is replaced.

    Args:
        size: side of the images in pixels.
        characters: how many; those of a smaller edition are the first of a larger one.
        seed: of characters, clothes and drawings. Not of the split, which is a function of the names.
    """
    _check_numbers(size, characters)
    drawn = identities(seed, characters)
    by_split = {split: [] for split in SPLITS}
    with tqdm(total=sum(identity.images for identity in drawn), desc="drawing the mini edition", unit="image") as bar:
        for rows in _draw_all(drawn, size, seed):
            for row in rows:
                by_split[split_of(row["character"], row["image_id"])].append(row)
            bar.update(len(rows))
    with replacing_folder(Path(out) / "data") as folder:
        for split, rows in by_split.items():
            rows.sort(key=lambda row: (*identity_of(row), row["image_id"]))
            write_shards(split, rows, folder, MINI_FIGURES, len(rows))
    return Path(out)


def _draw_all(drawn: list[Identity], size: int, seed: int) -> Iterator[list[dict]]:
    """Rows, identity by identity, on all cores where processes can be forked and this one may."""
    jobs = [drawn, [size] * len(drawn), [seed] * len(drawn)]
    if "fork" not in multiprocessing.get_all_start_methods() or multiprocessing.current_process().daemon:
        yield from map(draw_rows, *jobs)
        return
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        yield from pool.map(draw_rows, *jobs, chunksize=4)


def mini_edition(cache: Path, size: int = SIZE, characters: int = CHARACTERS) -> Path:
    """The folder of the mini edition's figures table below `cache`, drawn when first asked for (a minute or two)."""
    _check_numbers(size, characters)
    sources = sorted(Path(__file__).parent.glob("mini*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    folder = Path(cache) / f"retribooru-mini-{size}px-{characters}-{digest[:16]}"
    Path(cache).mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # who comes second waits for the first
        if not (folder / "data").is_dir():
            draw_edition(folder, size, characters)
    return folder


def _check_numbers(size: int, characters: int) -> None:
    for name, value, low, high in (("size", size, 32, 1024), ("characters", characters, 1, 10_000)):
        if not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name}: got {value!r}, wanted a whole number from {low} to {high}")
