"""Commands run as a user does, in processes of their own."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import datasets
import psutil


def flags_of(settings: dict) -> list[str]:
    """The words that say it on a command line."""
    return [str(word) for name, value in settings.items()
            for word in ([f"--{name}", *value] if isinstance(value, list) else [f"--{name}", value])]  # fmt: skip


def launch(command, folder: Path | None = None, timeout: float = 300, **environment: str) -> tuple[int, str]:
    """Runs it to its end; its status and all that it, and what it started, printed.

    What is not done in `timeout` seconds is ended with all that it started, and each of its threads shown where it was.
    """
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE),
             "PYTHONFAULTHANDLER": "1", **environment},
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        first = psutil.Process(process.pid)
        for one in [*first.children(recursive=True), first]:
            with suppress(psutil.NoSuchProcess):  # it has just ended
                one.send_signal(signal.SIGABRT)
        output, _ = process.communicate()
        raise TimeoutError(f"not done in {timeout} seconds:\n{output}") from None
    return process.returncode, output
