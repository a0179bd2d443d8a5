"""Models that see images and answer a question about them: through transformers, or at an OpenAI-compatible endpoint.

What the user names is a specification, small and picklable; `load` makes the model, in the process that works. A
model answers about each prompt, the images of which are read only when their turn comes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from .annotations import Reject
from .endpoint import KEY, Endpoint
from .given import Given, file_stamp, read_given

INSTRUCTBLIP = "Salesforce/instructblip-vicuna-7b"
MODELS = "given:FILE, the URL of an OpenAI-compatible endpoint (http://HOST:PORT/v1), or a Hub id or folder of a model"

Show = Callable[[], list[Image.Image]]  # a prompt's images, in RGB; raises Reject where one cannot be shown
Answer = str | Reject


class Model(Protocol):
    """Answers the question about each prompt."""

    def __call__(self, prompts: Sequence[Show], question: str) -> list[Answer]: ...


@dataclass(frozen=True)
class TransformersModel:
    """An image-text-to-text model.

    Args:
        name: Hub id or folder.
        batch_size: prompts at once.
        max_new_tokens: of an answer.
        trust_remote_code: let the repository's own code run.
    """

    name: str = INSTRUCTBLIP
    batch_size: int = 8
    max_new_tokens: int = 32
    trust_remote_code: bool = False

    def settings(self) -> list:
        """What the answers depend on."""
        name = file_stamp(self.name) if Path(self.name).is_dir() else self.name
        return ["transformers", name, self.max_new_tokens]

    def load(self) -> Model:
        """The model."""
        return _LocalModel(self)


@dataclass(frozen=True)
class GivenAnswers:
    """Answers that somebody has already."""

    file: str
    answers: Given

    @classmethod
    def read(cls, file: str) -> "GivenAnswers":
        """From `answer`; from `cloths`, joined by ", ", in the authors' retribooru.json."""
        return cls(file, read_given(file, "model", "answer", _answer_of))

    def settings(self) -> list:
        """What the answers depend on."""
        return ["given", file_stamp(self.file)]

    def of(self, image_ids: Sequence[str]) -> list[Answer]:
        """The answer for each image, or why there is none."""
        given = self.answers.of(image_ids)
        return [
            as_answer(given[image_id], image_id) if image_id in given else Reject(f"answer: none given for {image_id}")
            for image_id in image_ids
        ]


ModelSpec = TransformersModel | Endpoint | GivenAnswers


def model_named(
    text: str,
    batch_size: int = 8,
    max_new_tokens: int = 32,
    endpoint_model: str | None = None,
    trust_remote_code: bool = False,
) -> ModelSpec:
    """The specification that the user's `--model` names.

    Args:
        text: given:FILE, the URL of an endpoint, or a Hub id or folder.
        batch_size: prompts at once; at an endpoint, requests at once.
        max_new_tokens: of an answer.
        endpoint_model: what an endpoint calls the model; for an endpoint, and for that alone.
        trust_remote_code: for a model through transformers, and for that alone: let the repository's own code run.
    """
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, wanted at least 1")
    is_endpoint, is_given = bool(re.match("https?://", text)), text.startswith("given:")
    if is_endpoint and "@" in text:
        raise ValueError(f"model: got a URL with a password or an @, wanted http://HOST:PORT/v1 and the key in {KEY}")
    if is_endpoint != (endpoint_model is not None):
        raise ValueError(f"endpoint_model: got {endpoint_model}, wanted a name for an endpoint, and for that alone")
    if trust_remote_code and (is_endpoint or is_given):
        raise ValueError(f"trust_remote_code: got it with {text}, which runs no code; wanted a Hub id or folder")
    if is_given:
        return GivenAnswers.read(text.removeprefix("given:"))
    if is_endpoint:
        return Endpoint(text.rstrip("/"), endpoint_model, concurrency=batch_size, max_new_tokens=max_new_tokens)
    if not text:
        raise ValueError(f"model: got nothing, wanted {MODELS}")
    return TransformersModel(text, batch_size, max_new_tokens, trust_remote_code)


def as_answer(value: object, image_id: str) -> Answer:
    """`value` where it is text that can be stored, or why it is not."""
    if not isinstance(value, str):
        return Reject(f"answer: got {value!r:.100} for {image_id}, wanted text")
    try:
        value.encode()
    except UnicodeEncodeError:
        return Reject(f"answer: what is given for {image_id} is not UTF-8")
    return value


def _answer_of(record: dict) -> object:
    if "answer" not in record and isinstance(record.get("cloths"), list):
        return ", ".join(map(str, record["cloths"]))
    return record["answer"]


class _LocalModel:
    """A model through transformers, on the GPU if there is one, in half precision there; answers greedily."""

    def __init__(self, spec: TransformersModel):
        try:
            import torch
            import transformers
        except ImportError as error:
            raise ImportError(f"{error.name}: got none, wanted `pip install retribooru[annotate]`") from error
        self.spec = spec
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        half = torch.bfloat16 if self.device == "cuda" and torch.cuda.is_bf16_supported() else torch.float16
        self.dtype = half if self.device == "cuda" else torch.float32
        options = {"trust_remote_code": spec.trust_remote_code}
        try:
            self.processor = transformers.AutoProcessor.from_pretrained(spec.name, **options)
            model = transformers.AutoModelForImageTextToText.from_pretrained(spec.name, dtype=self.dtype, **options)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"model: {spec.name} cannot be loaded: {error}; wanted {MODELS}") from None
        if not hasattr(self.processor, "tokenizer"):
            raise ValueError(
                f"model: {spec.name} has no processor of images and text, wanted an image-text-to-text model"
            )
        self.processor.tokenizer.padding_side = "left"  # answers begin where the prompts end
        self.model = model.to(self.device).eval()

    def __call__(self, prompts: Sequence[Show], question: str) -> list[Answer]:
        """The answers, without what surrounds them; why not, for a prompt whose images cannot be shown."""
        answers = []
        for start in range(0, len(prompts), self.spec.batch_size):
            shown = [_shown(show) for show in prompts[start : start + self.spec.batch_size]]
            told = iter(self._answer([images for images in shown if not isinstance(images, Reject)], question))
            answers += [images if isinstance(images, Reject) else next(told) for images in shown]
        return answers

    def _answer(self, prompts: list[list[Image.Image]], question: str) -> list[str]:
        import torch

        if not prompts:
            return []
        inputs = self._inputs(prompts, question).to(self.device, self.dtype)
        with torch.inference_mode():
            told = self.model.generate(**inputs, max_new_tokens=self.spec.max_new_tokens, do_sample=False, num_beams=1)
        asked = inputs["input_ids"]
        if told.shape[1] >= asked.shape[1] and (told[:, : asked.shape[1]] == asked).all():
            told = told[:, asked.shape[1] :]  # some models repeat the prompt
        return [text.strip() for text in self.processor.batch_decode(told, skip_special_tokens=True)]

    def _inputs(self, prompts: list[list[Image.Image]], question: str):
        """In the model's own form of a chat; as InstructBLIP wants it, image and bare question, where it has none."""
        if getattr(self.processor, "chat_template", None):
            chats = [
                [
                    {
                        "role": "user",
                        "content": [
                            *({"type": "image", "image": image} for image in images),
                            {"type": "text", "text": question},
                        ],
                    }
                ]
                for images in prompts
            ]
            return self.processor.apply_chat_template(
                chats,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        if any(len(images) != 1 for images in prompts):
            raise ValueError(f"model: {self.spec.name} has no chat template, wanted one that can be shown two images")
        flat = [image for images in prompts for image in images]
        return self.processor(images=flat, text=[question] * len(flat), padding=True, return_tensors="pt")


def _shown(show: Show) -> list[Image.Image] | Reject:
    try:
        return show()
    except Reject as reason:
        return reason
