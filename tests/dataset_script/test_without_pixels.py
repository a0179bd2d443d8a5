"""A table that names its image files and does not hold them: published so, and joined with a folder of images."""

import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from dump_rows import CONFIGS, dump
from retribooru.dataset_script.export import export_dataset
from retribooru.dataset_script.figures import FIGURES, SPLITS, TASK_LABELS
from retribooru.dataset_script.references import RECIPES
from retribooru.dataset_script.table import has_pixels, read_columns, shard_files, write_shards

opened = []  # while `files_opened` watches
watching = []


def _note(event: str, arguments: tuple) -> None:
    if watching and event == "open":
        opened.append(str(arguments[0]))


sys.addaudithook(_note)


@contextmanager
def files_opened():
    """Gathers the files that Python opens meanwhile."""
    opened.clear()
    watching.append(True)
    try:
        yield opened
    finally:
        watching.clear()


def test_files_opened_notices(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    with files_opened() as files:
        Image.open(tmp_path / "a.png").load()
    assert str(tmp_path / "a.png") in files


@pytest.fixture(scope="module")
def with_pixels(data_dir) -> dict[str, dict[str, list[dict]]]:
    """{style: {"CONFIG/SPLIT": rows}} of the original table."""
    return dump("retribooru", {"data_dir": str(data_dir)})


@pytest.fixture(scope="module")
def labels_alone(data_dir, tmp_path_factory) -> Path:
    """The original table, published without its pixels."""
    return export_dataset(tmp_path_factory.mktemp("exports") / "labels", data_dir, ratings=["unknown"]).out


@pytest.fixture(scope="module")
def images(figures_folder) -> Path:
    return figures_folder / "images"


def test_no_pixels_are_published(labels_alone, images):
    for split in SPLITS:
        files = shard_files(labels_alone, split)
        assert not has_pixels(files)
        for row in read_columns(files, ["image_id", "image"]).to_pylist():
            assert row["image"] == {"bytes": None, "path": f"{row['image_id']}.png"}
    header = b"\x89PNG"
    for task in RECIPES:
        assert all(header not in file.read_bytes() for file in (labels_alone / task).glob("*.parquet"))


@pytest.mark.parametrize("style", ["map-style", "streaming"])
def test_labels_load_without_our_code(labels_alone, with_pixels, style):
    found = dump(str(labels_alone), {})[style]
    assert found.keys() == with_pixels[style].keys()
    for part, rows in found.items():
        assert rows
        if part.startswith("figures"):
            names = [{"bytes": None, "path": f"{row['image_id']}.png"} for row in rows]
            assert [row["image"] for row in rows] == names
            expected = [row | {"image": name} for row, name in zip(with_pixels[style][part], names)]
        else:
            expected = [{name: row[name] for name in row if name in TASK_LABELS} for row in with_pixels[style][part]]
            assert set(rows[0]) == set(TASK_LABELS)
        assert rows == expected, part


def test_joined_with_its_images_it_is_the_original(labels_alone, with_pixels, images):
    assert dump("retribooru", {"data_dir": str(labels_alone), "images": str(images)}) == with_pixels


def test_an_export_of_it_with_its_images_is_the_original(labels_alone, with_pixels, images, tmp_path):
    out = export_dataset(tmp_path / "out", labels_alone, embed_images=True, images=str(images), ratings=["unknown"]).out
    assert dump(str(out), {}) == with_pixels
    for row in read_columns(shard_files(out, "train"), ["image_id", "image.path"]).to_pylist():
        assert row["image"]["path"] == f"{row['image_id']}.png"


def test_the_folder_may_be_a_path(labels_alone, images, tmp_path):
    """As the command line gives it."""
    options = {"data_dir": labels_alone, "embed_images": True, "ratings": ["unknown"], "configs": ["compose"]}
    report = export_dataset(tmp_path / "out", images=images, **options)
    assert report.infos["figures"].splits["train"].num_examples > 0
    rows = load_dataset("retribooru", "figures", data_dir=labels_alone, images=images, split="train")
    assert rows[0]["image"].size == (40, 60)


def test_images_in_folders(labels_alone, images, with_pixels, tmp_path):
    table = renamed(labels_alone, tmp_path / "table", lambda path: f"0001/{path[:2]}/{path}")
    for path in images.iterdir():
        target = tmp_path / "images" / "0001" / path.name[:2] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    options = {"data_dir": str(table), "images": str(tmp_path / "images")}
    assert dump("retribooru", options, ["compose"])["map-style"] == {
        part: rows for part, rows in with_pixels["map-style"].items() if part.startswith("compose")
    }


def renamed(table: Path, to: Path, name) -> Path:
    """The table with other names of its image files: `name` of the old ones."""
    for split in SPLITS:
        files = shard_files(table, split)
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        for row in rows:
            row["image"]["path"] = name(row["image"]["path"])
        features = load_dataset(str(table), "figures", split=split, streaming=True).features
        write_shards(split, rows, to / "data", features, len(rows))
    return to


# Bad input


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("config", ["figures", "compose"])
def test_files_are_missing(labels_alone, images, tmp_path, config, streaming):
    shutil.copytree(images, tmp_path / "images")
    names = [
        cell["path"] for cell in read_columns(shard_files(labels_alone, "train"), ["image.path"])["image"].to_pylist()
    ]
    for name in names[2:5]:
        (tmp_path / "images" / name).unlink()
    options = {"data_dir": str(labels_alone), "images": str(tmp_path / "images"), "streaming": streaming}
    with pytest.raises(FileNotFoundError, match=rf"lacks 3 of the \d+ files that the table names, such as {names[2]}"):
        load_dataset("retribooru", config, **options)


@pytest.mark.parametrize(
    ("folder", "error", "message"),
    [
        (None, ValueError, "images: got none, wanted the folder with the image files"),
        ("nothing", FileNotFoundError, "images: got .*nothing, which is not a folder"),
        ("a file", FileNotFoundError, "images: got .*a file, which is not a folder"),
    ],
)
def test_no_folder(labels_alone, tmp_path, folder, error, message):
    (tmp_path / "a file").write_bytes(b"")
    options = {} if folder is None else {"images": str(tmp_path / folder)}
    for config in CONFIGS:
        with pytest.raises(error, match=message):
            load_dataset("retribooru", config, data_dir=str(labels_alone), **options)


def test_a_folder_that_is_not_wanted(data_dir, images, tmp_path):
    with pytest.raises(ValueError, match="images: got .*, wanted none: this table holds its images"):
        load_dataset("retribooru", "compose", data_dir=str(data_dir), images=str(images))
    with pytest.raises(
        ValueError, match="images: got .*, wanted none: the mini edition, without data_dir, has no such"
    ):
        load_dataset("retribooru", "compose", images=str(images), cache_dir=str(tmp_path))


OUTSIDE = "{outside}"  # an absolute path
BAD_NAMES = (
    "../outside.png", "a/../../outside.png", OUTSIDE, "file://" + OUTSIDE, "https://example.com/x.png", "/etc/passwd",
    "a//x.png", "./x.png", ".hidden.png", "..", "~/x.png", "a\\..\\..\\outside.png", "x.png\0", "x.png\n", "C:x.png",
    "", None,
)  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_out_of_the_folder(labels_alone, images, tmp_path, name):
    outside = tmp_path / "outside.png"
    shutil.copyfile(images / "100.png", outside)
    shutil.copytree(images, tmp_path / "images")
    name = name.format(outside=outside) if name else name
    table = renamed(labels_alone, tmp_path / "table", lambda path: name if path == "100.png" else path)
    for config in ("figures", "compose"):
        for streaming in (False, True):
            options = {"data_dir": str(table), "images": str(tmp_path / "images"), "streaming": streaming}
            with files_opened() as files, pytest.raises(ValueError, match="wanted a relative path of plain names"):
                load_dataset("retribooru", config, cache_dir=str(tmp_path / "cache"), **options)
            assert not [file for file in files if file.endswith((".png", "passwd"))]
    with files_opened() as files, pytest.raises(ValueError, match="wanted a relative path of plain names"):
        export_dataset(tmp_path / "out", table, embed_images=True, images=str(tmp_path / "images"), ratings=["unknown"])
    assert not [file for file in files if file.endswith((".png", "passwd"))]


@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_table_with_pixels_opens_no_file(data_dir, images, tmp_path, column):
    """A row that names a file in the place of pixels, in a table that holds pixels, is refused."""
    for split in SPLITS:
        rows = [row for file in shard_files(data_dir, split) for row in pq.read_table(file).to_pylist()]
        for row in rows:
            if row["image_id"] == "100":
                row[column] = {"bytes": None, "path": str(images / "100.png")}
        write_shards(split, rows, tmp_path / "table" / "data", FIGURES, len(rows))
    options = {"data_dir": str(tmp_path / "table"), "cache_dir": str(tmp_path / "cache")}
    for config in ("figures", "reconstruct", "compose"):
        for streaming in (False, True):
            with files_opened() as files, pytest.raises(Exception) as refused:
                for rows in load_dataset("retribooru", config, streaming=streaming, **options).values():
                    list(rows)
            words = f"{refused.value} {refused.value.__cause__}"
            assert f"holds no {column} for image_id 100" in words, words
            assert not [file for file in files if file.endswith(".png")]
    with files_opened() as files, pytest.raises(ValueError, match=f"holds no {column} for image_id 100"):
        export_dataset(tmp_path / "out", tmp_path / "table", embed_images=True, ratings=["unknown"])
    assert not [file for file in files if file.endswith(".png")]
