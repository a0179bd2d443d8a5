"""The console command `retribooru`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__, rich_markup_mode=None
)


@app.callback()
def _main() -> None:
    """RetriBooru: draw this character, in these clothes, from a few pictures."""


@app.command()
def build(
    annotations: Annotated[Path, typer.Option(help="JSON in the authors' form: retribooru.json")],
    images: Annotated[Path, typer.Option(help="Folder with ID.png (or .jpg, .webp) of every record")],
    masks: Annotated[Path, typer.Option(help="Folder with ID.png of every record, white where the figure is")],
    out: Annotated[Path, typer.Option(help="Folder to write: the data_dir of load_dataset")],
    seed: Annotated[int, typer.Option(help="Of the split")] = 0,
    out_of_domain: Annotated[float, typer.Option(help="Share of characters kept out of training")] = 0.1,
    in_domain: Annotated[float, typer.Option(help="Share of the other characters' images kept as targets")] = 0.05,
) -> None:
    """Build the figures table from annotations, images and masks."""
    from retribooru.dataset_script.build import build_figures

    with _clear_errors():
        print(build_figures(annotations, images, masks, out, seed, out_of_domain, in_domain))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def train(context: typer.Context) -> None:
    """Train the retrieval; the flags are those of `python -m retribooru.training.train --help`."""
    from retribooru.training.train import main

    with _clear_errors():
        main(context.args)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write")] = Path("demo"),
    figures: Annotated[
        Path | None, typer.Option(help="Folder with retribooru.json, images/ and masks/; drawn by code without")
    ] = None,
    vae_steps: Annotated[int | None, typer.Option(help="Training steps of the VAE")] = None,
    base_steps: Annotated[int | None, typer.Option(help="Training steps of the small Stable Diffusion")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of the retrieval")] = None,
    clip: Annotated[str | None, typer.Option(help="A trained CLIP (Hub id or folder) to score with")] = None,
    seed: Annotated[int, typer.Option(help="Of everything drawn")] = 0,
) -> None:
    """The whole chain on this machine, without network: figures, training, a grid of pictures, scores."""
    from retribooru.demo import run_demo

    with _clear_errors():
        run_demo(out, figures, vae_steps, base_steps, steps, clip, seed)


class _clear_errors:
    """Bad input ends in one line and status 1; anything else is a fault of ours and shows where."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is not None and issubclass(kind, (ValueError, TypeError, FileNotFoundError)):
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
