"""Virtual environments beside the one of the tests, for what must work with other packages or without ours."""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
# What `datasets` 3.6 wants in versions of its time; everything else is what the project is tested with.
OF_ITS_TIME = ("datasets", "dill", "fsspec", "multiprocess")


@dataclass(frozen=True)
class Environment:
    """What to install, and the versions that constraints.txt pins, without those of `free`; no constraints if None.

    What is `linked` is that of the environment of the tests, with what it requires and nothing else: for what is large.
    """

    requirements: tuple[str, ...] = ()
    free: tuple[str, ...] | None = field(default=())
    linked: tuple[str, ...] = ()


def environments_wanted() -> dict[str, Environment]:
    """`datasets` as it is here and as it last took scripts, `diffusers`, and a Hub; all without this project."""
    import datasets

    return {
        "now": Environment((f"datasets=={datasets.__version__}", "pillow")),
        "3.6": Environment(("datasets==3.6.0", "pillow"), free=OF_ITS_TIME),
        "diffusers": Environment(linked=("torch", "diffusers", "transformers")),
        "hub": Environment(("olah==0.5.4",), free=None),
    }


def make_environments(folder: Path, wanted: dict[str, Environment]) -> None:
    """Makes them side by side, each in the folder of its name; raises with pip's words where one cannot be made."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: _make(folder / name, wanted[name]), wanted))


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def _make(folder: Path, wanted: Environment) -> None:
    python = python_of(folder)
    _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    if wanted.linked:
        scheme = {"base": str(folder), "platbase": str(folder)}
        _link(Path(sysconfig.get_path("purelib", "venv", scheme)), wanted.linked)
    if not wanted.requirements:
        return
    options = []
    if wanted.free is not None:
        constraints = folder / "constraints.txt"
        lines = CONSTRAINTS.read_text().splitlines(keepends=True)
        constraints.write_text("".join(line for line in lines if re.split("[=#]", line)[0] not in wanted.free))
        options = ["-c", str(constraints)]
    # The pip of the tests installs; compiling what is never imported would take longer than the rest.
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile"]
    _run(*pip, "--disable-pip-version-check", "--no-input", *options, *wanted.requirements)


def _link(site_packages: Path, names: Sequence[str]) -> None:
    """Links distributions of this environment, and what they require, into another."""
    waiting, seen = list(names), set()
    while waiting:
        found = distribution(waiting.pop())
        if found.name in seen:
            continue
        seen.add(found.name)
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            link = site_packages / top
            if not link.exists():  # two distributions may share a folder
                link.symlink_to(found.locate_file(top))
        requirements = map(Requirement, found.requires or ())
        waiting += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]


def _run(*command: str) -> None:
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, check=False, env=clean_environment(), **output)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")


def clean_environment(**more: str) -> dict[str, str]:
    """The variables of this process, without those that lead Python or the Hub's clients elsewhere, and `more`."""
    misleading = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN")
    return {**{name: value for name, value in os.environ.items() if name not in misleading}, **more}
