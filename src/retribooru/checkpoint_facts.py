"""What a checkpoint's files say of it, and whether they are all there. Weights are not loaded: headers tell enough."""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

PIPELINES = ("RetriBooruPipeline", "RetriBooruXLPipeline")
TRAINING = "training.json"  # what the trainer leaves beside model_index.json
EVALUATION = "evaluation"  # a folder of tables (.md), their numbers (.json) and plots (.png) for the card
CONFIGS = ("config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json")
SUFFIXES = (".json", ".safetensors", ".txt", ".model")  # of a component's files; never a pickle
WEIGHTS = re.compile(r"[a-z_]+(?:\.(?P<variant>[^.-]+))?(?:-\d+-of-\d+)?\.safetensors")


@dataclass
class Weights:
    """Of one component, in one variant."""

    parameters: int
    retrieval_parameters: int  # those of retrieval layers
    precision: list[str]  # F32, F16: as safetensors names them


@dataclass
class Checkpoint:
    """A whole checkpoint of a pipeline of ours.

    Args:
        index: model_index.json.
        configs: {component: its configuration}.
        weights: {component: {variant: weights}}; the variant without a name is "".
        retrieves: whether anything in the zero convolutions is not zero.
        training: training.json, None where there is none.
        tables: the Markdown files of evaluation/, and plots: the names of its pictures, both in order.
        files: what belongs on the Hub, by name in the folder, without README.md.
    """

    folder: Path
    index: dict
    configs: dict[str, dict]
    weights: dict[str, dict[str, Weights]]
    retrieves: bool
    training: dict | None
    tables: list[str]
    plots: list[str]
    files: list[str]

    @property
    def pipeline(self) -> str:
        """The name of its class."""
        return self.index["_class_name"][1]


def pipeline_class(name: str) -> str | None:
    """The name of the class of a pipeline, a Hub id or a folder. Raises OSError or ValueError where there is none."""
    from diffusers import DiffusionPipeline

    kind = DiffusionPipeline.load_config(name).get("_class_name")
    return kind[-1] if isinstance(kind, (list, tuple)) and kind else kind  # with the module, where it has its own


def check_pipeline(argument: str, name: str, *wanted: str) -> str:
    """The name of the class of a pipeline, by its small files. Raises ValueError where there is none, or another."""
    expected = f"wanted a {' or '.join(wanted) or 'pipeline'}: a folder or a Hub id"
    try:
        found = pipeline_class(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{argument}: got {name}, {expected} ({' '.join(str(error).split())})") from error
    if wanted and found not in wanted:
        raise ValueError(f"{argument}: got {name}, which is a {found}; {expected}")
    return found


def read_checkpoint(folder: Path) -> Checkpoint:
    """Raises ValueError or FileNotFoundError, saying what is wrong or lacking, unless a whole checkpoint is there."""
    folder = Path(folder)
    wanted = "wanted a folder that save_pretrained of a RetriBooruPipeline wrote"
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"checkpoint: got {folder}, which has no model_index.json; {wanted}")
    index = _read_json(folder / "model_index.json")
    name = index.get("_class_name")
    if not isinstance(name, list) or name[-1] not in PIPELINES:
        raise ValueError(f"checkpoint: got {folder}, whose model_index.json names the class {name!r}; {wanted}")
    components = {key: value for key, value in index.items() if key != "_class_name" and isinstance(value, list)}
    components = {key: module for key, (module, _) in components.items() if module}
    missing = {"unet", "retrieval_encoder", "vae", "text_encoder", "tokenizer", "scheduler"} - set(components)
    missing |= {file for file in _code(folder, name[0], components) if not (folder / file).is_file()}
    missing |= {component for component in components if not _config(folder / component)}
    if missing:
        raise FileNotFoundError(f"checkpoint: got {folder}, which lacks {', '.join(sorted(missing))}; {wanted}")

    configs = {component: _read_json(_config(folder / component)) for component in components}
    models = [component for component in components if _config(folder / component).name == "config.json"]
    weights = {component: _weights(folder / component) for component in models}
    files = [folder / file for file in ("model_index.json", TRAINING, *_code(folder, name[0], components))]
    files += [path for each in components for path in (folder / each).iterdir() if path.suffix in SUFFIXES]
    evaluation = sorted(file for file in (folder / EVALUATION).glob("*") if file.suffix in (".md", ".json", ".png"))
    files += evaluation
    training = folder / TRAINING
    return Checkpoint(
        folder=folder,
        index=index,
        configs=configs,
        weights=weights,
        retrieves=any(tensor.any() for tensor in _zero_convolutions(folder / "unet")),
        training=_read_json(training) if training.is_file() else None,
        tables=[file.read_text(encoding="utf-8") for file in evaluation if file.suffix == ".md"],
        plots=[f"{EVALUATION}/{file.name}" for file in evaluation if file.suffix == ".png"],
        files=sorted(file.relative_to(folder).as_posix() for file in files if file.is_file()),
    )


def _code(folder: Path, module: str, components: dict[str, str]) -> list[str]:
    """The modules that a checkpoint must hold."""
    from diffusers.utils.dynamic_modules_utils import get_relative_imports

    main = folder / f"{module}.py"
    imported = get_relative_imports(main) if main.is_file() else []
    own = [f"{component}/{name}.py" for component, name in components.items() if name == "retrieval_unet"]
    return [main.name, *(f"{name}.py" for name in imported), *own]


def _config(component: Path) -> Path | None:
    return next((component / name for name in CONFIGS if (component / name).is_file()), None)


def _read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"checkpoint: {file} is no JSON file ({error})") from error


def _weights(component: Path) -> dict[str, Weights]:
    """{variant: what there is}; raises where a file is damaged or missing."""
    missing = [
        shard
        for index in component.glob("*.safetensors.index*.json")
        for shard in set(_read_json(index)["weight_map"].values())
        if not (component / shard).is_file()
    ]
    found = {file: match["variant"] or "" for file in component.iterdir() if (match := WEIGHTS.fullmatch(file.name))}
    if missing or not found:
        raise FileNotFoundError(f"checkpoint: {component} lacks {', '.join(sorted(missing)) or 'safetensors files'}")
    variants = {}
    for variant in sorted(set(found.values())):
        sizes, kinds = Counter(), set()
        for file in [file for file, of in found.items() if of == variant]:
            with _opened(file) as tensors:
                for key in tensors.keys():
                    tensor = tensors.get_slice(key)
                    sizes[key.startswith("retrieval_layers.")] += math.prod(tensor.get_shape())
                    kinds.add(tensor.get_dtype())
        variants[variant] = Weights(sizes.total(), sizes[True], sorted(kinds))
    return variants


def _zero_convolutions(unet: Path):
    """The tensors of the convolutions that begin as zeros."""
    for file in unet.glob("*.safetensors"):
        with _opened(file) as tensors:
            yield from (tensors.get_tensor(key) for key in tensors.keys() if ".zero_conv." in key)


def _opened(file: Path):
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"checkpoint: {file} is no safetensors file ({error})") from error
