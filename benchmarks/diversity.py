"""Mean pairwise cosine distance: `mean_pairwise_distance` against the loop over pairs and the matrix of all of them.

python benchmarks/diversity.py [--counts 20 1000 20000] [--width 512] [--threads 1]

linear: `retribooru.metrics.functional.mean_pairwise_distance`, from vectors of any length.
matrix: what torchmetrics.functional.pairwise_cosine_similarity does: all n x n cosines at once, then their mean.
loop: the definition, pair by pair. Above --pairs pairs only that many are gone through, evenly spread over the rows,
    and the time is put up to all of them; the value is then that of a sample, and its difference is not told.

All in float32 on the CPU, vectors of a normal distribution around a common direction. Every measurement is a process of
its own: torch is loaded and the vectors are made, then the best time of three (the loop and the large matrix: of one);
memory is the peak of the process beyond what it held before (VmHWM, Linux; the vectors themselves are not counted).
The difference is to the same mean in float64, by the matrix in blocks of rows.
"""

import argparse
import json
import subprocess
import sys
import time

import torch
from common import forget_peak, peak, resident

from retribooru.metrics.functional import mean_pairwise_distance, unit_vectors


def vectors(count: int, width: int) -> torch.Tensor:
    """(count, width) float32, which share a direction as CLIP's do."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, width, generator=generator) + torch.randn(width, generator=generator)


def linear(rows: torch.Tensor, pairs: int) -> tuple[float, float]:
    """(value, share of the pairs that it is of), as the other ways."""
    return mean_pairwise_distance(rows).item(), 1.0


def matrix(rows: torch.Tensor, pairs: int) -> tuple[float, float]:
    units = unit_vectors(rows)
    cosines = units @ units.T
    return 1 - ((cosines.sum() - cosines.diagonal().sum()) / (len(units) * (len(units) - 1))).item(), 1.0


def loop(rows: torch.Tensor, pairs: int) -> tuple[float, float]:
    """Pair by pair; of more than `pairs`, that many."""
    n, total, count = len(rows), 0.0, 0
    rows = list(unit_vectors(rows))
    step = max(1, n * (n - 1) // 2 // pairs)
    for i in range(n):
        for j in range(i + 1 + i % step, n, step):
            total += 1 - torch.dot(rows[i], rows[j]).item()
            count += 1
    return total / count, count / (n * (n - 1) / 2)


WAYS = {"linear": linear, "matrix": matrix, "loop": loop}


def exact(rows: torch.Tensor) -> float:
    """In float64, a block of rows at a time."""
    units = unit_vectors(rows.double())
    total = sum((block @ units.T).sum().item() for block in units.split(256)) - (units**2).sum().item()
    return 1 - total / (len(units) * (len(units) - 1))


def measure(way: str, count: int, width: int, pairs: int) -> dict:
    function, rows = WAYS[way], vectors(count, width)
    function(rows[:20], pairs)  # what is loaded at the first use
    forget_peak("cpu")
    held = resident("VmRSS")
    times = []
    for _ in range(1 if way == "loop" or count > 5000 and way == "matrix" else 3):
        start = time.perf_counter()
        value, share = function(rows, pairs)
        times.append(time.perf_counter() - start)
    memory = peak("cpu", held)
    return {"seconds": min(times) / share, "share": share, "MB": memory, "error": abs(value - exact(rows))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[20, 1000, 20_000])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "COUNT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args.width, args.pairs)))
        return

    print(f"vectors of {args.width} numbers, {args.threads} threads, torch {torch.__version__}\n")
    print("| n | way | time | beside linear | memory | difference to float64 |\n|---|---|---|---|---|---|")
    settings = ["--width", str(args.width), "--threads", str(args.threads), "--pairs", str(args.pairs)]
    for count in args.counts:
        found = {}
        for way in WAYS:
            command = [sys.executable, __file__, *settings, "--one", way, str(count)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{way}, n = {count}: ended with {done.returncode}\n{done.stderr}")
            found[way] = one = json.loads(done.stdout.splitlines()[-1])
            cells = [
                f"{count:,}",
                way if one["share"] == 1 else f"{way}, {one['share']:.1%} of the pairs",
                f"{1000 * one['seconds']:,.2f} ms",
                f"{one['seconds'] / found['linear']['seconds']:,.1f} x",
                f"{one['MB']:,.1f} MB",
                f"{one['error']:.0e}" if one["share"] == 1 else "",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
