"""From annotations, images and masks to the figures table that `load_dataset("retribooru", data_dir=...)` reads."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..figures import FIGURES, LABELS, SPLITS, IdentityIndex, identity_of, split_of
from ..files import replacing_folder, write_lines
from ..table import read_columns, shard_files, write_shards
from .annotations import Reject, count_reasons, name_outfits, read_annotations, reject
from .pixels import add_pixels


@dataclass
class BuildReport:
    """Counts of a build.

    figures, characters: by split. alone: figures without a partner. loose_links: links of `similar` that led nowhere.
    rejects: by the field at fault.
    """

    figures: dict[str, int]
    characters: dict[str, int]
    identities: int
    alone: int
    loose_links: int
    rejects: dict[str, int]
    out: Path

    def __str__(self) -> str:
        splits = ", ".join(
            f"{count} {split} of {self.characters[split]} characters" for split, count in self.figures.items()
        )
        lines = [
            f"{sum(self.figures.values())} figures ({splits}) of {self.identities} identities in {self.out}",
            f"{self.alone} figures have no other image of their identity: in the config figures, in no task",
        ]
        if self.loose_links:
            lines.append(
                f"{self.loose_links} links of `similar` name no image here, or one of another character or artist"
            )
        if self.rejects:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejects.items())
            lines.append(f"{sum(self.rejects.values())} records rejected ({reasons}): {self.out / 'rejects.jsonl'}")
        return "\n".join(lines)


def build_figures(
    annotations: Path,
    images: Path,
    masks: Path,
    out: Path,
    seed: int = 0,
    out_of_domain: float = 0.1,
    in_domain: float = 0.05,
) -> BuildReport:
    """Builds a data_dir from the authors' annotation form (`retribooru.json` + images + masks).

    Writes out/data/SPLIT-*.parquet and out/rejects.jsonl (every record that could not be used, with its reason). An
    earlier table is replaced only once the new one is whole.

    Args:
        annotations: JSON list of records, see `read_annotations`.
        images, masks: folders with ID.png (or .jpg, .jpeg, .webp).
        seed, out_of_domain, in_domain: of the split, see `split_of`.
    """
    for name, folder in (("images", images), ("masks", masks)):
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{name}: got {folder}, which is not a folder; wanted one with a file per image id")
    split_of("", "", seed, out_of_domain, in_domain)  # bad shares fail before the work
    records, rejects = read_annotations(annotations)
    usable = []
    for record in tqdm(records, desc="checking images", unit="image"):
        try:
            add_pixels(record, images, masks)
            usable.append(record)
        except Reject as reason:
            rejects.append(reject(record, reason))
    if not usable:
        raise ValueError(
            f"annotations: none of the {len(rejects)} records of {annotations} can be used; the first: "
            f"{rejects[0]['reason']}"
            if rejects
            else f"annotations: {annotations} holds no record, wanted at least one"
        )
    loose_links = name_outfits(usable)
    usable.sort(key=lambda record: (*identity_of(record), record["image_id"]))

    out = Path(out)
    by_split = {split: [] for split in SPLITS}
    for record in usable:
        split = split_of(record["character"], record["image_id"], seed, out_of_domain, in_domain)
        by_split[split].append(record)
    with replacing_folder(out / "data") as folder:
        for split, members in by_split.items():
            rows = _with_pixels(tqdm(members, desc=f"writing {split}", unit="image"), images, masks, rejects)
            write_shards(split, rows, folder, FIGURES, len(members))
        write_lines(out / "rejects.jsonl", rejects)

    return summary(out, count_reasons(rejects), loose_links)


def summary(out: Path, rejects: Mapping[str, int], loose_links: int = 0) -> BuildReport:
    """What the figures table in `out` holds, read off its labels; the rest as given."""
    figures, characters, sizes = {}, {}, Counter()
    for split in SPLITS:
        files = shard_files(out, split)
        identities = IdentityIndex(read_columns(files, LABELS)).identities if files else []
        figures[split], characters[split] = len(identities), len({character for character, _, _ in identities})
        sizes.update(identities)
    alone = sum(size == 1 for size in sizes.values())
    return BuildReport(figures, characters, len(sizes), alone, loose_links, dict(rejects), Path(out))


def _with_pixels(records: Iterable[dict], images: Path, masks: Path, rejects: list[dict]) -> Iterator[dict]:
    """Rows of the table; a file that was changed since it was checked ends among the rejects as any other would."""
    for record in records:
        try:
            yield add_pixels(record, images, masks)
        except Reject as reason:
            rejects.append(reject(record, reason))
