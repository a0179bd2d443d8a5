"""By name, by the loading script, from the Hub without our code: three ways to the same rows."""

import json
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import datasets
import pytest

from dump_rows import CONFIGS
from retribooru.dataset_script import retribooru as script
from retribooru.dataset_script.figures import FIGURES, SPLITS, TASK_ROWS, identity_of
from retribooru.dataset_script.mini import TRUTH, identities
from retribooru.dataset_script.references import RECIPES

pytestmark = pytest.mark.slow

DUMP_ROWS = Path(__file__).parents[1] / "dump_rows.py"
REPO = "somebody/mini"
BY_NAME, BY_SCRIPT, CODE_FREE, CODE_FREE_BEFORE = "by name", "script, datasets 3.6", "Hub", "Hub, datasets 3.6"


def run_python(python, *arguments, env, cwd):
    """Runs elsewhere, and without the script's folder in the path: what is not installed is not there."""
    command = [str(python), "-I", *map(str, arguments)]
    return subprocess.run(command, check=False, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def dumps(environments, hub, mini_export, mini_options, tmp_path_factory) -> dict[str, Future]:
    """What dump_rows.py finds, by the way of loading."""
    hub.commit(REPO, mini_export)
    by_script = {**mini_options, "trust_remote_code": True}
    ways = {
        BY_NAME: (sys.executable, "retribooru", mini_options, "retribooru"),
        BY_SCRIPT: (environments["3.6"], script.__file__, by_script),
        CODE_FREE: (environments["now"], REPO, {}),
        CODE_FREE_BEFORE: (environments["3.6"], REPO, {}),
    }

    def dump(way):
        folder = tmp_path_factory.mktemp("dump")
        python, name, options, *modules = ways[way]
        arguments = (DUMP_ROWS, folder / "rows.json", name, json.dumps(options), *modules)
        (folder / "empty").mkdir()
        done = run_python(python, *arguments, env=hub.client(folder / "hf_home"), cwd=folder / "empty")
        assert done.returncode == 0, f"{way}: {done.stdout}{done.stderr}"
        return json.loads((folder / "rows.json").read_text())

    with ThreadPoolExecutor(2) as pool:
        yield {way: pool.submit(dump, way) for way in ways}


@pytest.fixture(scope="module")
def rows(dumps) -> dict[str, list[dict]]:
    """{"CONFIG/SPLIT": rows} by name, map-style: what the others are held against."""
    return dumps[BY_NAME].result()["map-style"]


@pytest.mark.parametrize(("name", "version"), [("now", datasets.__version__), ("3.6", "3.6.0")])
def test_our_package_is_not_there(environments, name, version, hub, tmp_path):
    options = {"env": hub.client(tmp_path / "hf_home"), "cwd": tmp_path}
    done = run_python(environments[name], "-c", "import retribooru", **options)
    assert done.returncode == 1 and "No module named 'retribooru'" in done.stderr
    done = run_python(environments[name], "-c", "import datasets; print(datasets.__version__)", **options)
    assert done.stdout.strip() == version


def test_there_is_something_to_compare(rows, mini_options):
    assert set(rows) == {f"{config}/{split}" for config in CONFIGS for split in SPLITS}
    figures = {row["image_id"]: row for split in SPLITS for row in rows[f"figures/{split}"]}
    assert len(figures) == sum(identity.images for identity in identities(0, mini_options["characters"]))
    assert len({row["image"] for row in figures.values()}) == len(figures)  # no two pictures have one digest
    assert set(figures[min(figures)]) == {*FIGURES, *TRUTH}
    for task in RECIPES:
        for split in SPLITS:
            found = rows[f"{task}/{split}"]
            assert len({row["character"] for row in found}) >= 2
            for row in found:
                assert set(row) == set(TASK_ROWS)
                assert row["target"] == figures[row["target_id"]]["image"]
                assert identity_of(row) == identity_of(figures[row["target_id"]])
                assert tuple(row["reference_concepts"]) == RECIPES[task]
                whole = [figures[image_id]["image"] for image_id in row["reference_ids"]]
                assert (row["reference_images"] == whole) == (task == "reconstruct")


@pytest.mark.parametrize("style", ["map-style", "streaming"])
@pytest.mark.parametrize("way", [BY_NAME, BY_SCRIPT, CODE_FREE, CODE_FREE_BEFORE])
def test_rows_are_equal(dumps, rows, way, style):
    found = dumps[way].result()[style]
    assert found.keys() == rows.keys()
    for part in rows:
        assert found[part] == rows[part], part
