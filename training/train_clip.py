"""Trains a small CLIP on pictures of the mini edition and their tags: the judge of the mini checkpoint.

accelerate launch -m retribooru.training.train_clip --preset mini-clip --output_dir runs/mini-clip
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random

import datasets
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer

from retribooru.dataset_script.files import replacing_folder
from retribooru.dataset_script.mini import TRUTH
from retribooru.dataset_script.mini_face import EXPRESSIONS
from retribooru.dataset_script.mini_figure import POSES
from retribooru.dataset_script.mini_palette import CLOTH, EYES, HAIR, HAIR_STYLES, PATTERNS, SKIN
from retribooru.dataset_script.mini_scenery import BACKGROUNDS
from retribooru.metrics.embeddings import image_embeddings, text_embeddings
from retribooru.metrics.modules import load_clip

from .arguments import ClipArguments
from .judges import NamedFigures, figures_of, image_processor, sharpen_attention, telling_tags, train_judge
from .parsing import parse
from .run import Run, begin
from .scratch import small_tokenizer
from .trainable import adamw

LENGTH = 96  # tokens: all tags of a figure take some 80
SAYING = {  # {attribute: {value: the tags that say so}}
    "hair": {name: [f"{name}_hair"] for name in HAIR},
    "hair_style": {name: [name] for name in HAIR_STYLES},
    "eyes": {name: [f"{name}_eyes"] for name in EYES},
    "skin": {name: [name] for name in SKIN},
    "pattern": PATTERNS,
    "pose": {name: pose.tags for name, pose in POSES.items()},
    "expression": EXPRESSIONS,
    "background": BACKGROUNDS,
}
GARMENTS = {"top": ("shirt", "hoodie", "sweater"), "bottom": ("skirt", "pants", "shorts")}


class TaggedFigures(NamedFigures):
    """Figures and a text of their tags: half of the time of all, else of some of them, in any order."""

    def describe(self, row: dict, rng: Random) -> dict:
        """text: a prompt; shown and said (T,): 1 for each of the tags of the picture, and of those in the text."""
        said = list(row["tags"])
        if rng.random() < 0.5:
            said = rng.sample(said, rng.randint(1, len(said)))
        return {"text": ", ".join(said), "shown": self.marked(row["tags"]), "said": self.marked(said)}


class TagNaming(nn.Module):
    """A CLIP, and one linear layer that names the tags from the embedding of either tower; the layer is thrown away.

    From contrast alone a CLIP this small learns the backgrounds and no more: they are enough to tell most pictures of a
    batch apart. That one layer reads both towers also brings the two together.
    """

    def __init__(self, clip: CLIPModel, tags: int):
        super().__init__()
        self.clip, self.head = clip, nn.Linear(clip.config.projection_dim, tags)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pixels (B, 3, R, R), ids and mask (B, L) -> logits of the pairs (B, B), of the tags of each picture and of
        each text (B, T)."""
        seen = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)
        read = self.clip.text_projection(self.clip.text_model(input_ids=ids, attention_mask=mask).pooler_output)
        seen, read = F.normalize(seen.float(), dim=-1), F.normalize(read.float(), dim=-1)
        scale = self.clip.logit_scale.clamp(max=4.6052).exp()  # at most 100, as CLIP's
        spread = self.clip.config.projection_dim**0.5
        return scale * seen @ read.T, self.head(spread * seen), self.head(spread * read)


def small_clip(tokenizer: CLIPTokenizer, args: ClipArguments) -> CLIPModel:
    """A CLIP of random weights; heads are 32 wide."""

    def tower(width: int, layers: int) -> dict:
        return {
            "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
            "num_attention_heads": width // 32, "projection_dim": args.projection_dim,
        }  # fmt: skip

    text = {
        **tower(args.text_width, args.text_layers), "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {**tower(args.vision_width, args.vision_layers), "image_size": args.resolution}
    vision["patch_size"] = args.patch_size
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=args.projection_dim)
    clip = CLIPModel(config)
    sharpen_attention(clip)
    return clip


def clip_terms(model: nn.Module, examples: dict, tokenizer: CLIPTokenizer, tag_loss_weight: float) -> dict[str, Tensor]:
    """Scalars in nats, of tags per tag: "loss" = "contrast" + tag_loss_weight * ("tags_of_pictures" + "tags_of_texts").

    Each picture's text is told from those of the others in its batch, and the other way round.
    """
    pixels = examples["pixel_values"]
    text = tokenizer(examples["text"], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    pairs, shown, said = model(pixels, text.input_ids.to(pixels.device), text.attention_mask.to(pixels.device))
    own = torch.arange(len(pairs), device=pairs.device)
    contrast = (F.cross_entropy(pairs, own) + F.cross_entropy(pairs.T, own)) / 2
    of_pictures = F.binary_cross_entropy_with_logits(shown.float(), examples["shown"])
    of_texts = F.binary_cross_entropy_with_logits(said.float(), examples["said"])
    loss = contrast + tag_loss_weight * (of_pictures + of_texts)
    return {"loss": loss, "contrast": contrast, "tags_of_pictures": of_pictures, "tags_of_texts": of_texts}


def alternatives(row: Mapping, name: str) -> dict[str, str]:
    """{value: a prompt that says so of an attribute}, in the words for this figure: a hoodie is not called a shirt."""
    if name in GARMENTS:
        words = {f"{row[name]}_{garment}": garment for garment in GARMENTS[name]}
        garment = next(words[tag] for tag in row["tags"] if tag in words)
        saying = {colour: [f"{colour}_{garment}"] for colour in CLOTH}
    else:
        saying = SAYING[name]
    return {value: ", ".join(["1girl", "solo", *tags]) for value, tags in saying.items()}


def clip_accuracy(model: CLIPModel, processor: CLIPProcessor, figures: datasets.Dataset) -> dict[str, float]:
    """By attribute the share of pictures that are closest to the prompt that is true of them, among one for each value;
    and "own_tags", the share that are closest to all of their own tags, among those of 50 pictures in a row."""
    rows = figures.select_columns(["tags", *TRUTH]).to_list()
    seen = image_embeddings(figures["image"], model, processor)
    right = {}
    for name in TRUTH:
        offered = [alternatives(row, name) for row in rows]
        texts = sorted({text for prompts in offered for text in prompts.values()})
        similar = seen @ text_embeddings(texts, model, processor).T  # (n, texts)
        place = {text: i for i, text in enumerate(texts)}
        right[name] = sum(
            max(prompts, key=lambda value: similar[i, place[prompts[value]]].item()) == row[name]
            for i, (row, prompts) in enumerate(zip(rows, offered))
        )
    own = text_embeddings([", ".join(row["tags"]) for row in rows], model, processor)
    right["own_tags"] = sum(
        ((some @ texts.T).argmax(dim=1) == torch.arange(len(some))).sum().item()
        for some, texts in zip(seen.split(50), own.split(50))
    )
    return {name: count / len(rows) for name, count in right.items()}


def tokenizer_of(args: ClipArguments, accelerator: Accelerator, texts: list[str]) -> CLIPTokenizer:
    """One for all processes and for every time that a run goes on: learned anew, its tokens had other numbers."""
    folder = Path(args.output_dir) / "tokenizer"
    if accelerator.is_main_process and not (args.resume_from_checkpoint and folder.is_dir()):
        with replacing_folder(folder) as partial:
            small_tokenizer(texts, length=LENGTH).save_pretrained(partial)
    accelerator.wait_for_everyone()
    return CLIPTokenizer.from_pretrained(folder)


def train_clip(args: ClipArguments) -> Path:
    """Trains, and leaves in `output_dir` the CLIP (`CLIPModel.from_pretrained`, `CLIPProcessor.from_pretrained`) in
    half precision, training.json with its accuracy on held-out characters, metrics.jsonl and loss.png."""
    accelerator = begin(args)
    figures, held_out = figures_of(args)
    sets = list(figures["tags"])
    known = telling_tags(sets)
    tokenizer = tokenizer_of(args, accelerator, [", ".join(tags) for tags in sets])
    processor = CLIPProcessor(image_processor(args.resolution), tokenizer)
    naming = TagNaming(small_clip(tokenizer, args), len(known)).to(accelerator.device)
    optimizer = adamw([{"params": list(naming.parameters())}], args)
    run = Run(args, accelerator, naming, optimizer, TaggedFigures(figures, known, args))
    return train_judge(
        run,
        lambda model, batch: clip_terms(model, batch, tokenizer, args.tag_loss_weight),
        naming.clip,
        processor,
        held_out,
        clip_accuracy,
        load_clip,
    )


def main(argv: list[str] | None = None) -> None:
    train_clip(parse(ClipArguments, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
