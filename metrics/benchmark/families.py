"""methods.yaml: what is compared.

A name each, and what draws under it; a list of scales makes a family of methods, one for each:

    RetriBooru: {kind: retribooru, checkpoint: checkpoints/mini, retrieval_scale: [0.5, 1.0, 1.5], guidance_scale: 2.0}
    Stable Diffusion: {kind: stable-diffusion, checkpoint: checkpoints/mini-base}
    IP-Adapter: {kind: ip-adapter, checkpoint: checkpoints/mini-base, adapter: checkpoints/mini-ip-adapter,
                 weight_name: ip_adapter.safetensors, scale: [0.3, 0.6, 1.0]}
    ControlNet: {kind: controlnet, checkpoint: someone/base, controlnet: someone/controlnet, scale: 0.8}
    mine: {function: my_module:draw, any_option: 3}

The function is called with (character, prompt, generators, **options), see :class:`.characters.Character`, and returns
a list of PIL images, one for each generator; a list under `scale` makes a family of it too.
"""

import importlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from retribooru.checkpoint_facts import PIPELINES, check_pipeline
from retribooru.dataset_script.files import read_yaml
from retribooru.training.arguments import check_argument

from .arguments import BenchmarkArguments, shown

STABLE_DIFFUSION = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
PLAIN, RETRIBOORU, FUNCTION = "stable-diffusion", "retribooru", "function"
OF_CALL = ("num_inference_steps", "guidance_scale", "negative_prompt")  # of every kind


@dataclass(frozen=True)
class Kind:
    """What a kind of method is told, beside `OF_CALL`.

    Args:
        checkpoints: the classes that its checkpoint may be of.
        required: options that it must have.
        optional: {option: what it is without}.
        scale: the option that may be a list.
    """

    checkpoints: Sequence[str]
    required: Sequence[str] = ("checkpoint",)
    optional: dict = field(default_factory=dict)
    scale: str | None = None


KINDS = {
    PLAIN: Kind(STABLE_DIFFUSION),
    RETRIBOORU: Kind(
        PIPELINES,
        optional={"retrieval_scale": 1.0, "reference_guidance_scale": None, "remove_background": True},
        scale="retrieval_scale",
    ),
    "ip-adapter": Kind(
        STABLE_DIFFUSION,
        required=("checkpoint", "adapter", "weight_name"),
        optional={"subfolder": "", "image_encoder": None, "scale": 1.0, "remove_background": False},
        scale="scale",
    ),
    "controlnet": Kind(
        STABLE_DIFFUSION[:1], required=("checkpoint", "controlnet"), optional={"scale": 1.0}, scale="scale"
    ),
}
FOLDERS = ("checkpoint", "adapter", "image_encoder", "controlnet")  # options that may be folders


@dataclass(frozen=True)
class Method:
    """A row of the tables: a family at one scale."""

    name: str
    family: str
    scale: float | None
    settings: dict  # all that its pictures depend on, beside the character, the prompt and the noise

    @property
    def slug(self) -> str:
        return slug(self.name)


@dataclass(frozen=True)
class Family:
    """What is loaded at once, and the methods that it makes."""

    name: str
    kind: str
    options: dict  # without the scale
    scales: tuple  # (None,) where it has none
    listed: bool  # the scales are a list, and in the names of the methods
    call: dict  # `OF_CALL`
    dtype: str

    @property
    def methods(self) -> list[Method]:
        options = {name: _published(name, value) for name, value in self.options.items()}
        common = {"kind": self.kind, **options, **self.call, "dtype": self.dtype}
        return [
            Method(f"{self.name} {scale:g}" if self.listed else self.name, self.name, scale, {**common, "scale": scale})
            for scale in self.scales
        ]


def read_families(args: BenchmarkArguments) -> list[Family]:
    """Raises ValueError, naming the method, for what is not as the module's text says."""
    try:
        described = read_yaml(Path(args.methods))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"methods: got {args.methods}, wanted a YAML file of methods by name ({error})") from error
    fine = isinstance(described, dict) and described and all(isinstance(one, dict) for one in described.values())
    check_argument("methods", fine, f"{args.methods} with {described!r}", "the options of a method or more, by name")
    families = [_family(str(name), options, args) for name, options in described.items()]
    plain = [family.name for family in families if family.kind == PLAIN]
    check_argument("methods", len(plain) <= 1, " and ".join(plain), f"at most one of kind {PLAIN}")
    names = Counter(method.slug for family in families for method in family.methods)
    twice = [name for name, count in names.items() if count > 1]
    check_argument("methods", not twice, f"several that are called {', '.join(twice)}", "names that differ, also as "
                   "those of folders")  # fmt: skip
    return families


def resolve(argument: str, name: str) -> Callable:
    """The function of `module:function`; modules of the working directory are found."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module, _, function = str(name).partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{argument}: got {name}, wanted module:function ({error})") from error
    check_argument(argument, callable(found), name, "module:function")
    return found


def slug(name: str) -> str:
    """As the name of a file or folder."""
    return re.sub(r"[^\w.+-]+", "-", name.lower()).strip("-.") or "_"


def _family(name: str, options: dict, args: BenchmarkArguments) -> Family:
    argument, options = f"methods: {name}", dict(options)
    if FUNCTION in options:
        kind, call = FUNCTION, {}
        resolve(f"{argument}: function", options[FUNCTION])
        fine = _survives_json(options)
        check_argument(
            argument, fine, options, "numbers, texts, lists and maps of texts: they are written down as JSON"
        )
        scale_name = "scale" if "scale" in options else None
    else:
        kind = options.pop("kind", None)
        check_argument(f"{argument}: kind", kind in KINDS, kind, f"one of {', '.join(KINDS)}, or a {FUNCTION}")
        _check_options(argument, kind, options)
        options, scale_name = {**KINDS[kind].optional, **options}, KINDS[kind].scale
        defaults = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale}
        call = {key: options.pop(key, defaults.get(key)) for key in OF_CALL}
        _check_call(argument, call)
        check_pipeline(f"{argument}: checkpoint", options["checkpoint"], *KINDS[kind].checkpoints)
    scales = options.pop(scale_name) if scale_name else None
    listed = isinstance(scales, list)
    scales = tuple(scales if listed else [scales])
    if scale_name:
        fine = scales and all(_is_number(scale) and scale >= 0 for scale in scales) and len(set(scales)) == len(scales)
        check_argument(f"{argument}: {scale_name}", fine, list(scales), "numbers of at least 0 that differ")
    return Family(name, kind, options, scales, listed, call, args.dtype)


def _check_options(argument: str, kind: str, options: dict) -> None:
    required, known = KINDS[kind].required, {*KINDS[kind].required, *KINDS[kind].optional, *OF_CALL}
    unknown, missing = sorted(set(options) - known), [key for key in required if not options.get(key)]
    check_argument(argument, not unknown, ", ".join(map(str, unknown)), f"some of {', '.join(sorted(known))}")
    check_argument(argument, not missing, f"none of {', '.join(missing)}", f"{', '.join(required)} of every {kind}")
    weights = options.get("weight_name", ".safetensors")
    check_argument(f"{argument}: weight_name", str(weights).endswith(".safetensors"), weights, "a .safetensors file")


def _check_call(argument: str, call: dict) -> None:
    steps, scale, negative = (call[key] for key in OF_CALL)
    fine = isinstance(steps, int) and steps >= 1
    check_argument(f"{argument}: num_inference_steps", fine, steps, "a whole number of at least 1")
    check_argument(f"{argument}: guidance_scale", _is_number(scale), scale, "a number")
    fine = negative is None or isinstance(negative, str)
    check_argument(f"{argument}: negative_prompt", fine, negative, "a text")


def _published(name: str, value: object) -> object:
    """An option as it may be written down: of folders and files of this machine the last part alone."""
    if isinstance(value, str) and os.path.isabs(value):
        return Path(value).name
    return shown(value) if name in FOLDERS and value else value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _survives_json(value: object) -> bool:
    try:
        return json.loads(json.dumps(value)) == value
    except TypeError:
        return False
