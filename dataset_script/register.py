"""Teaches `datasets` the short name: `load_dataset("retribooru", ...)`."""

import hashlib
import logging
from pathlib import Path

logger = logging.getLogger(__name__)

NAME = "retribooru"


def register_dataset() -> None:
    """Enters the builder among the modules that `datasets` finds by name.

    `datasets` from 4.0 on refuses loading scripts; its table of packaged modules is private, so a `datasets` that has
    none is named in a warning and everything but the short name goes on working.
    """
    from datasets import load

    try:
        modules, factory = load._PACKAGED_DATASETS_MODULES, load.PackagedDatasetModuleFactory
        load.DatasetModule(NAME, "", {"data_files": load.DataFilesDict()})
    except (AttributeError, TypeError):
        import datasets

        logger.warning("datasets %s has no table of packaged modules: load_dataset('retribooru') will not work",
                       datasets.__version__)  # fmt: skip
        return
    # The hash names the cache folder: rows drawn by other code are other rows.
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    modules[NAME] = ("retribooru.dataset_script.retribooru", digest)
    if not getattr(factory, "finds_its_own_files", False):
        load.PackagedDatasetModuleFactory = type(factory.__name__, (_FindsItsOwnFiles, factory), {})


class _FindsItsOwnFiles:
    """For our name alone: the builder says which files are wanted.

    `datasets` would collect whatever lies below the data_dir or, without one, below the folder one happens to stand in.
    """

    finds_its_own_files = True

    def get_module(self):
        from datasets import load

        if self.name != NAME or self.data_files is not None:
            return super().get_module()
        module_path, digest = load._PACKAGED_DATASETS_MODULES[NAME]
        return load.DatasetModule(module_path, digest, {"data_files": load.DataFilesDict(), "dataset_name": NAME})
