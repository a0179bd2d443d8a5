#!/usr/bin/env bash
# Makes all that lies beside it: the very commands, one after the other. Each may be killed and this script called again:
# it goes on where it stopped. Models this small are fastest with a thread per process, and two processes that share a
# batch.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ACCELERATE_USE_CPU=true
python=${PYTHON:-python}
runs=${RUNS:-runs}

launch() { # processes, module, flags
  "$python" -m torch.distributed.run --standalone --nproc_per_node "$1" -m "retribooru.$2" "${@:3}"
}

train() { # processes, trainer, name, what it leaves at its end, more flags
  [ -f "$runs/$3/$4" ] ||
    launch "$1" "training.$2" --preset "$3" --output_dir "$runs/$3" --resume_from_checkpoint latest "${@:5}"
}

# The mini checkpoint: what encodes pictures, the small Stable Diffusion, the retrieval.
train 2 train_vae mini-vae config.json --train_batch_size 4
[ -f "$runs/mini-scratch/model_index.json" ] || # a small Stable Diffusion before any training, around the VAE
  "$python" -m retribooru.training.scratch --preset mini-scratch --vae "$runs/mini-vae" --output_dir "$runs/mini-scratch"
train 2 train mini-base model_index.json --train_batch_size 16 \
  --latent_cache "$runs/mini-latents" --pretrained_model_name_or_path "$runs/mini-scratch"
train 2 train mini-retrieval model_index.json --train_batch_size 4 \
  --latent_cache "$runs/mini-latents" --pretrained_model_name_or_path "$runs/mini-base"

# What its pictures show, read off them by a classifier.
train 2 train_attributes mini-attributes config.json --train_batch_size 16
"$python" -m retribooru.metrics.truth --checkpoint "$runs/mini-retrieval" --base "$runs/mini-base" \
  --classifier "$runs/mini-attributes" --characters 1500 --output_dir "$runs/mini-truth"

# The judges, what it is compared with, and the benchmark.
train 1 train_clip mini-clip config.json
train 1 train_vqa mini-vqa config.json
train 2 train_ip_adapter mini-ip-adapter ip_adapter.safetensors --train_batch_size 4 --latent_cache "$runs/mini-latents" \
  --pretrained_model_name_or_path "$runs/mini-base" --image_encoder "$runs/mini-clip"
"$python" -m retribooru.checkpoints.ship base mini attributes clip vqa ip-adapter --runs "$runs"
launch 2 metrics.benchmark --methods checkpoints/mini.yaml --output_dir "$runs/mini-benchmark" --device cpu \
  --characters 1500 --prompts mini --seeds 2 --guidance_scale 2

# The paper's ablations.
"$python" benchmarks/ablations.py --base "$runs/mini-base" --classifier "$runs/mini-attributes" --work "$runs/ablations"

"$python" -m retribooru.checkpoints.ship mini --runs "$runs" # once more, with what was measured
