"""Streamed, shuffled, shared out among workers and nodes, stopped and taken up again: each row once.

By name and from an exported folder, which plain `datasets` reads.
"""

import importlib
import json
import os
import subprocess
import sys
from collections import Counter

import datasets
import pytest
from datasets import load_dataset, load_dataset_builder
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

import retribooru
from dump_rows import plain
from handmade import write_figures
from retribooru.dataset_script.build import build_figures
from retribooru.dataset_script.export import export_dataset
from retribooru.dataset_script.register import register_dataset

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CONFIGS = ("figures", "compose")
SPLITS = ("train", "in_domain")
BIGGER = {"size": 32, "characters": 40}  # train in four shards, where mini_options makes three


@pytest.fixture(scope="module", autouse=True)
def short_sleeps():
    """`datasets` sleeps five seconds after each shuffled reading of Parquet files (for the threads of Arrow)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)
        yield


def key(row) -> str:
    """A row as something that can be counted, pixels included."""
    return json.dumps(plain(row))


def keys(rows) -> list[str]:
    return [key(row) for row in rows]


@pytest.fixture(scope="module")
def bigger_export(tmp_path_factory):
    return export_dataset(tmp_path_factory.mktemp("exports") / "bigger", configs=["compose"], **BIGGER).out


@pytest.fixture(scope="module", params=["by name", "exported folder"])
def load(request, mini_export, mini_options):
    """`load_dataset`, but for its first argument."""

    def load(*arguments, **options):
        if request.param == "by name":
            return load_dataset("retribooru", *arguments, **mini_options, **options)
        return load_dataset(str(mini_export), *arguments, **options)

    return load


@pytest.fixture(scope="module")
def load_bigger(bigger_export):
    """{"by name" and "exported folder": the streamed train split of compose, in four shards}"""
    return {
        "by name": lambda: load_dataset("retribooru", "compose", split="train", streaming=True, **BIGGER),
        "exported folder": lambda: load_dataset(str(bigger_export), "compose", split="train", streaming=True),
    }


@pytest.fixture(scope="module")
def expected(load):
    """{(config, split): keys of the rows}, map-style."""
    return {(config, split): keys(load(config, split=split)) for config in CONFIGS for split in SPLITS}


def each(*names):
    return pytest.mark.parametrize(("config", "split"), [(c, s) for c in names or CONFIGS for s in SPLITS])


def shard_sizes(streamed) -> list[int]:
    """How many rows each shard has."""
    count = streamed.num_shards
    return [sum(1 for _ in streamed.shard(count, number)) for number in range(count)]


def in_workers(streamed, workers: int) -> list[str]:
    return keys(DataLoader(streamed, num_workers=workers, batch_size=None))


def test_rows_to_share_out(load, expected):
    """All that follows would pass with a row or two, or with a single shard."""
    for config in CONFIGS:
        assert len(set(expected[config, "train"])) == len(expected[config, "train"]) > 200
        assert len(set(expected[config, "in_domain"])) == len(expected[config, "in_domain"]) > 10
        assert load(config, split="train", streaming=True).num_shards == 3
        assert load(config, split="in_domain", streaming=True).num_shards == 1


@each()
def test_same_rows_as_map_style(load, expected, config, split):
    assert keys(load(config, split=split, streaming=True)) == expected[config, split]


@each()
def test_shuffled(load, expected, config, split):
    def shuffled(seed):
        return keys(load(config, split=split, streaming=True).shuffle(seed=seed, buffer_size=50))

    rows = shuffled(1)
    assert sorted(rows) == sorted(expected[config, split]) and rows != expected[config, split]
    assert rows == shuffled(1) != shuffled(2)


def test_another_order_every_epoch(load, expected):
    streamed = load("figures", split="train", streaming=True).shuffle(seed=1, buffer_size=50)
    orders = []
    for epoch in (0, 1):
        streamed.set_epoch(epoch)
        orders.append(keys(streamed))
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(expected["figures", "train"])
    assert orders[0] != orders[1]


@pytest.mark.parametrize("workers", [2, 3])
@each()
def test_workers(load, expected, config, split, workers):
    streamed = load(config, split=split, streaming=True)
    assert Counter(in_workers(streamed, workers)) == Counter(expected[config, split])


def test_workers_with_shuffling(load, expected):
    rows = in_workers(load("compose", split="train", streaming=True).shuffle(seed=1, buffer_size=50), 2)
    assert Counter(rows) == Counter(expected["compose", "train"])


@pytest.mark.parametrize("workers", [0, 2, 3])
@each("compose")
def test_nodes_where_shards_do_not_divide(load, expected, config, split, workers):
    """Three shards or one for two nodes: `datasets` has each node read all, and keep each worker's every second row."""
    streamed = load(config, split=split, streaming=True)
    sizes = shard_sizes(streamed)
    assert len(sizes) % 2 == 1 and sum(sizes) == len(expected[config, split])
    nodes = [in_workers(split_dataset_by_node(streamed, rank, world_size=2), workers) for rank in (0, 1)]
    assert Counter(nodes[0] + nodes[1]) == Counter(expected[config, split])
    by_worker = [sum(sizes[worker :: max(workers, 1)]) for worker in range(max(workers, 1))]
    assert [len(rows) for rows in nodes] == [sum((n + 1) // 2 for n in by_worker), sum(n // 2 for n in by_worker)]


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("way", ["by name", "exported folder"])
def test_nodes_where_shards_divide(load_bigger, way, workers):
    """Four shards for two nodes: each has two of its own, and workers beyond these have nothing to do."""
    streamed = load_bigger[way]()
    sizes = shard_sizes(streamed)
    assert len(sizes) == 4
    nodes = [in_workers(split_dataset_by_node(streamed, rank, world_size=2), workers) for rank in (0, 1)]
    assert Counter(nodes[0] + nodes[1]) == Counter(keys(load_bigger[way]()))
    assert [len(rows) for rows in nodes] == [sizes[0] + sizes[2], sizes[1] + sizes[3]]


def taken_up(load, stop: int, prepare=lambda streamed: streamed) -> tuple[list[str], list[str]]:
    """(the first `stop` rows, what a new dataset gives that was told the state after these)"""
    streamed, first = prepare(load()), []
    rows = iter(streamed)
    for _ in range(stop):
        first.append(key(next(rows)))
    state = json.loads(json.dumps(streamed.state_dict()))  # as from a file
    rows.close()
    other = prepare(load())
    other.load_state_dict(state)
    return first, keys(other)


@each()
def test_taken_up_again(load, expected, config, split):
    rows = expected[config, split]
    sizes = shard_sizes(load(config, split=split, streaming=True))
    stops = {1, 50, 100, sizes[0] - 1, sizes[0], sizes[0] + 1, len(rows) - 1, len(rows)}
    for stop in sorted(stop for stop in stops if stop <= len(rows)):
        first, rest = taken_up(lambda: load(config, split=split, streaming=True), stop)
        assert first == rows[:stop] and rest == rows[stop:], stop


@pytest.mark.parametrize("epoch", [0, 2])
def test_taken_up_again_with_shards_shuffled(load, expected, epoch):
    def prepare(streamed):
        streamed = streamed.shuffle(seed=5, buffer_size=1)
        streamed.set_epoch(epoch)
        return streamed

    whole = keys(prepare(load("compose", split="train", streaming=True)))
    assert sorted(whole) == sorted(expected["compose", "train"])
    for stop in (1, 130, 250):
        first, rest = taken_up(lambda: load("compose", split="train", streaming=True), stop, prepare)
        assert first == whole[:stop] and rest == whole[stop:], stop


@pytest.mark.parametrize("stop", [60, 250])
def test_taken_up_again_with_a_shuffle_buffer(load, expected, stop):
    """`datasets` does not keep what is in the buffer, and says so: about as many rows are lost or come again."""
    rows, buffer_size = expected["compose", "train"], 20
    first, rest = taken_up(
        lambda: load("compose", split="train", streaming=True),
        stop,
        lambda streamed: streamed.shuffle(seed=5, buffer_size=buffer_size),
    )
    assert len(first) == stop and len({*rest}) == len(rest)
    assert {*first, *rest} <= {*rows}
    assert len({*rows} - {*first, *rest}) <= buffer_size and len({*first} & {*rest}) <= buffer_size


@pytest.mark.parametrize("split", SPLITS)
def test_two_processes_make_the_same_rows(load, expected, split, tmp_path):
    rows = load("compose", split=split, num_proc=2, cache_dir=str(tmp_path))
    assert keys(rows) == expected["compose", split]


def unrelated_files(folder):
    """What a folder may hold that `datasets` would read if it were asked to."""
    datasets.Dataset.from_dict({"image_id": ["x"], "text": ["unrelated"]}).to_parquet(folder / "train.parquet")
    (folder / "data").mkdir()
    datasets.Dataset.from_dict({"text": ["unrelated"]}).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    (folder / "rows.json").write_text('{"text": "unrelated"}\n')
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: figures\n  data_files: rows.json\n---\n")


@pytest.mark.parametrize("fill", [lambda folder: None, unrelated_files], ids=["empty", "unrelated files"])
def test_the_current_directory_does_not_matter(fill, data_dir, mini_options, tmp_path, monkeypatch):
    def ids(**options):
        rows = load_dataset("retribooru", "compose", split="train", cache_dir=str(tmp_path / "cache"), **options)
        return list(zip(rows["target_id"], rows["reference_ids"]))

    before = [ids(**mini_options), ids(data_dir=str(data_dir))]
    (tmp_path / "here").mkdir()
    fill(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("datasets.data_files.resolve_pattern", lambda *_, **__: pytest.fail("a folder was scanned"))
    assert [ids(**mini_options), ids(data_dir=str(data_dir))] == before
    assert not load_dataset_builder("retribooru", "compose", **mini_options).config.data_files
    assert sorted(os.listdir()) == sorted(os.listdir(tmp_path / "here"))


def test_a_table_that_was_built_anew_is_not_taken_from_the_cache(tmp_path):
    """Of the same name, as large, and only another image of it changed."""

    def build():
        folder = tmp_path / "authors_form"
        build_figures(
            folder / "retribooru.json", folder / "images", folder / "masks", tmp_path / "built", in_domain=0.0
        )

    def load(config):
        options = {"data_dir": str(tmp_path / "built"), "cache_dir": str(tmp_path / "cache")}
        return {split: keys(rows) for split, rows in load_dataset("retribooru", config, **options).items()}

    write_figures(tmp_path / "authors_form", characters=4)
    build()
    before = {config: load(config) for config in ("figures", "compose")}
    annotations = tmp_path / "authors_form" / "retribooru.json"
    annotations.write_text(annotations.read_text().replace("standing", "swimming"))
    build()
    for config, rows in before.items():
        after = load(config)
        assert after.keys() == rows.keys()
        for split in rows:
            assert [row.replace("swimming", "standing") for row in after[split]] == rows[split] != after[split]


def test_registered_once(mini_options):
    code = (
        "import importlib, retribooru, datasets.load as load\n"
        "from retribooru.dataset_script.register import register_dataset\n"
        "from retribooru.dataset_script import register\n"
        "before = load.PackagedDatasetModuleFactory\n"
        "register_dataset(); importlib.reload(retribooru); importlib.import_module('retribooru')\n"
        "assert load.PackagedDatasetModuleFactory is before\n"
        "print(len([kind for kind in before.__mro__ if kind.__name__ == '_FindsItsOwnFiles']))\n"
        "print(list(load._PACKAGED_DATASETS_MODULES).count('retribooru'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "1"], done.stderr


def test_other_packaged_modules_work_as_before(tmp_path):
    register_dataset()
    importlib.reload(retribooru)
    (tmp_path / "rows.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    rows = load_dataset(
        "json", data_files=str(tmp_path / "rows.json"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows["text"] == ["a", "b"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "rows.json").rename(tmp_path / "folder" / "rows.json")
    rows = load_dataset("json", data_dir=str(tmp_path / "folder"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["text"] == ["a", "b"]
