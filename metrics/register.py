"""Makes ``evaluate.load("clip_i")`` find this package's metrics by their short names, from any folder.

``evaluate`` takes a bare name for a folder beside the caller, then for a module of the Hub, and then looks into its
cache of modules. The functions here put the metrics into that cache, in the layout ``evaluate`` writes itself,
without importing ``evaluate`` (which would import torch and transformers).
"""

import hashlib
import logging
import os
import time
import uuid
from pathlib import Path

logger = logging.getLogger(__name__)

MODULES = ("clip_i", "clip_t", "leakage", "swd", "vqa_diversity")


def register_evaluate_modules() -> None:
    """Put every module of :data:`MODULES` into the module cache of ``evaluate``, unless it is there already.

    ``evaluate`` reads the folder from the environment when it is imported: set ``HF_MODULES_CACHE`` or ``HF_HOME``
    before the first import of either package. A cache that cannot be written is logged as a warning; the metrics
    then still load by path.

    Example:
        >>> import evaluate
        >>> register_evaluate_modules()
        >>> evaluate.load("clip_i").name
        'clip_i'
    """
    cache = modules_cache() / "evaluate_modules" / "metrics"
    failed = {}
    for name in MODULES:
        source = (Path(__file__).parent / name / f"{name}.py").read_bytes()
        folder = cache / f"evaluate-metric--{name}"
        try:
            _make_newest(_install(source, folder, name), folder)
        except OSError as error:
            failed[name] = error
    if failed:
        logger.warning(
            "evaluate.load will not find %s by name: the module cache %s cannot be written (%s).",
            ", ".join(failed),
            cache,
            next(iter(failed.values())),
        )


def modules_cache() -> Path:
    """The folder in which ``evaluate`` keeps modules, from the same environment variables as ``evaluate.config``."""
    cache = os.getenv("XDG_CACHE_HOME", "~/.cache")
    home = os.path.expanduser(os.getenv("HF_HOME", os.path.join(cache, "huggingface")))
    return Path(os.getenv("HF_MODULES_CACHE", os.path.join(home, "modules")))


def _install(source: bytes, folder: Path, name: str) -> Path:
    """Write ``source`` to ``folder/<its sha256>/<name>.py`` unless it is there, and return that path."""
    target = folder / hashlib.sha256(source).hexdigest() / f"{name}.py"
    if target.is_file() and target.read_bytes() == source:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"{name}.{uuid.uuid4().hex}.tmp"
    try:
        beside.write_bytes(source)
        for package in (folder.parent, folder, target.parent):
            package.mkdir(exist_ok=True)
            (package / "__init__.py").touch()
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
    return target


def _make_newest(target: Path, folder: Path) -> None:
    """Give ``target`` the latest modification time of all versions in ``folder``: ``evaluate`` loads the latest."""
    others = [path.stat().st_mtime for path in folder.glob(f"*/{target.name}") if path != target]
    if others and target.stat().st_mtime <= max(others):
        newest = max(time.time(), max(others) + 1)
        os.utime(target, (newest, newest))
