"""Trains a small BLIP that answers questions about pictures of the mini edition: the judge of the mini checkpoint.

accelerate launch -m retribooru.training.train_vqa --preset mini-vqa --output_dir runs/mini-vqa
"""

import re
import string
import sys
from collections.abc import Iterable
from pathlib import Path
from random import Random

import datasets
from tokenizers.implementations import BertWordPieceTokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertTokenizerFast, BlipConfig, BlipForQuestionAnswering, BlipImageProcessor, BlipProcessor

from retribooru.dataset_script.mini import TRUTH
from retribooru.metrics.answers import question_answerer
from retribooru.metrics.diversity import QUESTION
from retribooru.metrics.modules import load_vqa

from .arguments import VqaArguments
from .judges import NamedFigures, figures_of, sharpen_attention, telling_tags, train_judge
from .parsing import parse
from .run import Run, begin
from .trainable import adamw

QUESTIONS = {
    "hair": "What colour is her hair?",
    "hair_style": "How does she wear her hair?",
    "eyes": "What colour are her eyes?",
    "skin": "What skin does she have?",
    "top": "What colour is her top?",
    "bottom": "What colour does she wear below?",
    "pattern": "What pattern is on her clothes?",
    "pose": "What is she doing?",
    "expression": "What is her expression?",
    "background": "What is behind her?",
}
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LENGTH = 64  # tokens


def answers_about(row: dict) -> dict[str, str]:
    """{question: answer} of a figure: of each of `QUESTIONS` its attribute, of `QUESTION` all tags, in words."""
    said = {question: row[name] for name, question in QUESTIONS.items()}
    said[QUESTION] = ", ".join(row["tags"])
    return {question: answer.replace("_", " ") for question, answer in said.items()}


class AskedFigures(NamedFigures):
    """Figures with questions about them: `QUESTION` and others, drawn anew every epoch."""

    def describe(self, row: dict, rng: Random) -> dict:
        """questions and answers, Q strings each; shown (T,): 1 for each of the tags of the picture."""
        answers = answers_about(row)
        others = rng.sample(list(QUESTIONS.values()), min(self.args.questions_per_picture - 1, len(QUESTIONS)))
        questions = [QUESTION, *others]
        told = {"questions": questions, "answers": [answers[question] for question in questions]}
        return {**told, "shown": self.marked(row["tags"])}


def word_tokenizer(texts: Iterable[str]) -> BertTokenizerFast:
    """BERT's tokenizer whose words are those of the texts; others are spelt, letter by letter."""
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    letters = [*string.ascii_lowercase, *string.digits]
    pieces = dict.fromkeys([*MARKS, *words, *letters, *(f"##{letter}" for letter in letters), *string.punctuation])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = BertWordPieceTokenizer(vocab=vocabulary, lowercase=True)
    return BertTokenizerFast(tokenizer_object=tokenizer._tokenizer, model_max_length=LENGTH)


def small_blip(tokenizer: BertTokenizerFast, args: VqaArguments) -> BlipForQuestionAnswering:
    """A BLIP of random weights; heads are 32 wide."""

    def layers(width: int, count: int) -> dict:
        return {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": count,
                "num_attention_heads": width // 32}  # fmt: skip

    text = {
        **layers(args.text_width, args.text_layers), "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH,
        "encoder_hidden_size": args.vision_width, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id, "label_smoothing": 0.0,
        "sep_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {**layers(args.vision_width, args.vision_layers), "image_size": args.resolution}
    vision["patch_size"] = args.patch_size
    model = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision))
    sharpen_attention(model)
    return model


class Answering(nn.Module):
    """A BLIP asked several questions about a picture that it reads once, and one linear layer that names the tags from
    the state of its class token; the layer is thrown away.

    From answers alone a BLIP this small learns the background and hardly more: of most tokens of an answer the words
    before tell enough.
    """

    def __init__(self, blip: BlipForQuestionAnswering, tags: int):
        super().__init__()
        self.blip, self.head = blip, nn.Linear(blip.config.vision_config.hidden_size, tags)

    def forward(
        self, pixels: Tensor, questions: dict[str, Tensor], answers: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """pixels (B, 3, R, R), questions and answers as tokens of B Q texts -> loss in nats per token, a scalar, and
        logits of the tags of each picture (B, T)."""
        seen = self.blip.vision_model(pixel_values=pixels).last_hidden_state
        shown = self.head(seen[:, 0])
        seen = seen.repeat_interleave(len(questions["input_ids"]) // len(pixels), dim=0)
        asked = self.blip.text_encoder(
            questions["input_ids"], attention_mask=questions["attention_mask"], encoder_hidden_states=seen
        ).last_hidden_state
        unused = answers["attention_mask"] == 0
        told = self.blip.text_decoder(
            answers["input_ids"], attention_mask=answers["attention_mask"], encoder_hidden_states=asked,
            encoder_attention_mask=questions["attention_mask"],
            labels=answers["input_ids"].masked_fill(unused, -100),
        ).loss  # fmt: skip
        return told, shown


def vqa_terms(
    model: nn.Module, examples: dict, tokenizer: BertTokenizerFast, tag_loss_weight: float
) -> dict[str, Tensor]:
    """Scalars in nats, of answers per token, of tags per tag: "loss" = "answers" + tag_loss_weight * "tags"."""
    pixels = examples["pixel_values"]

    def tokens(texts: list[tuple[str]]) -> dict[str, Tensor]:
        # By question and picture in a batch, wanted by picture and question.
        flat = [text for of_picture in zip(*texts) for text in of_picture]
        found = tokenizer(flat, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        return {name: found[name].to(pixels.device) for name in ("input_ids", "attention_mask")}

    answers, shown = model(pixels, tokens(examples["questions"]), tokens(examples["answers"]))
    answers, tags = answers.mean(), F.binary_cross_entropy_with_logits(shown.float(), examples["shown"])
    return {"loss": answers + tag_loss_weight * tags, "answers": answers, "tags": tags}


def vqa_accuracy(
    blip: BlipForQuestionAnswering, processor: BlipProcessor, figures: datasets.Dataset
) -> dict[str, float]:
    """By attribute the share of answers that are right to the letter, and "description": the share of all tags that the
    answer to `QUESTION` names (its recall)."""
    answer, images = question_answerer(blip, processor, batch_size=64), list(figures["image"])
    wanted = [answers_about(row) for row in figures.select_columns(["tags", *TRUTH]).to_list()]
    shares = {
        name: sum(said == all_of[question] for said, all_of in zip(answer(images, question), wanted)) / len(wanted)
        for name, question in QUESTIONS.items()
    }
    named = [
        len(true & set(said.split(", "))) / len(true)
        for said, true in zip(answer(images, QUESTION), (set(all_of[QUESTION].split(", ")) for all_of in wanted))
    ]
    return {**shares, "description": sum(named) / len(named)}


def train_vqa(args: VqaArguments) -> Path:
    """Trains, and leaves in `output_dir` the BLIP (`BlipForQuestionAnswering.from_pretrained`, `BlipProcessor`) in half
    precision, training.json with its accuracy on held-out characters, metrics.jsonl and loss.png."""
    accelerator = begin(args)
    figures, held_out = figures_of(args)
    known = telling_tags(list(figures["tags"]))
    texts = (
        text for row in figures.select_columns(["tags", *TRUTH]) for pair in answers_about(row).items() for text in pair
    )
    tokenizer = word_tokenizer(texts)
    half, size = [0.5, 0.5, 0.5], {"height": args.resolution, "width": args.resolution}
    processor = BlipProcessor(BlipImageProcessor(size=size, image_mean=half, image_std=half), tokenizer)
    answering = Answering(small_blip(tokenizer, args), len(known)).to(accelerator.device)
    optimizer = adamw([{"params": list(answering.parameters())}], args)
    run = Run(args, accelerator, answering, optimizer, AskedFigures(figures, known, args))
    return train_judge(
        run,
        lambda model, batch: vqa_terms(model, batch, tokenizer, args.tag_loss_weight),
        answering.blip,
        processor,
        held_out,
        vqa_accuracy,
        load_vqa,
    )


def main(argv: list[str] | None = None) -> None:
    train_vqa(parse(VqaArguments, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
