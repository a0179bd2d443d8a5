"""Presets: a YAML file for each row of the paper's tables, for each of these in miniature, and for what ships."""

from pathlib import Path

import pytest

from retribooru.training.arguments import (
    AttributeArguments,
    ClipArguments,
    TrainArguments,
    VaeArguments,
    VqaArguments,
)
from retribooru.training.parsing import PRESETS, parse, read_preset
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


@pytest.mark.parametrize(
    "text, message",
    {
        "seed: [1": "preset: got .*mine.yaml, which is not YAML: while parsing a flow sequence",
        "seed: 1\nseed: 2": "preset: got .*mine.yaml, which is not YAML: seed is there twice",
        "- mini-recon9k": "preset: got .*mine.yaml, wanted lines of `name: value`",
        "extends: mini-recon9k": "preset: got .*mine.yaml with extends: mini-recon9k, wanted a list",
        "extends: [mine.yaml]": "preset: got mine.yaml > mine.yaml, wanted none that extends itself",
        "1: 2": "preset: mine.yaml has 1, which TrainArguments does not know",
    }.items(),
)
def test_what_is_no_preset_is_refused(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_preset("mine.yaml", TrainArguments)


def test_values_of_a_preset_are_those_of_flags(tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    argv = ["--output_dir", "out", "--preset", str(mine)]
    mine.write_text("learning_rate: 1e-4\ntasks: [compose]\ntask_weights: [2]\nuse_ema: true\nsnr_gamma: null\n")
    args = parse(TrainArguments, argv)
    assert (args.learning_rate, args.tasks, args.task_weights) == (1e-4, ["compose"], [2.0])
    assert args.use_ema is True and args.snr_gamma is None
    assert parse(TrainArguments, [*argv, "--tasks", "face"]).tasks == ["face"]
    for wrong in ("max_train_steps: many", "max_train_steps: 2.5", "use_ema: 3", "seed: [1, 2]", "tasks: []"):
        mine.write_text(wrong)
        with pytest.raises(SystemExit):
            parse(TrainArguments, argv)
        assert f"error: argument --{wrong.split(':')[0]}" in capsys.readouterr().err
