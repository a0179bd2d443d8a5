"""What a run draws, and where it puts it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from retribooru.dataset_script.files import replacing
from retribooru.dataset_script.mini import CHARACTERS

from .arguments import BenchmarkArguments, read_prompts, shown
from .characters import Character, choose_characters, described
from .families import PLAIN, Family, Method, read_families, slug
from .judges import judge_settings, with_judges

SETTINGS = "settings.json"


class Picture(NamedTuple):
    """Which of a method's pictures of a character; prompts are numbered from 1."""

    prompt_number: int
    seed: int
    image: int


@dataclass(frozen=True)
class Plan:
    """Characters x prompts x seeds x images, of every method."""

    args: BenchmarkArguments
    families: list[Family]
    prompts: list[str]
    characters: list[Character]

    @cached_property
    def methods(self) -> list[Method]:
        return [method for family in self.families for method in family.methods]

    @cached_property
    def plain(self) -> Method | None:
        """Stable Diffusion without references, where it is among the methods."""
        return next((family.methods[0] for family in self.families if family.kind == PLAIN), None)

    @cached_property
    def judges(self) -> dict:
        """What scores depend on, beside the pictures they are of."""
        return {**judge_settings(self.args), "plain": self.plain and self.plain.name}

    @property
    def out(self) -> Path:
        return Path(self.args.output_dir)

    def folder(self, method: Method) -> Path:
        return self.out / "pictures" / method.slug

    def character_slug(self, number: int) -> str:
        return f"{number:04d}-{slug(self.characters[number].name)[:80]}"

    def path(self, method: Method, number: int, picture: Picture) -> Path:
        """The file of a picture of the character of that number."""
        return self.folder(method) / self.character_slug(number) / "{}-{}-{}.png".format(*picture)

    def units(self) -> Iterator[list[Picture]]:
        """Of a method and a character: the pictures of each call, which are of one prompt and one seed."""
        for prompt_number in range(1, len(self.prompts) + 1):
            for seed in range(self.args.seeds):
                yield [Picture(prompt_number, seed, image) for image in range(self.args.images_per_prompt)]

    def pictures(self) -> list[Picture]:
        """Of a method and a character."""
        return [picture for unit in self.units() for picture in unit]


def make_plan(args: BenchmarkArguments) -> Plan:
    """Raises ValueError for what cannot be drawn, before anything is."""
    families = read_families(args)
    return Plan(with_judges(args, families), families, read_prompts(args.prompts), choose_characters(args))


def begin(plan: Plan) -> None:
    """Notes in the output folder what is drawn there.

    A method may come or go between runs. Raises ValueError where what is there was drawn with other settings.
    """
    args = plan.args
    data = shown(args.data_dir) if args.data_dir else f"mini edition of {args.characters or CHARACTERS} characters"
    common = {
        "data": data, "task": args.task, "characters": described(plan.characters), "prompts": plan.prompts,
        "seeds": args.seeds, "images_per_prompt": args.images_per_prompt,
    }  # fmt: skip
    _keep(plan.out / SETTINGS, common, "output_dir", plan.out)
    for method in plan.methods:
        _keep(plan.folder(method) / SETTINGS, method.settings, f"methods: {method.name}", plan.out)


def _keep(file: Path, settings: dict, argument: str, out: Path) -> None:
    """Writes the settings, or raises ValueError where the file has others."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"output_dir: got {out}, whose {file.relative_to(out)} cannot be read ({error})") from error
    differing = [key for key in {**there, **settings} if there.get(key) != settings.get(key)]
    if differing:
        said = "; ".join(f"{key} was {_short(there.get(key))} and is {_short(settings.get(key))}" for key in differing)
        raise ValueError(f"{argument}: got other settings than those of the pictures in {out}: {said}. Wanted the same "
                         "ones, or another output_dir")  # fmt: skip


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
