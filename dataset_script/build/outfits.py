"""Stage 4: from answers about the clothes to outfits (paper section 3.2): images whose answers match wear the same.

Grouping is linear in the number of images: nothing is compared in pairs.
"""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .annotations import shown
from .stage import OUTFITS, REJECTS, Done

# What counts as a colour, and under which name; qualifiers (light, dark, ...) are dropped.
COLOURS = {
    **{name: name for name in (
        "black", "white", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "beige", "gold",
        "silver", "cyan", "teal", "turquoise", "maroon", "navy", "lavender", "magenta", "cream", "olive", "burgundy",
        "khaki", "peach", "aqua", "indigo", "crimson", "tan",
    )},
    "grey": "gray", "violet": "purple", "golden": "gold", "scarlet": "red", "lilac": "lavender",
}  # fmt: skip
MAX_COLOURS = 2  # "List top two colors": what is said beyond them does not count
MAX_ANSWER = 1000  # characters that are looked at
WORD = re.compile("[a-z]+")


def parse_colours(answer: str | None) -> tuple[str, ...]:
    """The first two different colours that an answer names, in its order; () where it names none.

    "Light blue and white." -> ("blue", "white"); "red_cape" -> ("red",); "a dress" -> ().
    """
    words = WORD.findall((answer or "")[:MAX_ANSWER].lower())
    return tuple(dict.fromkeys(COLOURS[word] for word in words if word in COLOURS))[:MAX_COLOURS]


def cluster(answered: pa.Table, keep_alone: bool = False) -> Done:
    """Groups images by (character, artist, colours of the answer), order of the colours included.

    Args:
        answered: columns image_id, character, artist and answer.
        keep_alone: keep images that have no partner; in the paper they are dropped.

    Returns:
        `OUTFITS` in the order of `answered`, `outfit` and `outfit_answer` being the colours ("red, black"); rejected is
        what is no answer about colours, and who is alone.
    """
    said = answered["answer"].combine_chunks().dictionary_encode()
    colours = pa.array([", ".join(parse_colours(answer)) for answer in said.dictionary.to_pylist()], pa.string())
    outfit = colours.take(said.indices)
    named = pc.fill_null(pc.not_equal(outfit, ""), False)
    sizes = group_sizes([answered["character"], answered["artist"], outfit])
    kept = pc.and_(named, pa.array(sizes > 1)) if not keep_alone else named
    rows = pa.table([answered["image_id"], outfit, outfit], schema=OUTFITS).filter(kept)
    return Done(rows, _rejects(answered, outfit, named, pc.and_(named, pc.invert(kept))))


def group_sizes(columns: list[pa.ChunkedArray | pa.Array]) -> np.ndarray:
    """(N,) for each row: how many rows are alike in all of these columns."""
    codes = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        number = (
            pc.fill_null(column.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
        )
        # Numbered anew after each column, so that the products never grow beyond the square of the rows.
        codes = np.unique(codes * (number.max(initial=0) + 1) + number, return_inverse=True)[1]
    return np.bincount(codes, minlength=1)[codes]


def _rejects(answered: pa.Table, outfit: pa.Array, named: pa.Array, alone: pa.Array) -> pa.Table:
    wordless = answered.filter(pc.invert(named))
    reasons = [f"answer: got {shown(answer)}, wanted one or two colours" for answer in wordless["answer"].to_pylist()]
    records = [json.dumps(answer) for answer in wordless["answer"].to_pylist()]
    lonely = answered["image_id"].filter(alone)
    reason = "alone: no other image of this character by this artist in these colours"
    return pa.concat_tables(
        [
            pa.table(
                [wordless["image_id"], pa.array(reasons, pa.string()), pa.array(records, pa.string())], schema=REJECTS
            ),
            pa.table([lonely, pa.repeat(reason, len(lonely)), _quoted(outfit.filter(alone))], schema=REJECTS),
        ]
    )


def _quoted(texts: pa.Array) -> pa.Array:
    """Colours as JSON: nothing in them needs an escape."""
    return pc.binary_join_element_wise('"', texts, '"', "")
