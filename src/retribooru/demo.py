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
from retribooru.training.grids import draw, held_out_rows, save_grid, square_target

TASKS = ("reconstruct", "compose", "swap")
SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)
SEEDS = 3
ROWS = 3  # of each task
CHARACTERS = 60  # that are drawn; a tenth of them were held out of the training
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
    with tqdm(total=len(TASKS) * (SEEDS + len(SCALES)) * ROWS, desc="drawing", unit="picture") as bar:

        def picture(row: dict, number: int, scale: float) -> Image.Image:
            bar.update()
            return draw(pipeline, row, seed + number, GUIDANCE_SCALE, retrieval_scale=scale)

        def column(number: int, scale: float) -> dict[str, list[Image.Image]]:
            return {task: [picture(row, number, scale) for row in rows[task]] for task in TASKS}

        seeds = {f"seed {seed + i}": column(i, 1.0) for i in range(SEEDS)}
        scales = {f"scale {scale:g}": column(0, scale) for scale in SCALES}
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
