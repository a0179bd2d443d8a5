"""Bootstrap intervals over characters."""

import numpy as np
import pytest
import torch

from retribooru.metrics.functional import bootstrap_interval


def clusters(seed, count=40, size=10, between=1.0, within=0.3):
    rng = np.random.default_rng(seed)
    means = rng.normal(0, between, count)
    return np.concatenate([rng.normal(mean, within, size) for mean in means]), np.repeat(np.arange(count), size)


def test_it_is_the_resampling_of_whole_groups():
    values, groups = clusters(0, count=12, size=3)
    values, groups = values[:-2], groups[:-2]  # the last group has one value
    rng, means = np.random.default_rng(5), []
    for _ in range(4000):
        drawn = np.concatenate([values[groups == group] for group in rng.integers(0, 12, 12)])
        means.append(drawn.mean())
    expected = np.quantile(means, [0.05, 0.95])
    assert bootstrap_interval(values, groups, level=0.9, resamples=4000) == pytest.approx(expected, abs=0.03)


def test_it_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    values, groups = clusters(1, count=30, size=4)
    sums, counts = np.bincount(groups, weights=values), np.bincount(groups)
    found = stats.bootstrap(
        (sums, counts), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True, vectorized=True,
        method="percentile", n_resamples=9999, rng=0,
    ).confidence_interval  # fmt: skip
    assert bootstrap_interval(values, groups, resamples=9999) == pytest.approx((found.low, found.high), abs=0.02)


def test_it_covers_the_true_mean_and_an_interval_over_images_does_not():
    over_groups = over_images = 0
    for seed in range(200):
        values, groups = clusters(seed)
        low, high = bootstrap_interval(values, groups, resamples=300)
        over_groups += low < 0 < high
        low, high = bootstrap_interval(values, range(len(values)), resamples=300)
        over_images += low < 0 < high
    assert 0.89 <= over_groups / 200 <= 0.99 and over_images / 200 < 0.6


def test_seed_names_and_tensors():
    values, groups = clusters(0)
    first = bootstrap_interval(values, groups)
    assert first == bootstrap_interval(torch.from_numpy(values), [f"character {group}" for group in groups])
    assert first != bootstrap_interval(values, groups, seed=1)
    assert first[0] < values.mean() < first[1] and isinstance(first[0], float)
    wide = bootstrap_interval(values, groups, level=0.99)
    assert wide[0] < first[0] and first[1] < wide[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([1.0, 2.0], ["a"]), r"values has shape \(2,\); wanted \(1,\)"),
        (([1.0, float("nan")], ["a", "b"]), r"values\[1\] is nan \(1 are not finite\)"),
        (([1.0, 2.0], ["a", "a"]), "groups has 1 different names; wanted at least 2"),
        (([], []), "groups has 0 different names"),
        (([1.0, 2.0], ["a", "b"], 1.0), "level is 1.0; wanted a number between 0 and 1"),
        (([1.0, 2.0], ["a", "b"], 0.9, 0), "resamples is 0"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(*arguments)
