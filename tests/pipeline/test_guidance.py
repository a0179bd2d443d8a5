"""Which predictions the guidances ask for, and the table of retrieval scales. Pure functions."""

import math

import pytest
import torch

from retribooru.pipeline.guidance import Branch, guidance_branches, guide, retrieval_scales

PLAIN, PROMPT = Branch(text=False, references=False), Branch(text=True, references=False)
REFERENCES, BOTH = Branch(text=False, references=True), Branch(text=True, references=True)


def test_the_formula_holds_whatever_is_left_out():
    """Every choice of predictions gives what the formula over all of them gives."""
    generator = torch.Generator().manual_seed(0)
    e = {
        branch: torch.randn(5, generator=generator, dtype=torch.float64) for branch in (PLAIN, PROMPT, REFERENCES, BOTH)
    }
    for text, references in [(7.5, None), (7.5, 7.5), (7.5, 1), (7.5, 2.0), (2.0, 0.0), (3.0, 0.5)]:
        branches, factors = guidance_branches(text, references, retrieving=True)
        r = text if references is None else references
        wanted = e[PLAIN] + r * (e[REFERENCES] - e[PLAIN]) + text * (e[BOTH] - e[REFERENCES])
        torch.testing.assert_close(guide([e[branch] for branch in branches], factors), wanted)


@pytest.mark.parametrize(
    "text, references, retrieving, expected",
    [
        (9.0, None, True, [PLAIN, BOTH]),
        (9.0, 9.0, True, [PLAIN, BOTH]),
        (9.0, 1.0, True, [REFERENCES, BOTH]),
        (9.0, 3.0, True, [PLAIN, REFERENCES, BOTH]),
        (9.0, 3.0, False, [PLAIN, PROMPT]),
        (None, None, True, [BOTH]),
        (None, 1.0, True, [BOTH]),
        (None, 3.0, True, [PROMPT, BOTH]),
        (None, 3.0, False, [PROMPT]),
    ],
)
def test_only_what_counts_is_asked_for(text, references, retrieving, expected):
    branches, factors = guidance_branches(text, references, retrieving)
    assert branches == expected and len(factors) == len(branches) - 1
    retrieving_last = [branch.references for branch in branches]
    assert retrieving_last == sorted(retrieving_last)  # what retrieves nothing comes first


def test_scale_tables():
    assert retrieval_scales(0.5, 2, 3).tolist() == [[0.5] * 3] * 2
    assert retrieval_scales([0.0, 1.0, 2.0], 2, 3).tolist() == [[0, 1, 2]] * 2
    assert retrieval_scales(lambda done: 1 - done, 4, 1).flatten().tolist() == [1, 0.75, 0.5, 0.25]
    assert retrieval_scales(lambda done: [done, 1], 2, 2).tolist() == [[0, 1], [0.5, 1]]
    window = retrieval_scales(1.0, 10, 1, start=0.2, end=0.5).flatten().tolist()
    assert window == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((math.nan, 2, 2), "retrieval_scale: got nan, wanted a finite number of at least 0"),
        ((math.inf, 2, 2), "retrieval_scale: got inf"),
        ((-1, 2, 2), "retrieval_scale: got -1"),
        (([1.0, "a"], 2, 2), "retrieval_scale: got 'a'"),
        (([1.0], 2, 2), "retrieval_scale: got 1 values, wanted one, or one for each of 2 levels"),
        ((lambda done: -done, 2, 2), "retrieval_scale: got -0.5"),
        (("1", 2, 2), "retrieval_scale: got 1 values"),
        ((1.0, 2, 2, 0.5, 0.5), "retrieval_start, retrieval_end: got 0.5 and 0.5, wanted 0 <= start < end <= 1"),
        ((1.0, 2, 2, -0.1, 0.5), "retrieval_start, retrieval_end: got -0.1 and 0.5"),
        ((1.0, 2, 2, 0, math.nan), "retrieval_start, retrieval_end: got 0 and nan"),
        ((1.0, 2, 2, 0.4, 0.6), "with no whole step of 2 between"),
    ],
)
def test_wrong_scales(arguments, message):
    with pytest.raises(ValueError, match=message):
        retrieval_scales(*arguments)
