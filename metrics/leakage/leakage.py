"""Leakage as a module of evaluate; the computation is in retribooru.metrics.functional."""

# evaluate reads the import lines of this file: one module a line, and no comment behind an import.
import datasets
import evaluate

from retribooru.metrics.functional import leakage
from retribooru.metrics.modules import CITATION, CLIP_ARGUMENTS, STORED_IMAGE, load_clip, read_images

_DESCRIPTION = """\
Leakage, defined by this project, is how much closer the background of a generated image is to its references'
backgrounds than the plain model's image of the same prompt and seed is. 0 is no closer, 1 is the references'
background itself.
"""

_KWARGS_DESCRIPTION = f"""
Args:
    predictions: n generated images (PIL images, paths or arrays).
    plain: n images of the plain model, of the same prompts and seeds.
    references: n lists of one or more reference images; the lists may differ in length.
    masks, plain_masks: n masks of the figures in predictions and plain, of the size of their images, mode "L" or "1".
    reference_masks: n lists of masks, parallel to references.
{CLIP_ARGUMENTS}
Returns:
    leakage: mean over the images where it is defined, a float of at most 1; not a number where it is so for none.
    leakage_per_image: the value of each image, a list of n floats of at most 1, not a number where undefined.
    undefined: for how many images it is undefined, the plain model's background being the references', an int.

Examples:
    >>> import evaluate
    >>> from PIL import Image
    >>> metric = evaluate.load("leakage")
    >>> red, blue = Image.new("RGB", (224, 224), "red"), Image.new("RGB", (224, 224), "blue")
    >>> figure = Image.new("L", (224, 224))
    >>> figure.paste(255, (64, 64, 160, 224))
    >>> masks = {{"masks": [figure], "plain_masks": [figure], "reference_masks": [[figure]]}}
    >>> round(metric.compute(predictions=[red], plain=[blue], references=[[red]], **masks)["leakage"], 4)
    1.0
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Leakage(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": STORED_IMAGE,
                    "references": datasets.Sequence(STORED_IMAGE),
                    "plain": STORED_IMAGE,
                    "masks": STORED_IMAGE,
                    "plain_masks": STORED_IMAGE,
                    "reference_masks": datasets.Sequence(STORED_IMAGE),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2312.02521"],
        )

    def _compute(self, predictions, references, plain, masks, plain_masks, reference_masks, batch_size=32, **clip):
        images = {
            "predictions": predictions,
            "plain": plain,
            "references": references,
            "masks": masks,
            "plain_masks": plain_masks,
            "reference_masks": reference_masks,
        }
        images = {name: read_images(stored, name) for name, stored in images.items()}
        model, processor = load_clip(**clip)
        values = leakage(**images, model=model, processor=processor, batch_size=batch_size)
        return {
            "leakage": values.nanmean().item(),
            "leakage_per_image": values.tolist(),
            "undefined": int(values.isnan().sum()),
        }
