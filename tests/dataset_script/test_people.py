"""Pictures of people, from a folder or a CSV to the figures table."""

import csv
import errno
import io
import json
import os
import struct
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

import retribooru  # noqa: F401
from retribooru.dataset_script.build import people as people_module
from retribooru.dataset_script.build.annotations import MAX_ID, PLAIN_NAME
from retribooru.dataset_script.build.people import build_people, image_ids, read_people
from retribooru.dataset_script.figures import FIGURES, SPLITS, identity_of, split_of


def write_people(folder, names=("Ann Lee", "José", "li"), images=4):
    """FOLDER/IDENTITY/N.png, no two alike."""
    for n, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(images):
            Image.new("RGB", (6, 8), (n, i, 99)).save(folder / name / f"{i}.png")
    return folder


def write_csv(path, *rows, columns=("identity", "path")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def rows_of(out):
    return [row for file in sorted((out / "data").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def rejects_of(out):
    return [json.loads(line) for line in (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]


def mask_of(row):
    with Image.open(io.BytesIO(row["mask"]["bytes"])) as mask:
        return np.asarray(mask.convert("L"))


@pytest.fixture
def folder(tmp_path):
    return write_people(tmp_path / "people")


def test_a_folder_becomes_a_table(folder, tmp_path):
    report = build_people(folder, None, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert set(rows[0]) == set(FIGURES) and len(rows) == 12 == len({row["image_id"] for row in rows})
    assert report.identities == 3 and report.alone == 0 and report.rejects == {} and rejects_of(report.out) == []
    assert {split: report.figures[split] for split in SPLITS} == {
        split: sum(split_of(row["character"], row["image_id"]) == split for row in rows) for split in SPLITS
    }
    row = next(row for row in rows if row["image_id"] == "li-2")
    assert (row["character"], row["artist"], row["outfit"], row["prompt"], row["tags"]) == ("li", "", "", "", [])
    assert row["head_box"] is None and row["rating"] is None and row["copyright"] is None
    assert row["image"] == {"bytes": (folder / "li/2.png").read_bytes(), "path": "li/2.png"}
    assert mask_of(row).shape == (8, 6) and mask_of(row).min() == 255
    jose = [row for row in rows if row["character"] == "José"]
    assert len(jose) == 4 and all(PLAIN_NAME.fullmatch(row["image_id"]) for row in jose)
    assert all(row["image"]["path"] is None for row in jose)  # a table cannot name their files


def test_reconstruct_has_rows_and_compose_has_none(folder, tmp_path):
    build_people(folder, None, tmp_path / "out", out_of_domain=0.3, in_domain=0.2)
    rows = [
        row
        for split in load_dataset("retribooru", "reconstruct", data_dir=str(tmp_path / "out")).values()
        for row in split
    ]
    assert len(rows) >= 9
    for row in rows:
        color = np.asarray(row["target"])[0, 0]
        assert row["reference_concepts"] == ["figure"] * 4 and row["target_id"] not in row["reference_ids"]
        assert all(np.asarray(image)[0, 0][0] == color[0] for image in row["reference_images"])
    with pytest.raises(ValueError, match="name: got compose, which has no rows here"):
        load_dataset("retribooru", "compose", data_dir=str(tmp_path / "out"))


def test_rows_of_an_identity_stand_together_and_each_image_is_read_once(folder, tmp_path, monkeypatch):
    reads, read_image = [], people_module.read_image
    monkeypatch.setattr(people_module, "read_image", lambda file: reads.append(file) or read_image(file))
    table = [(f"p{i % 3}", f"{name}/{i}.png", f"artist {i % 2}") for name in ("li", "José") for i in range(4)]
    source = write_csv(tmp_path / "people.csv", *table, columns=("identity", "path", "artist"))
    build_people(source, folder, tmp_path / "out")
    assert len(reads) == len(set(reads)) == 8
    for split in SPLITS:
        order = [
            identity_of(row)
            for row in rows_of(tmp_path / "out")
            if split_of(row["character"], row["image_id"]) == split
        ]
        assert [identity for i, identity in enumerate(order) if i == 0 or order[i - 1] != identity] == sorted(
            set(order)
        )


def test_a_csv_gives_more_labels(folder, tmp_path):
    columns = ("path", "rating", "identity", "prompt", "copyright", "artist")
    row = ("li/0.png", "g", " Li ", "a portrait, smiling", "a film", "a photographer")
    write_csv(folder / "people.csv", row, ("li/1.png", "", "Li", "", "", ""), columns=columns)
    build_people(folder / "people.csv", None, tmp_path / "out")  # paths are relative to the CSV
    first, second = sorted(rows_of(tmp_path / "out"), key=lambda row: row["image_id"])
    assert first["character"] == second["character"] == "Li"
    assert [first[key] for key in ("artist", "prompt", "copyright", "rating")] == [
        "a photographer", "a portrait, smiling", "a film", "g",
    ]  # fmt: skip
    assert [second[key] for key in ("artist", "prompt", "copyright", "rating")] == ["", "", None, None]


def test_masks_are_alpha_channels(folder, tmp_path):
    alpha = Image.new("L", (6, 8), 0)
    alpha.paste(255, (1, 2, 4, 7))
    image = Image.new("RGB", (6, 8), "red")
    image.putalpha(alpha)
    image.save(folder / "li/0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(folder / "li/1.png", exif=exif)
    Image.new("RGBA", (6, 8), (1, 2, 3, 255)).save(folder / "li/2.png")
    Image.new("RGBA", (6, 8), (1, 2, 3, 9)).save(folder / "li/3.png")
    Image.new("RGB", (6, 8), "red").save(folder / "José/0.png", exif=exif)
    build_people(folder, None, tmp_path / "out")
    rows = {row["image_id"]: row for row in rows_of(tmp_path / "out")}
    assert np.array_equal(mask_of(rows["li-0"]), np.asarray(alpha))
    assert np.array_equal(mask_of(rows["li-1"]), np.asarray(alpha.transpose(Image.Transpose.ROTATE_270)))
    with Image.open(io.BytesIO(rows["li-0"]["image"]["bytes"])) as shown:
        assert shown.convert("RGB").getpixel((0, 0)) == (255, 255, 255) and shown.getpixel((2, 3)) == (255, 0, 0)
    assert mask_of(rows["li-2"]).min() == 255
    turned = next(row for row in rows.values() if row["image_id"].startswith("Jose-0"))
    assert mask_of(turned).shape == (6, 8) and mask_of(turned).min() == 255
    (line,) = rejects_of(tmp_path / "out")
    assert line["reason"].startswith("image: 3.png is transparent") and line["image_id"] == "li-3"


def png_header(width, height):
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def animation(path):
    Image.new("RGB", (6, 8), "red").save(path, save_all=True, append_images=[Image.new("RGB", (6, 8), "blue")])


BAD_FILES = {
    "not an image": (lambda f: (f / "li/x.txt").write_text("notes"), "image: x.txt cannot be read"),
    "empty": (lambda f: (f / "li/x.png").write_bytes(b""), "image: x.png cannot be read: it is empty"),
    "bomb": (
        lambda f: (f / "li/x.png").write_bytes(png_header(30000, 30000)),
        "image: x.png cannot be read: Image size",
    ),
    "animation": (lambda f: animation(f / "li/x.webp"), "image: x.webp has 2 frames"),
    "pipe": (lambda f: os.mkfifo(f / "li/x.png"), "path: 'li/x.png' is not a regular file"),
    "link outside": (
        lambda f: (f / "li/x.png").symlink_to(Image.new("L", (6, 8)).save(f.parent / "x.png") or f.parent / "x.png"),
        "path: 'li/x.png' is a link to outside",
    ),
    "link to nothing": (lambda f: (f / "li/x.png").symlink_to("gone.png"), "path: 'li/x.png' cannot be found"),
    "link to itself": (lambda f: (f / "li/x.png").symlink_to("x.png"), "path: 'li/x.png' cannot be found"),
    "link to a folder": (lambda f: (f / "x").symlink_to(f / "li"), "path: 'x' is a link to a folder"),
    "file of nobody": (lambda f: (f / "x.png").write_bytes((f / "li/0.png").read_bytes()), "path: got 'x.png', wanted"),
    "file too deep": (lambda f: write_people(f / "li", ["x"], 1), "path: got 'li/x/0.png', wanted IDENTITY/FILE"),
    "nameless": (lambda f: write_people(f, [" "], 1), "identity: got ' ', wanted a name"),
    "control character": (lambda f: write_people(f, ["a\x1bb"], 1), "identity: got 'a\\x1bb', wanted a name without"),
    "not UTF-8": (lambda f: write_people(f, ["caf\udce9"], 1), "identity: not UTF-8"),
}


@pytest.mark.parametrize("spoil, reason", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_listed_and_the_rest_go_on(folder, tmp_path, spoil, reason):
    spoil(folder)
    report = build_people(folder, None, tmp_path / "out")
    (line,) = rejects_of(tmp_path / "out")
    assert line["reason"].startswith(reason)
    assert len(rows_of(tmp_path / "out")) == sum(report.figures.values()) == 12 and sum(report.rejects.values()) == 1


def test_a_closed_folder_is_listed(folder, tmp_path, monkeypatch):
    scandir = os.scandir

    def closed(place):
        if os.path.basename(place) == "li":
            raise PermissionError(errno.EACCES, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", closed)  # as for a user who may not look into it
    people, (line,) = read_people(folder)
    assert line["reason"] == "path: 'li' cannot be looked into: Permission denied" and len(people) == 8


BAD_ROWS = {
    "absolute": (("li", "/etc/passwd"), "path: got '/etc/passwd', wanted a relative path without '..'"),
    "above": (("li", "li/../../x.png"), "path: got 'li/../../x.png', wanted"),
    "empty path": (("li", ""), "path: got '', wanted"),
    "a folder": (("li", "li"), "path: 'li' is not a regular file"),
    "missing": (("li", "li/gone.png"), "path: 'li/gone.png' cannot be found"),
    "NUL": (("li", "li/\0.png"), "path: 'li/\\x00.png' cannot be found"),
    "long path": (("li", "a" * 5000), "path: 'aaaa"),
    "twice": (("Ann Lee", "li/./0.png"), "path: 'li/0.png' came before"),
    "no identity": ((" ", "li/1.png"), "identity: got ' ', wanted a name"),
    "identity of two lines": (("a\nb", "li/1.png"), "identity: got 'a\\nb', wanted a name without control characters"),
    "too many values": (("li", "li/1.png", "x"), "row: got 3 values, wanted 2"),
    "too few values": (("li",), "row: got 1 values, wanted 2"),
    "long value": (("a" * 200_000, "li/1.png"), "row: line 3 is not CSV: field larger than field limit"),
}


@pytest.mark.parametrize("row, reason", BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_listed_and_the_rest_go_on(folder, tmp_path, row, reason):
    source = write_csv(tmp_path / "people.csv", ("li", "li/0.png"), row, ("li", "li/2.png"))
    build_people(source, folder, tmp_path / "out")
    (line,) = rejects_of(tmp_path / "out")
    assert line["reason"].startswith(reason)
    assert sorted(row["image_id"] for row in rows_of(tmp_path / "out")) == ["li-0", "li-2"]


def test_bytes_that_are_not_utf8_in_a_csv(folder, tmp_path):
    (tmp_path / "people.csv").write_bytes(
        b"\xef\xbb\xbfidentity,path\ncaf\xe9,li/0.png\n\nli,caf\xe9.png\nli,li/1.png\n"
    )
    people, rejects = read_people(tmp_path / "people.csv", folder)
    assert [line["reason"] for line in rejects] == ["identity: not UTF-8"] and len(people) == 2
    build_people(tmp_path / "people.csv", folder, tmp_path / "out")
    assert [line["reason"].split(":")[0] for line in rejects_of(tmp_path / "out")] == ["identity", "path"]
    assert len(rows_of(tmp_path / "out")) == 1


def test_ids_are_plain_and_unique(tmp_path):
    assert next(image_ids("a/b.c.jpg")) == "a-b.c"
    assert list(image_ids("a/b.jpg"))[1].startswith("a-b-") and len(list(image_ids("a/b.jpg"))[1]) == len("a-b-") + 8
    (accent,) = image_ids("José R/1.jpg")
    assert accent.startswith("Jose_R-1-")
    files = [
        "a/b.jpg",
        "a/b.png",
        "a-b.jpg",
        "李/1.jpg",
        "王/1.jpg",
        ".hidden/..png",
        "-/_.jpg",
        "x" * 190 + "/" + "y" * 90,
    ]
    people, rejects = read_people(write_csv(tmp_path / "people.csv", *[("somebody", file) for file in files]))
    ids = [person.image_id for person in people]
    assert len(set(ids)) == len(files) and not rejects
    assert all(PLAIN_NAME.fullmatch(image_id) and len(image_id) <= MAX_ID for image_id in ids)


def test_an_id_that_is_taken_even_so_is_rejected(tmp_path):
    taken = list(image_ids("a/b.png"))[1]
    source = write_csv(
        tmp_path / "people.csv", *[("somebody", file) for file in (f"{taken}.jpg", "a/b.jpg", "a/b.png")]
    )
    people, (line,) = read_people(source)
    assert len(people) == 2 and line["reason"] == "path: 'a/b.png' gives an id that came before"


def test_ids_stay_when_people_are_added(folder):
    before = {person.file: person.image_id for person in read_people(folder)[0]}
    write_people(folder, ["Aaron", "Jose", "Zoë"])
    after = {person.file: person.image_id for person in read_people(folder)[0]}
    assert len(after) == len(set(after.values())) == 24 and before.items() <= after.items()


def test_wrong_arguments(folder, tmp_path):
    with pytest.raises(ValueError, match="images: got .*, wanted none"):
        build_people(folder, folder, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="people: got .*gone"):
        build_people(tmp_path / "gone", None, tmp_path / "out")
    source = write_csv(tmp_path / "people.csv", ("li", "li/0.png"), columns=("name", "path"))
    with pytest.raises(ValueError, match=r"has the columns \['name', 'path'\], wanted identity and path"):
        build_people(source, folder, tmp_path / "out")
    write_csv(source, ("li", "li/0.png", "e"), columns=("identity", "path", "ratings"))  # a rating would go unseen
    with pytest.raises(ValueError, match="has the columns"):
        build_people(source, folder, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="images: got .*gone"):
        build_people(write_csv(source), tmp_path / "gone", tmp_path / "out")
    with pytest.raises(ValueError, match="in_domain: got 2"):
        build_people(folder, None, tmp_path / "out", in_domain=2)
    assert not (tmp_path / "out").exists()


def test_an_earlier_table_stays_where_nothing_can_be_used(folder, tmp_path):
    build_people(folder, None, tmp_path / "out")
    before = rows_of(tmp_path / "out")
    source = write_csv(tmp_path / "people.csv", ("li", "li/gone.png"))
    with pytest.raises(
        ValueError, match="none of the 1 pictures of .*people.csv can be used; the first: path: 'li/gone"
    ):
        build_people(source, folder, tmp_path / "out")
    assert rows_of(tmp_path / "out") == before and rejects_of(tmp_path / "out") == []
