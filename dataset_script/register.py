"""Teaches `datasets` the short name: `load_dataset("retribooru", ...)`."""

import hashlib
import logging
from pathlib import Path

logger = logging.getLogger(__name__)


def register_dataset() -> None:
    """Enters the builder among the modules that `datasets` finds by name.

    `datasets` from 4.0 on refuses loading scripts; its table of packaged modules is private, so a `datasets` that has
    none is named in a warning and everything but the short name goes on working.
    """
    try:
        from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
    except ImportError:
        import datasets

        logger.warning("datasets %s has no table of packaged modules: load_dataset('retribooru') will not work",
                       datasets.__version__)  # fmt: skip
        return
    # The hash names the cache folder: rows drawn by other code are other rows.
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    _PACKAGED_DATASETS_MODULES["retribooru"] = ("retribooru.dataset_script.retribooru", digest)
