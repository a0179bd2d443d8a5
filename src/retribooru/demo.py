"""`retribooru demo`: the checkpoint that comes along draws characters that it has never seen."""

import time
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from retribooru.checkpoint_facts import check_pipeline
from retribooru.checkpoints import MINI
from retribooru.dataset_script.mini import draw_edition
from retribooru.pipeline.pipeline_retribooru import RetriBooruPipeline
from retribooru.training.grids import held_out_rows, save_grid, square_target

TASKS = ("reconstruct", "compose", "swap")
SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)
SEEDS = 3
ROWS = 3  # of each task
CHARACTERS = 35  # that are drawn; a tenth of them were held out of the training
GUIDANCE_SCALE = 2.0  # a model this small falls apart at Stable Diffusion's 9
CELL = 128


def run_demo(out: Path, checkpoint: str | None = None, seed: int = 0) -> dict[str, Path]:
    """Leaves in `out` figures/ and two pictures, and returns them by name.

    grid: rows of each task, their references, pictures of several seeds, and the target; of a swap, which nobody drew,
    the target is the faces' character in clothes of their own. scales: the same with more and more retrieved.

    Args:
        out: folder to write.
        checkpoint: a RetriBooruPipeline, a Hub id or a folder; the one that comes along without.
        seed: of everything drawn.
    """
    began, out = time.time(), Path(out)
    checkpoint = checkpoint or str(MINI)
    check_pipeline("checkpoint", checkpoint, RetriBooruPipeline.__name__)
    draw_edition(out / "figures", characters=CHARACTERS)  # by forked processes, so before any thread of torch's runs
    pipeline = RetriBooruPipeline.from_pretrained(checkpoint)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu").set_progress_bar_config(disable=True)
    rows = {task: held_out_rows(str(out / "figures"), task, ROWS) for task in TASKS}
    features = {
        task: [
            pipeline.encode_references(
                row["reference_images"], row["reference_concepts"], reference_masks=row["reference_masks"]
            )
            for row in rows[task]
        ]
        for task in TASKS
    }
    with tqdm(total=ROWS * len(TASKS) * (SEEDS + len(SCALES) - 1), desc="drawing", unit="picture") as bar:

        def column(seed: int, scale: float) -> dict[str, list[Image.Image]]:
            """A picture of each row, those of a task at a time."""
            drawn = {}
            for task in TASKS:
                drawn[task] = pipeline(
                    [row["prompt"] for row in rows[task]],
                    reference_features=features[task],
                    retrieval_scale=scale,
                    guidance_scale=GUIDANCE_SCALE,
                    generator=[torch.Generator().manual_seed(seed) for _ in rows[task]],
                ).images
                bar.update(len(drawn[task]))
            return drawn

        seeds = {f"seed {seed + i}": column(seed + i, 1.0) for i in range(SEEDS)}
        scales = {f"scale {scale:g}": seeds[f"seed {seed}"] if scale == 1 else column(seed, scale) for scale in SCALES}
    target = {"target": {task: [square_target(row, CELL) for row in rows[task]] for task in TASKS}}
    results = {
        "grid": save_grid(out / "grid.png", rows, seeds | target, CELL),
        "scales": save_grid(out / "scales.png", rows, scales, CELL),
    }
    print("These characters were never trained on.")
    print(f"Done in {(time.time() - began) / 60:.1f} minutes:")
    for name, path in results.items():
        print(f"  {name:<7} {path}")
    return results
