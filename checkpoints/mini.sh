#!/usr/bin/env bash
# Makes checkpoints/mini, mini-base and mini-attributes: the very commands, one after the other. Each may be killed and
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

train 2 train_vae mini-vae config.json --train_batch_size 4
[ -f "$runs/mini-scratch/model_index.json" ] ||
  "$python" -m retribooru.training.scratch --preset mini-scratch --vae "$runs/mini-vae" --output_dir "$runs/mini-scratch"
train 2 train mini-base model_index.json --train_batch_size 16 \
  --latent_cache "$runs/mini-latents" --pretrained_model_name_or_path "$runs/mini-scratch"
train 2 train mini-retrieval model_index.json --train_batch_size 4 \
  --latent_cache "$runs/mini-latents" --pretrained_model_name_or_path "$runs/mini-base"
train 2 train_attributes mini-attributes config.json --train_batch_size 16
"$python" -m retribooru.metrics.truth --checkpoint "$runs/mini-retrieval" --base "$runs/mini-base" \
  --classifier "$runs/mini-attributes" --characters 1500 --output_dir "$runs/mini-truth"
"$python" -m retribooru.checkpoints.ship base mini attributes --runs "$runs"
