"""RetriBooru: draw this character, in these clothes, from a few pictures.

`import retribooru` is light: it teaches `datasets` and `evaluate` the short names and imports torch, diffusers and
transformers only when a name that needs them is used.
"""

import importlib

from retribooru.dataset_script.register import register_dataset
from retribooru.metrics.register import register_evaluate_modules

__version__ = "0.1.0"

_LAZY = {
    "RetriBooruPipeline": "retribooru.pipeline.pipeline_retribooru",
    "RetriBooruXLPipeline": "retribooru.pipeline.pipeline_retribooru_xl",
    "RetrievalUNet2DConditionModel": "retribooru.pipeline.retrieval_unet",
    "RetrievalEncoder": "retribooru.pipeline.retrieval_unet",
    "RetrievedFeatures": "retribooru.pipeline.retrieved_features",
    "ReferenceProcessor": "retribooru.pipeline.reference_processor",
}
__all__ = ["__version__", *_LAZY]

register_dataset()
register_evaluate_modules()


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'retribooru' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__():
    return sorted([*globals(), *_LAZY])
