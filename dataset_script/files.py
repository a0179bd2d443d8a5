"""Files and folders that are whole or not there."""

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from PIL import Image


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; moved into place when the block ends well."""
    partial = path.with_name(path.name + ".partial")
    yield partial
    os.replace(partial, path)


@contextmanager
def replacing_folder(final: Path) -> Iterator[Path]:
    """An empty folder beside `final` to fill; put in the place of an earlier one when the block ends well."""
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    replace_folder(partial, final)


def replace_folder(partial: Path, final: Path) -> None:
    """Puts a finished folder in the place of an earlier one."""
    old = final.with_name(final.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def write_lines(path: Path, lines: Iterable[dict]) -> None:
    """Writes JSON lines, beside the file's name first."""
    with replacing(path) as partial:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice, of which YAML's own would forget the first."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = [str(key) for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise yaml.YAMLError(f"{', '.join(twice)} is there twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> object:
    """What a YAML file holds. Raises OSError, UnicodeDecodeError or yaml.YAMLError, the last also for a key twice."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)


def encode_image(image: Image.Image, image_format: str = "PNG") -> bytes:
    """The bytes of an image file; a PNG mask of nothing but 0 and 255 takes one bit a pixel.

    `image_format` is PNG, or PPM: large, but written and read in a tenth of the time.
    """
    if image_format == "PNG" and image.mode == "L" and not any(image.histogram()[1:255]):
        image = image.convert("1", dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format=image_format)
    return buffer.getvalue()
