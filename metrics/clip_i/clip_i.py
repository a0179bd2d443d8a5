"""CLIP-I as a module of evaluate; the computation is in retribooru.metrics.functional."""

# evaluate reads the import lines of this file: one module a line, and no comment behind an import.
import datasets
import evaluate

from retribooru.metrics.functional import clip_i
from retribooru.metrics.modules import CITATION, CLIP_ARGUMENTS, STORED_IMAGE, load_clip, read_images

_DESCRIPTION = """\
CLIP-I is the mean cosine similarity of a generated image and its reference images in the image space of CLIP.
It lies in [-1, 1], higher is closer; the paper prints 100 times this value.
"""

_KWARGS_DESCRIPTION = f"""
Args:
    predictions: n generated images (PIL images, paths or arrays).
    references: n lists of one or more reference images; the lists may differ in length.
{CLIP_ARGUMENTS}
Returns:
    clip_i: mean over the generated images, a float in [-1, 1].
    clip_i_per_image: the value of each generated image, a list of n floats in [-1, 1].

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
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": STORED_IMAGE, "references": datasets.Sequence(STORED_IMAGE)}),
            reference_urls=["https://arxiv.org/abs/2312.02521"],
        )

    def _compute(self, predictions, references, batch_size=32, **clip):
        predictions, references = read_images(predictions, "predictions"), read_images(references, "references")
        scores = clip_i(predictions, references, *load_clip(**clip), batch_size)
        return {"clip_i": scores.mean().item(), "clip_i_per_image": scores.tolist()}
