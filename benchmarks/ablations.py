"""The paper's ablations in miniature: what each choice does to identity and to obedience, over seeds.

python benchmarks/ablations.py --base runs/mini-ablation-base --classifier runs/mini-attributes --work runs/ablations

Trains every variant from the same base for as many steps, except where the steps are the choice, draws held-out
characters with each, and reads off the pictures whether they have the references' hair, eyes, skin and clothes
(identity) and the prompt's pose, expression and background (obedience). Killed, it goes on where it stopped; what is
there is not done again. Leaves ablations.json, ablations.md and ablations.png in the folder that `--work` names.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from retribooru.dataset_script.files import replacing
from retribooru.metrics.truth.run import measure
from retribooru.metrics.truth.arguments import TruthArguments
from retribooru.training.curves import read_metrics

# Of each variant the preset, of a row of the paper's tables where it is one, and what is changed of it.
VARIANTS = {
    "default": ("mini-{task}9k", []),
    "fewer prompts dropped": ("mini-{task}9k-drop-low", []),
    "more prompts dropped": ("mini-{task}9k-drop-high", []),
    "lockDecoder": ("mini-{task}9k-lock-decoder", []),
    "lockBoth": ("mini-{task}9k-lock-both", []),
    "denoising timestep": ("mini-{task}9k", ["--reference_timestep", "denoising"]),
    "encoder queries": ("mini-{task}9k", ["--retrieval_query", "encoder"]),
    "trained 5 x longer": ("mini-{task}45k", []),
}
MEANS = ("identity", "obedience")


def folder_of(variant: str, seed: int, args: argparse.Namespace) -> Path:
    return args.work / "runs" / f"{variant.replace(' ', '-')}-seed-{seed}"


def train(variant: str, seed: int, args: argparse.Namespace) -> None:
    """One training, in a process of its own with one thread, unless it is there."""
    preset, changes = VARIANTS[variant]
    out = folder_of(variant, seed, args)
    if (out / "model_index.json").is_file():
        return
    out.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "retribooru.training.train", "--preset", preset.format(task=args.task), *changes),
        *("--pretrained_model_name_or_path", args.base, "--seed", str(seed), "--output_dir", str(out)),
        *("--latent_cache", str(args.work / "latents" / f"seed-{seed}"), "--resume_from_checkpoint", "latest"),
    ]
    if args.steps:
        command += ["--max_train_steps", str(args.steps * (5 if "45k" in preset else 1))]
    with (out / "log.txt").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def look(variant: str, seed: int, args: argparse.Namespace) -> dict:
    """What the pictures of a trained variant show, in percent, and its last losses on held-out characters."""
    out = folder_of(variant, seed, args)
    task = {"recon": "reconstruct"}.get(args.task, args.task)
    truth = measure(
        TruthArguments(
            checkpoint=str(out), classifier=args.classifier, output_dir=str(out / "truth"), characters=args.characters,
            tasks=[task], pictures=args.pictures, seeds=1, curve_pictures=0,
            base=args.base if variant == "default" else None,
        )
    )  # fmt: skip
    scores = truth["tasks"][task]
    looks = [line for line in read_metrics(out / "metrics.jsonl") if "own_references" in line]
    found = {
        "attributes": scores["retribooru"]["mean"],
        "own_references": looks[-1]["own_references"],
        "other_references": looks[-1]["other_references"],
        "steps": looks[-1]["step"],
    }
    if "base" in scores:
        found |= {"base": scores["base"]["mean"], "chance": scores["chance"], "vae": truth["vae"]}
    return found


def table(results: dict[str, list[dict]], args: argparse.Namespace) -> str:
    """A row per variant: the mean over its seeds and, in brackets, the least and the most."""
    lines = [
        f"Each variant trained from the same base with {args.seeds} seeds, on {args.task}; {args.pictures} pictures of "
        "characters that were never trained on. Means over seeds and, in brackets, the least and the most.",
        "",
        "| | steps | identity, % | obedience, % | loss, own references | another character's |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    first = results["default"][0]
    for name, key in (
        ("chance", "chance"),
        ("base, without references", "base"),
        ("real pictures through the VAE", "vae"),
    ):
        values = " | ".join(f"{100 * first[key][mean]:.1f}" for mean in MEANS)
        lines.append(f"| {name} | | {values} | | |")
    for variant, seeds in results.items():
        cells = [spread([100 * one["attributes"][mean] for one in seeds], 1) for mean in MEANS]
        cells += [spread([one[name] for one in seeds], 4) for name in ("own_references", "other_references")]
        lines.append(f"| {variant} | {seeds[0]['steps']:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int) -> str:
    return f"{fmean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def plot(results: dict[str, list[dict]], path: Path) -> None:
    """Identity against obedience, a point per seed and their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 5))
    for i, (variant, seeds) in enumerate(results.items()):
        x, y = ([100 * one["attributes"][mean] for one in seeds] for mean in reversed(MEANS))
        color = f"C{i}"
        axis.plot(x, y, "o", color=color, alpha=0.35, markersize=5)
        axis.plot(fmean(x), fmean(y), "D", color=color, label=variant)
    axis.set(xlabel="obedience: pose, expression, background, %", ylabel="identity: hair, eyes, skin, clothes, %")
    axis.legend(fontsize="small")
    figure.tight_layout()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a StableDiffusionPipeline to begin with")
    parser.add_argument("--classifier", required=True, help="what train_attributes wrote")
    parser.add_argument("--work", required=True, type=Path, help="where everything is written")
    parser.add_argument("--task", default="compose", choices=("recon", "compose"), help="of the paper's rows")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--seeds", type=int, default=2, help="how many: 0, 1 and so on")
    parser.add_argument("--steps", type=int, help="of each; the presets' without")
    parser.add_argument("--pictures", type=int, default=200, help="of each training")
    parser.add_argument("--characters", type=int, default=1500, help="of the mini edition, as the presets have it")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, of one thread each")
    args = parser.parse_args()

    longest_first = sorted(args.only, key=lambda variant: "45k" not in VARIANTS[variant][0])
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(train, variant, seed, args) for seed in range(args.seeds) for variant in longest_first]
        for job in tqdm(as_completed(jobs), total=len(jobs), desc="training", unit="run"):
            job.result()
    results = {}
    for seed in range(args.seeds):
        for variant in args.only:
            results.setdefault(variant, []).append(look(variant, seed, args))
    with replacing(args.work / "ablations.json") as partial:
        partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    plot(results, args.work / "ablations.png")
    if "default" in results:
        with replacing(args.work / "ablations.md") as partial:
            partial.write_text(table(results, args), encoding="utf-8")
        print(table(results, args))


if __name__ == "__main__":
    main()
