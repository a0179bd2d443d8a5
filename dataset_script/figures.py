"""The figures table: its schema, the identities in it, and the split of its characters."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features, Image, Value

SPLITS = ("train", "in_domain", "out_of_domain")
IDENTITY = ("character", "artist", "outfit")
LABELS = ("image_id", "head_box", *IDENTITY)  # what drawing references needs to know of an image

# One row per image. `mask` is 255 where the figure is; `head_box` is [x_min, y_min, x_max, y_max] in pixels of `image`,
# null where no head was found. Images of one (character, artist, outfit) show the same figure in the same clothes.
FIGURES = Features(
    {
        "image_id": Value("string"),
        "image": Image(mode="RGB"),
        "mask": Image(mode="L"),
        "head_box": [Value("int32")],
        "character": Value("string"),
        "artist": Value("string"),
        "copyright": Value("string"),
        "outfit": Value("string"),
        "outfit_answer": Value("string"),
        "tags": [Value("string")],
        "prompt": Value("string"),
        "rating": Value("string"),
    }
)

# The same for a table that names its image files and does not hold them: `path` is relative to the user's folder.
FIGURES_WITHOUT_PIXELS = Features({**FIGURES, "image": Image(mode="RGB", decode=False)})

# One row per target, the same for every task. The reference_* lists are parallel and bear the names of the pipeline's
# arguments: RetriBooruPipeline(row["prompt"], reference_images=row["reference_images"], ...). The references' own
# identity is the target's, but for the bodies of `swap`: these are somebody else's, and since no picture of the one in
# the other's clothes exists, the target of `swap` is the picture of the faces' identity.
TASK_ROWS = Features(
    {
        "target_id": Value("string"),
        "target": Image(mode="RGB"),
        "target_mask": Image(mode="L"),
        "head_box": [Value("int32")],
        "prompt": Value("string"),
        "character": Value("string"),
        "artist": Value("string"),
        "outfit": Value("string"),
        "reference_images": [Image(mode="RGB")],
        "reference_masks": [Image(mode="L")],
        "reference_concepts": [Value("string")],
        "reference_ids": [Value("string")],
        "reference_characters": [Value("string")],
        "reference_artists": [Value("string")],
        "reference_outfits": [Value("string")],
    }
)

# The columns of a task's row that need no pixels.
TASK_LABELS = Features(
    {
        name: feature
        for name, feature in TASK_ROWS.items()
        if name.split("_")[-1] not in ("target", "images", "mask", "masks")
    }
)


def identity_of(row: dict) -> tuple[str, str, str]:
    """(character, artist, outfit) of a row."""
    return tuple(row[key] for key in IDENTITY)


class IdentityIndex:
    """Which images of a figures table show the same identity, by position in the table.

    Args:
        labels: the columns `LABELS`, a row per image; no pixels are held.
    """

    def __init__(self, labels: pa.Table):
        self.image_ids: list[str] = labels.column("image_id").to_pylist()
        self.has_head: list[bool] = pc.fill_null(
            pc.greater(pc.list_value_length(labels["head_box"]), 0), False
        ).to_pylist()
        self.identities = list(zip(*(labels.column(name).to_pylist() for name in IDENTITY)))
        self.members = defaultdict(list)
        for position, identity in enumerate(self.identities):
            self.members[identity].append(position)

    @classmethod
    def from_dataset(cls, figures) -> "IdentityIndex":
        """From a `datasets.Dataset` of the figures config, without decoding an image."""
        return cls(figures.select_columns(list(LABELS)).with_format("arrow")[:])

    def images_like(self, position: int) -> dict[str, bool]:
        """{image_id: has a head box} of all images of the identity at `position`, itself included."""
        return {self.image_ids[i]: self.has_head[i] for i in self.members[self.identities[position]]}

    @cached_property
    def identities_with_head(self) -> list[tuple[str, str, str]]:
        """Identities that faces and bodies can be cut from, sorted."""
        return sorted({identity for identity, head in zip(self.identities, self.has_head) if head})

    @cached_property
    def positions(self) -> dict[str, int]:
        """{image_id: position in the table}."""
        return {image_id: position for position, image_id in enumerate(self.image_ids)}

    def __len__(self) -> int:
        return len(self.image_ids)


def split_of(character: str, image_id: str, seed: int = 0, out_of_domain: float = 0.1, in_domain: float = 0.05) -> str:
    """The split of an image: a pure function of the names, so it stays when images are added.

    A share `out_of_domain` of the characters is never trained on, in no role; of the other characters a share
    `in_domain` of the images is held out as targets (METHOD: test set of out-of-domain and in-domain characters).
    """
    for name, share in (("out_of_domain", out_of_domain), ("in_domain", in_domain)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name}: got {share}, wanted a share between 0 and 1")
    if _unit_hash(seed, "character", character) < out_of_domain:
        return "out_of_domain"
    if _unit_hash(seed, "image", image_id) < in_domain:
        return "in_domain"
    return "train"


def _unit_hash(*parts: object) -> float:
    """A number in [0, 1), the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def check_box(head_box: Sequence[float], size: tuple[int, int]) -> None:
    """Raises ValueError unless `head_box` is (x_min, y_min, x_max, y_max) inside an image of `size` (width, height)."""
    x_min, y_min, x_max, y_max = head_box
    width, height = size
    if not (0 <= x_min < x_max <= width and 0 <= y_min < y_max <= height):
        raise ValueError(
            f"head_box: got {list(head_box)}, wanted 0 <= x_min < x_max <= {width} and 0 <= y_min < y_max <= {height}"
        )
