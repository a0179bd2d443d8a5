"""`retribooru push`: what is uploaded, and that it loads from there, a second time too."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from dump_rows import CONFIGS, dump
from hub import OWNER, FakeApi
from retribooru.dataset_script.export import MARK, export_dataset, push_dataset

DUMP_ROWS = Path(__file__).parents[1] / "dump_rows.py"


def loaded(hub, environments, repo_id, folder) -> dict:
    """What plain `datasets` gets from the Hub."""
    folder.mkdir()
    command = [environments["now"], "-I", DUMP_ROWS, folder / "rows.json", repo_id, "{}"]
    env = hub.client(folder / "hf_home")
    done = subprocess.run(list(map(str, command)), check=False, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "rows.json").read_text())


def published(out) -> set[str]:
    """The files of an export that belong on the Hub."""
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - {MARK}


@pytest.mark.slow
def test_pushed_and_pushed_again(hub, environments, mini_export, mini_options, tmp_path):
    api, repo_id = FakeApi(hub), f"{OWNER}/pushed"
    report = push_dataset("pushed", private=True, api=api, **mini_options)
    assert [name for name, _ in api.calls] == ["create_repo", "upload_folder"]
    assert all(call["repo_type"] == "dataset" for _, call in api.calls)
    assert api.calls[0][1]["private"] is True
    assert report.infos.keys() == {*CONFIGS}
    repository = hub.repository(repo_id)
    files = hub.files(repo_id)
    assert set(files) == published(mini_export)
    for file in files:
        assert (repository / file).read_bytes() == (mini_export / file).read_bytes(), file
    assert loaded(hub, environments, repo_id, tmp_path / "first") == dump(str(mini_export), {})

    # Fewer shards, then fewer tasks; what somebody else put there stays.
    others = {"picture.png", ".gitattributes"}
    for name in others:
        (repository / name).write_bytes(b"")
    assert "data/train-00002-of-00003.parquet" in files
    push_dataset(repo_id, api=api, out=tmp_path / "out", size=32, characters=12)
    assert set(hub.files(repo_id)) == published(tmp_path / "out") | others
    assert len(list((repository / "data").glob("train-*"))) == 2
    assert loaded(hub, environments, repo_id, tmp_path / "second") == dump(str(tmp_path / "out"), {})

    push_dataset(repo_id, api=api, out=tmp_path / "out", size=32, characters=12, configs=["compose"])
    assert set(hub.files(repo_id)) == published(tmp_path / "out") | others
    assert {file.split("/")[0] for file in hub.files(repo_id) if file.endswith(".parquet")} == {"data", "compose"}


def strings_in(value) -> set[str]:
    """Every string and every encoded image in a row, as text."""
    if isinstance(value, dict):
        return set().union(*map(strings_in, value.values()))
    if isinstance(value, list):
        return set().union(*map(strings_in, value))
    return {value if isinstance(value, str) else value.decode("latin-1")} if isinstance(value, (str, bytes)) else set()


def texts_of(file: Path) -> set[str]:
    """What a file says: its bytes and, as Parquet compresses these, its rows and its schema's metadata."""
    texts = {file.read_bytes().decode("latin-1")}
    if file.suffix == ".parquet":
        texts |= strings_in(pq.read_table(file).to_pylist())
        texts |= {part.decode("latin-1") for pair in (pq.read_schema(file).metadata or {}).items() for part in pair}
    return texts


def test_texts_of_finds_what_is_in_a_file(data_dir):
    file = next((data_dir / "data").glob("train-*.parquet"))
    texts = texts_of(file)
    assert "1girl, solo, standing" in texts and any("_type" in text for text in texts)


@pytest.fixture
def kept(tmp_path):
    """A fake api that keeps a copy of what is uploaded, in a folder of its own, without any Hub."""

    class Keeping(FakeApi):
        def create_repo(self, *arguments, **options):
            self.note("create_repo", arguments, options)
            return SimpleNamespace(repo_id=f"{OWNER}/kept")

        def upload_folder(self, *arguments, **options):
            call = self.note("upload_folder", arguments, options)
            folder = Path(call["folder_path"])
            self.texts = {
                path.relative_to(folder).as_posix(): texts_of(path)
                for path in folder.rglob("*")
                if path.is_file() and path.name not in call["ignore_patterns"]
            }

    return Keeping(None)


@pytest.mark.parametrize("edition", ["mini", "pixels", "labels alone", "labels joined with their images"])
def test_no_path_of_this_machine_is_uploaded(kept, data_dir, figures_folder, tmp_path, edition):
    table = {"data_dir": data_dir, "ratings": ["unknown"]}
    arguments = {
        "mini": {"size": 32, "characters": 6},
        "pixels": {**table, "embed_images": True},
        "labels alone": table,
        "labels joined with their images": {**table, "embed_images": True, "images": str(figures_folder / "images")},
    }[edition]
    if edition == "labels joined with their images":
        arguments["data_dir"] = export_dataset(tmp_path / "labels", **table).out
    report = push_dataset("kept", api=kept, **arguments)
    assert "README.md" in kept.texts and len(kept.texts) > len(report.infos) > 2
    places = (data_dir, figures_folder, tmp_path, report.out, Path.cwd(), Path.home(), Path(__file__).parents[2])
    forbidden = {str(place) for place in places if len(place.parts) > 1} | {"/tmp/", "/home/", "pytest-of-"}
    for file, texts in kept.texts.items():
        for text in texts:
            assert not [place for place in forbidden if place in text], file


def test_nothing_is_made_on_the_hub_where_there_is_nothing_to_publish(kept, data_dir):
    with pytest.raises(ValueError, match="leaves no figure to publish; there are 48 unknown"):
        push_dataset("kept", api=kept, data_dir=data_dir)
    assert not kept.calls
