"""The console command `retribooru`."""

from pathlib import Path
from typing import Annotated

import typer

from retribooru import cli_build, cli_generate
from retribooru.dataset_script.mini import CHARACTERS, SIZE
from retribooru.errors import clear_errors

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__, rich_markup_mode=None
)


@app.callback()
def _main() -> None:
    """RetriBooru: draw this character, in these clothes, from a few pictures."""


app.add_typer(cli_build.app, name="build")
app.command()(cli_generate.generate)


DataDir = Annotated[Path | None, typer.Option(help="A folder that `build` wrote; without, the mini edition")]
Config = Annotated[list[str] | None, typer.Option(help="A task to write, again for more; all without")]
EmbedImages = Annotated[
    bool | None, typer.Option(help="Write pixels, or file names alone; by default pixels of the mini edition alone")
]
Images = Annotated[Path | None, typer.Option(help="Folder of the image files, for a table that does not hold them")]
Rating = Annotated[list[str] | None, typer.Option(help="A rating to publish, again for more; the safest without")]
ReferenceSeed = Annotated[int, typer.Option(help="Draws the references of the tasks")]
Size = Annotated[int, typer.Option(help="Of the mini edition: side of the images in pixels")]
Characters = Annotated[int, typer.Option(help="Of the mini edition: how many")]
License = Annotated[str | None, typer.Option(help="A licence of the Hub's list, for the card")]


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Folder to write: what a Hub repository holds")],
    data_dir: DataDir = None,
    config: Config = None,
    embed_images: EmbedImages = None,
    images: Images = None,
    rating: Rating = None,
    seed: ReferenceSeed = 0,
    size: Size = SIZE,
    characters: Characters = CHARACTERS,
    license: License = None,
) -> None:
    """Write the files of a Hub repository: Parquet that `datasets` reads without this package, and the card."""
    from retribooru.dataset_script.export import CONFIGS, export_dataset

    with clear_errors():
        print(export_dataset(out, data_dir, config or CONFIGS, embed_images, images, rating, seed, size, characters,
                             license))  # fmt: skip


@app.command()
def push(
    context: typer.Context,
    repo_id: Annotated[str, typer.Argument(help="NAME or OWNER/NAME of a dataset repository, or of a model's")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="A folder that `train` or save_pretrained wrote: push it, and no dataset")
    ] = None,
    data_dir: DataDir = None,
    config: Config = None,
    embed_images: EmbedImages = None,
    images: Images = None,
    rating: Rating = None,
    seed: ReferenceSeed = 0,
    size: Size = SIZE,
    characters: Characters = CHARACTERS,
    license: License = None,
    private: Annotated[bool, typer.Option(help="Whether a repository that is made is private")] = False,
) -> None:
    """Export the dataset and upload it to the Hub, or upload a checkpoint."""
    if checkpoint is not None:
        from retribooru.push import push_checkpoint

        with clear_errors():
            _refuse_given(context, "checkpoint", but=("repo_id", "checkpoint", "license", "private"))
            print(push_checkpoint(repo_id, checkpoint, license, private))
        return

    from retribooru.dataset_script.export import CONFIGS, push_dataset

    with clear_errors():
        print(push_dataset(
            repo_id, private, data_dir=data_dir, configs=config or CONFIGS, embed_images=embed_images, images=images,
            ratings=rating, seed=seed, size=size, characters=characters, license=license,
        ))  # fmt: skip


def _refuse_given(context: typer.Context, option: str, but: tuple[str, ...]) -> None:
    """Raises ValueError where options were given that `option` has no use for."""
    given = [
        name
        for name in sorted(context.params)
        if context.get_parameter_source(name).name != "DEFAULT" and name not in but
    ]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{option}: got {names} with it, wanted none of the dataset's options")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def train(context: typer.Context) -> None:
    """Train the retrieval; the flags are those of `python -m retribooru.training.train --help`."""
    from retribooru.training.train import main

    with clear_errors():
        main(context.args)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def benchmark(context: typer.Context) -> None:
    """Draw, score and tabulate methods; the flags are those of `python -m retribooru.metrics.benchmark --help`."""
    from retribooru.metrics.benchmark.run import main

    with clear_errors():
        main(context.args)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write")] = Path("demo"),
    checkpoint: Annotated[
        str | None, typer.Option(help="What draws: a Hub id or a folder; the checkpoint that comes along without")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything drawn")] = 0,
    train: Annotated[bool, typer.Option("--train", help="Train a tiny pipeline from scratch instead")] = False,
    figures: Annotated[
        Path | None,
        typer.Option(help="With --train: folder with retribooru.json, images/ and masks/; drawn by code without"),
    ] = None,
    vae_steps: Annotated[int | None, typer.Option(help="With --train: steps of the VAE")] = None,
    base_steps: Annotated[int | None, typer.Option(help="With --train: steps of the small Stable Diffusion")] = None,
    steps: Annotated[int | None, typer.Option(help="With --train: steps of the retrieval")] = None,
    clip: Annotated[str | None, typer.Option(help="With --train: a trained CLIP to score with")] = None,
) -> None:
    """Draws characters that the model has never seen, from pictures of them. No network is needed."""
    of_training = {"figures": figures, "vae_steps": vae_steps, "base_steps": base_steps, "steps": steps, "clip": clip}
    with clear_errors():
        if train:
            if checkpoint is not None:
                raise ValueError(f"checkpoint: got {checkpoint}, wanted none with --train")
            from retribooru.demo_train import train_demo

            train_demo(out, **of_training, seed=seed)
            return
        for name, value in of_training.items():
            if value is not None:
                raise ValueError(f"{name}: got {value}, wanted it with --train alone")
        from retribooru.demo import run_demo

        run_demo(out, checkpoint, seed)


if __name__ == "__main__":
    app()
