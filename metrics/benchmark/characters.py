"""Whom the methods are to draw: characters and their references."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from retribooru.training.arguments import check_argument
from retribooru.training.data import load_figures
from retribooru.training.grids import spread

from .arguments import BenchmarkArguments

DOMAINS = ("in_domain", "out_of_domain")


@dataclass(frozen=True)
class Character:
    """One character, and the references of it: parallel lists, by the names of the pipeline's arguments."""

    name: str  # no other character's
    domain: str  # in_domain: trained on, with other pictures; out_of_domain: never
    reference_ids: list[str]
    reference_images: list[Image.Image]  # RGB, of any size
    reference_masks: list[Image.Image]  # L, of their images' sizes, 255 where the figure is
    reference_concepts: list[str]  # figure, face or body


def choose_characters(args: BenchmarkArguments) -> list[Character]:
    """As many of each domain as the arguments say: the first pictures of the first outfits, each character once.

    Raises ValueError where a domain has not so many.
    """
    return [character for domain in DOMAINS for character in _of_domain(args, domain, getattr(args, domain))]


def _of_domain(args: BenchmarkArguments, domain: str, count: int) -> list[Character]:
    if not count:
        return []
    rows = load_figures(args.data_dir, domain, args.images, args.characters, args.task)
    names = rows["character"]
    order = spread(list(zip(names, rows["artist"], rows["outfit"])))
    found = len(set(names))
    check_argument(
        domain, count <= found, count, f"at most {found}: so many characters have references there for {args.task}"
    )
    chosen = [rows[i] for i in order[:count]]  # every character comes before any's next picture
    return [
        Character(
            name=row["character"],
            domain=domain,
            reference_ids=row["reference_ids"],
            reference_images=[image.convert("RGB") for image in row["reference_images"]],
            reference_masks=[mask.convert("L") for mask in row["reference_masks"]],
            reference_concepts=row["reference_concepts"],
        )
        for row in chosen
    ]


def described(characters: Sequence[Character]) -> list[dict]:
    """Names and references, as they are written down; the digest is of the references' pixels."""
    return [
        {
            "name": one.name,
            "domain": one.domain,
            "references": one.reference_ids,
            "concepts": one.reference_concepts,
            "digest": _digest([*one.reference_images, *one.reference_masks]),
        }
        for one in characters
    ]


def _digest(images: Sequence[Image.Image]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(str(image.size).encode() + image.tobytes())
    return digest.hexdigest()[:8]
