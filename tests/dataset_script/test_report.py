"""The report of a build: counts that add up, pictures of what there is, and no text from the data is Markdown."""

import itertools
import json
import os
import struct
import tracemalloc
import zlib
from random import Random

import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from handmade import write_figures
from retribooru.dataset_script.build import build_figures
from retribooru.dataset_script.build import report_counts
from retribooru.dataset_script.build.report import code, write_report
from retribooru.dataset_script.build.report_counts import (
    AUTHORS_PARTNERS,
    CELL,
    EACH,
    IDENTITIES,
    KINDS,
    PARTNERS,
    StageCount,
    choose_identities,
    may_be_shown,
    partner_counts,
    sample_rejects,
)
from retribooru.dataset_script.build.report_pictures import grey_cell, rejected_images
from retribooru.dataset_script.figures import FIGURES_WITHOUT_PIXELS
from retribooru.dataset_script.table import write_shards

STAGES = [
    StageCount("metadata", 90, {"id": 10}),
    StageCount("filter", 60, {"tags": 20, "character": 10}),
    StageCount("outfits", 48, {"alone": 10}),
]
NASTY = [
    "<img src=x onerror=alert(1)>",
    "![a](http://evil.test/a.png)",
    "[a](http://evil.test) https://evil.test www.evil.test me@evil.test",
    "`<b>`", "``<b>", "a\\", "\\", "`", "|<b>|", "\\|<b>", "a\\\\|![a](b)", "| --- |", "# title",
    "a\n\n<b>c</b>", "&lt;&#60;",
    "a\u2028<b>", "\u202eabc", "", "  ", "x" * 999, "*a* _b_ ~~c~~", "$x^2$ \\(y\\)", "<!--",
    "</code><script>", "\0<b>",
]  # fmt: skip


def reject_of(stage, image_id, reason="tags: got a, wanted b", record=None):
    return {"stage": stage, "image_id": image_id, "reason": reason, "record": {} if record is None else record}


def tokens(markdown):
    """All tokens of Markdown with GitHub's tables."""
    blocks = MarkdownIt("commonmark").enable("table").parse(markdown)
    return list(itertools.chain.from_iterable([block, *(block.children or [])] for block in blocks))


def cells(markdown, heading):
    """The table after a heading: a list of rows of cells."""
    after = markdown.split(f"## {heading}\n", 1)[1].split("\n## ")[0].splitlines()
    start = next(i for i, line in enumerate(after) if line.startswith("|"))
    header, _, *rows = itertools.takewhile(lambda line: line.startswith("|"), after[start:])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *rows)]


def test_counts_add_up_or_the_page_says_so(data_dir, tmp_path):
    path = write_report(tmp_path, STAGES, data_dir, [], None)
    assert path == tmp_path / "report/README.md"
    assert cells(path.read_text(), "Where the images went")[1:] == [
        ["metadata", "100", "90", "10", "read", "855,880"],
        ["filter", "90", "60", "30", "yes", "599,192"],
        ["outfits", "60", "48", "10", "**no: 2 missing**", "116,729"],
        ["table", "48", "48", "0", "yes", ""],
    ]
    more = write_report(tmp_path, [StageCount("annotations", 47, {})], data_dir, [], None).read_text()
    assert cells(more, "Where the images went")[1:] == [
        ["annotations", "47", "47", "0", "read", ""],
        ["table", "47", "48", "0", "**no: 1 too many**", ""],
    ]


def test_splits_and_partners_are_read_off_the_table(tmp_path):
    folder = write_figures(tmp_path / "figures", characters=9, images=3)
    (folder / "images/100.png").unlink()  # leaves a pair
    for image_id in (200, 201):
        (folder / f"masks/{image_id}.png").unlink()  # leaves one alone
    report = build_figures(folder / "retribooru.json", folder / "images", folder / "masks", tmp_path, out_of_domain=0.3)
    page = write_report(tmp_path, [], tmp_path, [], None).read_text()
    assert [row[:4] for row in cells(page, "Partners of an image")[1:4]] == [
        ["0", "1", "4.2%", ""],
        ["1", "2", "8.3%", "8.7%"],
        ["2", "21", "87.5%", "91.3%"],
    ]
    splits = {row[0]: list(map(int, row[1:])) for row in cells(page, "Splits")[1:]}
    assert {split: numbers[0] for split, numbers in splits.items()} == {k: v for k, v in report.figures.items() if v}
    assert {split: numbers[1] for split, numbers in splits.items()} == {k: v for k, v in report.characters.items() if v}
    assert all(numbers[2] == numbers[1] for numbers in splits.values())


def test_partners():
    assert sum(AUTHORS_PARTNERS.values()) == 116_729
    counts = partner_counts([1, 1, 2, 6, 7, 15, 16, 40])
    assert counts == dict.fromkeys(PARTNERS, 0) | {"0": 2, "1": 2, "5": 6, "6 to 14": 7 + 15, "15 or more": 16 + 40}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture
def images(tmp_path):
    """A folder with one good image, `good`, and bad ones of many kinds."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (200, 100), "red").save(folder / "good.png")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "secret.png")
    header = struct.pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0)
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    (folder / "broken.png").write_bytes((folder / "good.png").read_bytes()[:60])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "0678").mkdir()
    Image.new("RGB", (100, 200), "blue").save(folder / "0678/12345678.jpg")  # in its bucket, as Danbooru's are
    return folder


BAD = (
    "bomb",
    "broken",
    "empty",
    "link",
    "pipe",
    "folder",
    "gone",
    "../secret",
    "..",
    "",
    None,
    "a/b",
    "x" * 9000,
    "a\0b",
)


def test_images_that_cannot_be_shown_are_grey(images):
    for image_id in BAD:
        (sample,) = sample_rejects([reject_of("filter", image_id)], Random(0)).values()
        (cell,) = rejected_images(sample, images)
        assert cell.size == (CELL, CELL) and cell.getpixel((0, 0)) == (200, 200, 200)
        assert len(cell.getcolors()) > 1  # its words
    (sample,) = sample_rejects([reject_of("filter", "good")], Random(0)).values()
    (cell,) = rejected_images(sample, images)
    assert cell.size == (CELL, CELL // 2) and cell.getcolors() == [(CELL * CELL // 2, (255, 0, 0))]
    (bucketed,) = sample_rejects([reject_of("filter", "12345678")], Random(0)).values()
    assert rejected_images(bucketed, images)[0].size == (CELL // 2, CELL)
    (cell,) = rejected_images(sample, None)
    assert cell == grey_cell("tags: got a, wanted b") != grey_cell("tags: got a, wanted c")


def test_ratings_that_are_not_for_everybody_are_not_shown():
    assert may_be_shown(reject_of("filter", "1", record={"rating": "g"}))
    assert may_be_shown(reject_of("outfits", "1", record="red, black"))
    assert may_be_shown(reject_of("filter", "1", record={"id": "1"}))
    assert not may_be_shown(reject_of("filter", "1", record={"rating": "e"}))
    assert not may_be_shown(reject_of("filter", "1", record={"rating": ["g"]}))
    assert not may_be_shown(reject_of("filter", "1", reason="rating: got 'q', wanted g"))
    assert not may_be_shown(reject_of("filter", "1", record='{"id": "1", "tags": ['))  # cut: nobody knows


def test_the_sheet_shows_each_kind_of_reject(images, data_dir, tmp_path):
    rejected = [reject_of("filter", "good"), *(reject_of("annotate", bad, "image: bad") for bad in BAD)]
    path = write_report(tmp_path, STAGES, data_dir, rejected, images)
    rows = cells(path.read_text(), "Rejected, drawn by lot")[1:]
    assert rows[0] == ["`filter`", "`good`", "`tags: got a, wanted b`"] and len(rows) == 1 + EACH
    with Image.open(path.parent / "rejected.png") as sheet:
        colors = dict(map(reversed, sheet.getcolors(1 << 20)))
    assert colors[255, 0, 0] == CELL * CELL // 2 and colors[200, 200, 200] > 4 * CELL * CELL
    assert not any(str(tmp_path) in line for line in path.read_text().splitlines())


def test_the_report_is_drawn_from_the_seed_and_replaced_whole(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(report_counts, "IDENTITIES", 3)
    rejected = [reject_of("filter", str(i), f"tags: got {i}") for i in range(100)]

    def files(seed):
        folder = write_report(tmp_path, STAGES, data_dir, iter(rejected), None, seed).parent
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    first = files(0)
    (tmp_path / "report/old.png").touch()
    assert set(first) == {"README.md", "stages.png", "partners.png", "identities.png", "rejected.png"}
    second = files(1)
    assert files(0) == first and {name for name in first if first[name] != second[name]} == {
        "README.md", "identities.png", "rejected.png",
    }  # fmt: skip
    (tmp_path / "report/old.png").touch()
    with pytest.raises(KeyError):
        write_report(tmp_path, STAGES, data_dir, [{}], None)
    assert (tmp_path / "report/old.png").exists()
    write_report(tmp_path, STAGES, data_dir, [], None)
    assert {file.name for file in (tmp_path / "report").iterdir()} == set(first) - {"rejected.png"}


def test_identities_are_drawn_by_the_seed():
    members = {("a", "b", str(i)): list(range(1 + i % 2)) for i in range(100)}
    first = choose_identities(members, Random(0))
    assert len(first) == IDENTITIES and all(len(images) == 2 for _, images in first)
    assert choose_identities(members, Random(0)) == first != choose_identities(members, Random(1))
    alone = {identity: [0] for identity in list(members)[:3]}
    assert choose_identities(alone, Random(0)) == list(alone.items())


def test_every_reject_is_as_likely():
    rows = [reject_of("filter", str(i)) for i in range(20)]
    drawn = [sample_rejects(rows, Random(seed))["filter", "tags"].records for seed in range(2000)]
    assert all(len({image_id for image_id, *_ in records}) == EACH for records in drawn)
    counts = [sum(image_id == str(i) for records in drawn for image_id, *_ in records) for i in range(20)]
    assert all(400 < count < 600 for count in counts)  # 500 expected, standard deviation 19


def test_many_rejects_take_no_memory():
    def rejects():
        for i in range(100_000):
            yield reject_of(f"stage{i % 2}", str(i), f"field{i}: {'x' * 2000}", {"x": "y" * 2000})

    tracemalloc.start()
    samples = sample_rejects(rejects(), Random(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20 and len(samples) == KINDS + 2
    assert sum(sample.count for sample in samples.values()) == 100_000


def test_text_from_the_data_is_never_markup():
    for text in NASTY:
        inner = tokens(f"before {code(text)} after\n\n| a | b |\n| --- | --- |\n| {code(text)} | c |")
        assert {token.type for token in inner} <= {
            "text", "code_inline", "inline", "paragraph_open", "paragraph_close", "table_open", "table_close",
            "thead_open", "thead_close", "tbody_open", "tbody_close", "tr_open", "tr_close", "th_open", "th_close",
            "td_open", "td_close",
        }  # fmt: skip
        texts = [token.content for token in inner if token.type == "text"]
        if text.strip():
            assert texts == ["before ", " after", "a", "b", "c"]
        else:
            assert texts == ["before (empty) after", "a", "b", "(empty)", "c"]
        assert len(code(text)) < 200 and code(text).isprintable()
    assert code("a\n\n<b>c") == "`a <b>c`" and code("\u202eabc") == "`\ufffdabc`" and code("x|`") == "`x¦'`"


def test_names_in_a_table_cannot_write_the_page(tmp_path):
    folder = write_figures(tmp_path / "figures", characters=12, images=2)
    records = json.loads((folder / "retribooru.json").read_text())
    names = [name for name in NASTY if name.strip() and not any(ord(each) < 32 for each in name)]
    for i, record in enumerate(records):
        record["character"] = names[i // 2]
        record["artists"], record["cloths"] = [names[-1 - i // 2]], [names[i // 2]]
    (folder / "retribooru.json").write_text(json.dumps(records))
    build_figures(folder / "retribooru.json", folder / "images", folder / "masks", tmp_path)
    stages = [StageCount("filter", 24, dict.fromkeys(NASTY, 1))]
    rejected = [reject_of("filter", name, f"{name}: {name}") for name in NASTY]
    page = write_report(tmp_path, stages, tmp_path, rejected, tmp_path).read_text(encoding="utf-8")
    found = tokens(page)
    assert not {token.type for token in found} & {
        "html_inline",
        "html_block",
        "link_open",
        "fence",
        "code_block",
        "em_open",
    }
    pictures = [token.attrs["src"] for token in found if token.type == "image"]
    assert pictures == ["stages.png", "partners.png", "identities.png", "rejected.png"]
    assert len([token for token in found if token.type == "heading_open"]) == 6
    assert len(cells(page, "Identities, drawn by lot")) == 1 + 12
    assert all(len(row) == 4 for row in cells(page, "Identities, drawn by lot"))


def test_a_table_without_pixels(data_dir, tmp_path):
    (tmp_path / "images").mkdir()
    rows = [row for file in sorted((data_dir / "data").glob("train-*")) for row in pq.read_table(file).to_pylist()]
    for i, row in enumerate(rows):
        if i:  # the first is missing
            (tmp_path / "images" / row["image"]["path"]).write_bytes(row["image"]["bytes"])
        row["image"]["bytes"] = None
    write_shards("train", rows, tmp_path / "data", FIGURES_WITHOUT_PIXELS, len(rows))
    without = write_report(tmp_path, [], tmp_path, [], None)
    assert not (without.parent / "identities.png").exists() and "identities.png" not in without.read_text()
    shown = write_report(tmp_path, [], tmp_path, [], tmp_path / "images")
    assert "(identities.png)" in shown.read_text()
    with Image.open(shown.parent / "identities.png") as sheet:
        assert dict(map(reversed, sheet.getcolors(1 << 20)))[200, 200, 200] > CELL * CELL / 2  # the missing one's cell


def test_no_table(tmp_path):
    with pytest.raises(ValueError, match="data_dir: got .*, which has no figures"):
        write_report(tmp_path, [], tmp_path, [], None)
