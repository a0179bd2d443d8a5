"""What a training leaves on disk: written beside its final name and moved into place."""

import json
import logging
import os
import re
import shutil
import zlib
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from diffusers import DiffusionPipeline, ModelMixin, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from diffusers.utils import convert_state_dict_to_diffusers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel, ProcessorMixin

from retribooru.dataset_script.files import replacing, replacing_folder

from .arguments import OptimizationArguments
from .held_out import verdict

logger = logging.getLogger(__name__)

SUMS, EMA = "sums.json", "ema.safetensors"
# Settings that may be folders.
FOLDERS = (
    *("data_dir", "images", "latent_cache", "pretrained_model_name_or_path", "validation_clip"),
    *("checkpoint", "classifier", "base", "image_encoder"),
)
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def save_checkpoint(
    accelerator, output_dir: Path, step: int, ema: EMAModel | None = None, total_limit: int | None = None
) -> Path:
    """Everything that going on needs, in output_dir/checkpoint-STEP; of these the newest `total_limit` are kept."""
    final, partial = output_dir / f"checkpoint-{step}", output_dir / f"checkpoint-{step}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if ema is not None:
            save_ema(ema, partial / EMA)
        sums = {path.relative_to(partial).as_posix(): _checksum(path) for path in _files(partial)}
        (partial / SUMS).write_text(json.dumps(sums, indent=2), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        for old in find_checkpoints(output_dir)[: -total_limit if total_limit else 0]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def find_checkpoint(output_dir: Path, name: str) -> tuple[Path | None, int]:
    """(folder, step) of a checkpoint: "latest" of `output_dir`, or a folder by name or path.

    A damaged newest checkpoint is named and passed over. The latest of none is (None, 0): a run that was killed before
    its first checkpoint is started again as it was. Raises FileNotFoundError where the one that is named is not there,
    ValueError where it, or every one, is damaged.
    """
    if name == "latest":
        found = find_checkpoints(output_dir)[::-1]
        if not found:
            logger.info("resume_from_checkpoint: %s has no checkpoint yet: starting from the beginning", output_dir)
            return None, 0
        for path in found:
            damage = find_damage(path)
            if damage is None:
                return path, _step_of(path)
            logger.warning("%s is damaged (%s): going on from the one before it", path, damage)
        raise ValueError(f"resume_from_checkpoint: got latest, but every checkpoint in {output_dir} is damaged")
    path = Path(name) if Path(name).is_dir() else output_dir / name
    if not path.is_dir() or not _CHECKPOINT.fullmatch(path.name):
        raise FileNotFoundError(f"resume_from_checkpoint: got {name}, wanted latest or a checkpoint-STEP folder")
    damage = find_damage(path)
    if damage is not None:
        raise ValueError(f"resume_from_checkpoint: got {name}, which is damaged: {damage}")
    return path, _step_of(path)


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None."""
    try:
        sums = json.loads((checkpoint / SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{SUMS}: {error}"
    for name, expected in sums.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if _checksum(checkpoint / name) != expected:
            return f"{name} is not as it was written"
    return None


def save_ema(ema: EMAModel, file: Path) -> None:
    """The moving averages, and how many steps went into them."""
    tensors = {str(i): tensor.detach().cpu().contiguous() for i, tensor in enumerate(ema.shadow_params)}
    save_file(tensors, file, metadata={"optimization_step": str(ema.optimization_step)})


def load_ema(ema: EMAModel, file: Path) -> None:
    """What `save_ema` wrote, into an average of as many parameters."""
    with safe_open(file, framework="pt") as tensors:
        ema.optimization_step = int(tensors.metadata()["optimization_step"])
        for i, shadow in enumerate(ema.shadow_params):
            shadow.copy_(tensors.get_tensor(str(i)))


def find_checkpoints(output_dir: Path) -> list[Path]:
    """Those that were written to their end, the oldest first."""
    return sorted((path for path in output_dir.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)), key=_step_of)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _checksum(file: Path) -> int:
    """CRC-32: tells of accidents, not of malice."""
    value = 0
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _step_of(path: Path) -> int:
    return int(_CHECKPOINT.fullmatch(path.name).group(1))


def training_facts(args: OptimizationArguments, lines: list[dict]) -> dict:
    """What the model card says of a finished training.

    Args:
        lines: of metrics.jsonl.

    Returns:
        `settings_facts`, and held_out: the last look at held-out characters, or None.
    """
    looks = [line for line in lines if "own_references" in line]
    return {**settings_facts(args), "held_out": {**looks[-1], "verdict": verdict(lines)} if looks else None}


def settings_facts(args: OptimizationArguments) -> dict:
    """Of a finished training, whatever was trained: finished (date, UTC), steps, settings."""
    settings = asdict(args)
    del settings["output_dir"], settings["resume_from_checkpoint"]
    return {
        "finished": datetime.now(timezone.utc).date().isoformat(),
        "steps": args.max_train_steps,
        "settings": without_folders(settings),
    }


def without_folders(settings: dict) -> dict:
    """Settings as they may be published: of folders of this machine their last part alone."""
    return {
        name: Path(value).resolve().name if name in FOLDERS and value and Path(value).exists() else value
        for name, value in settings.items()
    }


def save_model(model: ModelMixin | PreTrainedModel, output_dir: Path, processor: ProcessorMixin | None = None) -> None:
    """A model's files, and those of its processor, into a folder that may hold other things, beside their names first.

    config.json, which makes it a model, comes last.
    """
    partial = output_dir / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    if processor is not None:
        processor.save_pretrained(partial)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
        path.replace(output_dir / path.name)
    partial.rmdir()


def save_accuracy(args: OptimizationArguments, output_dir: Path, pictures: int, accuracy: dict[str, float]) -> None:
    """training.json of a model that reads pictures: its settings, and its accuracy on held-out ones, 0 to 1."""
    facts = {**settings_facts(args), "held_out": {"pictures": pictures, "accuracy": accuracy}}
    with replacing(output_dir / "training.json") as partial:
        partial.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def save_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    """The adapters alone, as diffusers' trainers save them: pytorch_lora_weights.safetensors."""
    from peft import get_peft_model_state_dict

    with replacing_folder(folder) as partial:
        StableDiffusionPipeline.save_lora_weights(
            partial,
            unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(unet)),
            unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),  # knows lora_alpha
        )


def save_pipeline(pipeline: DiffusionPipeline, output_dir: Path, facts: dict) -> None:
    """The pipeline and training.json into a folder that may hold other things.

    model_index.json, which makes it a pipeline, comes last.
    """
    partial = output_dir / "pipeline.partial"
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial)
    (partial / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (output_dir / "model_index.json").unlink(missing_ok=True)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == "model_index.json"):
        final = output_dir / path.name
        if final.is_dir():
            shutil.rmtree(final)
        os.rename(path, final)
    partial.rmdir()
