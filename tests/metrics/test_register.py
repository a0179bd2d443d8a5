"""The short names in evaluate's module cache."""

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from retribooru.metrics import register

SOURCE = (Path(register.__file__).parent / "clip_i" / "clip_i.py").read_bytes()
HASH = hashlib.sha256(SOURCE).hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the versions of clip_i lie in a cache in tmp_path."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "modules" / "evaluate_modules" / "metrics" / "evaluate-metric--clip_i"


def write_version(folder, name, source=b"", mtime=None):
    path = folder / name / "clip_i.py"
    path.parent.mkdir(parents=True)
    path.write_bytes(source)
    if mtime is not None:
        os.utime(path, (mtime, mtime))
    return path


def test_source_is_written_once_and_nothing_else_is_left(folder):
    register.register_evaluate_modules()
    target = folder / HASH / "clip_i.py"
    assert target.read_bytes() == SOURCE
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"__init__.py", f"{HASH}/__init__.py", f"{HASH}/clip_i.py"}
    before = target.stat()
    register.register_evaluate_modules()
    assert (target.stat().st_mtime_ns, target.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_damaged_copy_is_replaced(folder):
    target = write_version(folder, HASH, SOURCE[:100])
    register.register_evaluate_modules()
    assert target.read_bytes() == SOURCE


@pytest.mark.parametrize("offset", [-1000, 0, 1000])
def test_another_version_does_not_win(folder, offset):
    register.register_evaluate_modules()
    target = folder / HASH / "clip_i.py"
    other = write_version(folder, "0" * 64, mtime=target.stat().st_mtime + offset)
    register.register_evaluate_modules()
    assert target.stat().st_mtime > other.stat().st_mtime
    assert other.exists()


def test_a_cache_that_cannot_be_written_is_a_warning(folder, tmp_path, caplog):
    (tmp_path / "modules").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        register.register_evaluate_modules()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(folder.parent) in caplog.text and all(name in caplog.text for name in register.MODULES)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"XDG_CACHE_HOME": "~/xdg"},
        {"XDG_CACHE_HOME": "/x", "HF_HOME": "~/hf"},
        {"HF_HOME": "/hf", "HF_MODULES_CACHE": "/modules"},
    ],
)
def test_the_folder_is_the_one_evaluate_takes(monkeypatch, variables):
    import importlib.util

    import evaluate.config

    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_MODULES_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("evaluate.config_again", evaluate.config.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert register.modules_cache() == fresh.HF_MODULES_CACHE


def run(code, tmp_path, *arguments, **environment):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), **environment}
    environment.pop("HF_MODULES_CACHE", None)
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


# An endpoint that refuses at once stands for "not on the Hub", with or without a network.
@pytest.mark.parametrize(
    "environment",
    [{"HF_EVALUATE_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}],
    ids=["offline", "not on the Hub"],
)
def test_evaluate_loads_the_short_name_and_not_an_older_version(tmp_path, environment):
    versions = tmp_path / "hf" / "modules" / "evaluate_modules" / "metrics" / "evaluate-metric--clip_i"
    write_version(versions, "0" * 64, b"raise RuntimeError('an older version was loaded')\n")
    code = """
import sys
from retribooru.metrics.register import register_evaluate_modules
assert not {"evaluate", "torch", "transformers"} & set(sys.modules), "register is not light"
register_evaluate_modules()
import evaluate
metric = evaluate.load("clip_i")
print(metric.name, type(metric).__module__)
print(*(evaluate.load(name).name for name in sys.argv[1:]))
"""
    first, others = run(code, tmp_path, *register.MODULES, **environment).splitlines()
    assert first.split() == ["clip_i", f"evaluate_modules.metrics.evaluate-metric--clip_i.{HASH}.clip_i"]
    assert others.split() == ["clip_i", "clip_t", "leakage", "swd", "vqa_diversity"]
