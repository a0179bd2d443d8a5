"""Builds a figures table from a small dump in many small parts, so that there is much to interrupt.

python build_dump.py FOLDER OUT [RUNNER]: FOLDER as `write_dump` makes it; RUNNER is a number of processes or "ray".
"""

import json
import random
import sys
from pathlib import Path

from retribooru.dataset_script.build import annotate, ask, dump
from retribooru.dataset_script.build.detectors import heads_named, masks_named
from retribooru.dataset_script.build.filter import FilterRules, filter_dump
from retribooru.dataset_script.build.stage import RayRunner, Runner
from retribooru.dataset_script.build.vqa import model_named
from retribooru.dataset_script.mini import draw_rows, identities


def write_dump(folder: Path, characters: int = 12, size: int = 48) -> dict[str, int]:
    """Mini figures as a booru dump: metadata.jsonl, images/, masks/, heads.jsonl, answers.jsonl. Some are spoilt.

    Returns:
        How many records will be rejected, by reason.
    """
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rows = [row for identity in identities(0, characters) for row in draw_rows(identity, size, 0)]
    rng = random.Random(0)
    records, heads, answers = [], [], []
    spoilt = {"monochrome": 0, "artists": 0, "image": 0, "answer": 0}
    for number, row in enumerate(rows):
        general = [tag for tag in row["tags"] if tag != row["artist"]]
        tags = [(tag, "0") for tag in general] + [
            (row["artist"], "1"),
            (row["copyright"], "3"),
            (row["character"], "4"),
        ]
        fault = [*spoilt][number % 40] if number % 40 < len(spoilt) else None
        if fault == "monochrome":
            tags.append(("monochrome", "0"))
        elif fault == "artists":
            tags.append(("somebody_else", "1"))
        if fault:
            spoilt[fault] += 1
        image = row["image"]["bytes"]
        (folder / "images" / f"{row['image_id']}.png").write_bytes(image[:200] if fault == "image" else image)
        (folder / "masks" / f"{row['image_id']}.png").write_bytes(row["mask"]["bytes"])
        x_min, y_min, x_max, y_max = (edge / size for edge in row["head_box"])
        box = [(x_min + x_max) / 2, (y_min + y_max) / 2, x_max - x_min, y_max - y_min]
        heads.append({"image_id": row["image_id"], "bbox": box})
        answer = "a dress" if fault == "answer" else row["outfit_answer"]
        answers.append({"image_id": row["image_id"], "answer": answer})
        tags = [{"id": "1", "name": name, "category": category} for name, category in tags]
        records.append({"id": row["image_id"], "rating": "s", "tags": tags})
    rng.shuffle(records)
    for name, lines in (("metadata", records), ("heads", heads), ("answers", answers)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return spoilt


def build_dump(folder: Path, out: Path, runner: Runner) -> None:
    """All stages."""
    annotate.ROWS_PER_PART = ask.ROWS_PER_PART = 16
    filter_dump([folder / "metadata.jsonl"], dump.stage_folder(out, "filter"), FilterRules.from_files(), runner, 10_000)
    masks, heads = masks_named(f"given:{folder / 'masks'}"), heads_named(f"given:{folder / 'heads.jsonl'}")
    dump.annotate_stage(out, folder / "images", masks, heads, runner)
    dump.ask_stage(out, None, model_named(f"given:{folder / 'answers.jsonl'}"), runner)
    dump.outfits_stage(out, None, runner)
    dump.write_stage(out, folder / "images")


if __name__ == "__main__":
    source, target, *rest = sys.argv[1:]
    name = rest[0] if rest else "1"
    build_dump(Path(source), Path(target), RayRunner("local", 2) if name == "ray" else Runner(int(name)))
