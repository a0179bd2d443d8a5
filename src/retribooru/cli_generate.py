"""`retribooru generate`: pictures of a character."""

from pathlib import Path
from typing import Annotated

import typer

from retribooru.errors import clear_errors


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="What to draw: comma-separated tags; again for more")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="A RetriBooru pipeline: a folder or a Hub id")] = None,
    face: Annotated[
        list[Path] | None, typer.Option(help="A picture of the face, again for more; its transparency is its mask")
    ] = None,
    body: Annotated[list[Path] | None, typer.Option(help="A picture of the clothes, likewise")] = None,
    figure: Annotated[list[Path] | None, typer.Option(help="A picture of all of the character, likewise")] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="Folder with NAME.png, white where the figure is, for a picture NAME.*; counts in place of "
                          "its transparency"),
    ] = None,
    character: Annotated[
        list[Path] | None, typer.Option(help="A character saved before, again for more: they are joined")
    ] = None,
    save_character: Annotated[
        Path | None, typer.Option(help="Save what is read from all pictures, to be reused: a new .safetensors file")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures; nothing in it is overwritten")] = Path("pictures"),
    prompts_file: Annotated[Path | None, typer.Option(help="A text file with a prompt on each line")] = None,
    images_per_prompt: Annotated[int, typer.Option(help="With seeds one after the other")] = 1,
    seed: Annotated[int | None, typer.Option(help="Of each prompt's first picture; 0 without")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to draw")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; 20 without")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Pulls towards the prompt; 9 without")] = None,
    reference_guidance_scale: Annotated[
        float | None, typer.Option(help="Pulls towards the references; as the guidance scale without")
    ] = None,
    retrieval_scale: Annotated[
        str | None, typer.Option(help="How much of what is retrieved is added: 1 (as trained), or one number for each "
                                      "level from the finest, comma-separated")
    ] = None,
    height: Annotated[int | None, typer.Option(help="In pixels; the checkpoint's own without")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels; the checkpoint's own without")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="A class of diffusers, EulerDiscreteScheduler say; the checkpoint's without")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16; float16 on a GPU, float32 elsewhere without")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the GPU, if there is one, without")
    ] = None,
    again: Annotated[
        Path | None, typer.Option(help="Draw this picture again: of the same checkpoint and references, as it was set")
    ] = None,
) -> None:  # fmt: skip
    """Draw a character from a few pictures, as the prompts say.

    retribooru generate "1girl, smile" "1girl, sitting" --checkpoint DIR --face a.png --body b.png --images-per-prompt 4
    """
    with clear_errors():
        if checkpoint is None:
            raise ValueError("checkpoint: got none, wanted a folder or a Hub id of a RetriBooru pipeline")
        prompts = [*(prompts or []), *(_lines(prompts_file) if prompts_file else [])]
        settings = {
            "seed": seed, "negative_prompt": negative_prompt, "steps": steps, "guidance_scale": guidance_scale,
            "reference_guidance_scale": reference_guidance_scale, "retrieval_scale": _scales(retrieval_scale),
            "height": height, "width": width, "scheduler": scheduler, "dtype": dtype,
        }  # fmt: skip
        references = {"face": face, "body": body, "figure": figure}

        from retribooru.generate import generate

        files = generate(
            prompts, checkpoint, out,
            references=[(concept, file) for concept, files in references.items() for file in files or []],
            masks=masks,
            characters=character or [],
            save_character=save_character,
            images_per_prompt=images_per_prompt,
            device=device,
            again=again,
            **{name: value for name, value in settings.items() if value is not None},
        )  # fmt: skip
        for file in files:
            print(file)


def _lines(file: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts_file: got {file}, which cannot be read: {error}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"prompts_file: got {file}, which has no line, wanted a prompt on each")
    return found


def _scales(text: str | None) -> float | list[float] | None:
    """ "1" -> 1.0; "1,0.5" -> [1.0, 0.5]."""
    if text is None:
        return None
    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"retrieval_scale: got {text!r}, wanted a number, or several with commas between") from None
    return scales if len(scales) > 1 else scales[0]
