"""CLIP-T as a module of evaluate; the computation is in retribooru.metrics.functional."""

# evaluate reads the import lines of this file: one module a line, and no comment behind an import.
import datasets
import evaluate

from retribooru.metrics.functional import clip_t, truncated_texts
from retribooru.metrics.modules import CITATION, CLIP_ARGUMENTS, STORED_IMAGE, load_clip, read_images

_DESCRIPTION = """\
CLIP-T is the cosine similarity of a generated image and its prompt in the joint space of CLIP.
It lies in [-1, 1], higher is closer; the paper prints 100 times this value.
"""

_KWARGS_DESCRIPTION = f"""
Args:
    predictions: n generated images (PIL images, paths or arrays).
    references: n prompts, each the one of its image.
{CLIP_ARGUMENTS}
Returns:
    clip_t: mean over the generated images, a float in [-1, 1].
    clip_t_per_image: the value of each generated image, a list of n floats in [-1, 1].
    truncated_prompts: how many of the prompts CLIP could not read to their end (77 tokens), an int.

Examples:
    >>> import evaluate
    >>> from PIL import Image
    >>> metric = evaluate.load("clip_t")
    >>> red = Image.new("RGB", (224, 224), "red")
    >>> result = metric.compute(predictions=[red, red], references=["a red square", "a dog on a beach"])
    >>> result["clip_t_per_image"][0] > result["clip_t_per_image"][1]
    True
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ClipT(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": STORED_IMAGE, "references": datasets.Value("string")}),
            reference_urls=["https://arxiv.org/abs/2312.02521"],
        )

    def _compute(self, predictions, references, batch_size=32, **clip):
        predictions = read_images(predictions, "predictions")
        model, processor = load_clip(**clip)
        scores = clip_t(predictions, references, model, processor, batch_size)
        return {
            "clip_t": scores.mean().item(),
            "clip_t_per_image": scores.tolist(),
            "truncated_prompts": len(truncated_texts(references, model, processor)),
        }
