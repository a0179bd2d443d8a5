"""What the report of a build says: counts, the paper's beside them, and what is drawn by lot."""

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from ..figures import IDENTITY
from ..table import read_columns

# What the paper counts after these stages (section 3), from the crops of Danbooru2019 Figures on.
PAPER_KEPT = {"metadata": 855_880, "filter": 599_192, "outfits": 116_729}

# How many partners an image has: images of the same identity beside it. The authors' numbers are their project page's;
# 6 to 14 is what is missing there.
PARTNERS = {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4, "5": 5, "6 to 14": 6, "15 or more": 15}  # from so many on
AUTHORS_PARTNERS = {"1": 65_594, "2": 19_636, "3": 9_125, "4": 5_227, "5": 3_434, "6 to 14": 9_481, "15 or more": 4_232}

CELL = 128  # side in pixels of a picture in the sheets
IDENTITIES, IMAGES = 24, 5  # shown: identities, images of each
KINDS, EACH = 24, 5  # shown of what was rejected: kinds (stage and reason), records of each
SHOWN_RATINGS = (None, "", "g", "s")  # of rejected images; of others the reason alone is shown


@dataclass(frozen=True)
class StageCount:
    """What a stage did with its records: how many went on, how many it rejected by reason."""

    name: str
    kept: int
    rejected: Mapping[str, int]

    @property
    def total(self) -> int:
        """All that came in and can be accounted for."""
        return self.kept + sum(self.rejected.values())


@dataclass
class Sample:
    """Some of many records, each as likely: of how many, and (image_id, reason, whether its picture may be shown)."""

    count: int = 0
    records: list[tuple[str | None, str, bool]] = field(default_factory=list)


def partner_counts(sizes: Iterable[int]) -> dict[str, int]:
    """{a name of `PARTNERS`: images with so many partners} of identities with so many images each."""
    names, starts, counts = list(PARTNERS), list(PARTNERS.values()), dict.fromkeys(PARTNERS, 0)
    for size in sizes:
        counts[names[bisect.bisect_right(starts, size - 1) - 1]] += size
    return counts


def count_names(files: Sequence[str]) -> tuple[int, int, int]:
    """(images, characters, identities) of a table."""
    labels = read_columns(files, IDENTITY)
    identities = labels.group_by(list(IDENTITY)).aggregate([])
    return len(labels), len(identities["character"].unique()), len(identities)


def sample_rejects(rejected: Iterable[dict], rng: Random) -> dict[tuple[str, str], Sample]:
    """{(stage, reason's field): up to `EACH` records}, in the order in which the kinds first come.

    Kinds beyond `KINDS`, which the names of fields in the data might make as many as records, are one more per stage.
    """
    samples = {}
    for row in rejected:
        kind = (row["stage"], row["reason"].split(":")[0])
        if kind not in samples and len(samples) >= KINDS:
            kind = (row["stage"], "other reasons")
        sample = samples.setdefault(kind, Sample())
        sample.count += 1
        place = len(sample.records) if len(sample.records) < EACH else rng.randrange(sample.count)
        if place < EACH:
            record = (row["image_id"], row["reason"][:500], may_be_shown(row))
            sample.records[place : place + 1] = [record]
    return samples


def may_be_shown(row: dict) -> bool:
    """Whether a rejected image's picture is for everybody, by what its record says of its rating."""
    record = row["record"]
    if row["reason"].startswith("rating:") or (isinstance(record, str) and record.startswith("{")):  # one that was cut
        return False
    return not isinstance(record, dict) or record.get("rating") in SHOWN_RATINGS


def choose_identities(members: Mapping[tuple, list[int]], rng: Random) -> list[tuple[tuple, list[int]]]:
    """Some identities and positions of their images; of those with two images or more, where there are any."""
    groups = sorted(identity for identity in members if len(members[identity]) > 1) or sorted(members)
    chosen = sorted(rng.sample(groups, min(IDENTITIES, len(groups))))
    return [(identity, members[identity]) for identity in chosen]


def commonest(stage: StageCount, most: int) -> list[tuple[str, int]]:
    """The commonest reasons of a stage, and the others together."""
    ranked = sorted(stage.rejected.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ranked[most:])
    return ranked[:most] + ([(f"{len(ranked) - most} other reasons", rest)] if rest else [])


def plain(text: str, longest: int = 100) -> str:
    """Text on one line, of characters that can be seen, cut where it is long."""
    text = " ".join(text[: 10 * longest].split())
    text = "".join(each if each.isprintable() else "\ufffd" for each in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"
