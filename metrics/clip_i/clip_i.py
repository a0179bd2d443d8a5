"""CLIP-I as a module of evaluate; the computation is in retribooru.metrics.functional."""

# evaluate reads the import lines of this file: one module a line, and no comment behind an import.
import datasets
import evaluate
import torch
from transformers import CLIPModel, CLIPProcessor

from retribooru.metrics.functional import clip_i

_CITATION = """\
@article{tang2023retrieving,
  title = {Retrieving Conditions from Reference Images for Diffusion Models},
  author = {Tang, Haoran and Zhou, Xin and Deng, Jieren and Pan, Zhihong and Tian, Hao and Chaudhari, Pratik},
  journal = {arXiv preprint arXiv:2312.02521},
  year = {2023}
}
"""

_DESCRIPTION = """\
CLIP-I is the mean cosine similarity of a generated image and its reference images in the image space of CLIP.
It lies in [-1, 1], higher is closer; the paper prints 100 times this value.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: n generated images (PIL images, paths or arrays).
    references: n lists of one or more reference images; the lists may differ in length.
    model_name_or_path: a CLIP model of the Hub or a local folder; not read where model is given.
    batch_size: images per forward pass; the values do not depend on it.
    device: where to put the model loaded by name; None takes CUDA where there is one, else the CPU.
    model, processor: a loaded CLIPModel and its CLIPProcessor, both or neither, in place of the name.

Returns:
    clip_i: mean over the generated images, a float.
    clip_i_per_image: the value of each generated image, a list of n floats.

Examples:
    >>> import evaluate
    >>> from PIL import Image
    >>> metric = evaluate.load("clip_i")
    >>> red, blue = Image.new("RGB", (224, 224), "red"), Image.new("RGB", (224, 224), "blue")
    >>> result = metric.compute(predictions=[red, red], references=[[red], [red, blue]])
    >>> round(result["clip_i_per_image"][0], 4)
    1.0
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ClipI(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Image(), "references": datasets.Sequence(datasets.Image())}
            ),
            reference_urls=["https://arxiv.org/abs/2312.02521"],
        )

    def _compute(
        self,
        predictions,
        references,
        model_name_or_path="openai/clip-vit-base-patch32",
        batch_size=32,
        device=None,
        model=None,
        processor=None,
    ):
        if (model is None) != (processor is None):
            missing = "model" if model is None else "processor"
            raise ValueError(f"{missing} is None; wanted model and processor together, or neither.")
        if model is not None and device is not None:
            raise ValueError(f"device is {device!r} beside a loaded model; wanted None, the model stays where it is.")
        if model is None:
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            model = CLIPModel.from_pretrained(model_name_or_path, use_safetensors=True).to(device)
            processor = CLIPProcessor.from_pretrained(model_name_or_path)
        scores = clip_i(predictions, references, model, processor, batch_size)
        return {"clip_i": scores.mean().item(), "clip_i_per_image": scores.tolist()}
