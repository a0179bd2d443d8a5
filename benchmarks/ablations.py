"""The paper's ablations in miniature: what each choice does to identity and to obedience, over seeds.

python benchmarks/ablations.py --work runs/ablations

Trains every variant from the same base for as many steps, except where the steps are the choice, draws held-out
characters with each, and reads off the pictures whether they have the references' hair, eyes, skin and clothes
(identity) and the prompt's pose, expression and background (obedience). After each training ablations.json,
ablations.md and ablations.png in the folder that `--work` names say what is known by then. Killed, it goes on where it
stopped; what stands in ablations.json is not done again, also where nothing else of that folder is left.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import fmean
from threading import Lock

from tqdm import tqdm

from retribooru.checkpoints import MINI
from retribooru.dataset_script.files import replacing
from retribooru.training.checkpoints import without_folders
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


def run(variant: str, seed: int, args: argparse.Namespace) -> dict:
    """Trains a variant and looks at its pictures, in processes of one thread, unless that is done.

    Returns:
        Shares of pictures, 0 to 1, by attribute and mean, the losses on held-out characters and the steps; of the
        default also what chance, the base without references and the targets through the VAE come to.
    """
    preset, changes = VARIANTS[variant]
    out = args.work / "runs" / f"{variant.replace(' ', '-')}-seed-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    steps = ["--max_train_steps", str(args.steps * (5 if "45k" in preset else 1))] if args.steps else []
    if not (out / "model_index.json").is_file():
        call(
            *("training.train", "--preset", preset.format(task=args.task), *changes, *steps, "--seed", str(seed)),
            *("--pretrained_model_name_or_path", args.base, "--characters", str(args.characters)),
            *("--latent_cache", str(args.work / "latents" / f"seed-{seed}")),
            *("--output_dir", str(out), "--resume_from_checkpoint", "latest"),
            log=out / "log.txt",
        )
    task = {"recon": "reconstruct"}.get(args.task, args.task)
    call(
        *("metrics.truth", "--checkpoint", str(out), "--classifier", args.classifier, "--tasks", task),
        *("--pictures", str(args.pictures), "--seeds", "1", "--curve_pictures", "0"),
        *("--characters", str(args.characters), "--output_dir", str(out / "truth")),
        *(("--base", args.base) if variant == "default" else ()),
        log=out / "log.txt",
    )
    truth = json.loads((out / "truth" / "truth.json").read_text(encoding="utf-8"))
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


def call(module: str, *flags: str, log: Path) -> None:
    with log.open("a") as file:
        command = [sys.executable, "-m", f"retribooru.{module}", *flags]
        subprocess.run(command, stdout=file, stderr=file, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def read_results(path: Path, settings: dict) -> dict[str, dict[str, dict]]:
    """{variant: {seed: what `run` found}} of what is done; raises ValueError where it was done with other settings."""
    if not path.is_file():
        return {}
    there = json.loads(path.read_text(encoding="utf-8"))
    if there["settings"] != settings:
        raise ValueError(f"work: {path} was made with {there['settings']}, wanted {settings}: name another folder")
    return there["variants"]


def write_results(results: dict[str, dict[str, dict]], settings: dict, work: Path) -> None:
    """What is done so far, as numbers, table and picture; the variants in the order of `VARIANTS`."""
    results = {name: dict(sorted(results[name].items())) for name in VARIANTS if results.get(name)}
    with replacing(work / "ablations.json") as partial:
        text = json.dumps({"settings": settings, "variants": results}, indent=2)
        partial.write_text(text + "\n", encoding="utf-8")
    with replacing(work / "ablations.md") as partial:
        partial.write_text(table(results, settings), encoding="utf-8")
    plot(results, work / "ablations.png")


def table(results: dict[str, dict[str, dict]], settings: dict) -> str:
    """A row per variant: the mean over its seeds and, in brackets, the least and the most."""
    lines = [
        f"Each variant trained from the same base on {settings['task']}; {settings['pictures']} pictures of characters "
        "that were never trained on. Means over seeds and, in brackets, the least and the most.",
        "",
        "| | seeds | steps | identity, % | obedience, % | loss, own references | another character's |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, key in (
        ("chance", "chance"),
        ("base, without references", "base"),
        ("real pictures through the VAE", "vae"),
    ):
        for found in list(results.get("default", {}).values())[:1]:
            values = " | ".join(f"{100 * found[key][mean]:.1f}" for mean in MEANS)
            lines.append(f"| {name} | | | {values} | | |")
    for variant, seeds in results.items():
        seeds = list(seeds.values())
        cells = [spread([100 * one["attributes"][mean] for one in seeds], 1) for mean in MEANS]
        cells += [spread([one[name] for one in seeds], 4) for name in ("own_references", "other_references")]
        lines.append(f"| {variant} | {len(seeds)} | {seeds[0]['steps']:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int) -> str:
    return f"{fmean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def plot(results: dict[str, dict[str, dict]], path: Path) -> None:
    """Identity against obedience, a point per seed and their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 5))
    for i, (variant, seeds) in enumerate(results.items()):
        x, y = ([100 * one["attributes"][mean] for one in seeds.values()] for mean in reversed(MEANS))
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
    parser.add_argument("--work", required=True, type=Path, help="where everything is written")
    parser.add_argument("--base", default=str(MINI.with_name("mini-base")), help="a StableDiffusionPipeline")
    parser.add_argument("--classifier", default=str(MINI.with_name("mini-attributes")), help="of train_attributes")
    parser.add_argument("--task", default="compose", choices=("recon", "compose"), help="of the paper's rows")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--seeds", type=int, default=2, help="how many: 0, 1 and so on")
    parser.add_argument("--steps", type=int, help="of each; the presets' without")
    parser.add_argument("--pictures", type=int, default=200, help="of each training")
    parser.add_argument("--characters", type=int, default=1500, help="of the mini edition")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, of one thread each")
    args = parser.parse_args()

    kept = {name: getattr(args, name) for name in ("base", "classifier", "task", "steps", "pictures", "characters")}
    settings = without_folders(kept)
    results = read_results(args.work / "ablations.json", settings)
    longest_first = sorted(args.only, key=lambda variant: "45k" not in VARIANTS[variant][0])
    wanted = [(variant, seed) for seed in range(args.seeds) for variant in longest_first]
    keeping = Lock()

    def train_and_keep(variant: str, seed: int) -> None:
        found = run(variant, seed, args)
        with keeping:
            results.setdefault(variant, {})[str(seed)] = found
            write_results(results, settings, args.work)

    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(train_and_keep, *one) for one in wanted if str(one[1]) not in results.get(one[0], {})]
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), desc="training", unit="run"):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # those that have begun end, and are kept
            raise
    write_results(results, settings, args.work)
    print((args.work / "ablations.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
