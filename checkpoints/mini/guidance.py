"""Which predictions a step asks the U-Net for, and what is made of them. Pure functions.

A prediction e(text, references) sees the prompt P (or the negative one, -) and the references R (or none, -). Guided:

    e(-, -) + reference_guidance_scale * (e(-, R) - e(-, -)) + guidance_scale * (e(P, R) - e(-, R))

A prediction whose factors cancel is not asked for, and one without references computes no retrieval:

    reference_guidance_scale   predictions
    as guidance_scale          e(-, -), e(P, R)            guided as one, as in IP-Adapter: the default, the cheapest
    1                          e(-, R), e(P, R)            references everywhere, as in ControlNet
    another                    e(-, -), e(-, R), e(P, R)

    Without guidance on the text: e(P, R), and for a reference_guidance_scale other than 1 first e(P, -).
    Without references: e(-, -), e(P, -), as plain Stable Diffusion.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple

import torch


class Branch(NamedTuple):
    """What one prediction sees."""

    text: bool  # the prompt, or the negative prompt
    references: bool


def guidance_branches(
    guidance_scale: float | None, reference_guidance_scale: float | None, retrieving: bool
) -> tuple[list[Branch], list[float]]:
    """The predictions of a step, those without references first, and the factor of each difference to the one before.

    Args:
        guidance_scale: on the text; None: no guidance on it.
        reference_guidance_scale: on the references; 1 is none. None: as guidance_scale.
        retrieving: whether there is anything to retrieve in this step.
    """
    if guidance_scale is None:
        if not retrieving:
            return [Branch(True, False)], []
        if reference_guidance_scale in (None, 1):
            return [Branch(True, True)], []
        return [Branch(True, False), Branch(True, True)], [reference_guidance_scale]
    if not retrieving:
        return [Branch(False, False), Branch(True, False)], [guidance_scale]
    if reference_guidance_scale in (None, guidance_scale):
        return [Branch(False, False), Branch(True, True)], [guidance_scale]
    if reference_guidance_scale == 1:
        return [Branch(False, True), Branch(True, True)], [guidance_scale]
    return [Branch(False, False), Branch(False, True), Branch(True, True)], [reference_guidance_scale, guidance_scale]


def guide(predictions: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
    """The first prediction, and each step from one to the next times its factor. All of one shape."""
    guided = predictions[0]
    for before, after, factor in zip(predictions[:-1], predictions[1:], factors, strict=True):
        guided = guided + factor * (after - before)
    return guided


RetrievalScale = float | Sequence[float] | Callable[[float], float | Sequence[float]]


def retrieval_scales(
    retrieval_scale: RetrievalScale, steps: int, levels: int, start: float = 0.0, end: float = 1.0
) -> torch.Tensor:
    """(steps, levels) float32: what the retrieved is multiplied with; rows of zeros retrieve nothing.

    Args:
        retrieval_scale: a number; one for each level, from the finest; or a function of the share of the steps that are
            done, in [0, 1), that returns either.
        start, end: shares of the steps, in [0, 1], that retrieval begins and ends at.
    """
    if not (0 <= start <= 1 and 0 <= end <= 1 and start < end):
        raise ValueError(f"retrieval_start, retrieval_end: got {start} and {end}, wanted 0 <= start < end <= 1")
    table, outside = torch.zeros(steps, levels), 0
    for step in range(steps):
        value = retrieval_scale(step / steps) if callable(retrieval_scale) else retrieval_scale
        table[step] = _scale_of_levels(value, levels)
        if step / steps < start or (step + 1) / steps > end:
            table[step] = 0
            outside += 1
    if outside == steps:
        raise ValueError(
            f"retrieval_start, retrieval_end: got {start} and {end}, with no whole step of {steps} between"
        )
    return table


def _scale_of_levels(value: float | Sequence[float], levels: int) -> torch.Tensor:
    values = [value] * levels if isinstance(value, Real) else list(value)
    if len(values) != levels:
        raise ValueError(f"retrieval_scale: got {len(values)} values, wanted one, or one for each of {levels} levels")
    for number in values:
        check_scale("retrieval_scale", number)
    return torch.tensor(values, dtype=torch.float32)


def check_scale(name: str, value: float) -> None:
    """Raises ValueError, naming the argument, unless the value is a finite number of at least 0."""
    if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: got {value!r}, wanted a finite number of at least 0")
