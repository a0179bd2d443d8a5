"""What the modules of evaluate share: reading images, the models loaded when none is given, words of their cards."""

import datasets
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, CLIPModel, CLIPProcessor

from .answers import Answer, question_answerer
from .embeddings import truncated_texts

CLIP = "openai/clip-vit-base-patch32"
VQA = "Salesforce/instructblip-vicuna-7b"
REVISIONS = {
    # The Hub's conversion to safetensors: the main branch of this repository has pickled weights alone.
    "openai/clip-vit-base-patch32": "c237dc49a33fc61debc9276459120b7eac67e7ef",
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "Salesforce/instructblip-vicuna-7b": "19103d0c5b5263c8a7891012e08573439fb6607f",
}
VQA_CLASSES = ("InstructBlipForConditionalGeneration", "BlipForQuestionAnswering")

CITATION = """\
@article{tang2023retrieving,
  title = {Retrieving Conditions from Reference Images for Diffusion Models},
  author = {Tang, Haoran and Zhou, Xin and Deng, Jieren and Pan, Zhihong and Tian, Hao and Chaudhari, Pratik},
  journal = {arXiv preprint arXiv:2312.02521},
  year = {2023}
}
"""

CLIP_ARGUMENTS = """\
    model_name_or_path: a CLIP model of the Hub or a local folder; not read where model is given.
    revision: of the Hub model; None takes the pinned one of a known model, else its main branch.
    batch_size: images or texts per forward pass; the values do not depend on it.
    device: where to put the model loaded by name; None takes CUDA where there is one, else the CPU.
    model, processor: a loaded CLIPModel and its CLIPProcessor, both or neither, in place of the name.
"""

VQA_ARGUMENTS = """\
    questions: one question or a list of them.
    vqa_model_name_or_path, vqa_revision, vqa_device: of the InstructBLIP or BLIP that answers, as for CLIP. On CUDA it
        is loaded in half precision.
    vqa_batch_size: images per call of the VQA model.
    max_new_tokens: of an answer.
    vqa_model, vqa_processor: the loaded model and its processor, both or neither, in place of the name.
"""


STORED_IMAGE = datasets.Image(decode=False)  # read by `read_images`: an error of evaluate would not say which it was


def read_images(stored, name: str):
    """What `evaluate` kept of an image, or lists of it, as ``PIL.Image.Image``.

    Raises:
        ValueError: one cannot be read; says which.
    """
    if isinstance(stored, list):
        return [read_images(one, f"{name}[{i}]") for i, one in enumerate(stored)]
    try:
        return stored and datasets.Image().decode_example(stored)  # None stays: the functions refuse it by name
    except (OSError, SyntaxError, ValueError) as error:
        source = stored["path"] or "an image without a file name"
        raise ValueError(f"{name} cannot be read ({source}: {error}); wanted a whole image.") from error


def load_clip(model_name_or_path=CLIP, revision=None, device=None, model=None, processor=None):
    """(model, processor): the ones given, or those of a Hub id or a local folder. Only safetensors weights are read.

    Raises:
        ValueError: a model without a processor or the reverse, or a device beside a loaded model.
    """
    if _are_given(model, processor, device, ""):
        return model, processor
    revision = revision or REVISIONS.get(model_name_or_path, "main")
    model = CLIPModel.from_pretrained(model_name_or_path, revision=revision, use_safetensors=True, dtype=torch.float32)
    processor = CLIPProcessor.from_pretrained(model_name_or_path, revision=revision)
    return model.to(_device(device)), processor


def load_vqa(model_name_or_path=VQA, revision=None, device=None, model=None, processor=None):
    """(model, processor) that answer questions about images: as :func:`load_clip`, for InstructBLIP and BLIP.

    Raises:
        ValueError: as :func:`load_clip`, or the checkpoint is of another class.
    """
    if _are_given(model, processor, device, "vqa_"):
        return model, processor
    revision = revision or REVISIONS.get(model_name_or_path, "main")
    names = AutoConfig.from_pretrained(model_name_or_path, revision=revision).architectures or ["no class"]
    if names[0] not in VQA_CLASSES:
        raise ValueError(
            f"vqa_model_name_or_path is {str(model_name_or_path)!r}, a checkpoint of {names[0]}; wanted one of "
            f"{' or '.join(VQA_CLASSES)}."
        )
    device = _device(device)
    model = getattr(transformers, names[0]).from_pretrained(
        model_name_or_path,
        revision=revision,
        use_safetensors=True,
        dtype=torch.float16 if device.type == "cuda" else torch.float32,
    )
    return model.to(device), transformers.AutoProcessor.from_pretrained(model_name_or_path, revision=revision)


def load_judges(vqa_batch_size: int = 8, max_new_tokens: int = 64, **models) -> tuple[Answer, object, object]:
    """(answer, model, processor): what answers questions about images, and the CLIP that embeds the answers.

    Args:
        models: arguments of :func:`load_clip`, and those of :func:`load_vqa` with ``vqa_`` before their names.
    """
    vqa = {name.removeprefix("vqa_"): models.pop(name) for name in list(models) if name.startswith("vqa_")}
    clip = load_clip(**models)
    return question_answerer(*load_vqa(**vqa), vqa_batch_size, max_new_tokens), *clip


def diversity_result(name: str, values: Tensor, questions: str | list[str], answers, model, processor) -> dict:
    """What the modules over groups of images return: values (g, q) by group and by question, and the answers."""
    texts = [text for lists in answers for texts in lists for text in texts]
    questions = [questions] if isinstance(questions, str) else questions
    return {
        name: values.mean().item(),
        f"{name}_per_group": values.mean(dim=1).tolist(),
        f"{name}_per_question": dict(zip(questions, values.T.tolist())),
        "answers": answers,
        "truncated_answers": len(truncated_texts(texts, model, processor)),
    }


def _are_given(model, processor, device, prefix: str) -> bool:
    if (model is None) != (processor is None):
        missing = "model" if model is None else "processor"
        raise ValueError(f"{prefix}{missing} is None; wanted {prefix}model and {prefix}processor together, or neither.")
    if model is not None and device is not None:
        raise ValueError(
            f"{prefix}device is {device!r} beside a loaded model; wanted None, the model stays where it is."
        )
    return model is not None


def _device(name) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
