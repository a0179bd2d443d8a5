"""Arguments from the command line: flags, or a preset in YAML."""

from argparse import ArgumentParser
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import yaml
from transformers import HfArgumentParser

from retribooru.dataset_script.files import read_yaml

from .arguments import OptimizationArguments, check_argument

PRESETS = Path(__file__).parent / "presets"
Arguments = TypeVar("Arguments", bound=OptimizationArguments)


def parse(kind: type[Arguments], argv: list[str]) -> Arguments:
    """Flags, over `--preset NAME_OR_FILE` where one is given, over the defaults. Unknown keys are refused."""
    presets = ArgumentParser(add_help=False, allow_abbrev=False)
    presets.add_argument("--preset", default=None, help="A YAML file, or the name of one that comes along.")
    preset = presets.parse_known_args(argv)[0].preset
    settings = read_preset(preset, kind) if preset else {}
    parser = HfArgumentParser(kind, parents=[presets], allow_abbrev=False)  # a misspelt flag is not another one
    parser.set_defaults(**settings)  # None, which no flag can say
    parsed = vars(parser.parse_args([*_flags(settings, kind), *argv]))
    parsed.pop("preset")
    return kind(**parsed)


def read_preset(name: str, kind: type[Arguments], extended_by: tuple[str, ...] = ()) -> dict:
    """The settings of a preset, over those of the presets that it `extends`, the later ones of these over the earlier.

    Raises where a file is missing, is no preset or has a key that the trainer does not know, and where presets extend
    each other in a circle.
    """
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else PRESETS / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise FileNotFoundError(f"preset: got {name}, wanted a YAML file or one of {names}")
    check_argument("preset", name not in extended_by, " > ".join([*extended_by, name]), "none that extends itself")
    try:
        settings = read_yaml(path) or {}
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"preset: got {path}, which is not YAML: {' '.join(str(error).split())}") from None
    check_argument("preset", isinstance(settings, dict), path, "lines of `name: value`")
    others = settings.pop("extends", [])
    fine = isinstance(others, list) and all(isinstance(other, str) for other in others)
    check_argument("preset", fine, f"{path} with extends: {others}", "a list, like extends: [mini-recon9k]")
    below = {}
    for other in others:
        below |= read_preset(other, kind, (*extended_by, name))
    unknown = sorted(str(key) for key in settings.keys() - {item.name for item in fields(kind)})
    if unknown:
        raise ValueError(f"preset: {path} has {', '.join(unknown)}, which {kind.__name__} does not know")
    return below | settings


def _flags(settings: dict, kind: type[Arguments]) -> list[str]:
    # The parser checks the types of flags, not those of defaults.
    several = {item.name for item in fields(kind) if "list[" in str(item.type)}
    flags = []
    for name, value in settings.items():
        if name in several and isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={value}")
    return flags
