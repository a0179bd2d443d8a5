"""The contact sheet."""

import subprocess
import sys

import pytest
from datasets import load_dataset
from PIL import Image

import retribooru  # noqa: F401
from retribooru.dataset_script.contact_sheet import MARGIN, TITLE, contact_sheet, figures_lines, task_lines
from retribooru.dataset_script.references import RECIPES


def test_images_are_shown_whole_and_in_order():
    lines = [("a", [Image.new("RGB", (10, 20), "red"), Image.new("L", (40, 40), 0)]), ("b" * 999, [])]
    sheet = contact_sheet(lines, cell=20)
    assert sheet.mode == "RGB" and sheet.size == (2 * (20 + MARGIN) + 2 * MARGIN, 2 * (20 + TITLE + MARGIN) + MARGIN)
    reds = [(x, y) for x in range(sheet.width) for y in range(sheet.height) if sheet.getpixel((x, y)) == (255, 0, 0)]
    (left, top), (right, bottom) = min(reds), max(reds)
    assert (right - left, bottom - top) == (9, 19) and top == MARGIN + TITLE
    assert sheet.getpixel((MARGIN + 20 + MARGIN + 10, MARGIN + TITLE + 10)) == (0, 0, 0)
    with pytest.raises(ValueError, match="lines: got none"):
        contact_sheet([])


def test_lines(data_dir):
    figures = load_dataset("retribooru", "figures", data_dir=str(data_dir), split="train")
    lines = figures_lines(figures, count=3, images=2)
    assert len(lines) == 3 and all(1 <= len(images) <= 2 for _, images in lines)
    assert lines == figures_lines(figures, count=3, images=2) != figures_lines(figures, count=3, images=2, seed=1)
    rows = load_dataset("retribooru", "swap", data_dir=str(data_dir), split="train")
    for title, images in task_lines(rows, count=4):
        assert title.count("character_") == 2 and len(images) == len(RECIPES["swap"]) + 1


def test_command(data_dir, tmp_path):
    for out in ("sheet.png", "sheet.jpg"):
        command = [sys.executable, "-m", "retribooru.dataset_script.contact_sheet", "--out", tmp_path / out]
        options = ["--config", "compose", "--data_dir", data_dir, "--lines", "2"]
        subprocess.run([*command, *options], check=True, capture_output=True, text=True)
        with Image.open(tmp_path / out) as sheet:
            assert sheet.width > 500
