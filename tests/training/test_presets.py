"""Presets: a YAML file for each row of the paper's tables, for each of these in miniature, and for what ships."""

import pytest

from retribooru.training.arguments import (
    PRESETS,
    AttributeArguments,
    ClipArguments,
    TrainArguments,
    VaeArguments,
    VqaArguments,
    read_preset,
)
from retribooru.training.scratch import ScratchArguments
from retribooru.training.train_ip_adapter import IpAdapterArguments

KINDS = {
    "vae": VaeArguments,
    "scratch": ScratchArguments,
    "attributes": AttributeArguments,
    "adapter": IpAdapterArguments,
    "clip": ClipArguments,
    "vqa": VqaArguments,
}
ROWS = [
    f"{task}{row}"
    for task in ("recon", "compose")
    for row in ("9k", "9k-drop-low", "9k-drop-high", "9k-lock-decoder", "9k-lock-both", "45k")
]
NAMES = {
    *ROWS,
    *(f"mini-{row}" for row in ROWS),
    *("demo-vae", "demo-base", "demo-retrieval"),
    *("mini-vae", "mini-scratch", "mini-base", "mini-retrieval", "mini-attributes", "mini-ip-adapter"),
    *("mini-clip", "mini-vqa"),
    "mini-ablation",
}


def kind_of(name):
    return KINDS.get(name.rpartition("-")[2], TrainArguments)


def test_there_is_one_for_each_row():
    assert {path.stem for path in PRESETS.glob("*.yaml")} == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_it_fits_its_trainer(name):
    kind = kind_of(name)
    required = {"vae": "somewhere"} if kind is ScratchArguments else {}
    kind(output_dir="out", **required, **read_preset(name, kind))


@pytest.mark.parametrize("row", ROWS)
def test_a_row_in_miniature_differs_in_what_the_row_differs_in(row):
    default = "recon9k" if row.startswith("recon") else "compose9k"
    ours = {name: read_preset(f"mini-{name}", TrainArguments) for name in (row, default)}
    paper = {name: read_preset(name, TrainArguments) for name in (row, default)}

    def differs(presets):
        names = presets[row].keys() | presets[default].keys()
        return {name for name in names if presets[row].get(name) != presets[default].get(name)}

    assert differs(ours) == differs(paper)
    assert {name: ours[row][name] for name in differs(ours) - {"max_train_steps"}} == {
        name: paper[row][name] for name in differs(paper) - {"max_train_steps"}
    }


def test_a_preset_goes_over_those_it_extends(tmp_path):
    (tmp_path / "low.yaml").write_text("seed: 1\nresolution: 8\nlearning_rate: 0.1\n")
    (tmp_path / "high.yaml").write_text("seed: 2\nresolution: 16\n")
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: [{tmp_path / 'low.yaml'}, {tmp_path / 'high.yaml'}]\nseed: 3\n")
    assert read_preset(str(mine), TrainArguments) == {"seed": 3, "resolution": 16, "learning_rate": 0.1}
    mine.write_text("extends: [nothing]\n")
    with pytest.raises(FileNotFoundError, match="preset: got nothing, wanted a YAML file or one of"):
        read_preset(str(mine), TrainArguments)
    mine.write_text(f"extends: [{tmp_path / 'wrong.yaml'}]\n")
    (tmp_path / "wrong.yaml").write_text("sed: 1\n")
    with pytest.raises(ValueError, match="preset: .*wrong.yaml has sed, which TrainArguments does not know"):
        read_preset(str(mine), TrainArguments)
