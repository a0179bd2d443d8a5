"""What is looked over before the first step, so that nothing fails after hours that could have been refused at once."""

import importlib.util
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from accelerate.tracking import get_available_trackers
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id
from torch import nn

from retribooru.dataset_script.references import RECIPES
from retribooru.dataset_script.table import check_images, shard_files

from .arguments import OptimizationArguments, TrainArguments
from .checkpoints import find_checkpoints

FLOAT = 4  # bytes of a float32
_SHARD = re.compile(r".*-of-(\d+)\.parquet")


def check_lora(args: TrainArguments) -> None:
    """Raises ImportError where adapters are to be trained and peft is not installed."""
    if args.lora_rank is not None and importlib.util.find_spec("peft") is None:
        raise ImportError(f"lora_rank: got {args.lora_rank}, but peft is not installed: pip install peft")


def check_trackers(names: Iterable[str]) -> None:
    """Raises ImportError where a tracker is not installed."""
    missing = sorted(set(names) - set(map(str, get_available_trackers())))
    if missing:
        raise ImportError(f"report_to: got {', '.join(missing)}, which is not installed: pip install {missing[0]}")


def check_files(args: OptimizationArguments, splits: Iterable[str]) -> None:
    """Raises FileNotFoundError where a file of these splits of a table in `data_dir` is missing.

    `datasets` looks for them when it reads a table for the first time, and not when it finds it in its cache.
    """
    if args.data_dir is None:
        return
    for split in splits:
        files = shard_files(args.data_dir, split)
        named = _SHARD.fullmatch(files[0]) if files else None
        if named and len(files) != int(named[1]):
            raise FileNotFoundError(
                f"data_dir: got {args.data_dir}, which has {len(files)} files data/{split}-*.parquet, wanted the "
                f"{int(named[1])} that their names speak of"
            )
        if files:  # else `load_figures` says what is wanted
            check_images(files, args.images)


def check_hub(args: TrainArguments, api: HfApi | None = None) -> None:
    """Raises ValueError where the result could not be uploaded: a bad name, or nobody is logged in."""
    if not args.push_to_hub:
        return
    try:
        validate_repo_id(args.hub_model_id)
    except ValueError as error:
        raise ValueError(f"hub_model_id: got {args.hub_model_id}, wanted NAME or OWNER/NAME: {error}") from error
    try:
        (api or HfApi()).whoami()
    except Exception as error:  # whatever keeps the Hub from answering now would keep it from taking the result
        raise ValueError(
            f"push_to_hub: got True, but the Hub does not say who is logged in ({type(error).__name__}: {error}); "
            "wanted a token: hf auth login, or HF_TOKEN"
        ) from error


def check_pipeline(pipeline: DiffusionPipeline, args: TrainArguments) -> None:
    """Raises ValueError where the arguments do not fit the pipeline that is trained."""
    check_resolution(pipeline, args.resolution)
    if not args.train_base:
        check_kind(pipeline, args)
        check_concepts(pipeline.retrieval_encoder.config.concept_texts, args.tasks)


def check_resolution(pipeline: DiffusionPipeline, resolution: int) -> None:
    """Raises ValueError unless the VAE and the U-Net halve pictures of `resolution` pixels without a rest."""
    halvings = len(pipeline.vae.config.block_out_channels) - 1
    halvings += sum(block.downsamplers is not None for block in pipeline.unet.down_blocks)
    if resolution % 2**halvings:
        raise ValueError(
            f"resolution: got {resolution}, wanted a multiple of {2**halvings}: VAE and U-Net halve it {halvings} times"
        )


def check_kind(pipeline: DiffusionPipeline, args: TrainArguments) -> None:
    """Raises ValueError where the pipeline retrieves in another way than the arguments have it."""
    configs = {"retrieval_query": pipeline.unet.config, "reference_timestep": pipeline.retrieval_encoder.config}
    for name, config in configs.items():
        if config[name] != getattr(args, name):
            raise ValueError(
                f"{name}: got {getattr(args, name)}, wanted {config[name]}: that of the pipeline one begins with, "
                f"{args.pretrained_model_name_or_path}"
            )


def check_concepts(known: Iterable[str], tasks: Iterable[str]) -> None:
    """Raises ValueError for tasks that ask for concepts that are not `known`."""
    for task in tasks:
        unknown = sorted(set(RECIPES[task]) - set(known))
        if unknown:
            raise ValueError(
                f"tasks: got {task}, whose references are of the concept {' and '.join(unknown)}; wanted tasks of the "
                f"concepts that the retrieval encoder knows: {', '.join(sorted(known))}"
            )


def check_disk(args: OptimizationArguments, model: nn.Module, result: int) -> None:
    """Raises ValueError where `output_dir` has less room than the checkpoints to come and the result take.

    Args:
        model: what a step runs through, with what is frozen frozen: a checkpoint holds all of its weights, and of each
            weight that is trained two moments of Adam and, with `use_ema`, its moving average.
        result: bytes of the weights that are saved at the end.
    """
    weights = sum(parameter.nbytes for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    moments = 2 * trained * (1 if args.use_8bit_adam else FLOAT)
    average = trained * FLOAT if args.use_ema else 0
    checkpoint, count = weights + moments + average, checkpoints_to_come(args)
    needed = count * checkpoint + result
    folder = next(path for path in (Path(args.output_dir).resolve(), *Path(args.output_dir).resolve().parents)
                  if path.is_dir())  # fmt: skip
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"output_dir: got {args.output_dir} with {_size(free)} free, wanted {_size(needed)}: {count} checkpoints "
            f"at a time of {_size(checkpoint)} (weights {_size(weights)}, moments of Adam {_size(moments)}, moving "
            f"average {_size(average)}), and the result of {_size(result)}. A smaller checkpoints_total_limit or a "
            "larger checkpointing_steps takes less"
        )


def checkpoints_to_come(args: OptimizationArguments) -> int:
    """The most checkpoints that there will be at a time, beside those that are there already."""
    there = {path.name for path in find_checkpoints(Path(args.output_dir))}
    steps = range(args.checkpointing_steps, args.max_train_steps, args.checkpointing_steps)
    written = {f"checkpoint-{step}" for step in steps}
    most = len(there | written)
    if args.checkpoints_total_limit is not None:  # one is written before the oldest is deleted
        most = min(most, args.checkpoints_total_limit + 1)
    return max(most - len(there), min(1, len(written)))


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
