"""What a training leaves on disk: written beside its final name and moved into place."""

import json
import os
import re
import shutil
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from diffusers import DiffusionPipeline

from .arguments import TrainArguments
from .held_out import verdict

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def save_checkpoint(accelerator, output_dir: Path, step: int) -> Path:
    """Everything that going on needs, in output_dir/checkpoint-STEP."""
    final, partial = output_dir / f"checkpoint-{step}", output_dir / f"checkpoint-{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    accelerator.save_state(str(partial))
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
    accelerator.wait_for_everyone()
    return final


def find_checkpoint(output_dir: Path, name: str) -> tuple[Path, int]:
    """(folder, step) of a checkpoint: "latest" of `output_dir`, or a folder by name or path.

    Raises FileNotFoundError where there is none.
    """
    if name == "latest":
        found = [path for path in output_dir.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)]
        if not found:
            raise FileNotFoundError(f"resume_from_checkpoint: got latest, but {output_dir} has no checkpoint-STEP")
        path = max(found, key=_step_of)
    else:
        path = Path(name) if Path(name).is_dir() else output_dir / name
        if not path.is_dir() or not _CHECKPOINT.fullmatch(path.name):
            raise FileNotFoundError(f"resume_from_checkpoint: got {name}, wanted latest or a checkpoint-STEP folder")
    return path, _step_of(path)


def _step_of(path: Path) -> int:
    return int(_CHECKPOINT.fullmatch(path.name).group(1))


def training_facts(args: TrainArguments, lines: list[dict]) -> dict:
    """What the model card says of a finished training. Folders of this machine are named by their last part alone.

    Args:
        lines: of metrics.jsonl.

    Returns:
        finished (date, UTC), steps, settings, and held_out: the last look at held-out characters, or None.
    """
    settings = asdict(args)
    del settings["output_dir"], settings["resume_from_checkpoint"]
    for name in ("data_dir", "images", "pretrained_model_name_or_path"):
        if settings[name] and Path(settings[name]).exists():
            settings[name] = Path(settings[name]).resolve().name
    looks = [line for line in lines if "own_references" in line]
    return {
        "finished": datetime.now(timezone.utc).date().isoformat(),
        "steps": args.max_train_steps,
        "settings": settings,
        "held_out": {**looks[-1], "verdict": verdict(lines)} if looks else None,
    }


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
