"""Draws, reads and reports: the whole of `python -m retribooru.metrics.truth`."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import HfArgumentParser

from retribooru.dataset_script.files import replacing
from retribooru.dataset_script.mini import TRUTH
from retribooru.dataset_script.references import RECIPES
from retribooru.pipeline.pipeline_retribooru import RetriBooruPipeline
from retribooru.training.arguments import check_argument
from retribooru.training.checkpoints import without_folders

from ..attributes import AttributeClassifier, accuracy
from .arguments import TruthArguments
from .figures import Figures, Setting, chance
from .pictures import Drawn, load
from .report import plot, summary, table, with_means


def load_classifier(args: TruthArguments) -> AttributeClassifier:
    """Raises ValueError where there is none, or one that does not read all of `TRUTH`."""
    try:
        classifier = AttributeClassifier.from_pretrained(args.classifier, torch_dtype=torch.float32)
    except (OSError, ValueError) as error:
        wanted = "an AttributeClassifier: a folder or a Hub id"
        raise ValueError(f"classifier: got {args.classifier}, wanted {wanted} ({error})") from error
    missing = [name for name in TRUTH if name not in classifier.config.attributes]
    check_argument("classifier", not missing, args.classifier, f"one that also reads {', '.join(missing)}")
    return classifier.to(args.device)


def measure(args: TruthArguments) -> dict:
    """Draws what is not drawn yet, reads it, and leaves truth.json, truth.md, scale.png and references.png.

    Returns:
        What truth.json holds. Shares of pictures, 0 to 1, by attribute and mean (`COLUMNS`): real (the targets) and vae
        (the targets through the VAE: the ceiling); of each task chance, and a `summary` of retribooru and, where there
        is one, of base; curves: {"scale" or "references": {task: {value: {mean: share}}}}.
    """
    out = Path(args.output_dir)
    pipeline = load("checkpoint", args.checkpoint, RetriBooruPipeline, args.device)
    base = load("base", args.base, StableDiffusionPipeline, args.device) if args.base else None
    classifier, figures = load_classifier(args), Figures(args)
    drawn = Drawn(pipeline, figures, args)

    def scores(pictures: Sequence[Image.Image], expected: Sequence[Mapping[str, str]]) -> dict[str, float]:
        return with_means(accuracy(classifier.classify(pictures), expected))

    of_targets = [figures.truth[image_id] for image_id in figures.target_ids]
    result = {"settings": settings(args), "real": scores(drawn.targets(), of_targets)}
    result |= {"vae": scores(drawn.reconstructions(), of_targets), "tasks": {}, "curves": {}}
    for task, expected in figures.expected.items():
        setting = Setting(task, args.retrieval_scale, len(RECIPES[task]))
        by_seed = [scores(drawn.retrieved(setting, seed, args.pictures), expected) for seed in range(args.seeds)]
        result["tasks"][task] = {"chance": chance(expected), "retribooru": summary(by_seed, result["vae"])}
    if base:
        plain = [Drawn(base, figures, args).plain(seed) for seed in range(args.seeds)]
        for task, expected in figures.expected.items():
            ids = figures.rows[task]["target_id"]
            by_seed = [scores([pictures[i] for i in ids], expected) for pictures in plain]
            result["tasks"][task]["base"] = summary(by_seed, result["vae"])
    if args.curve_pictures:
        for kind, values in (("scale", args.scales), ("references", args.references)):
            result["curves"][kind] = {
                task: {
                    f"{value:g}": scores(
                        drawn.retrieved(setting, 0, args.curve_pictures), figures.expected[task][: args.curve_pictures]
                    )
                    for value, setting in curve(kind, values, task, args)
                }
                for task in args.tasks
            }
            plot(result["curves"][kind], kind, out / f"{kind}.png")
    write(out / "truth.json", json.dumps(result, indent=2) + "\n")
    write(out / "truth.md", table(result))
    return result


def curve(kind: str, values: Iterable[float], task: str, args: TruthArguments) -> list[tuple[float, Setting]]:
    """The points of a curve. Numbers of references that the task's concepts cannot share evenly are left out: one of
    `compose` would be a face without a body."""
    if kind == "scale":
        return [(scale, Setting(task, scale, len(RECIPES[task]))) for scale in values]
    concepts = len(set(RECIPES[task]))
    return [(count, Setting(task, args.retrieval_scale, count)) for count in values if count % concepts == 0]


def settings(args: TruthArguments) -> dict:
    return without_folders({k: value for k, value in asdict(args).items() if k not in ("output_dir", "device")})


def write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(TruthArguments, allow_abbrev=False)  # a misspelt flag is not another one
    args = TruthArguments(**vars(parser.parse_args(sys.argv[1:] if argv is None else argv)))
    print(table(measure(args)))


if __name__ == "__main__":
    main()
