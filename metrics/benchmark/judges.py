"""Who judges, and what tells one judge from another."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from transformers import AutoConfig

from retribooru.checkpoints import MINI
from retribooru.training.arguments import check_argument

from ..modules import CLIP, REVISIONS, VQA, VQA_CLASSES
from .arguments import BenchmarkArguments, shown
from .families import RETRIBOORU, Family, resolve

CLASSES = {"clip": ("CLIPModel",), "vqa": VQA_CLASSES}
LARGE = {"clip": CLIP, "vqa": VQA}
# They have read pictures of the mini edition alone, which the large ones have never seen.
SMALL = {name: MINI.with_name(f"mini-{name}") for name in LARGE}


def with_judges(args: BenchmarkArguments, families: Sequence[Family]) -> BenchmarkArguments:
    """The arguments with a CLIP and a VQA model: those that they name; else the small ones, where all that is compared
    of ours is the mini checkpoint; else the large ones.

    Raises:
        ValueError: one of them is not there, or of another class, or `masks` names no function: known before anything
            is drawn.
    """
    ours = [Path(family.options["checkpoint"]).resolve() for family in families if family.kind == RETRIBOORU]
    judges = SMALL if ours and set(ours) == {MINI.resolve()} else LARGE
    args = replace(args, **{name: getattr(args, name) or str(judges[name]) for name in judges})
    for argument, classes in CLASSES.items():
        name, wanted = getattr(args, argument), f"a {' or '.join(classes)}: a Hub id or a folder"
        try:
            found = AutoConfig.from_pretrained(name, revision=REVISIONS.get(name, "main")).architectures or ["no class"]
        except (OSError, ValueError) as error:
            raise ValueError(f"{argument}: got {name}, wanted {wanted} ({error})") from error
        check_argument(argument, found[0] in classes, f"{name}, a {found[0]}", wanted)
    if args.masks != "typical":
        resolve("masks", args.masks)
    return args


def judge_settings(args: BenchmarkArguments) -> dict:
    """What a judge's scores depend on, beside the pictures."""
    return {
        "clip": shown(args.clip), "clip_weights": weights_of(args.clip), "vqa": shown(args.vqa),
        "vqa_weights": weights_of(args.vqa), "questions": args.questions, "max_new_tokens": args.max_new_tokens,
        "masks": args.masks,
    }  # fmt: skip


def are_small(args: BenchmarkArguments) -> bool:
    """Whether one of the judges was trained on the mini edition alone."""
    return any(Path(getattr(args, name)).resolve() == path.resolve() for name, path in SMALL.items())


@lru_cache(maxsize=4)
def weights_of(name: str) -> str:
    """What tells a judge's weights from others of its name: of a Hub id its revision, of a folder a digest."""
    files = sorted(Path(name).glob("*.safetensors"))
    if not files:
        return REVISIONS.get(name, "main")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:8]
