"""What the pictures of a checkpoint show, by the truth of the mini edition and not by taste.

python -m retribooru.metrics.truth --checkpoint runs/mini-retrieval --base runs/mini-base \
    --classifier runs/mini-attributes --characters 1500 --output_dir runs/truth

Characters are drawn that were never trained on, from prompts that tell pose, expression and background and nothing of
hair, eyes, skin and clothes: these are in the references alone. A classifier reads all of it off the pictures.
"""

import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

import datasets
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm
from transformers import HfArgumentParser

from retribooru.dataset_script.concepts import crop_concept
from retribooru.dataset_script.figures import IdentityIndex
from retribooru.dataset_script.files import replacing
from retribooru.dataset_script.mini import TRUTH
from retribooru.dataset_script.references import RECIPES, draw_references, row_rng
from retribooru.pipeline.pipeline_retribooru import RetriBooruPipeline
from retribooru.training.data import load_figures

from .attributes import AttributeClassifier, accuracy, square

OF_CLOTHES = ("top", "bottom", "pattern")
OF_PROMPT = ("pose", "expression", "background")
OF_REFERENCES = tuple(name for name in TRUTH if name not in OF_PROMPT)
# Means over attributes, beside them: what is taken from the references, and whether the prompt is obeyed.
MEANS = {"identity": OF_REFERENCES, "obedience": OF_PROMPT}
COLUMNS = (*TRUTH, *MEANS)


@dataclass
class TruthArguments:
    """What is drawn, and how."""

    checkpoint: str = field(metadata={"help": "A RetriBooruPipeline: a folder or a Hub id."})
    classifier: str = field(metadata={"help": "What train_attributes wrote: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Where pictures and results go. Pictures that are there stay."})
    base: str | None = field(
        default=None, metadata={"help": "A StableDiffusionPipeline that draws the same prompts without references."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "A folder with a mini edition; without, the one that is drawn and cached."}
    )
    characters: int | None = field(
        default=None, metadata={"help": "Of the mini edition, where no data_dir is given; 300 without."}
    )
    tasks: list[str] = field(
        default_factory=lambda: ["reconstruct", "compose", "swap"], metadata={"help": "Some of the dataset's tasks."}
    )
    pictures: int = field(default=200, metadata={"help": "Of each task and seed."})
    seeds: int = field(default=3, metadata={"help": "How many: 0, 1, 2 and so on."})
    num_inference_steps: int = field(default=20, metadata={"help": "Of the pipelines."})
    guidance_scale: float = field(default=2.0, metadata={"help": "Of the pipelines."})
    retrieval_scale: float = field(default=1.0, metadata={"help": "Of the tables."})
    reference_guidance_scale: float | None = field(
        default=None, metadata={"help": "Of the pipeline; as guidance_scale without."}
    )
    scales: list[float] = field(
        default_factory=lambda: [0.0, 0.5, 1.0, 1.5, 2.0], metadata={"help": "Retrieval scales of the curve over them."}
    )
    references: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8], metadata={"help": "Numbers of references of the curve over them."}
    )
    curve_pictures: int = field(
        default=60, metadata={"help": "Of each task and point of a curve, with seed 0. 0: no curves."}
    )
    batch_size: int = field(default=16, metadata={"help": "Pictures that are drawn at once."})
    device: str = field(default="cpu", metadata={"help": "Where the models run."})

    def __post_init__(self):
        _check("tasks", self.tasks and set(self.tasks) <= set(RECIPES), self.tasks, f"some of {', '.join(RECIPES)}")
        for name in ("pictures", "seeds", "num_inference_steps", "batch_size"):
            _check(name, getattr(self, name) >= 1, getattr(self, name), "at least 1")
        fine = 0 <= self.curve_pictures <= self.pictures
        _check("curve_pictures", fine, self.curve_pictures, f"a number from 0 to pictures, {self.pictures}")
        _check("scales", self.scales and min(self.scales) >= 0, self.scales, "numbers of at least 0")
        _check("references", self.references and min(self.references) >= 1, self.references, "numbers of at least 1")
        given = self.characters is not None and self.data_dir is not None
        _check("characters", not given, self.characters, "none with data_dir")


@dataclass(frozen=True)
class Setting:
    """One way of drawing the rows of a task."""

    task: str
    retrieval_scale: float
    references: int  # of each row

    @property
    def name(self) -> str:
        return f"{self.task}_scale-{self.retrieval_scale:g}_references-{self.references}"


class Figures:
    """Held-out characters: their pictures, the truth about them, and rows of the tasks.

    Raises ValueError for a table without the truth.
    """

    def __init__(self, args: TruthArguments):
        self.args = args
        self.table = load_figures(args.data_dir, "out_of_domain", None, args.characters)
        missing = [name for name in TRUTH if name not in self.table.column_names]
        _check("data_dir", not missing, args.data_dir, f"a mini edition; its figures have no {', '.join(missing)}")
        self.index = IdentityIndex.from_dataset(self.table)
        self.truth = dict(zip(self.index.image_ids, self.table.select_columns(list(TRUTH)).to_list()))
        self.rows = {task: self._rows(task) for task in args.tasks}
        self.expected = {
            task: [expected_truth(row, self.truth) for row in rows.remove_columns(PIXELS).to_list()]
            for task, rows in self.rows.items()
        }
        self.target_ids = sorted({image_id for rows in self.rows.values() for image_id in rows["target_id"]})

    def _rows(self, task: str) -> datasets.Dataset:
        """As many rows of a task as there are to be pictures, of as many characters and outfits as there are."""
        rows, count = (
            load_figures(self.args.data_dir, "out_of_domain", None, self.args.characters, task),
            self.args.pictures,
        )
        limit = f"at most {len(rows)}, the rows of {task} of held-out characters; more characters have more"
        _check("pictures", count <= len(rows), count, limit)
        return rows.select(spread(rows["character"], rows["artist"], rows["outfit"])[:count])

    def target(self, image_id: str) -> Image.Image:
        return self.table[self.index.positions[image_id]]["image"].convert("RGB")

    def row(self, setting: Setting, number: int) -> dict:
        """A row of the task, with as many references as the setting has."""
        row = self.rows[setting.task][number]
        if setting.references != len(row["reference_ids"]):
            row |= self._other_references(row, setting)
        return row

    def _other_references(self, row: dict, setting: Setting) -> dict[str, list]:
        """References of the same identities, drawn anew: more of them, or fewer."""
        drawn, rng = [], row_rng(0, setting.task, row["target_id"])
        sources = dict(zip(row["reference_concepts"], row["reference_ids"]))
        for concept, source in sources.items():
            like = self.index.images_like(self.index.positions[source])
            recipe = [concept] * (setting.references // len(sources))
            drawn += draw_references(row["target_id"], like, recipe, rng)
        figures = [(self.table[self.index.positions[image_id]], concept) for image_id, concept in drawn]
        crops = [
            crop_concept(concept, figure["image"].convert("RGB"), figure["mask"].convert("L"), figure["head_box"])
            for figure, concept in figures
        ]
        images, masks = zip(*crops)
        return {
            "reference_images": list(images),
            "reference_masks": list(masks),
            "reference_concepts": [concept for _, concept in drawn],
        }


PIXELS = ["target", "target_mask", "reference_images", "reference_masks"]


def spread(characters: Sequence[str], artists: Sequence[str], outfits: Sequence[str]) -> list[int]:
    """The order of rows in which every character comes before any's next outfit, and that before any next picture."""
    pictures, worn = Counter(), defaultdict(dict)
    keys = []
    for character, artist, outfit in zip(characters, artists, outfits):
        identity = (artist, outfit)
        outfit_number = worn[character].setdefault(identity, len(worn[character]))
        keys.append((pictures[character, identity], outfit_number))
        pictures[character, identity] += 1
    return sorted(range(len(keys)), key=keys.__getitem__)


def expected_truth(row: Mapping, truth: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What a picture of a row should show: clothes of whose bodies are the references, the rest of the target.

    Args:
        row: target_id, reference_ids, reference_concepts.
        truth: {image_id: {attribute: value}}.
    """
    bodies = [i for i, concept in zip(row["reference_ids"], row["reference_concepts"]) if concept == "body"]
    clothes = truth[bodies[0] if bodies else row["target_id"]]
    return {**truth[row["target_id"]], **{name: clothes[name] for name in OF_CLOTHES}}


def chance(expected: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Share of the pictures of which the most frequent value is true, by attribute."""
    most = {name: Counter(row[name] for row in expected).most_common(1)[0][1] for name in TRUTH}
    return with_means({name: count / len(expected) for name, count in most.items()})


def with_means(shares: Mapping[str, float]) -> dict[str, float]:
    """The shares, and the means that `MEANS` names."""
    return {**shares, **{mean: fmean(shares[name] for name in names) for mean, names in MEANS.items()}}


def summary(by_seed: Sequence[Mapping[str, float]], ceiling: Mapping[str, float]) -> dict[str, dict]:
    """seeds: {seed: shares}, mean, spread (the largest less the smallest of the seeds), and share_of_ceiling: mean /
    ceiling, None where that is 0."""
    mean = {name: fmean(shares[name] for shares in by_seed) for name in COLUMNS}
    return {
        "seeds": {str(seed): dict(shares) for seed, shares in enumerate(by_seed)},
        "mean": mean,
        "spread": {name: max(s[name] for s in by_seed) - min(s[name] for s in by_seed) for name in COLUMNS},
        "share_of_ceiling": {name: mean[name] / ceiling[name] if ceiling[name] else None for name in COLUMNS},
    }


def generator(seed: int, target_id: str) -> torch.Generator:
    """Noise of its own for each picture: the same for every method, setting and batch."""
    digest = hashlib.sha256(f"{seed}/{target_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def draw(pipeline: DiffusionPipeline, rows: Sequence[Mapping], seed: int, args: TruthArguments, **more) -> list:
    """A picture of each row's prompt; `more` are arguments of the pipeline's call."""
    return pipeline(
        [row["prompt"] for row in rows],
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        generator=[generator(seed, row["target_id"]) for row in rows],
        **more,
    ).images


def draw_missing(
    folder: Path, ids: Sequence[str], batch_size: int, draw: Callable[[list[int]], list[Image.Image]]
) -> list[Image.Image]:
    """The pictures `folder`/ID.png, in the order of the ids. `draw` makes those that are not there, by number.

    Batches are always the same ones, so that no picture depends on where an earlier run was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{image_id}.png" for image_id in ids]
    batches = [range(start, min(start + batch_size, len(ids))) for start in range(0, len(ids), batch_size)]
    missing = [batch for batch in batches if not all(paths[i].exists() for i in batch)]
    for batch in tqdm(missing, desc=f"{folder.parent.name}/{folder.name}", unit="batch", disable=not missing):
        for i, picture in zip(batch, draw(list(batch))):
            with replacing(paths[i]) as partial:
                picture.save(partial, format="PNG")
    return [read_picture(path) for path in paths]


def read_picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


class Drawn:
    """The pictures of a pipeline: in a folder that its weights and the call's settings name, each is drawn once."""

    def __init__(self, pipeline: DiffusionPipeline, figures: Figures, args: TruthArguments):
        self.pipeline, self.figures, self.args = pipeline, figures, args
        call = f"steps-{args.num_inference_steps}_guidance-{args.guidance_scale:g}"
        if isinstance(pipeline, RetriBooruPipeline) and args.reference_guidance_scale is not None:
            call += f"_reference-guidance-{args.reference_guidance_scale:g}"
        self.folder = Path(args.output_dir) / "pictures" / f"{weights_digest(pipeline)}_{call}"

    def retrieved(self, setting: Setting, seed: int, count: int) -> list[Image.Image]:
        """Of the first `count` rows of the setting's task, with their references."""

        def draw_rows(numbers: list[int]) -> list[Image.Image]:
            rows = [self.figures.row(setting, i) for i in numbers]
            names = ("reference_images", "reference_concepts", "reference_masks")
            return draw(
                self.pipeline, rows, seed, self.args,
                **{name: [row[name] for row in rows] for name in names},
                retrieval_scale=setting.retrieval_scale,
                reference_guidance_scale=self.args.reference_guidance_scale,
            )  # fmt: skip

        ids = self.figures.rows[setting.task]["target_id"][:count]
        return draw_missing(self.folder / setting.name / f"seed-{seed}", ids, self.args.batch_size, draw_rows)

    def plain(self, seed: int) -> dict[str, Image.Image]:
        """Of all targets' prompts, without references, by target."""
        ids = self.figures.target_ids
        prompts = {
            row["target_id"]: row
            for rows in self.figures.rows.values()
            for row in rows.select_columns(["target_id", "prompt"])
        }
        pictures = draw_missing(
            self.folder / "base" / f"seed-{seed}", ids, self.args.batch_size,
            lambda numbers: draw(self.pipeline, [prompts[ids[i]] for i in numbers], seed, self.args),
        )  # fmt: skip
        return dict(zip(ids, pictures))

    def targets(self) -> list[Image.Image]:
        """The targets as pictures of the pipeline's size."""
        side = self.pipeline.sample_size
        return [square(self.figures.target(image_id), side) for image_id in self.figures.target_ids]

    def reconstructions(self) -> list[Image.Image]:
        """The targets through the VAE and back: the best that the pipeline could draw."""
        targets = self.targets()
        return draw_missing(
            self.folder / "vae" / "targets", self.figures.target_ids, self.args.batch_size,
            lambda numbers: through_vae(self.pipeline, [targets[i] for i in numbers]),
        )  # fmt: skip


@torch.no_grad()
def through_vae(pipeline: DiffusionPipeline, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Encoded and decoded."""
    vae, processor = pipeline.vae, pipeline.image_processor
    pixels = processor.preprocess(list(images)).to(vae.device, vae.dtype)  # (B, 3, H, W) in [-1, 1]
    return processor.postprocess(vae.decode(vae.encode(pixels).latent_dist.mode()).sample)


def weights_digest(pipeline: DiffusionPipeline) -> str:
    """Eight hexadecimal digits that tell these weights from others."""
    digest = hashlib.sha256()
    for _, component in sorted(pipeline.components.items()):
        if isinstance(component, torch.nn.Module):
            for name, tensor in component.state_dict().items():
                digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def load(argument: str, name: str, kind: type[DiffusionPipeline], device: str) -> DiffusionPipeline:
    """A pipeline of that class. Raises ValueError where there is none."""
    wanted = f"{argument}: got {name}, wanted a {kind.__name__}: a folder or a Hub id"
    try:
        found = DiffusionPipeline.load_config(name)["_class_name"]
    except (OSError, ValueError) as error:
        raise ValueError(f"{wanted} ({error})") from error
    if kind.__name__ not in ([found] if isinstance(found, str) else found):
        raise ValueError(f"{wanted}; it is a {found}")
    pipeline = kind.from_pretrained(name).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_classifier(args: TruthArguments) -> AttributeClassifier:
    """Raises ValueError where there is none, or one that does not read all of `TRUTH`."""
    try:
        classifier = AttributeClassifier.from_pretrained(args.classifier, torch_dtype=torch.float32)
    except (OSError, ValueError) as error:
        wanted = "an AttributeClassifier: a folder or a Hub id"
        raise ValueError(f"classifier: got {args.classifier}, wanted {wanted} ({error})") from error
    missing = [name for name in TRUTH if name not in classifier.config.attributes]
    _check("classifier", not missing, args.classifier, f"one that also reads {', '.join(missing)}")
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
    """Folders of this machine are named by their last part alone."""
    found = {name: value for name, value in asdict(args).items() if name not in ("output_dir", "device")}
    for name in ("checkpoint", "classifier", "base", "data_dir"):
        if found[name] and Path(found[name]).exists():
            found[name] = Path(found[name]).resolve().name
    return found


def table(result: Mapping) -> str:
    """Methods by attributes in percent, as Markdown; of several seeds the mean and, in brackets, the spread."""
    lines = [["", *COLUMNS], ["---", *["---:"] * len(COLUMNS)]]
    for name, title in (("real", "real pictures"), ("vae", "through the VAE (the ceiling)")):
        lines.append([title, *(percent(result[name][column]) for column in COLUMNS)])
    for task, methods in result["tasks"].items():
        lines.append([f"{task}: chance", *(percent(methods["chance"][column]) for column in COLUMNS)])
        for method in ("base", "retribooru"):
            if method not in methods:
                continue
            mean, spread_ = methods[method]["mean"], methods[method]["spread"]
            lines.append([f"{task}: {method}", *(f"{percent(mean[c])} ({percent(spread_[c])})" for c in COLUMNS)])
        share = methods["retribooru"]["share_of_ceiling"]
        lines.append([f"{task}: share of the ceiling", *(percent(share[column]) for column in COLUMNS)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def plot(by_task: Mapping[str, Mapping[str, Mapping[str, float]]], kind: str, path: Path) -> None:
    """identity and obedience over the values of a curve, a colour per task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    for task, points in by_task.items():
        color = None
        for mean, style in zip(MEANS, ("-", "--")):
            values = [100 * shares[mean] for shares in points.values()]
            (line,) = axis.plot(
                list(map(float, points)), values, style, marker=".", color=color, label=f"{task}, {mean}"
            )
            color = line.get_color()
    if kind == "references":
        ticks = sorted({float(value) for points in by_task.values() for value in points})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    label = {"scale": "retrieval_scale", "references": "number of references"}[kind]
    axis.set(xlabel=label, ylabel="read as expected, %", ylim=(0, 100))
    axis.legend(fontsize="small")
    figure.tight_layout()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)


def write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _check(name: str, fine: object, got: object, wanted: str) -> None:
    if not fine:
        raise ValueError(f"{name}: got {got}, wanted {wanted}")


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(TruthArguments, allow_abbrev=False)  # a misspelt flag is not another one
    args = TruthArguments(**vars(parser.parse_args(sys.argv[1:] if argv is None else argv)))
    print(table(measure(args)))


if __name__ == "__main__":
    main()
