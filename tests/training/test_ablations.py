"""benchmarks/ablations.py: what is done is kept, whenever it is killed, and done once."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def ablations(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("ablations")


@pytest.fixture
def main(ablations, monkeypatch, tmp_path):
    """Runs it, one training after the other, with results that are made up; returns which trainings were done."""

    def main(*flags, fails_at=None):
        done = []

        def run(variant, seed, args):
            if (variant, seed) == fails_at:
                raise KeyboardInterrupt
            done.append((variant, seed))
            scores = {"identity": 0.5 + 0.2 * seed, "obedience": 0.25}
            found = {"attributes": scores, "own_references": 0.4, "other_references": 0.5, "steps": 2000}
            return found | {"base": scores, "chance": scores, "vae": scores}

        monkeypatch.setattr(ablations, "run", run)
        only = ["--only", "lockBoth", "default", "trained 5 x longer"]
        monkeypatch.setattr(sys, "argv", ["ablations.py", "--work", str(tmp_path), "--jobs", "1", *only, *flags])
        ablations.main()
        return done

    return main


def test_each_training_is_done_once(main, tmp_path):
    one = [("trained 5 x longer", 0), ("lockBoth", 0), ("default", 0)]
    assert main("--seeds", "1") == one, "the longest first"
    assert main("--seeds", "2") == [(variant, 1) for variant, _ in one]
    assert main("--seeds", "2") == []
    rows = [line for line in (tmp_path / "ablations.md").read_text().splitlines() if "| 2 |" in line]
    assert [row.split(" | ")[0] for row in rows] == ["| default", "| lockBoth", "| trained 5 x longer"]
    assert "| 60.0 (50.0 to 70.0) | 25.0 (25.0 to 25.0) |" in rows[0]


def test_what_is_done_outlives_a_failure_and_the_loss_of_the_rest(main, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        main("--seeds", "1", fails_at=("default", 0))
    kept = json.loads((tmp_path / "ablations.json").read_text())
    assert list(kept["variants"]) == ["lockBoth", "trained 5 x longer"]
    assert main("--seeds", "1") == [("default", 0)]


def test_results_of_other_settings_are_refused(main):
    main("--seeds", "1")
    with pytest.raises(ValueError, match="work: .*ablations.json was made with .*'steps': None.* wanted .*'steps': 7"):
        main("--seeds", "1", "--steps", "7")
