"""`retribooru demo --train`: figures -> dataset -> training -> pipeline -> pictures -> scores, in minutes."""

import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from retribooru.dataset_script.build import BuildReport, build_figures
from retribooru.dataset_script.files import replacing
from retribooru.dataset_script.mini import draw_edition
from retribooru.pipeline.pipeline_retribooru import RetriBooruPipeline
from retribooru.training.arguments import TrainArguments, VaeArguments
from retribooru.training.curves import read_metrics
from retribooru.training.data import load_figures
from retribooru.training.grids import clip_scores, draw, held_out_rows, load_clip, save_grid, square_target
from retribooru.training.held_out import verdict
from retribooru.training.parsing import read_preset
from retribooru.training.scratch import small_stable_diffusion, small_tokenizer, teach_tags
from retribooru.training.train import train
from retribooru.training.train_vae import train_vae

GUIDANCE_SCALE = 2.0  # a model this small falls apart at Stable Diffusion's 9
ROWS_PER_TASK = 6
TEXT_STEPS = 300
HONESTY = (
    "These models are tiny and were trained on the spot, from random weights: expect blurred pictures. "
    "What counts is that the chain runs."
)


def train_demo(
    out: Path,
    figures: Path | None = None,
    vae_steps: int | None = None,
    base_steps: int | None = None,
    steps: int | None = None,
    clip: str | None = None,
    seed: int = 0,
) -> dict:
    """Runs the chain and leaves grid.png, loss.png (the retrieval's) and scores.json in `out`.

    Args:
        out: folder to write.
        figures: folder with retribooru.json, images/ and masks/; without, figures are drawn by code.
        vae_steps, base_steps, steps: of the VAE, the small Stable Diffusion and the retrieval; the presets' without.
        clip: a trained CLIP to score with; without, no CLIP score is taken.

    Returns:
        What scores.json holds.
    """
    began = time.time()
    out = Path(out)
    print(HONESTY)
    if figures is None:
        draw_edition(out / "built", size=96, characters=200, seed=seed)
    else:
        print(build_with_held_out(Path(figures), out / "built", seed))
    pipeline_dir = train_all(out, seed, vae_steps, base_steps, steps)
    pipeline = RetriBooruPipeline.from_pretrained(pipeline_dir)
    pipeline.set_progress_bar_config(disable=True)

    rows = {task: held_out_rows(str(out / "built"), task, ROWS_PER_TASK) for task in ("reconstruct", "compose")}
    generated = {task: [draw(pipeline, row, seed, GUIDANCE_SCALE) for row in rows[task]] for task in rows}
    squares = {task: [square_target(row, pipeline.sample_size) for row in rows[task]] for task in rows}
    grid = save_grid(out / "grid.png", rows, {"drawn": generated, "target": squares}, 96)

    lines = read_metrics(pipeline_dir / "metrics.jsonl")
    looks = [line for line in lines if "own_references" in line]
    scores = {
        "held_out_loss": {key: looks[-1][key] for key in ("own_references", "other_references")},
        "palette_match": {task: palette_match(generated[task], squares[task], rows[task]) for task in rows},
        "palette_match_by_chance": 0.5,
        "pictures_per_task": {task: len(rows[task]) for task in rows},
        "training_steps": lines[-1]["step"],
        **({"clip": clip, **clip_scores(rows, generated, *load_clip("clip", clip))} if clip else {}),
    }
    scores_file = out / "scores.json"
    with replacing(scores_file) as partial:
        partial.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")

    print(json.dumps(scores, indent=2))
    print(verdict(lines))
    if not clip:
        print("No CLIP score: an untrained CLIP's mean nothing. Name a trained one with --clip to get them.")
    print(f"{HONESTY}\nDone in {(time.time() - began) / 60:.1f} minutes:")
    results = {"pictures": grid, "loss": pipeline_dir / "loss.png", "scores": scores_file, "pipeline": pipeline_dir}
    for name, path in results.items():
        print(f"  {name:<9} {path}")
    return scores


def build_with_held_out(figures: Path, out: Path, seed: int) -> BuildReport:
    """Builds the table, holding out a larger share of the characters where a smaller one leaves fewer than two."""
    for share in (0.12, 0.25, 0.5):
        report = build_figures(
            figures / "retribooru.json", figures / "images", figures / "masks", out, seed, out_of_domain=share
        )
        if report.characters["out_of_domain"] >= 2:
            return report
    raise ValueError(
        f"figures: {figures} leaves {report.characters['out_of_domain']} characters to hold out, wanted two or more: "
        "give a dozen characters, or another seed"
    )


def train_all(out: Path, seed: int, vae_steps: int | None, base_steps: int | None, steps: int | None) -> Path:
    """VAE, small Stable Diffusion, retrieval: one after the other, by the presets. Returns the pipeline's folder."""
    common = {"data_dir": str(out / "built"), "seed": seed}

    def settings(preset: str, kind: type, count: int | None) -> dict:
        found = {**read_preset(preset, kind), **common, "output_dir": str(out / preset)}
        return found if count is None else {**found, "max_train_steps": count}

    vae_dir = train_vae(VaeArguments(**settings("demo-vae", VaeArguments, vae_steps)))
    vae = AutoencoderKL.from_pretrained(vae_dir)
    prompts = load_figures(common["data_dir"], "train")["prompt"]
    base = settings("demo-base", TrainArguments, base_steps)
    torch.manual_seed(seed)
    start = small_stable_diffusion(vae, small_tokenizer(prompts), base["resolution"])
    teach_tags(start.text_encoder, start.tokenizer, prompts, TEXT_STEPS, seed)
    start.save_pretrained(out / "demo-scratch")
    base_dir = train(TrainArguments(**base, pretrained_model_name_or_path=str(out / "demo-scratch")))
    retrieval = settings("demo-retrieval", TrainArguments, steps)
    return train(TrainArguments(**retrieval, pretrained_model_name_or_path=str(base_dir)))


def palette(image: Image.Image) -> np.ndarray:
    """Colour histogram, 4 x 4 x 4 bins of RGB summing to 1."""
    pixels = np.asarray(image.convert("RGB")).reshape(-1, 3) // 64
    counts = np.bincount(pixels @ np.array([16, 4, 1]), minlength=64)
    return counts / counts.sum()


def palette_match(generated: list[Image.Image], targets: list[Image.Image], rows: list[dict]) -> float:
    """How often a picture's colours are nearer to its own figure's than to another character's.

    The share, over all pairs of a picture and a target of another character, in which the histogram intersection
    with the own target is the larger one. The middle of the picture alone is compared (the figure, mostly): backgrounds
    are the prompt's affair. In [0, 1], 0.5 by chance. A rough measure, ours, for models too small for CLIP to judge.
    """

    def middle(image):
        width, height = image.size
        return palette(image.crop((width // 4, height // 8, width * 3 // 4, height * 7 // 8)))

    drawn, real = [middle(image) for image in generated], [middle(image) for image in targets]
    overlap = np.minimum(np.array(drawn)[:, None], np.array(real)[None]).sum(-1)  # (pictures, targets)
    wins = [
        float(overlap[i, i] > overlap[i, j]) + 0.5 * float(overlap[i, i] == overlap[i, j])
        for i in range(len(rows)) for j in range(len(rows)) if rows[i]["character"] != rows[j]["character"]
    ]  # fmt: skip
    return sum(wins) / len(wins)
