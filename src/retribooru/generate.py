"""`retribooru generate`: from prompts and a character's references to pictures that say how they were drawn."""

import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import diffusers
import torch
import transformers
from PIL import Image
from tqdm import tqdm

import retribooru
from retribooru.checkpoint_facts import PIPELINES, pipeline_class
from retribooru.generate_files import (
    grid_names,
    names_of,
    picture_names,
    read_picture,
    save_new,
)
from retribooru.generate_grid import cell_size, draw_grid, shorten, small_print
from retribooru.generate_references import (
    Reference,
    read_character,
    read_reference,
    sha256,
)
from retribooru.generate_settings import (
    MAX_SEED,
    SETTINGS,
    Settings,
    check_text,
    check_whole,
)
from retribooru.pipeline.guidance import retrieval_scales
from retribooru.pipeline.retrieved_features import RetrievedFeatures, fingerprint


def generate(
    prompts: Sequence[str],
    checkpoint: str,
    out: str | os.PathLike = "pictures",
    references: Sequence[tuple[str, str | os.PathLike]] = (),
    masks: str | os.PathLike | None = None,
    characters: Sequence[str | os.PathLike] = (),
    save_character: str | os.PathLike | None = None,
    images_per_prompt: int = 1,
    device: str | None = None,
    again: str | os.PathLike | None = None,
    **settings,
) -> list[Path]:
    """Draws pictures one by one, each from a seed of its own, and a grid of all: no file is ever overwritten.

    What can be told to be wrong without the model is refused before it is loaded.

    Args:
        prompts: P of them; picture k of each has the seed `seed` + k. None are needed with save_character.
        checkpoint: a folder or a Hub id of a RetriBooru pipeline; safetensors only, none of its own code is run.
        out: folder to write; what is in it is kept, and the numbers of pictures go on.
        references: (concept, file) each: a still PNG, JPEG or WebP. Its transparency is its mask.
        masks: folder with NAME.png, white where the figure is, for a reference NAME.*; such a mask counts in place of
            the transparency, and each reference must have the one or the other.
        characters: files that save_character wrote, joined with each other and with the references.
        save_character: a file to write, not there yet: what was read from all references.
        images_per_prompt: at least 1.
        device: of torch; the GPU where there is one, by default.
        again: a picture drawn before: it is drawn again, from the same checkpoint and references and without settings.
        settings: of `Settings`; dtype is float16 on a GPU and float32 elsewhere by default.

    Returns:
        The files of the pictures, then that of the grid; without prompts, none.

    Raises:
        ValueError or TypeError, naming the argument.
    """
    device, out = _check_device(device), Path(out)
    masks, save_character = masks and Path(masks), save_character and Path(save_character)
    recorded = None
    if again is not None:
        given = ["prompts"] * bool(prompts) + ["images_per_prompt"] * (images_per_prompt != 1) + list(settings)
        if given:
            raise ValueError(f"again: got {again} and {', '.join(given)}, wanted the picture's own settings alone")
        recorded = read_picture(again)
        prompts, settings = [recorded["prompt"]], {name: recorded[name] for name in SETTINGS}
    settings = Settings(**settings)
    if settings.dtype is None:
        settings = replace(settings, dtype="float16" if device.type == "cuda" else "float32")
    check_whole("images_per_prompt", images_per_prompt, 1, 10_000)
    check_whole("seed", settings.seed + images_per_prompt - 1, 0, MAX_SEED)
    if isinstance(prompts, str):
        raise TypeError(f"prompts: got {prompts!r}, wanted a list")
    for prompt in prompts:
        check_text("prompts", prompt)
    if not prompts and save_character is None:
        raise ValueError("prompts: got none, wanted at least one (or save_character)")
    if masks and not references:
        raise ValueError(f"masks: got {masks} without references, wanted references too")

    read = [read_reference(concept, Path(file), masks) for concept, file in references]
    saved = {Path(file): read_character(Path(file)) for file in characters}
    sources = {
        "references": [reference.record for reference in read],
        "characters": [{"file": file.name, "sha256": sha256(file)} for file in saved],
    }
    if recorded:
        _check_same_sources(again, recorded, sources)
    if save_character:
        _check_new_character(save_character, bool(read or saved))
    if prompts:
        _make_folder("out", out)

    pipeline = load_pipeline(checkpoint, settings, device)
    model = model_hash(pipeline)
    if recorded and recorded["model"] != model:
        raise ValueError(f"checkpoint: got {checkpoint}, wanted {recorded['checkpoint']}, which {again} was drawn with")
    features = encode_character(pipeline, read, saved)
    if save_character:
        features.save(save_character)
        print(f"character: {save_character}")
    if not prompts:
        return []

    for note in notes(pipeline, features, [*prompts, settings.negative_prompt or ""]):
        print(note)
    size = pipeline.sample_size
    settings = replace(settings, height=settings.height or size, width=settings.width or size)
    described = {
        **asdict(settings),
        "scheduler": type(pipeline.scheduler).__name__,
        "checkpoint": Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else checkpoint,
        "model": model,
        **sources,
        "device": device.type,
        "versions": {name: version(name) for name in ("retribooru", "diffusers", "transformers", "torch")},
    }
    if recorded and any(recorded.get(name) != described[name] for name in ("device", "versions")):
        print(f"{again} was drawn on another kind of device or with other versions: expect small differences.")
    seeds = range(settings.seed, settings.seed + images_per_prompt)
    cell = cell_size(settings.width, settings.height, len(seeds), len(prompts))
    files, cells = [], []
    with _without_repeated_warnings():
        for prompt, seed in tqdm([*itertools.product(prompts, seeds)], desc="pictures", unit="picture"):
            picture = draw(pipeline, prompt, replace(settings, seed=seed), features)
            files.append(save_new(picture, picture_names(out, seed), {"prompt": prompt, **described, "seed": seed}))
            cells.append(picture.resize(cell, Image.NEAREST if max(picture.size) < 128 else Image.LANCZOS))
    grid = draw_grid(read, list(saved), prompts, seeds, cells, small_print(described))
    return [*files, save_new(grid, grid_names(out), {"prompt": list(prompts), **described, "seed": list(seeds)})]


def load_pipeline(checkpoint: str, settings: Settings, device: torch.device):
    """The checkpoint's pipeline, with the scheduler that the settings name. The small files are judged first."""
    try:
        kind = pipeline_class(checkpoint)
        if kind not in PIPELINES:
            raise ValueError(
                f"it is a {kind}, wanted one of {', '.join(PIPELINES)}: `retribooru train` makes one; "
                f"RetriBooruPipeline.from_stable_diffusion makes an untrained one, which ignores references"
            )
        levels = len(diffusers.UNet2DConditionModel.load_config(checkpoint, subfolder="unet")["block_out_channels"])
    except (OSError, ValueError, KeyError) as error:
        raise _no_checkpoint(checkpoint, error) from error
    retrieval_scales(settings.retrieval_scale, 1, levels)  # raises for another number of them
    try:
        with warnings.catch_warnings():  # of an argument's new name, which older versions do not know
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
            pipeline = getattr(retribooru, kind).from_pretrained(checkpoint, torch_dtype=getattr(torch, settings.dtype))
    except (OSError, ValueError, KeyError) as error:
        raise _no_checkpoint(checkpoint, error) from error
    if settings.scheduler is not None:
        pipeline.scheduler = getattr(diffusers, settings.scheduler).from_config(pipeline.scheduler.config)
    try:
        pipeline.scheduler.set_timesteps(settings.steps)
    except ValueError as error:
        name = type(pipeline.scheduler).__name__
        raise ValueError(f"steps: got {settings.steps}, which {name} does not take: {error}") from error
    pipeline.set_progress_bar_config(desc="steps", leave=False)
    return pipeline.to(device)


def _no_checkpoint(checkpoint: str, error: Exception) -> ValueError:
    return ValueError(f"checkpoint: got {checkpoint}, which cannot be loaded: {' '.join(str(error).split())}")


def encode_character(
    pipeline, references: Sequence[Reference], saved: dict[Path, RetrievedFeatures]
) -> RetrievedFeatures | None:
    """What is read from the references, joined with saved characters; None without any.

    The order in which they are named makes no difference, not even in rounding.
    """
    parts = []
    if references:
        ordered = sorted(references, key=lambda reference: json.dumps({**reference.record, "file": None}))
        parts.append(pipeline.encode_references(
            [reference.image for reference in ordered], [reference.concept for reference in ordered],
            [reference.mask for reference in ordered],
        ))  # fmt: skip
    for file in sorted(saved, key=sha256):
        try:
            parts.append(pipeline.check_features(saved[file]))
        except ValueError as error:
            raise ValueError(f"character: got {file}; {error}") from error
    return RetrievedFeatures.join(parts) if parts else None


def model_hash(pipeline) -> str:
    """16 hexadecimal digits that tell a checkpoint's weights, as loaded in this dtype, from others."""
    modules = [module for _, module in sorted(pipeline.components.items()) if isinstance(module, torch.nn.Module)]
    return hashlib.sha256(fingerprint(*modules).numpy().tobytes()).hexdigest()[:16]


def is_trained(pipeline) -> bool:
    """Whether anything that is retrieved can reach a picture."""
    layers = [layer.zero_conv for layer in pipeline.unet.retrieval_layers]
    return any(parameter.any() for layer in layers for parameter in layer.parameters())


def notes(pipeline, features: RetrievedFeatures | None, texts: Sequence[str]) -> Iterator[str]:
    """What one should know before pictures are drawn."""
    if features is None:
        yield "No references: this is plain Stable Diffusion."
    elif not is_trained(pipeline):
        yield "This checkpoint's retrieval is untrained: it ignores references."
    for text in dict.fromkeys(texts):
        lost = cut_off(pipeline.tokenizer, text)
        if lost:
            yield f"Too long for this model, which does not see the end of {shorten(text, 40)!r}: {lost!r}"


def draw(pipeline, prompt: str, settings: Settings, features: RetrievedFeatures | None) -> Image.Image:
    """One picture. Its noise comes from the CPU: the same on any device."""
    result = pipeline(
        prompt,
        negative_prompt=settings.negative_prompt,
        reference_features=features,
        retrieval_scale=settings.retrieval_scale,
        height=settings.height,
        width=settings.width,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        reference_guidance_scale=settings.reference_guidance_scale,
        generator=torch.Generator().manual_seed(settings.seed),
    )
    if any(getattr(result, "nsfw_content_detected", None) or ()):
        tqdm.write(f"The checkpoint's safety checker blackened seed {settings.seed} of {prompt!r}.")
    return result.images[0]


def cut_off(tokenizer, text: str) -> str:
    """The end of a text that is too long for the text encoder; empty where it is not."""
    length = tokenizer.model_max_length
    ids = tokenizer(text, verbose=False).input_ids
    return tokenizer.decode(ids[length - 1 : -1]) if len(ids) > length else ""


@contextmanager
def _without_repeated_warnings() -> Iterator[None]:
    """The libraries say with every picture what `cut_off` said once."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, before):
            library.set_verbosity(verbosity)


def _check_device(name: str | None) -> torch.device:
    """The device, which is there; without a name the fastest."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: got {name!r}, which is not to be had: {str(error).splitlines()[0]}") from error


def _check_new_character(file: Path, has_references: bool) -> None:
    if not has_references:
        raise ValueError(f"save_character: got {file} without references or a character, wanted some")
    if file.exists():
        raise ValueError(f"save_character: got {file}, which is there already, wanted a new file")
    _make_folder("save_character", file.parent)


def _make_folder(name: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{name}: got {folder}, which cannot be made a folder: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{name}: got {folder}, wanted a folder that can be written to")


def _check_same_sources(again, recorded: dict, sources: dict) -> None:
    """Raises ValueError unless the files that are given are those of the picture, by content."""

    def contents(entries: list[dict]) -> list[str]:
        return sorted(json.dumps({**entry, "file": None}, sort_keys=True) for entry in entries)

    for kind, found in sources.items():
        if contents(recorded[kind]) != contents(found):
            raise ValueError(
                f"{kind}: got {names_of(found)}, wanted the files, unchanged, that {again} was drawn with: "
                f"{names_of(recorded[kind])}"
            )
