"""How sure a mean is, when what was measured comes in clusters."""

from collections.abc import Hashable, Sequence

import numpy as np


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[Hashable],
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of all values, whole groups drawn with replacement.

    Images of one character resemble each other: an interval over images would be too narrow. So characters are drawn,
    each with all of its values, and the mean is over the values drawn (a character with more of them weighs more, as
    it does in the mean itself).

    Args:
        values: n numbers, such as ``clip_i(...)`` gives.
        groups: n names; ``groups[i]`` is what ``values[i]`` belongs to, such as its character. At least two differ.
        level: of confidence, between 0 and 1.
        resamples: how often the groups are drawn.
        seed: of the drawing; the same seed gives the same interval.

    Returns:
        (low, high), on the scale of the values. With few groups (below some 20) percentile intervals are too narrow.

    Raises:
        ValueError: lists of different lengths, a value that is not a number (leave out what is undefined), fewer than
            two groups, or a level or a number of resamples out of range.

    Example:
        >>> bootstrap_interval([0.70, 0.72, 0.65, 0.66], ["rin", "rin", "miku", "miku"])
        (0.655, 0.71)
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(groups),):
        raise ValueError(f"values has shape {values.shape}; wanted ({len(groups)},), one for each of groups.")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"values[{bad[0]}] is {values[bad[0]]} ({len(bad)} are not finite); wanted finite numbers.")
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; wanted a number between 0 and 1.")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples!r}; wanted a whole number of at least 1.")
    position = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    if len(position) < 2:
        raise ValueError(f"groups has {len(position)} different names; wanted at least 2: one has no spread.")

    rows = [position[group] for group in groups]
    sums, counts = np.bincount(rows, weights=values), np.bincount(rows)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
