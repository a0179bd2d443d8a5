"""`retribooru benchmark`: draws what is not drawn yet, scores it, and leaves tables and plots.

retribooru benchmark --methods methods.yaml --output_dir runs/benchmark
accelerate launch -m retribooru.metrics.benchmark --methods methods.yaml --output_dir runs/benchmark
torchrun --nproc_per_node 2 -m retribooru.metrics.benchmark --device cpu ...    (accelerate joins CPUs by MPI alone)

The characters are shared out among processes: what a process draws of a character, of all methods, it scores.
"""

import os
import sys
from collections.abc import Sequence
from datetime import timedelta

import torch
from accelerate import PartialState
from transformers import HfArgumentParser

from .arguments import BenchmarkArguments
from .pictures import draw_pictures
from .plan import Plan, begin, make_plan
from .plots import plot_frontier, plot_prompts, save_grids
from .report import summarize
from .scores import gather, score_pictures
from .tables import markdown, write_tables

LONGEST_WAIT = timedelta(days=30)  # of a process for the others, at the end


def benchmark(args: BenchmarkArguments) -> dict | None:
    """Leaves in `output_dir`: pictures/, scores/, scores.parquet, groups.parquet, results.json, .md, .csv and .tex,
    frontier.png, prompts.png, grid.png and grid-METHOD.png.

    Returns:
        What results.json holds (see `summarize`), in the main process; None in the others.

    Raises:
        ValueError: an argument, or a method of methods.yaml, cannot be, or `output_dir` holds pictures of other
            settings; says which.
        RuntimeError: there are several processes, but they have not found each other.
    """
    state = PartialState(cpu=args.device == "cpu", timeout=LONGEST_WAIT)
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != state.num_processes:
        raise RuntimeError(
            f"WORLD_SIZE: got {launched} processes, of which accelerate joins {state.num_processes}: each would draw "
            "everything. Without GPUs say --device cpu"
        )
    with state.main_process_first():  # where the data is not cached yet, one makes it
        plan = make_plan(args)
        begin(plan)
    if args.ray:
        on_ray(args, len(plan.characters))
    else:
        device = torch.device(args.device) if args.device and launched == 1 else state.device
        do_share(plan, state.process_index, launched, device)
    state.wait_for_everyone()
    return report(plan) if state.is_main_process else None


def do_share(plan: Plan, rank: int, count: int, device: torch.device) -> None:
    """Draws and scores every count-th character, from `rank` on."""
    numbers = range(len(plan.characters))[rank::count]
    draw_pictures(plan, numbers, device)
    score_pictures(plan, numbers, device)


def report(plan: Plan) -> dict:
    """Tables and plots of what is scored."""
    result = summarize(plan, *gather(plan))
    write_tables(result, plan.out)
    plot_frontier(result, plan.out / "frontier.png")
    plot_prompts(result, plan.out / "prompts.png")
    save_grids(plan)
    return result


class RayWorker:
    """One actor of a cluster, whose machines see the folders under the same paths."""

    def __init__(self, args: BenchmarkArguments, count: int, folder: str):
        os.chdir(folder)  # relative paths are those of the one who calls
        self.plan, self.count = make_plan(args), count
        self.device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def __call__(self, batch: dict) -> dict:
        for rank in batch["rank"]:
            do_share(self.plan, int(rank), self.count, self.device)
        return batch


def on_ray(args: BenchmarkArguments, characters: int) -> None:
    """The shares of as many actors as there are GPUs, or cores, or as `ray_actors` says."""
    try:
        import ray
    except ImportError as error:
        raise ImportError("ray: got none, wanted `pip install retribooru[cluster]`") from error
    ray.init(address=args.ray, ignore_reinit_error=True)
    resources = ray.cluster_resources()
    gpus = 0 if args.device == "cpu" else int(resources.get("GPU", 0))
    count = min(args.ray_actors or gpus or int(resources["CPU"]), characters)
    shares = ray.data.from_items([{"rank": rank} for rank in range(count)], override_num_blocks=count)
    shares.map_batches(
        RayWorker, fn_constructor_args=(args, count, os.getcwd()), batch_size=1, concurrency=count,
        num_gpus=1 if gpus else None,
    ).materialize()  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = HfArgumentParser(BenchmarkArguments, allow_abbrev=False)  # a misspelt flag is not another one
    args = BenchmarkArguments(**vars(parser.parse_args(sys.argv[1:] if argv is None else list(argv))))
    result = benchmark(args)
    if result:
        print(markdown(result))
