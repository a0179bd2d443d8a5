"""Training runs of a few steps with tiny models."""

import shutil
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from retribooru import RetriBooruPipeline
from retribooru.training.arguments import TrainArguments
from retribooru.training.curves import MetricsLog, read_metrics
from retribooru.training.data import load_figures
from retribooru.training.held_out import other_characters, verdict
from retribooru.training.parsing import parse
from retribooru.training.train import main
from retribooru.training.train_vae import Windows
from retribooru.training.train_vae import main as main_vae
from retribooru.training.views import Views


@pytest.fixture(scope="module")
def trained(run):
    return run()


def weights(folder):
    return {
        f"{part}.{key}": value
        for part in ("unet", "retrieval_encoder", "vae", "text_encoder")
        for file in (folder / part).glob("*.safetensors")
        for key, value in load_file(file).items()
    }


def changed_parts(before, after):
    """Which groups of weights differ."""
    groups = {
        "decoder": ("unet.up_blocks", "unet.conv_norm_out", "unet.conv_out"),
        "retrieval_layers": ("unet.retrieval_layers",),
        "sd_encoder": ("unet.conv_in", "unet.time_embedding", "unet.down_blocks", "unet.mid_block"),
        "retrieval_encoder": ("retrieval_encoder.",),
        "vae": ("vae.",),
        "text_encoder": ("text_encoder.",),
    }
    assert before.keys() == after.keys()
    assert all(key.startswith(sum(groups.values(), ())) for key in before)
    return {
        name
        for name, prefixes in groups.items()
        if any(not torch.equal(before[key], after[key]) for key in before if key.startswith(prefixes))
    }


@pytest.fixture(scope="module")
def before(stable_diffusion_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    RetriBooruPipeline.from_stable_diffusion(str(stable_diffusion_dir)).save_pretrained(folder)
    return weights(folder)


LOCKS = {
    (): {"retrieval_layers", "decoder", "retrieval_encoder"},
    ("lock_decoder",): {"retrieval_layers", "retrieval_encoder"},
    ("lock_encoder",): {"retrieval_layers", "decoder"},
    ("lock_decoder", "lock_encoder"): {"retrieval_layers"},
}


@pytest.mark.parametrize("locks, expected", LOCKS.items(), ids=["none", "lockDecoder", "lockEncoder", "lockBoth"])
def test_frozen_parts_are_frozen(run, trained, before, locks, expected):
    folder = trained if not locks else run(**{lock: True for lock in locks})
    assert changed_parts(before, weights(folder)) == expected


def test_a_run_leaves_a_pipeline_metrics_and_a_curve(trained):
    assert {"model_index.json", "metrics.jsonl", "loss.png", "checkpoint-2", "checkpoint-4"} <= {
        path.name for path in trained.iterdir()
    }
    assert not list(trained.glob("*.partial"))
    assert RetriBooruPipeline.from_pretrained(trained).unet.retrieval_layers[0].zero_conv.weight.any()
    lines = read_metrics(trained / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    looks = [line for line in lines if "own_references" in line]
    assert [line["step"] for line in looks] == [0, 3, 6]
    # Before training nothing is retrieved, so whose references they are makes no difference at all.
    assert looks[0]["own_references"] == looks[0]["other_references"]
    assert looks[-1]["own_references"] != looks[-1]["other_references"]
    for line in lines:
        if "loss" in line:
            assert line["loss"] == pytest.approx(line["content"] + 0.5 * line["head"], rel=1e-4)


def test_going_on_from_a_checkpoint_ends_with_the_same_weights(run, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "checkpoint-4")
    (folder / "checkpoint-6.partial").mkdir()  # what a kill in the middle of a checkpoint leaves
    for part in ("unet", "retrieval_encoder"):
        shutil.rmtree(folder / part)
    run(folder, resume_from_checkpoint="latest")
    expected, got = weights(trained), weights(folder)
    assert expected.keys() == got.keys() and all(torch.equal(expected[key], got[key]) for key in expected)
    assert read_metrics(folder / "metrics.jsonl") == read_metrics(trained / "metrics.jsonl")


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run, trained, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    damaged = folder / "checkpoint-4" / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    run(folder, resume_from_checkpoint="latest")
    assert "checkpoint-4 is damaged (model.safetensors is not as it was written)" in caplog.text
    expected, got = weights(trained), weights(folder)
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    (folder / "checkpoint-2" / "optimizer.bin").unlink()
    with pytest.raises(
        ValueError, match="resume_from_checkpoint: got checkpoint-2, which is damaged: optimizer.bin is"
    ):
        run(folder, resume_from_checkpoint="checkpoint-2")


def test_only_the_newest_checkpoints_are_kept(run, tmp_path):
    folder = run(tmp_path / "run", checkpointing_steps=1, checkpoints_total_limit=2)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


def test_accumulating_equals_a_larger_batch(run, trained, tmp_path):
    folder = run(tmp_path / "run", train_batch_size=1, gradient_accumulation_steps=2)
    losses, expected = (
        [line["loss"] for line in read_metrics(path / "metrics.jsonl") if "loss" in line] for path in (folder, trained)
    )
    assert losses == pytest.approx(expected, rel=1e-3)  # Adam magnifies the rounding of one step in the next


def test_gradient_checkpointing_changes_nothing(run, trained, tmp_path):
    folder = run(tmp_path / "run", gradient_checkpointing=True)
    expected, got = weights(trained), weights(folder)
    assert all(torch.allclose(expected[key], got[key], atol=1e-5) for key in expected)


def test_moving_average(run, trained, tmp_path):
    """The average is the result, stands behind the last weights, and survives a restart."""
    folder = run(tmp_path / "run", use_ema=True)
    start, last, averaged = weights(trained), load_last(trained), weights(folder)
    key = "unet.retrieval_layers.0.zero_conv.weight"
    assert not torch.equal(averaged[key], start[key])
    assert averaged[key].norm() < start[key].norm()  # zeros are where it began
    assert last.keys() == load_last(folder).keys()
    assert all(torch.equal(value, load_last(folder)[name]) for name, value in last.items())  # trained alike
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "unet")
    run(again, use_ema=True, resume_from_checkpoint="latest")
    assert all(torch.equal(value, averaged[name]) for name, value in weights(again).items())


def test_grids_of_held_out_characters(run, trained, tmp_path):
    folder = run(tmp_path / "run", image_validation_steps=3, num_validation_images=2, use_ema=True)
    grids = sorted((folder / "samples").iterdir())
    assert [path.name for path in grids] == ["step-000003.png", "step-000006.png"]
    with Image.open(grids[0]) as first, Image.open(grids[1]) as last:
        assert first.size == last.size and first.tobytes() != last.tobytes()
    assert all(torch.equal(value, load_last(folder)[name]) for name, value in load_last(trained).items())  # as without


def load_last(folder):
    return load_file(folder / "checkpoint-4" / "model.safetensors")


def test_a_loss_that_is_no_number_stops(run, tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss: got (nan|inf) at step \d+, for the targets .*checkpoint is"):
        run(tmp_path / "run", learning_rate=1e30, max_grad_norm=1e30, checkpointing_steps=1, max_train_steps=20)


def test_8bit_adam_without_bitsandbytes(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ImportError, match="use_8bit_adam: got True, but bitsandbytes is not installed"):
        run(tmp_path / "run", use_8bit_adam=True)


TWO_PHASES = {"inverse_snr_weighting": True, "timestep_bias_steps": 1, "snr_gamma": 5.0}


@pytest.mark.parametrize("options", [{"reference_timestep": "denoising"}, {"snr_gamma": 5.0}, TWO_PHASES])
def test_other_settings_train(run, before, tmp_path, options):
    folder = run(tmp_path / "run", max_train_steps=2, **options)
    assert changed_parts(before, weights(folder)) == {"retrieval_layers", "decoder", "retrieval_encoder"}
    kind = options.get("reference_timestep", "zero")
    assert RetriBooruPipeline.from_pretrained(folder).retrieval_encoder.config.reference_timestep == kind


def test_base_trains_the_unet(run, stable_diffusion_dir, tmp_path):
    folder = run(tmp_path / "base", train_base=True, max_train_steps=2)
    plain, new = weights(stable_diffusion_dir), weights(folder)
    assert changed_parts(plain, new) == {"sd_encoder", "decoder"}
    StableDiffusionPipeline.from_pretrained(folder)


def test_training_goes_on_from_a_trained_pipeline(run, trained, tmp_path):
    folder = run(tmp_path / "more", pretrained_model_name_or_path=str(trained), max_train_steps=1, learning_rate=1e-12)
    expected = weights(trained)
    assert all(torch.allclose(value, expected[key], atol=1e-6) for key, value in weights(folder).items())


def test_vae_by_command(data_dir, tmp_path):
    main_vae(
        ["--preset", "demo-vae", "--data_dir", str(data_dir), "--output_dir", str(tmp_path), "--resolution", "32",
         "--max_train_steps", "3", "--train_batch_size", "2", "--latent_channels", "4",
         "--block_out_channels", "8", "8", "--logging_steps", "1"]
    )  # fmt: skip
    vae = AutoencoderKL.from_pretrained(tmp_path)
    pixels = torch.zeros(1, 3, 32, 32)
    assert vae.encode(pixels).latent_dist.mode().shape == (1, 4, 16, 16)
    assert np.isfinite(vae.config.scaling_factor) and vae.config.scaling_factor != 0.18215
    *steps, look = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in steps] == [1, 2, 3] and np.isfinite(look["psnr"])
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_a_vae_on_windows_goes_on_from_a_checkpoint_as_if_never_stopped(data_dir, tmp_path):
    def run(folder, *more):
        main_vae(
            ["--data_dir", str(data_dir), "--output_dir", str(folder), "--resolution", "32", "--window", "16",
             "--windows", "2", "--max_train_steps", "4", "--train_batch_size", "2", "--block_out_channels", "8", "8",
             "--checkpointing_steps", "2", "--validation_steps", "2", *more]
        )  # fmt: skip
        return load_file(folder / "diffusion_pytorch_model.safetensors")

    expected = run(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    got = run(tmp_path / "again", "--resume_from_checkpoint", "latest")
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_windows_are_cut_from_the_view(data_dir):
    figures = load_figures(str(data_dir), "train")
    examples = Windows(Views(figures, 32, 1.0), 16, 3, seed=0)
    whole = Windows(Views(figures, 32, 1.0), 32, 1, seed=0)
    for position in range(4):
        windows = examples[1, position]["pixel_values"]
        picture = whole[1, position]["pixel_values"][0]
        places = picture.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert windows.shape == (3, 3, 16, 16)
        assert all(any(torch.equal(window, place) for place in places) for window in windows)


def test_flags_over_preset_over_defaults(tmp_path):
    required = ["--output_dir", "out", "--data_dir", "built"]
    assert parse(TrainArguments, required).learning_rate == 1e-5
    preset = tmp_path / "mine.yaml"
    preset.write_text("learning_rate: 0.5\ntasks: [compose]\n")
    args = parse(TrainArguments, [*required, "--preset", str(preset)])
    assert (args.learning_rate, args.tasks) == (0.5, ["compose"])
    assert parse(TrainArguments, [*required, "--preset", str(preset), "--learning_rate", "0.1"]).learning_rate == 0.1


@pytest.mark.parametrize("instructions, precision", [("AVX2", "no"), ("AVX512", "bf16")])
def test_the_precision_is_the_devices_own(instructions, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    assert parse(TrainArguments, ["--output_dir", "out", "--mixed_precision", "auto"]).mixed_precision == precision


WRONG = {
    "unknown key": ({"preset": "learning_rat: 1"}, "preset: .* has learning_rat, which TrainArguments does not know"),
    "no such preset": ({"flags": ["--preset", "recon"]}, "preset: got recon, wanted a YAML file or one of compose45k"),
    "task": ({"flags": ["--tasks", "paint"]}, r"tasks: got \['paint'\], wanted some of reconstruct, compose"),
    "share": ({"flags": ["--background_removal", "2"]}, "background_removal: got 2.0, wanted a share between 0 and 1"),
    "steps": ({"flags": ["--max_train_steps", "0"]}, "max_train_steps: got 0, wanted at least 1"),
    "precision": ({"flags": ["--mixed_precision", "fp8"]}, "mixed_precision: got fp8, wanted no, fp16, bf16 or auto"),
    "locked base": ({"flags": ["--train_base", "--lock_decoder"]}, "lock_decoder: got True, wanted none of the locks"),
    "task weights": (
        {"flags": ["--tasks", "compose", "--task_weights", "1", "2"]},
        r"task_weights: got \[1.0, 2.0\], wan",
    ),
    "two weightings": (
        {"flags": ["--snr_gamma", "5", "--inverse_snr_weighting"]},
        "snr_gamma: got 5.0, wanted none wit",
    ),
    "no phase": (
        {"flags": ["--timestep_bias_steps", "0"]},
        "timestep_bias_steps: got 0, wanted at least 1",
    ),
    "no gamma": ({"flags": ["--snr_gamma", "0"]}, "snr_gamma: got 0.0, wanted more than 0"),
    "decay": ({"flags": ["--ema_decay", "1"]}, "ema_decay: got 1.0, wanted a number between 0 and 1"),
    "timestep": ({"flags": ["--reference_timestep", "all"]}, "reference_timestep: got all, wanted one of zero, denois"),
    "grids of a base": (
        {"flags": ["--train_base", "--image_validation_steps", "5"]},
        "image_validation_steps: got 5, wa",
    ),
    "no figures": ({"flags": ["--data_dir", "nothing"]}, "data_dir: got nothing, which has no data/train-\\*.parquet"),
    "no checkpoint": (
        {"flags": ["--resume_from_checkpoint", "checkpoint-7"]},
        "resume_from_checkpoint: got checkpoint-7, wanted latest or",
    ),
}


@pytest.mark.parametrize("given, message", WRONG.values(), ids=WRONG)
def test_wrong_arguments(tmp_path, data_dir, stable_diffusion_dir, given, message):
    flags = given.get("flags", [])
    if "preset" in given:
        (tmp_path / "bad.yaml").write_text(given["preset"])
        flags = ["--preset", str(tmp_path / "bad.yaml")]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        base = ["--pretrained_model_name_or_path", str(stable_diffusion_dir)]
        main(["--output_dir", str(tmp_path / "out"), "--data_dir", str(data_dir), *base, *flags])


def test_unknown_flag(capsys):
    with pytest.raises(SystemExit):
        main(["--output_dir", "a", "--data_dir", "b", "--learning_rat", "1"])
    assert "--learning_rat" in capsys.readouterr().err


def test_another_character_for_each():
    characters = ["a", "a", "b", "c", "a"]
    others = other_characters(characters)
    assert sorted(set(others)) != [] and all(characters[i] != characters[j] for i, j in enumerate(others))


def test_verdict():
    def after(own, other):
        return verdict([{"step": 0, "own_references": 1.0, "other_references": 2.0},
                        {"step": 9, "own_references": own, "other_references": other}])  # fmt: skip

    assert "has NOT learned to retrieve" in after(0.1, 0.1) and "has NOT learned" in after(0.1, 0.05)
    assert "the model retrieves" in after(0.1, 0.12)


def test_metrics_survive_a_cut_line_and_go_back(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(1, 4):
        log.add(step, loss=1.0 / step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    MetricsLog(tmp_path, last_step=2).add(3, loss=5.0)
    assert [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 0.5, 5.0]
