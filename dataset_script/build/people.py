"""People: pictures labelled with who they show, from a folder or a CSV straight to the figures table.

Nothing is known of their clothes and heads are not looked for: of the tasks, `reconstruct` alone has rows. An identity
is a person (and an artist, where one is given), in whatever clothes: `outfit`, and `artist` where none is given, are
the empty string, since any word would be taken for a name.
"""

import csv
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from ..figures import FIGURES, SPLITS, split_of
from ..files import encode_image, replacing_folder, write_lines
from ..table import PLAIN_FILE, write_shards
from . import BuildReport, summary
from .annotations import MAX_ID, PLAIN_NAME, SURROGATE, Reject, count_reasons, reject, shown
from .pixels import MIN_MASK_PEAK, read_alpha, read_image

COLUMNS = ("identity", "path", "artist", "prompt", "rating", "copyright")  # of a CSV; the first two are needed
NOT_PLAIN = re.compile("[^A-Za-z0-9_.-]+")


class Person(NamedTuple):
    """A picture and who it shows; `file` is a path below the folder of images, with "/"."""

    character: str
    artist: str
    file: str
    image_id: str
    prompt: str
    rating: str | None
    copyright: str | None


def build_people(
    source: Path,
    images: Path | None,
    out: Path,
    seed: int = 0,
    out_of_domain: float = 0.1,
    in_domain: float = 0.05,
) -> BuildReport:
    """Builds a data_dir from pictures of people, see `read_people`; each is decoded once and none is held.

    Writes out/data/SPLIT-*.parquet and out/rejects.jsonl. An earlier table is replaced only once the new one is whole.

    Args:
        seed, out_of_domain, in_domain: of the split, see `split_of`.
    """
    split_of("", "", seed, out_of_domain, in_domain)  # bad shares fail before the work
    people, rejects = read_people(source, images)
    by_split = {split: [] for split in SPLITS}
    for person in people:
        by_split[split_of(person.character, person.image_id, seed, out_of_domain, in_domain)].append(person)

    out, folder = Path(out), _images_folder(Path(source), images)
    with replacing_folder(out / "data") as data:
        written = 0
        for split, members in by_split.items():
            rows = people_rows(tqdm(members, desc=f"writing {split}", unit="image"), folder, rejects)
            written += write_shards(split, rows, data, FIGURES, len(members))
        if not written:
            first = f"; the first: {rejects[0]['reason']}" if rejects else ""
            raise ValueError(f"people: none of the {len(rejects)} pictures of {source} can be used{first}")
        write_lines(out / "rejects.jsonl", rejects)
    return summary(out, count_reasons(rejects))


def read_people(source: Path, images: Path | None = None) -> tuple[list[Person], list[dict]]:
    """Reads the labels of a folder, SOURCE/IDENTITY/FILE, or of a CSV with the columns `COLUMNS` in any order.

    Args:
        source: every file in the folder counts as a picture, whatever its name, and so does every row of the CSV.
        images: the folder that the CSV's paths are relative to; without, the CSV's own.

    Returns:
        (people sorted by identity and file, rejects as `annotations.reject` makes them): together as many as came in.
        The files themselves are looked at by `person_row`.
    """
    source = Path(source)
    _images_folder(source, images)  # what is missing fails before the work
    found, rejects, seen = [], [], set()
    for entry, reason in _walk(source) if source.is_dir() else _read_csv(source):
        try:
            if reason:
                raise Reject(reason)
            person = _read_entry(entry)
            if person.file in seen:
                raise Reject(f"path: {shown(person.file)} came before, wanted every file once")
            seen.add(person.file)
            found.append(person)
        except Reject as reason:
            rejects.append(reject(entry, reason))
    people, seen = [], set()
    for person in sorted(found):
        image_id = next((name for name in image_ids(person.file) if name not in seen), None)
        if image_id is None:
            rejects.append(reject(person._asdict(), Reject(f"path: {shown(person.file)} gives an id that came before")))
            continue
        seen.add(image_id)
        people.append(person._replace(image_id=image_id))
    return people, rejects


def image_ids(file: str) -> Iterator[str]:
    """The plain names that a file may get, best first: a/b.jpg -> a-b, and a-b-HASH for where a-b is taken.

    HASH is eight digits, of the path. A path that is not plain has the second alone, without what its letters bear
    (é -> e), "_" in the place of any other characters: José R/1.jpg -> Jose_R-1-HASH.
    """
    name = str(PurePosixPath(file).with_suffix("")).replace("/", "-")
    if PLAIN_NAME.fullmatch(name) and len(name) <= MAX_ID:
        yield name
    plain = "".join(each for each in unicodedata.normalize("NFKD", name) if not unicodedata.combining(each))
    plain = NOT_PLAIN.sub("_", plain).lstrip("_.-")[: MAX_ID - 9] or "image"
    yield f"{plain}-{hashlib.sha256(os.fsencode(file)).hexdigest()[:8]}"


def people_rows(people: Iterable[Person], folder: Path, rejects: list[dict]) -> Iterator[dict]:
    """Rows of `FIGURES`; pictures that cannot be used end among the rejects."""
    for person in people:
        try:
            yield person_row(person, folder)
        except Reject as reason:
            rejects.append(reject(person._asdict(), reason))


def person_row(person: Person, folder: Path) -> dict:
    """A row of `FIGURES`: the mask is the picture's alpha channel, or 255 everywhere where it has none.

    Args:
        folder: of the images, resolved.

    Raises:
        Reject: the file is missing, outside the folder or no picture that can be read, or all of it is transparent.
    """
    file = file_below(folder, person.file)
    image, cell = read_image(file)
    # What is shown as it came is opaque; of anything else the alpha channel may be worth a second look.
    mask = full_mask(image.size) if cell["path"] else _alpha_mask(file, image.size)
    path = person.file if cell["path"] and PLAIN_FILE.fullmatch(person.file) else None
    labels = person._asdict()
    del labels["file"]
    return {
        **labels,
        "image": {"bytes": cell["bytes"], "path": path},
        "mask": {"bytes": mask, "path": None},
        "head_box": None,
        "outfit": "",
        "outfit_answer": None,
        "tags": [],
    }


def file_below(folder: Path, name: str) -> Path:
    """The regular file of that name, links followed; raises Reject where there is none, or it is outside `folder`."""
    try:
        file = (folder / name).resolve(strict=True)
        is_regular = file.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, links in a circle
        raise Reject(f"path: {shown(name)} cannot be found: {getattr(error, 'strerror', None) or error}") from None
    if not file.is_relative_to(folder):
        raise Reject(f"path: {shown(name)} is a link to outside {folder}, wanted a file in it")
    if not is_regular:
        raise Reject(f"path: {shown(name)} is not a regular file")
    return file


@lru_cache(maxsize=64)
def full_mask(size: tuple[int, int]) -> bytes:
    """A mask of nothing but 255, encoded."""
    return encode_image(Image.new("L", size, 255))


def _alpha_mask(file: Path, size: tuple[int, int]) -> bytes:
    alpha = read_alpha(file, "image")
    if alpha is None:
        return full_mask(size)
    if alpha.getextrema()[1] < MIN_MASK_PEAK:
        raise Reject(f"image: {file.name} is transparent, wanted an alpha channel of 255 where the figure is")
    return encode_image(alpha)


def _images_folder(source: Path, images: Path | None) -> Path:
    """Where the pictures are, resolved."""
    if not source.exists():
        raise FileNotFoundError(f"people: got {source}, which is not there; wanted a folder or a CSV")
    if source.is_dir() and images is not None:
        raise ValueError(f"images: got {images}, wanted none: {source} is itself the folder of the images")
    folder = source if source.is_dir() else source.parent if images is None else Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"images: got {folder}, which is not a folder; wanted the one that the paths are below")
    return folder.resolve()


def _walk(folder: Path) -> Iterator[tuple[dict, str | None]]:
    """(what is as a row of the CSV, why it cannot be used if so) of every file in the folder."""
    errors = []
    for place, folders, files in os.walk(folder, onerror=errors.append):
        folders.sort()
        below = Path(place).relative_to(folder)
        for name in sorted(files):
            path = (below / name).as_posix()
            wrong = None if len(below.parts) == 1 else f"path: got {shown(path)}, wanted IDENTITY/FILE"
            yield {"identity": below.as_posix(), "path": path}, wrong
        for name in (name for name in folders if os.path.islink(os.path.join(place, name))):
            path = (below / name).as_posix()
            yield {"path": path}, f"path: {shown(path)} is a link to a folder, wanted a folder"
    for error in errors:
        path = Path(error.filename).relative_to(folder).as_posix()
        yield {"path": path}, f"path: {shown(path)} cannot be looked into: {error.strerror}"


def _read_csv(path: Path) -> Iterator[tuple[dict, str | None]]:
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.reader(file)
        try:
            names = [name.strip() for name in next(rows, [])]
        except csv.Error as error:
            raise ValueError(f"people: {path} is not CSV: {error}") from None
        if not set(COLUMNS[:2]) <= set(names) <= set(COLUMNS) or len(set(names)) < len(names):
            raise ValueError(
                f"people: {path} has the columns {shown(names)}, wanted identity and path, and beside them none but "
                f"{', '.join(COLUMNS[2:])}"
            )
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield {"line": rows.line_num}, f"row: line {rows.line_num} is not CSV: {error}"
                continue
            if row:  # an empty line is none
                wrong = None if len(row) == len(names) else f"row: got {len(row)} values, wanted {len(names)}"
                yield dict(zip(names, row)) if wrong is None else {"row": row}, wrong


def _read_entry(entry: dict[str, str]) -> Person:
    """The labels of a picture, its id to come."""
    text = {name: entry.get(name, "").strip() for name in COLUMNS if name != "path"}
    for name, value in text.items():
        if SURROGATE.search(value):
            raise Reject(f"{name}: not UTF-8")
        if name != "prompt" and any(unicodedata.category(character) == "Cc" for character in value):
            raise Reject(f"{name}: got {shown(value)}, wanted a name without control characters")
    if not text["identity"]:
        raise Reject(f"identity: got {shown(entry.get('identity'))}, wanted a name")
    path = PurePosixPath(entry["path"])
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise Reject(f"path: got {shown(entry['path'])}, wanted a relative path without '..'")
    return Person(
        character=text["identity"], artist=text["artist"], file=path.as_posix(), image_id="", prompt=text["prompt"],
        rating=text["rating"] or None, copyright=text["copyright"] or None,
    )  # fmt: skip
