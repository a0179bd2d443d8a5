"""benchmarks/training.py: every method that it compares does a step."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch, own_precision):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with own_precision():
        yield importlib.import_module("training")


def test_each_method_does_a_step(benchmark, tmp_path):
    for number, (label, method) in enumerate(benchmark.METHODS.items()):
        clock = benchmark.Clock("cpu")
        steps, optimizer = benchmark.prepare(label, "mini", str(tmp_path / str(number)), clock)
        next(steps)
        clock.mark(benchmark.REST)
        assert optimizer.state, f"{label}: nothing was trained"
        reads = {"ControlNet"} if method.references is None else {"retrieval encoder"} if method.references else set()
        assert {"ControlNet", "retrieval encoder"} & set(clock.seconds) == reads, label
        assert ("VAE, targets" in clock.seconds) != method.cached, label
