"""Virtual environments beside the one of the tests, for what must work with other packages or without ours."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
# What `datasets` 3.6 wants in versions of its time; everything else is what the project is tested with.
OF_ITS_TIME = ("datasets", "dill", "fsspec", "multiprocess")


@dataclass(frozen=True)
class Environment:
    """What to install, and the versions that constraints.txt pins, without those of `free`; no constraints if None."""

    requirements: tuple[str, ...]
    free: tuple[str, ...] | None = field(default=())


def environments_wanted() -> dict[str, Environment]:
    """`datasets` as it is here, as it last took scripts, and a Hub to load from; without this project, all three."""
    import datasets

    return {
        "now": Environment((f"datasets=={datasets.__version__}", "pillow")),
        "3.6": Environment(("datasets==3.6.0", "pillow"), free=OF_ITS_TIME),
        "hub": Environment(("olah==0.5.4",), free=None),
    }


def make_environments(folder: Path, wanted: dict[str, Environment]) -> dict[str, Path]:
    """{name: its Python}, made side by side; raises with pip's words where one cannot be made."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(wanted, pool.map(lambda name: _make(folder / name, wanted[name]), wanted)))


def _make(folder: Path, wanted: Environment) -> Path:
    python = folder / "bin" / "python"
    _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    options = []
    if wanted.free is not None:
        constraints = folder / "constraints.txt"
        lines = CONSTRAINTS.read_text().splitlines(keepends=True)
        constraints.write_text("".join(line for line in lines if re.split("[=#]", line)[0] not in wanted.free))
        options = ["-c", str(constraints)]
    # The pip of the tests installs; compiling what is never imported would take longer than the rest.
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile"]
    _run(*pip, "--disable-pip-version-check", "--no-input", *options, *wanted.requirements)
    return python


def _run(*command: str) -> None:
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, check=False, env=clean_environment(), **output)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")


def clean_environment(**more: str) -> dict[str, str]:
    """The variables of this process, without those that lead Python or the Hub's clients elsewhere, and `more`."""
    misleading = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN")
    return {**{name: value for name, value in os.environ.items() if name not in misleading}, **more}
