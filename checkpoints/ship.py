"""Puts what was trained where it comes along with the package: in half precision, with its curves and its results.

python -m retribooru.checkpoints.ship base mini attributes --runs runs
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from retribooru import RetriBooruPipeline
from retribooru.checkpoints import MINI
from retribooru.dataset_script.files import replacing_folder
from retribooru.model_card import write_model_card
from retribooru.training.train_ip_adapter import WEIGHTS
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

JUDGES = ("attributes", "clip", "vqa")  # small models that read pictures; saved in half precision by their trainers
# Of the mini checkpoint: {what measured it: (title in the card, its table, its pictures)}.
MEASURED = {
    "mini-truth": ("What a classifier reads off pictures", "truth", ("scale", "references")),
    "mini-benchmark": ("Benchmark", "results", ("frontier", "prompts")),
    "ablations": ("Ablations, in miniature", "ablations", ("ablations",)),
}
GRID = Path(__file__).parents[1] / "docs" / "demo_grid.png"  # what `retribooru demo` drew with it
OF_A_RUN = ("checkpoint-*", "*.partial", "metrics.jsonl", "tokenizer")  # what others have no use for


def save_half(kind: type[DiffusionPipeline], run: Path, folder: Path) -> None:
    """What a run trained, in half precision, with its settings."""
    kind.from_pretrained(run, torch_dtype=torch.float16).save_pretrained(folder)
    shutil.copy(run / "training.json", folder)


def ship_mini(runs: Path) -> None:
    """The pipeline, its training's curves, what its pictures look like and what was measured of it."""
    with replacing_folder(MINI) as folder:
        save_half(RetriBooruPipeline, runs / "mini-retrieval", folder)
        evaluation = folder / "evaluation"
        evaluation.mkdir()
        for name in ("vae", "base", "retrieval"):
            shutil.copy(runs / f"mini-{name}" / "loss.png", evaluation / f"training-{name}.png")
        shutil.copy(GRID, evaluation / "grid.png")
        sections = [Path(__file__).with_name("mini.md").read_text(encoding="utf-8")]
        sections += [ship_measured(runs / name, evaluation, *what) for name, what in MEASURED.items()]
        commands = Path(__file__).with_name("mini.sh").read_text(encoding="utf-8")
        sections.append(f"### The commands\n\n```bash\n{commands}```\n")
        (evaluation / "results.md").write_text("\n".join(filter(None, sections)), encoding="utf-8")
        write_model_card(folder, license="apache-2.0")


def ship_measured(measured: Path, evaluation: Path, title: str, table: str, pictures: Sequence[str]) -> str:
    """The card's section of what one folder holds, whose numbers and pictures come to lie in evaluation/; none of a
    folder that is not there, or is still being filled.

    A title within the table goes a level down.
    """
    wanted = [f"{table}.md", f"{table}.json", *(f"{picture}.png" for picture in pictures)]
    if not all((measured / name).is_file() for name in wanted):
        return ""
    shutil.copy(measured / f"{table}.json", evaluation / f"{measured.name}.json")
    section = f"### {title}\n\n" + (measured / f"{table}.md").read_text(encoding="utf-8").replace("### ", "#### ")
    for picture in pictures:
        shutil.copy(measured / f"{picture}.png", evaluation)
        section += f"\n![{title}: {picture}]({evaluation.name}/{picture}.png)\n"
    return section


def ship_base(runs: Path) -> None:
    """The Stable Diffusion that the mini checkpoint was made from: what comparisons without references draw with."""
    with replacing_folder(MINI.with_name("mini-base")) as folder:
        save_half(StableDiffusionPipeline, runs / "mini-base", folder)


def ship_judge(name: str, runs: Path) -> None:
    with replacing_folder(MINI.with_name(f"mini-{name}")) as folder:
        shutil.copytree(runs / f"mini-{name}", folder, ignore=shutil.ignore_patterns(*OF_A_RUN), dirs_exist_ok=True)


def ship_ip_adapter(runs: Path) -> None:
    """What the mini checkpoint is compared with, and the image encoder it was trained with."""
    run = runs / "mini-ip-adapter"
    with replacing_folder(MINI.with_name("mini-ip-adapter")) as folder:
        adapter = {name: tensor.half() for name, tensor in load_file(run / WEIGHTS).items()}
        save_file(adapter, folder / WEIGHTS)
        shutil.copy(run / "training.json", folder)
        encoder = CLIPVisionModelWithProjection.from_pretrained(run / "image_encoder", dtype=torch.float16)
        for part in (encoder, CLIPImageProcessor.from_pretrained(run / "image_encoder")):
            part.save_pretrained(folder / "image_encoder")


PIPELINES = {"base": ship_base, "mini": ship_mini, "ip-adapter": ship_ip_adapter}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("names", nargs="+", choices=[*PIPELINES, *JUDGES])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where mini.sh trained")
    args = parser.parse_args()
    for name in args.names:
        if name in PIPELINES:
            PIPELINES[name](args.runs)
        else:
            ship_judge(name, args.runs)


if __name__ == "__main__":
    main()
