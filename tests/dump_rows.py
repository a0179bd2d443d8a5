"""Writes what `load_dataset` gives as JSON, in whatever environment it runs; imports nothing of the tests.

dump_rows.py OUT NAME OPTIONS [MODULE...]: loads every config of NAME with OPTIONS (JSON), map-style and streaming, once
the MODULEs are imported; OUT is {"map-style" or "streaming": {"CONFIG/SPLIT": [row, ...]}}.
"""

import hashlib
import importlib
import json
import sys

CONFIGS = ("figures", "reconstruct", "compose", "face", "swap")


def plain(value):
    """A row, or a part of one, with a digest of mode, size and pixels in the place of every image."""
    if hasattr(value, "tobytes"):
        return hashlib.sha256(f"{value.mode} {value.size} ".encode() + value.tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: plain(value[key]) for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value


def plain_rows(rows):
    """Those of a dataset of either style."""
    return [plain(row) for row in rows]


def dump(name, options, configs=CONFIGS):
    """All rows of all splits, in both styles."""
    from datasets import load_dataset

    found = {}
    for style, streaming in (("map-style", False), ("streaming", True)):
        found[style] = {}
        for config in configs:
            for split, rows in load_dataset(name, config, streaming=streaming, **options).items():
                found[style][f"{config}/{split}"] = plain_rows(rows)
    return found


if __name__ == "__main__":
    out, name, options, *modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    with open(out, "w") as file:
        json.dump(dump(name, json.loads(options)), file)
