#!/usr/bin/env bash
# Makes checkpoints/mini and checkpoints/mini-attributes: the very commands, one after the other. Each may be killed and
# this script called again: it goes on where it stopped. Models this small are fastest with a thread per process, and two
# processes that share a batch.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ACCELERATE_USE_CPU=true
python=${PYTHON:-python}
runs=${RUNS:-runs}

train() { # processes, trainer, name, what it leaves at its end, more flags
  [ -f "$runs/$3/$4" ] && return
  "$python" -m torch.distributed.run --standalone --nproc_per_node "$1" -m "retribooru.training.$2" \
    --preset "$3" --output_dir "$runs/$3" --resume_from_checkpoint latest "${@:5}"
}

train 2 train_attributes mini-attributes config.json --train_batch_size 16
train 2 train_vae mini-vae config.json --train_batch_size 2
[ -f "$runs/mini-scratch/model_index.json" ] ||
  "$python" -m retribooru.training.scratch --preset mini-scratch --vae "$runs/mini-vae" --output_dir "$runs/mini-scratch"
train 2 train mini-base model_index.json --train_batch_size 16 \
  --latent_cache "$runs/mini-latents" --pretrained_model_name_or_path "$runs/mini-scratch"
train 2 train mini-retrieval model_index.json --train_batch_size 4 \
  --latent_cache "$runs/mini-latents" --pretrained_model_name_or_path "$runs/mini-base"
"$python" -m retribooru.metrics.truth --checkpoint "$runs/mini-retrieval" --base "$runs/mini-base" \
  --classifier "$runs/mini-attributes" --characters 1500 --output_dir "$runs/mini-truth"
"$python" - "$runs" << 'END'
import shutil
import sys
from pathlib import Path

import torch
from retribooru import RetriBooruPipeline
from retribooru.checkpoints import MINI
from retribooru.model_card import write_model_card

runs = Path(sys.argv[1])
pipeline = RetriBooruPipeline.from_pretrained(runs / "mini-retrieval")
for part in (pipeline.unet, pipeline.retrieval_encoder, pipeline.vae):  # the text encoder is tiny
    part.half()
pipeline.save_pretrained(MINI)
shutil.copy(runs / "mini-retrieval" / "training.json", MINI)
evaluation = MINI / "evaluation"
evaluation.mkdir(exist_ok=True)
for name in ("truth.md", "truth.json", "scale.png", "references.png"):
    shutil.copy(runs / "mini-truth" / name, evaluation)
for name in ("vae", "base", "retrieval"):
    shutil.copy(runs / f"mini-{name}" / "loss.png", evaluation / f"training-{name}.png")
write_model_card(MINI, license="apache-2.0")
attributes = MINI.with_name("mini-attributes")
attributes.mkdir(exist_ok=True)
for name in ("config.json", "diffusion_pytorch_model.safetensors", "training.json"):
    shutil.copy(runs / "mini-attributes" / name, attributes)
END
