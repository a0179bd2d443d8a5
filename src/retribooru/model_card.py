"""The model card of a checkpoint: README.md, with what its files say of it."""

import hashlib
import re
from importlib.resources import files
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from retribooru.checkpoint_facts import Checkpoint, Weights, read_checkpoint
from retribooru.dataset_script.files import replacing

# The end of a card that was written here: the digest of all before it tells whether somebody has changed it since.
MARK = re.compile(r"\n<!-- retribooru wrote this card: ([0-9a-f]{64}) -->\n\Z")
PRECISIONS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
TIMESTEPS = {
    "zero": "references are read once, for all steps",
    "denoising": "references are read anew at every step",
}
QUERIES = {
    "decoder": "the state at the entry of a decoder block asks and is added to",
    "encoder": "the encoder's feature of a level asks, and the result joins what that level hands to the decoder",
}


def write_model_card(folder: Path, repo_id: str | None = None, license: str | None = None) -> Path:
    """Writes README.md into a checkpoint's folder, in the place of none or of one that was written here.

    Args:
        folder: what `save_pretrained` wrote; a training.json in it is told of.
        repo_id: "owner/name" on the Hub, for the lines that load it.
        license: of the weights: a licence of the Hub's list. None: the card says that it is unknown.

    Raises ValueError where people wrote or edited the README.md that is there.
    """
    checkpoint, readme = read_checkpoint(folder), Path(folder) / "README.md"
    if is_edited(readme):
        raise ValueError(f"README.md: got one in {folder} that people wrote or edited, wanted none: move it away first")
    with replacing(readme) as partial:
        partial.write_text(model_card(checkpoint, repo_id, license), encoding="utf-8", newline="\n")
    return readme


def is_edited(readme: Path) -> bool:
    """Whether there is a card that is not as `write_model_card` left it."""
    if not readme.is_file():
        return False
    text = readme.read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n")
    mark = MARK.search(text)
    return not mark or mark[1] != _digest(text[: mark.start()])


def model_card(checkpoint: Checkpoint, repo_id: str | None = None, license: str | None = None) -> str:
    """The text of README.md; see `write_model_card`."""
    base = "Stable Diffusion XL" if "XL" in checkpoint.pipeline else "Stable Diffusion"
    encoder, unet, vae = (checkpoint.configs[name] for name in ("retrieval_encoder", "unet", "vae"))
    concepts = [f'`{concept}` ("{text}")' for concept, text in encoder["concept_texts"].items()]
    tables = [table.strip() for table in checkpoint.tables]
    data = ModelCardData(
        license=license or "unknown",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=_base_model(checkpoint.training),
        tags=["retribooru", "anime", "reference-conditioned generation", checkpoint.pipeline],
    )
    card = ModelCard.from_template(
        data,
        template_str=files("retribooru.pipeline").joinpath("model_card.md").read_text(encoding="utf-8"),
        title=(repo_id or checkpoint.pipeline).rpartition("/")[2],
        repo_id=repo_id or "OWNER/NAME",
        pipeline=checkpoint.pipeline,
        base=base,
        retrieves=checkpoint.retrieves,
        resolution=unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1),
        concepts=", ".join(concepts),
        reference_timestep=encoder["reference_timestep"],
        timestep_words=TIMESTEPS[encoder["reference_timestep"]],
        retrieval_query=unet["retrieval_query"],
        query_words=QUERIES[unet["retrieval_query"]],
        parts=[_part(name, checkpoint.index[name][1], weights) for name, weights in checkpoint.weights.items()],
        training=_training(checkpoint.training),
        guidance_scale=_setting(checkpoint.training, "validation_guidance_scale"),
        tables=tables,
        plots=[plot for plot in checkpoint.plots if not any(f"]({plot})" in table for table in tables)],
        filter_words="" if "safety_checker" not in checkpoint.weights else " but the safety checker that comes along",
        license_words=_license(license, base),
    )
    text = str(card).rstrip("\n") + "\n"
    return f"{text}\n<!-- retribooru wrote this card: {_digest(text)} -->\n"


def _part(name: str, kind: str, variants: dict[str, Weights]) -> dict[str, str]:
    """A row of the table of parts."""
    largest = max(variants.values(), key=lambda weights: weights.parameters)
    parameters = f"{largest.parameters:,}"
    if largest.retrieval_parameters:
        parameters += f", of these {largest.retrieval_parameters:,} in retrieval layers"
    precisions = []
    for variant, weights in variants.items():
        words = ", ".join(PRECISIONS.get(kind, kind) for kind in weights.precision)
        precisions.append(f'{words} (`variant="{variant}"`)' if variant else words)
    return {"name": name, "kind": kind, "parameters": parameters, "precision": "; ".join(precisions)}


def _training(training: dict | None) -> dict[str, str] | None:
    """What training.json says, in words."""
    if training is None:
        return None
    held_out = training["held_out"]
    verdict = held_out["verdict"] if held_out else "No held-out characters were looked at."
    settings = yaml.safe_dump(training["settings"], sort_keys=False, allow_unicode=True).rstrip()
    return {
        **training,
        "held_out": f"The last look at held-out characters, {verdict}" if held_out else verdict,
        "settings": settings,
    }


def _setting(training: dict | None, name: str) -> object:
    """Of the training that is told of; None where none is, or it knows no such setting."""
    return training["settings"].get(name) if training else None


def _base_model(training: dict | None) -> str | None:
    """The Hub id that a training began with; the trainer writes of a folder its name alone, without a slash."""
    name = _setting(training, "pretrained_model_name_or_path") or ""
    return name if name.count("/") == 1 else None


def _license(license: str | None, base: str) -> str:
    named = f"`{license}`, as whoever published these weights says."
    if license is None:
        named = "Unknown: whoever published these weights named none, so assume no permission."
    carried = (
        f"Weights made from others carry their terms on, so those of the {base} that was begun with hold here too."
    )
    return f"{named} {carried} The code in this repository is under Apache 2.0."


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
