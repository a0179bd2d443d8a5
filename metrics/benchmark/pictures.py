"""The pictures of all methods: each is drawn once, says how it was drawn, and is kept."""

import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from retribooru.dataset_script.files import replacing

from ..truth.pictures import generator
from .families import Family, Method
from .methods import load_family
from .plan import Picture, Plan

KEY = "retribooru"  # of the PNG chunk that holds the settings as JSON
LIBRARIES = ("retribooru", "diffusers", "transformers", "torch")


def draw_pictures(plan: Plan, numbers: Iterable[int], device: torch.device) -> None:
    """Draws what is not there yet of the characters of these numbers: family after family, and within a family
    character after character, so that no model is loaded twice and no reference encoded twice.

    A call draws the pictures of one prompt and seed, also where some of them are there: what a picture looks like does
    not depend on where an earlier run was killed. A picture that is there is never written again.
    """
    for family in plan.families:
        _draw_family(plan, family, list(numbers), device)


def read_picture(plan: Plan, method: Method, number: int, picture: Picture) -> tuple[Image.Image, dict]:
    """A picture, RGB, and what it says of itself. Raises ValueError where it is damaged, or not what it should be."""
    path = plan.path(method, number, picture)
    wanted = "wanted a picture that this benchmark drew; delete it, and it is drawn again"
    try:
        with Image.open(path) as file:
            image, settings = file.convert("RGB"), json.loads(file.info[KEY])
    except (OSError, SyntaxError, ValueError, KeyError) as error:
        raise ValueError(f"output_dir: got {path}, which cannot be read ({error!r}); {wanted}") from error
    expected = _settings(plan, method, number, picture)
    differing = [key for key in expected if settings.get(key) != expected[key]]
    if differing:
        raise ValueError(f"output_dir: got {path}, whose {', '.join(differing)} are others; {wanted}")
    return image, settings


def _draw_family(plan: Plan, family: Family, numbers: list[int], device: torch.device) -> None:
    units = [(number, method, unit) for number in numbers for method in family.methods for unit in plan.units()]
    todo = [
        (number, method, unit)
        for number, method, unit in units
        if not all(plan.path(method, number, picture).exists() for picture in unit)
    ]
    if not todo:
        return
    draw, each = load_family(family, device), plan.args.images_per_prompt
    _check_weights(plan, family, draw.weights)
    done = (len(units) - len(todo)) * each
    with tqdm(total=len(units) * each, initial=done, desc=family.name, unit="picture") as bar:
        for number, method, unit in todo:
            _draw_unit(plan, draw, number, method, unit)
            bar.update(each)


def _draw_unit(plan: Plan, draw, number: int, method: Method, unit: list[Picture]) -> None:
    character, prompt = plan.characters[number], plan.prompts[unit[0].prompt_number - 1]
    generators = [generator(one.seed, character.name, one.prompt_number, one.image) for one in unit]
    images = draw(character, prompt, generators, method.scale)
    made_with = {
        "prompt_cut": _is_cut(draw.tokenizer, prompt),
        "weights": draw.weights,
        "versions": {name: version(name) for name in LIBRARIES},
    }
    for picture, image in zip(unit, images, strict=True):
        path = plan.path(method, number, picture)
        if not path.exists():
            _write(path, image, {**_settings(plan, method, number, picture), **made_with})


def _settings(plan: Plan, method: Method, number: int, picture: Picture) -> dict:
    """What a picture says of itself, but for what only its drawing tells."""
    character = plan.characters[number]
    return {
        "method": method.name,
        **method.settings,
        "character": character.name,
        "references": character.reference_ids,
        "concepts": character.reference_concepts,
        "prompt": plan.prompts[picture.prompt_number - 1],
        **picture._asdict(),
    }


def _write(path: Path, image: Image.Image, settings: dict) -> None:
    text = PngInfo()
    text.add_itxt(KEY, json.dumps(settings, ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        image.convert("RGB").save(partial, format="PNG", pnginfo=text)


def _check_weights(plan: Plan, family: Family, weights: str | None) -> None:
    """Raises ValueError where pictures of the family were drawn by other weights."""
    for method in family.methods:
        path = next(plan.folder(method).glob("*/*.png"), None)
        if path is None:
            continue
        with Image.open(path) as picture:
            drawn_by = json.loads(picture.info.get(KEY, "{}")).get("weights")
        if drawn_by != weights:
            raise ValueError(f"methods: {family.name}: got a checkpoint whose weights are {weights}, but {path} was "
                             f"drawn by {drawn_by}; wanted the same weights, or another output_dir")  # fmt: skip


def _is_cut(tokenizer, prompt: str) -> bool | None:
    """Whether the model does not see the end of the prompt; None where that is not known."""
    if tokenizer is None:
        return None
    return len(tokenizer(prompt, truncation=False, verbose=False)["input_ids"]) > tokenizer.model_max_length
