"""Pictures in files that say how they were drawn."""

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from retribooru.dataset_script.build.pixels import open_still
from retribooru.generate_settings import SETTINGS

KEY = "retribooru"  # of the PNG chunk that holds the settings as JSON


def save_new(image: Image.Image, names: Iterable[Path], described: dict) -> Path:
    """Writes a PNG, with what it was drawn with, under the first of the names that no file has."""
    text = PngInfo()
    text.add_itxt("parameters", parameters(described))
    text.add_itxt(KEY, json.dumps(described))
    names = iter(names)
    first = next(names)
    partial = first.with_name(f"{first.name}.{os.getpid()}.partial")
    try:
        image.save(partial, format="PNG", pnginfo=text)
        path = next(name for name in itertools.chain([first], names) if _is_claimed(name))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _is_claimed(path: Path) -> bool:
    """Whether a file was not there, and is now: two runs in one folder do not take the same name."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def picture_names(folder: Path, seed: int) -> Iterator[Path]:
    numbers = [int(found[1]) for file in folder.iterdir() if (found := re.fullmatch(r"(\d+)-seed\d+\.png", file.name))]
    return (folder / f"{number:05d}-seed{seed}.png" for number in itertools.count(max(numbers, default=0) + 1))


def grid_names(folder: Path) -> Iterator[Path]:
    return itertools.chain([folder / "grid.png"], (folder / f"grid-{n}.png" for n in itertools.count(2)))


def parameters(described: dict) -> str:
    """What a picture was drawn with, in the lines that tools for Stable Diffusion show and read."""
    prompt, seed = described["prompt"], described["seed"]
    values = {
        "Steps": described["steps"],
        "Sampler": described["scheduler"].removesuffix("Scheduler"),
        "CFG scale": described["guidance_scale"],
        "Seed": seed if isinstance(seed, int) else f"{seed[0]}-{seed[-1]}",
        "Size": f"{described['width']}x{described['height']}",
        "Model": described["checkpoint"],
        "Model hash": described["model"],
        "Retrieval scale": described["retrieval_scale"],
        "Reference guidance scale": described["reference_guidance_scale"],
        "References": names_of(described["references"]),
        "Characters": names_of(described["characters"]),
        "Version": f"retribooru {described['versions']['retribooru']}",
    }
    lines = [prompt] if isinstance(prompt, str) else list(prompt)
    if described["negative_prompt"]:
        lines.append(f"Negative prompt: {described['negative_prompt']}")
    shown = {name: json.dumps(str(value), ensure_ascii=False) if "," in str(value) else value
             for name, value in values.items() if value not in (None, "none")}  # fmt: skip
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in shown.items())])


def read_settings(path: str | os.PathLike) -> dict:
    """What a picture was drawn with: the fields of `Settings`, and checkpoint, model (a hash), references, characters
    (names and SHA-256 of their files), device and versions. Of a grid, prompt and seed are lists.

    Raises ValueError for a file that `retribooru generate` did not write.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path: got {path}, wanted a picture that `retribooru generate` drew")
    try:
        text = open_still(path.read_bytes(), "path").info.get(KEY)
        described = json.loads(text) if text else None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise ValueError(f"path: got {path}, which cannot be read: {error}") from None
    if described is None:
        raise ValueError(f"path: got {path}, which holds no settings: `retribooru generate` did not draw it")
    if not _is_description(described):
        raise ValueError(f"path: got {path}, whose settings are not those that `retribooru generate` writes")
    return described


def _is_description(described: object) -> bool:
    wanted = {*SETTINGS, "prompt", "checkpoint", "model", "references", "characters"}
    if not isinstance(described, dict) or not wanted <= described.keys():
        return False
    sources = [described["references"], described["characters"]]
    return all(isinstance(entries, list) for entries in sources) and all(
        isinstance(entry, dict) and isinstance(entry.get("file"), str) for entries in sources for entry in entries
    )


def read_picture(again) -> dict:
    """`read_settings` of one picture, not of a grid."""
    try:
        recorded = read_settings(again)
    except ValueError as error:
        raise ValueError(f"again: {str(error).removeprefix('path: ')}") from error
    if not isinstance(recorded["prompt"], str):
        raise ValueError(f"again: got {again}, a grid, wanted one of its pictures")
    return recorded


def names_of(entries: list[dict]) -> str:
    """Of references or saved characters, for people."""
    return ", ".join(" ".join(filter(None, [entry.get("concept"), entry["file"]])) for entry in entries) or "none"
