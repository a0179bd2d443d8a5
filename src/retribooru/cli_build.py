"""`retribooru build`: all of it in one command, or stage by stage."""

from pathlib import Path
from typing import Annotated

import typer

from retribooru.dataset_script.build.ask import QUESTION
from retribooru.errors import clear_errors

MODEL = "Salesforce/instructblip-vicuna-7b"

app = typer.Typer(help="Build a figures table.", rich_markup_mode=None)

Out = Annotated[
    Path, typer.Option(help="Folder to write: the data_dir of load_dataset; a build's stages are kept there")
]
Metadata = Annotated[
    list[Path] | None,
    typer.Option(help="A file of a booru dump (JSONL, Parquet, CSV; plain or compressed), again for more"),
]
Images = Annotated[
    Path | None, typer.Option(help="Folder with ID.png (.jpg, .webp), or BUCKET/ID.jpg, of every record")
]
Unwanted = Annotated[Path | None, typer.Option(help="Tags that rule an image out, one a line; ours without")]
Clothing = Annotated[Path | None, typer.Option(help="Tags that count as clothing, one a line; ours without")]
Rating = Annotated[list[str] | None, typer.Option(help="A rating to let through, again for more; all without")]
Masks = Annotated[str, typer.Option(help="Where masks come from: isnet, isnet:FILE.onnx, alpha, or given:FOLDER")]
Heads = Annotated[
    str | None,
    typer.Option(help="Where head boxes come from: yolo:FILE.onnx, given:FILE, or none (then only reconstruct)"),
]
Model = Annotated[
    str, typer.Option(help="Says what is worn: a Hub id or folder, the URL of an endpoint, or given:FILE")
]
EndpointModel = Annotated[str | None, typer.Option(help="What the endpoint calls the model")]
Question = Annotated[str, typer.Option(help="What the model is asked about each figure")]
BatchSize = Annotated[int, typer.Option(help="Images that a model is given at once")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Let the model's repository run its own code")]
Judge = Annotated[
    str | None, typer.Option(help="A stronger model that compares images whose answers match: a Hub id, folder or URL")
]
JudgeModel = Annotated[str | None, typer.Option(help="What the judge's endpoint calls the model")]
KeepAlone = Annotated[bool, typer.Option(help="Keep images without another in the same outfit")]
EmbedImages = Annotated[bool, typer.Option(help="Hold the images in the table, or name their files")]
Seed = Annotated[int, typer.Option(help="Of the split")]
OutOfDomain = Annotated[float, typer.Option(help="Share of characters kept out of training")]
InDomain = Annotated[float, typer.Option(help="Share of the other characters' images kept as targets")]
Processes = Annotated[
    int | None, typer.Option(help="Of this machine, or of the cluster; as many as there are cores without")
]
Ray = Annotated[str | None, typer.Option(help="Address of a Ray cluster to work on: auto, local, or HOST:PORT")]


@app.callback(invoke_without_command=True)
def build(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Folder to write: the data_dir of load_dataset")] = None,
    annotations: Annotated[Path | None, typer.Option(help="JSON in the authors' form: retribooru.json")] = None,
    metadata: Metadata = None,
    people: Annotated[Path | None, typer.Option(help="FOLDER/PERSON/FILE, or a CSV with identity and path")] = None,
    images: Images = None,
    masks: Annotated[
        str | None, typer.Option(help="Of --annotations: folder with ID.png, white where the figure is. Of --metadata: "
                                      "isnet (the default), isnet:FILE.onnx, alpha, or given:FOLDER")
    ] = None,
    heads: Heads = None,
    unwanted: Unwanted = None,
    clothing: Clothing = None,
    rating: Rating = None,
    model: Model = MODEL,
    endpoint_model: EndpointModel = None,
    question: Question = QUESTION,
    batch_size: BatchSize = 8,
    trust_remote_code: TrustRemoteCode = False,
    judge: Judge = None,
    judge_model: JudgeModel = None,
    keep_alone: KeepAlone = False,
    embed_images: EmbedImages = True,
    seed: Seed = 0,
    out_of_domain: OutOfDomain = 0.1,
    in_domain: InDomain = 0.05,
    processes: Processes = None,
    ray: Ray = None,
) -> None:  # fmt: skip
    """Build a figures table: from annotations in the authors' form, from a booru dump, or from pictures of people.

    From a dump it takes the stages one after the other: filter, annotate, ask, outfits, write. Killed and called again,
    it goes on where it was.
    """
    if context.invoked_subcommand:
        return
    with clear_errors():
        sources = {"annotations": annotations, "metadata": metadata, "people": people}
        given = [name for name, value in sources.items() if value]
        if len(given) != 1:
            raise ValueError(f"source: got {' and '.join(given) or 'none'}, wanted one of {', '.join(sources)}")
        _need(out=out)
        shares = {"seed": seed, "out_of_domain": out_of_domain, "in_domain": in_domain}
        if annotations:
            from retribooru.dataset_script.build import build_figures

            _need(images=images, masks=masks)
            _refuse(
                "annotations", heads=heads, unwanted=unwanted, clothing=clothing, rating=rating, judge=judge, ray=ray
            )
            print(build_figures(annotations, images, Path(masks), out, **shares))
            _report(out, "annotations", images, seed)
        elif people:
            from retribooru.dataset_script.build.people import build_people

            _refuse("people", masks=masks, heads=heads, unwanted=unwanted, clothing=clothing, rating=rating, judge=judge,
                    ray=ray)  # fmt: skip
            print(build_people(people, images, out, **shares))
            _report(out, "people", images or (people if people.is_dir() else people.parent), seed)
        else:
            _need(images=images, heads=heads)
            _check_models(masks or "isnet", heads, model, endpoint_model, judge, judge_model, trust_remote_code)
            filter_(out, metadata, unwanted, clothing, rating, processes, ray)
            annotate(out, images, heads, masks or "isnet", batch_size, processes, ray)
            ask(out, images, model, endpoint_model, question, batch_size, trust_remote_code, processes, ray)
            outfits(out, images, judge, judge_model, batch_size, trust_remote_code, keep_alone, processes, ray)
            write(out, images, embed_images, **shares)


@app.command("filter")
def filter_(
    out: Out,
    metadata: Metadata = None,
    unwanted: Unwanted = None,
    clothing: Clothing = None,
    rating: Rating = None,
    processes: Processes = None,
    ray: Ray = None,
) -> None:
    """Choose records of a dump: exactly one character and artist, some clothing, no unwanted tag."""
    with clear_errors():
        from retribooru.dataset_script.build.dump import filter_stage
        from retribooru.dataset_script.build.filter import FilterRules

        _need(metadata=metadata)
        rules = FilterRules.from_files(unwanted, clothing, rating)
        _show("filter", filter_stage(out, metadata, rules, _runner(processes, ray)))


@app.command()
def annotate(
    out: Out,
    images: Images = None,
    heads: Heads = None,
    masks: Masks = "isnet",
    batch_size: BatchSize = 8,
    processes: Processes = None,
    ray: Ray = None,
) -> None:
    """Find the figure's mask and the head's box in each image that was chosen."""
    with clear_errors():
        from retribooru.dataset_script.build.detectors import heads_named, masks_named
        from retribooru.dataset_script.build.dump import annotate_stage

        _need(images=images, heads=heads)
        found = annotate_stage(out, images, masks_named(masks), heads_named(heads), _runner(processes, ray), batch_size)
        _show("annotate", found)


@app.command()
def ask(
    out: Out,
    images: Images = None,
    model: Model = MODEL,
    endpoint_model: EndpointModel = None,
    question: Question = QUESTION,
    batch_size: BatchSize = 8,
    trust_remote_code: TrustRemoteCode = False,
    processes: Processes = None,
    ray: Ray = None,
) -> None:
    """Ask a model what each figure wears."""
    with clear_errors():
        from retribooru.dataset_script.build.dump import ask_stage
        from retribooru.dataset_script.build.vqa import model_named

        named = model_named(model, batch_size, endpoint_model=endpoint_model, trust_remote_code=trust_remote_code)
        _show("ask", ask_stage(out, images, named, _runner(processes or 1, ray), question))


@app.command()
def outfits(
    out: Out,
    images: Images = None,
    judge: Judge = None,
    judge_model: JudgeModel = None,
    batch_size: BatchSize = 8,
    trust_remote_code: TrustRemoteCode = False,
    keep_alone: KeepAlone = False,
    processes: Processes = None,
    ray: Ray = None,
) -> None:
    """Group the images by character, artist and answer; drop those that are alone."""
    with clear_errors():
        from retribooru.dataset_script.build.dump import outfits_stage
        from retribooru.dataset_script.build.vqa import model_named

        named = None
        if judge:
            _need(images=images)
            named = model_named(judge, batch_size, 100, judge_model, trust_remote_code)
        _show("outfits", outfits_stage(out, images, _runner(processes or 1, ray), named, keep_alone))


@app.command()
def write(
    out: Out,
    images: Images = None,
    embed_images: EmbedImages = True,
    seed: Seed = 0,
    out_of_domain: OutOfDomain = 0.1,
    in_domain: InDomain = 0.05,
) -> None:
    """Write the figures table, its splits, the rejects, the card and the report."""
    with clear_errors():
        from retribooru.dataset_script.build.dump import write_stage

        _need(images=images)
        print(write_stage(out, images, embed_images, seed, out_of_domain, in_domain))
        print(f"report: {out / 'report' / 'README.md'}")


def _check_models(masks, heads, model, endpoint_model, judge, judge_model, trust_remote_code) -> None:
    """Raises ValueError at once for what would fail hours later."""
    from retribooru.dataset_script.build.detectors import heads_named, masks_named
    from retribooru.dataset_script.build.vqa import model_named

    masks_named(masks)
    heads_named(heads)
    model_named(model, endpoint_model=endpoint_model, trust_remote_code=trust_remote_code)
    if judge:
        model_named(judge, endpoint_model=judge_model, trust_remote_code=trust_remote_code)


def _report(out: Path, source: str, images: Path, seed: int) -> None:
    from retribooru.dataset_script.build.finish import finish_edition

    print(f"report: {finish_edition(out, source, images, seed)}")


def _runner(processes: int | None, ray: str | None):
    from retribooru.dataset_script.build.stage import RayRunner, Runner

    return RayRunner(ray, processes) if ray else Runner(processes)


def _show(stage: str, counts: dict) -> None:
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()) if reason != "kept")
    print(f"{stage}: {counts['kept']:,} kept; rejected: {rejected or 'none'}")


def _need(**arguments: object) -> None:
    for name, value in arguments.items():
        if not value:
            raise ValueError(f"{name}: got none, wanted one: see --help")


def _refuse(source: str, **arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name}: got {value}, wanted none with --{source}")
