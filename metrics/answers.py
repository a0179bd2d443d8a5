"""Answers about images from a VQA model of transformers that the caller has loaded."""

from collections.abc import Callable

import torch
from PIL import Image
from tqdm import tqdm

from .checks import check_batch_size, checked_images
from .embeddings import inference, on_device

Answer = Callable[[list[Image.Image], str], list[str]]  # images and a question -> an answer for each image


def question_answerer(model, processor, batch_size: int = 8, max_new_tokens: int = 64, **generation) -> Answer:
    """A function of (images, question) that gives the model's answer about each image.

    The model answers greedily unless ``generation`` says otherwise, so that the same images get the same answers. It
    runs on the device and in the precision it has, in evaluation mode; its training mode is put back afterwards.

    Args:
        model: an ``InstructBlipForConditionalGeneration``, a ``BlipForQuestionAnswering``, or what generates from the
            inputs that its processor makes of images and text.
        processor: the processor of that model.
        batch_size: images per call of ``generate``.
        max_new_tokens: of an answer.
        generation: more arguments of ``generate``, such as ``num_beams``.

    Returns:
        Function of n images and a question; it returns n strings, without the question and special tokens.

    Example:
        >>> from transformers import BlipForQuestionAnswering, BlipProcessor
        >>> name = "Salesforce/blip-vqa-base"
        >>> model, processor = BlipForQuestionAnswering.from_pretrained(name), BlipProcessor.from_pretrained(name)
        >>> question_answerer(model, processor)([image], "What colour is her hair?")
        ['blue']
    """
    check_batch_size(batch_size)
    generation = {"do_sample": False, "max_new_tokens": max_new_tokens, **generation}

    def answer(images: list[Image.Image], question: str) -> list[str]:
        images = [image.convert("RGB") for image in checked_images(images, "images")]
        answers = []
        with inference(model):
            for i in tqdm(range(0, len(images), batch_size), "answers", disable=None, leave=False):
                batch = images[i : i + batch_size]
                inputs = processor(images=batch, text=[question] * len(batch), return_tensors="pt")
                inputs = on_device(inputs, model)
                inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
                tokens = _without_question(model.generate(**inputs, **generation), inputs["input_ids"])
                answers += processor.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in answers]

    return answer


def _without_question(tokens: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
    """Only what was generated: models whose language model is a decoder alone repeat the question before it."""
    length = question.shape[1]
    repeated = tokens.shape[1] >= length and torch.equal(tokens[:, :length], question)
    return tokens[:, length:] if repeated else tokens
