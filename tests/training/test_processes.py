"""Several processes train as one process with as many times the batch; here two on a CPU, through gloo.

Launched as a user does, each run takes some ten seconds, most of it for imports.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from launching import flags_of, launch
from retribooru import RetriBooruPipeline
from retribooru.training import arguments
from retribooru.training.arguments import TrainArguments, VaeArguments
from retribooru.training.curves import read_metrics
from retribooru.training.data import TrainingFigures, load_figures
from retribooru.training.processes import check_processes
from retribooru.training.step import Model, concept_embeddings, encode_batch, training_loss
from retribooru.training.trainable import freeze_all_but, load_pipeline, trainable_modules
from retribooru.training.views import Views

SCRIPT = Path(__file__).with_name("in_processes.py")
CONFIGS = Path(arguments.__file__).parent / "configs"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
STEPS, PER_STEP = 6, 4

# Biases (and what else adds one number to a whole channel) that the normalization behind them takes away again: their
# gradient is nothing but rounding, of which Adam makes full steps. At the finest level a group is one channel.
NORMALIZED_AWAY = re.compile(
    r"unet\.up_blocks\.1\.(.*time_emb_proj\.(weight|bias)|.*(conv1|conv2|conv_shortcut|proj_out|ff\.net\.2)\.bias)"
)


def flags(data_dir, stable_diffusion_dir, folder, **options):
    """Of a training whose step has two samples in each of two processes."""
    settings = {
        "output_dir": folder,
        "data_dir": data_dir,
        "pretrained_model_name_or_path": stable_diffusion_dir,
        "resolution": 32,
        "tasks": ["reconstruct", "compose"],
        "train_batch_size": 2,
        "max_train_steps": STEPS,
        "learning_rate": 1e-2,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 2,
        "logging_steps": 1,
        "validation_steps": 3,
        "validation_targets": 4,
        "checkpointing_steps": 2,
        **options,
    }
    return flags_of(settings)


@pytest.fixture(scope="module")
def as_flags(data_dir, stable_diffusion_dir):
    return lambda folder, **options: flags(data_dir, stable_diffusion_dir, folder, **options)


@pytest.fixture(scope="module")
def one(as_flags, tmp_path_factory):
    """One process, with twice the batch."""
    folder = tmp_path_factory.mktemp("one")
    status, output = launch(
        [*TORCHRUN[:-1], "1", SCRIPT, *as_flags(folder, train_batch_size=PER_STEP)], ACCELERATE_USE_CPU="true"
    )
    assert status == 0, output
    return folder


@pytest.fixture(scope="module")
def two(as_flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    status, output = launch([*TORCHRUN, SCRIPT, *as_flags(folder)], ACCELERATE_USE_CPU="true")
    assert status == 0, output
    assert "training in 2 process(es), on cpu" in output
    return folder


def weights(folder):
    return {
        f"{part}.{key}": value
        for part in ("unet", "retrieval_encoder")
        for key, value in load_file(folder / part / "diffusion_pytorch_model.safetensors").items()
    }


def assert_alike(folder, one):
    """All numbers of metrics.jsonl to five digits; weights, which made up to six steps of 1e-2 each, to 2e-4."""
    lines, expected = read_metrics(folder / "metrics.jsonl"), read_metrics(one / "metrics.jsonl")
    assert len(lines) == STEPS + 3 and len(lines) == len(expected)
    for line, other in zip(lines, expected):
        assert line == pytest.approx(other, rel=1e-5)
    got, expected = weights(folder), weights(one)
    assert got.keys() == expected.keys()
    far = {key for key in got if (got[key] - expected[key]).abs().max() > 2e-4}
    assert {key for key in far if not NORMALIZED_AWAY.match(key)} == set()


@pytest.mark.slow
def test_no_sample_is_seen_twice(one, two):
    seen = [json.loads((two / f"samples-{rank}.json").read_text()) for rank in range(2)]
    assert [len(batches) for batches in seen] == [STEPS, STEPS]
    steps = [sorted(sum(batches, [])) for batches in zip(*seen)]
    assert steps == [sorted(batch) for batch in json.loads((one / "samples-0.json").read_text())]
    everything = sum(steps, [])
    assert len(set(everything)) == len(everything) == STEPS * PER_STEP


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(one, two):
    assert_alike(two, one)
    assert not list(two.glob("*.partial"))


@pytest.mark.slow
def test_two_processes_go_on_from_a_checkpoint(two, as_flags, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two / "checkpoint-2", folder / "checkpoint-2")
    shutil.copy(two / "metrics.jsonl", folder)
    status, output = launch(
        [*TORCHRUN, SCRIPT, *as_flags(folder, resume_from_checkpoint="latest")], ACCELERATE_USE_CPU="true"
    )
    assert status == 0, output
    expected, got = weights(two), weights(folder)
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert (folder / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()
    for rank in range(2):
        name = f"samples-{rank}.json"
        assert json.loads((folder / name).read_text()) == json.loads((two / name).read_text())[2:]


@pytest.mark.slow
def test_one_process_does_not_go_on_where_two_stopped(two, as_flags, tmp_path):
    from retribooru.training.train import main

    shutil.copytree(two / "checkpoint-2", tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="resume_from_checkpoint: got checkpoint-2 of 2 processes, but there are 1"):
        main(as_flags(tmp_path, resume_from_checkpoint="latest"))


@pytest.mark.slow
@pytest.mark.parametrize("config", ["multi-gpu", "fsdp"])
def test_configurations_train_as_one_process(config, one, as_flags, tmp_path):
    """By accelerate's own launcher. With FSDP, weights that were saved in shards are found again and come out whole."""
    command = [*ACCELERATE, CONFIGS / f"{config}.yaml", SCRIPT, *as_flags(tmp_path)]
    status, output = launch(command)
    assert status == 0, output
    assert_alike(tmp_path, one)
    RetriBooruPipeline.from_pretrained(tmp_path)
    assert (tmp_path / "checkpoint-4" / "pytorch_model_fsdp_0").is_dir() == (config == "fsdp")
    if config == "fsdp":
        before = weights(tmp_path)
        status, output = launch([*command, "--resume_from_checkpoint", "latest"])
        assert status == 0 and "Loading states from" in output, output
        assert all(torch.equal(before[key], value) for key, value in weights(tmp_path).items())


@pytest.mark.slow
def test_a_vae_in_two_processes(data_dir, tmp_path):
    for processes, batch in (("1", "4"), ("2", "2")):
        status, output = launch(
            [*TORCHRUN[:-1], processes, "-m", "retribooru.training.train_vae", "--output_dir", tmp_path / processes,
             "--data_dir", data_dir, "--resolution", "32", "--block_out_channels", "8", "8", "--max_train_steps", "4",
             "--train_batch_size", batch, "--logging_steps", "1", "--validation_steps", "2", "--use_ema"],
            ACCELERATE_USE_CPU="true",
        )  # fmt: skip
        assert status == 0, output
        AutoencoderKL.from_pretrained(tmp_path / processes)
    lines, expected = (read_metrics(tmp_path / processes / "metrics.jsonl") for processes in ("2", "1"))
    assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4] and len(lines) == len(expected)
    for line, other in zip(lines, expected):
        assert line == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"retrieval_query": "encoder"}, {"reference_timestep": "denoising"}, {"lock_decoder": True},
     {"lock_encoder": True}, {"gradient_checkpointing": True}, {"train_base": True}, {"noise_draws": 2}],
    ids=lambda options: " ".join(options) or "default",
)  # fmt: skip
def test_all_that_is_trained_gets_a_gradient(data_dir, stable_diffusion_dir, options):
    """Even where every reference is dropped: else DDP would wait for some, or have to look for them at every step."""
    args = TrainArguments(
        output_dir="", pretrained_model_name_or_path=str(stable_diffusion_dir), resolution=32, tasks=["reconstruct"],
        proportion_empty_references=1.0, proportion_empty_prompts=1.0, **options,
    )  # fmt: skip
    pipeline = load_pipeline(args)
    freeze_all_but(pipeline, trainable_modules(pipeline, args))
    if args.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
        pipeline.retrieval_encoder.enable_gradient_checkpointing()
    tasks = [] if args.train_base else args.tasks
    rows = load_figures(str(data_dir), "train")
    figures = TrainingFigures(rows, Views(rows, 32), tasks)
    examples = torch.utils.data.default_collate([figures[0, number] for number in range(2)])
    model = Model(pipeline, args.train_base).train()
    concepts = None if args.train_base else concept_embeddings(pipeline, torch.device("cpu"))
    batch = encode_batch(pipeline, examples, concepts, args.train_base)
    training_loss(model, pipeline.scheduler, batch, args)["loss"].backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and [name for name, parameter in trained.items() if parameter.grad is None] == []


@pytest.mark.slow
def test_processes_that_nothing_joins_are_refused(as_flags, tmp_path):
    """Without ACCELERATE_USE_CPU, and without GPUs, accelerate lets each of them train for itself."""
    if torch.cuda.is_available():
        pytest.skip("needs a machine without GPUs")
    status, output = launch([*TORCHRUN, "-m", "retribooru.training.train", *as_flags(tmp_path)])
    assert status != 0
    assert "WORLD_SIZE: got 2 processes, of which accelerate joins 1" in output
    assert not list(tmp_path.iterdir())


class Configured:
    """What `check_processes` asks of an accelerator."""

    def __init__(self, kind, fsdp_version=2, zero_stage=2):
        self.distributed_type, self.num_processes, self.gradient_accumulation_steps = kind, 1, 1
        self.state = self.fsdp_plugin = self.deepspeed_plugin = self
        self.fsdp_version, self.zero_stage = fsdp_version, zero_stage


FSDP, DEEPSPEED = DistributedType.FSDP, DistributedType.DEEPSPEED
REFUSED = {
    "average": (Configured(FSDP), {"use_ema": True}, "use_ema: got True, which does not work with FSDP"),
    "grids": (Configured(FSDP), {"image_validation_steps": 5}, "image_validation_steps: got 5, which does not work"),
    "first FSDP": (Configured(FSDP, fsdp_version=1), {}, "fsdp_version: got 1, wanted 2"),
    "DeepSpeed's average": (
        Configured(DEEPSPEED),
        {"use_ema": True},
        "use_ema: got True, which does not work with DEE",
    ),
    "half precision": (Configured(DEEPSPEED), {"mixed_precision": "bf16"}, "mixed_precision: got bf16, which does not"),
    "third stage": (Configured(DEEPSPEED, zero_stage=3), {}, "zero_stage: got 3, wanted at most 2"),
    "accumulation": (
        Configured(DEEPSPEED),
        {"gradient_accumulation_steps": 2},
        "gradient_accumulation_steps: got 2, but accelerate is configured for 1",
    ),
}


@pytest.mark.parametrize("accelerator, options, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_sharded_is_refused(accelerator, options, message):
    with pytest.raises(ValueError, match=message):
        check_processes(accelerator, TrainArguments(output_dir="", **options))
    check_processes(Configured(accelerator.distributed_type), TrainArguments(output_dir=""))


def test_a_vae_is_not_sharded():
    with pytest.raises(ValueError, match="distributed_type: got FSDP, wanted MULTI_GPU"):
        check_processes(Configured(FSDP), VaeArguments(output_dir=""))


def test_configurations_are_accelerates():
    """Unknown keys are refused by its loader."""
    kinds = {path.stem: load_config_from_file(str(path)).distributed_type for path in CONFIGS.glob("*.yaml")}
    assert kinds == {"multi-gpu": DistributedType.MULTI_GPU, "fsdp": FSDP, "deepspeed-zero2": DEEPSPEED}
