"""Checkpoints that are Hub repositories: plain diffusers loads them by the code inside, this package without it."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.dynamic_modules_utils import get_relative_imports

from .retrieval_unet import RetrievalEncoder, RetrievalUNet2DConditionModel

MODELS = "retrieval_unet"  # the module of our components; it imports no other of ours
PACKAGE = __name__.rpartition(".")[0]  # this one, or diffusers' name for the code of a checkpoint
FOLDER = Path(__file__).parent
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # what a single file may be called


class CheckpointMixin:
    """For a pipeline with components of `retrieval_unet`: the first of its bases.

    `save_pretrained` and `push_to_hub` write the pipeline's modules beside model_index.json, which names them, so that
    `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` needs torch, diffusers and transformers alone.
    The pipeline's own module must import every other that is needed: of a folder, diffusers takes no more along.
    """

    _plain: type  # the pipeline of diffusers that ours is made from

    @classmethod
    def from_stable_diffusion(
        cls,
        stable_diffusion: str | DiffusionPipeline,
        retrieval_query: str = "decoder",
        reference_timestep: str = "zero",
        **kwargs,
    ):
        """An untrained pipeline: for any references it draws exactly what the Stable Diffusion it is made from draws.

        Args:
            stable_diffusion: a Hub id, a folder, a single file (.safetensors), or a pipeline. The U-Net's weights are
                copied, the rest is shared.
            retrieval_query: see `RetrievalUNet2DConditionModel`.
            reference_timestep: see `RetrievalEncoder`.
            kwargs: of the plain pipeline's `from_pretrained`, or of its `from_single_file`.
        """
        if isinstance(stable_diffusion, cls._plain):
            if kwargs:
                raise ValueError(f"kwargs: got {', '.join(kwargs)} with a pipeline, wanted them with an id or a folder")
        elif Path(stable_diffusion).suffix in WEIGHTS:
            _check_single_file("stable_diffusion", stable_diffusion)
            stable_diffusion = cls._plain.from_single_file(str(stable_diffusion), **kwargs)
        else:
            stable_diffusion = cls._plain.from_pretrained(stable_diffusion, **_safely(kwargs))
        components = dict(stable_diffusion.components)
        unet = components.pop("unet")
        return cls(
            **components,
            unet=RetrievalUNet2DConditionModel.from_unet(unet, retrieval_query=retrieval_query),
            retrieval_encoder=RetrievalEncoder.from_unet(unet, reference_timestep=reference_timestep),
            **cls._options(stable_diffusion),
        )

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str, **kwargs):
        """`from_stable_diffusion` of a .safetensors file of Stable Diffusion, which has no retrieval layers."""
        _check_single_file("pretrained_model_link_or_path", pretrained_model_link_or_path)
        return cls.from_stable_diffusion(cls._plain.from_single_file(pretrained_model_link_or_path, **kwargs))

    @staticmethod
    def _options(stable_diffusion: DiffusionPipeline) -> dict:
        """What the constructor is to be told beside the components."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """As `DiffusionPipeline.from_pretrained`, but runs none of the checkpoint's code and reads no pickles.

        Raises ValueError for `use_safetensors=False`.
        """
        return super().from_pretrained(pretrained_model_name_or_path, **_safely(kwargs))

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict:
        """Without the name of the pipeline's module, for which diffusers would run it in the place of this class."""
        config = super()._dict_from_json_file(json_file)
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][1]
        return config

    @classmethod
    def load_config(cls, *args, **kwargs) -> dict | tuple:
        """As `DiffusionPipeline.load_config`; what is of the checkpoint's `retrieval_unet` is of this package's."""
        # Not in `_dict_from_json_file`: a download wants the names of files that are there.
        loaded = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for name in _own_components(config):
            config[name][0] = f"{PACKAGE}.{MODELS}"
        return loaded

    def to_json_string(self) -> str:
        """What model_index.json says: modules are named as the files that come along."""
        config = json.loads(super().to_json_string())
        for name in _own_components(config):
            config[name][0] = MODELS
        kind = _kind(type(self))
        config["_class_name"] = [_file_name(kind.__module__), kind.__name__]
        config.pop("_name_or_path", None)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Writes `to_json_string`."""
        _write(Path(json_file_path), self.to_json_string())

    def save_config(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As `DiffusionPipeline.save_config`. The components' configurations are made `portable`."""
        portable(Path(save_directory), self.components)
        super().save_config(save_directory, *args, **kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike, safe_serialization: bool = True, variant: str | None = None, **kwargs
    ) -> None:
        """As `DiffusionPipeline.save_pretrained`, and the code. A save that is killed leaves nothing that loads.

        A pipeline of a class derived from ours is written as ours. Raises ValueError for `safe_serialization=False`.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization: got False, wanted True: weights are never written as pickles")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.config_name).unlink(missing_ok=True)  # written again after all else
        module = _file_name(_kind(type(self)).__module__)
        for name in (module, *get_relative_imports(FOLDER / f"{module}.py")):
            shutil.copyfile(FOLDER / f"{name}.py", folder / f"{name}.py")
        for component in _own_components(self.config):
            (folder / component).mkdir(exist_ok=True)
            shutil.copyfile(FOLDER / f"{MODELS}.py", folder / component / f"{MODELS}.py")
        index = f"*.safetensors.index.{variant}.json" if variant else "*.safetensors.index.json"
        for stale in [file for name in self.components for file in (folder / name).glob(index)]:
            stale.unlink()  # of an earlier save: diffusers would go on to look for its shards
        super().save_pretrained(str(folder), variant=variant, **kwargs)


def portable(folder: Path, names: Iterable[str]) -> None:
    """Takes out of the configurations of saved models, each in a folder of its own, what is of this machine or this save.

    Paths go. The precision that transformers notes, and loads in where none is named, becomes single: what diffusers
    loads all other parts of a pipeline in, in whichever precision they were saved.
    """
    for file in [folder / name / "config.json" for name in names]:
        if file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
            config = {name: value for name, value in before.items() if name != "_name_or_path"}
            if "dtype" in config:
                config["dtype"] = "float32"
            if config != before:
                _write(file, json.dumps(config, indent=2) + "\n")


def _safely(kwargs: dict) -> dict:
    """The arguments of a `from_pretrained` that reads no pickles, and all components in one precision."""
    if kwargs.get("use_safetensors") is False:
        raise ValueError("use_safetensors: got False, wanted True: weights are never read from pickles")
    if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
        # As diffusers loads its models; transformers would load the text encoder in the precision that it is saved in.
        kwargs = {**kwargs, "dtype": torch.float32}
    return {**kwargs, "use_safetensors": True}


def _check_single_file(name: str, file: str | os.PathLike) -> None:
    if Path(file).suffix != ".safetensors":
        raise ValueError(f"{name}: got {file}, wanted a .safetensors file: weights are never read from pickles")


def _own_components(config: dict) -> list[str]:
    """The components that are of `retrieval_unet`, of whichever package."""
    pairs = {name: value for name, value in config.items() if isinstance(value, (list, tuple)) and len(value) == 2}
    return [name for name, (module, _) in pairs.items() if module and _file_name(module) == MODELS]


def _write(file: Path, text: str) -> None:
    """Writes a file beside its final name and moves it into place."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


def _file_name(module: str) -> str:
    return module.rpartition(".")[2]


def _kind(pipeline_class: type) -> type:
    """The first of the class and its bases whose module lies beside this one."""
    return next(base for base in pipeline_class.__mro__ if base.__module__.rpartition(".")[0] == PACKAGE)
