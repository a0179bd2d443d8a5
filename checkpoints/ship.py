"""Puts what was trained where it comes along with the package: in half precision, with its curves and its results.

python -m retribooru.checkpoints.ship base mini attributes --runs runs
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from retribooru import RetriBooruPipeline
from retribooru.checkpoints import MINI
from retribooru.dataset_script.files import replacing_folder
from retribooru.model_card import write_model_card
from retribooru.pipeline.checkpoint import portable
from retribooru.training.train_ip_adapter import WEIGHTS
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection


class Judge(NamedTuple):
    """A small model that reads pictures; its trainer saves it in half precision."""

    says: str  # in a card
    loads: str
    accuracy: str  # what its numbers are shares of, and what each beside the attributes is


JUDGES = {
    "attributes": Judge(
        "A classifier that reads the attributes of a figure off a picture",
        """from retribooru.metrics.attributes import AttributeClassifier

AttributeClassifier.from_pretrained("checkpoints/mini-attributes").classify(images)""",
        "pictures of which the right value is read",
    ),
    "clip": Judge(
        "A small CLIP",
        """import evaluate
import retribooru

evaluate.load("clip_i").compute(predictions=images, references=references, model_name_or_path="checkpoints/mini-clip")""",
        "pictures that are closer to the prompt that is true of them than to one for each other value; `own_tags`: closer "
        "to all of their own tags than to those of 49 other pictures",
    ),
    "vqa": Judge(
        "A small BLIP that answers questions",
        """import evaluate
import retribooru

evaluate.load("vqa_diversity").compute(
    predictions=groups, vqa_model_name_or_path="checkpoints/mini-vqa", model_name_or_path="checkpoints/mini-clip"
)""",
        "pictures of which the answer is right to the letter; `description`: tags that are named when all is asked for",
    ),
}
# Of the mini checkpoint: {what measured it: (title in the card, its table, its pictures)}.
MEASURED = {
    "mini-truth": ("What a classifier reads off pictures", "truth", ("scale", "references")),
    "mini-benchmark": ("Benchmark", "results", ("grid", "frontier", "prompts")),
    "ablations": ("Ablations, in miniature", "ablations", ("ablations",)),
}
CARDS = Path(__file__).parent
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
        shutil.copy(GRID, evaluation / "demo.png")
        sections = [(CARDS / "mini.md").read_text(encoding="utf-8")]
        sections += [ship_measured(runs / name, evaluation, *what) for name, what in MEASURED.items()]
        commands = (CARDS / "mini.sh").read_text(encoding="utf-8")
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
        portable(folder, ("text_encoder", "unet", "vae"))
        shutil.copy(CARDS / "mini-base.md", folder / "README.md")


def ship_judge(name: str, runs: Path) -> None:
    """What its trainer left, and a card."""
    with replacing_folder(MINI.with_name(f"mini-{name}")) as folder:
        shutil.copytree(runs / f"mini-{name}", folder, ignore=shutil.ignore_patterns(*OF_A_RUN), dirs_exist_ok=True)
        portable(folder, ["."])
        (folder / "README.md").write_text(judge_card(name, folder), encoding="utf-8")


def judge_card(name: str, folder: Path) -> str:
    """What a judge is, how it is loaded, and how well it reads pictures of characters that it was never trained on."""
    training, judge = json.loads((folder / "training.json").read_text(encoding="utf-8")), JUDGES[name]
    held_out = training["held_out"]
    names, shares = zip(*held_out["accuracy"].items())
    return f"""---
license: apache-2.0
tags: [retribooru]
---

# mini-{name}

{judge.says}. It has seen the mini edition's drawn figures at {training["settings"]["resolution"]} pixels and nothing else:
a judge of the mini checkpoint's pictures, whose numbers compare with no other model's.

```python
{judge.loads}
```

Trained for {training["steps"]:,} steps. Of {held_out["pictures"]:,} pictures of characters that it was never trained on,
percent of the {judge.accuracy}:

| {" | ".join(names)} |
|{" ---: |" * len(names)}
| {" | ".join(f"{100 * share:.1f}" for share in shares)} |

![Loss](loss.png)
"""


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
        portable(folder, ["image_encoder"])
        shutil.copy(CARDS / "mini-ip-adapter.md", folder / "README.md")


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
