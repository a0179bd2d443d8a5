"""SWD as a module of evaluate; the computation is in retribooru.metrics.functional."""

# evaluate reads the import lines of this file: one module a line, and no comment behind an import.
import datasets
import evaluate

from retribooru.metrics.functional import (
    QUESTION,
    embed_answers,
    group_answers,
    group_similarities,
    swd_from_embeddings,
)
from retribooru.metrics.modules import (
    CITATION,
    CLIP_ARGUMENTS,
    STORED_IMAGE,
    VQA_ARGUMENTS,
    diversity_result,
    load_judges,
    read_images,
)

_DESCRIPTION = """\
Similarity weighted diversity, defined by this project: VQA diversity in which an image counts as far as it resembles
its references. It lies in [0, 2], higher is better: a mess and copies score low, faithful images that differ high.
"""

_KWARGS_DESCRIPTION = f"""
Args:
    predictions: g groups, lists of two or more images (PIL images, paths or arrays) generated from the same references
        and prompt.
    references: g lists of one or more reference images, each the ones of its group.
    floor: CLIP-I of images that have nothing to do with the references, below 1: there the weight is 0.
{VQA_ARGUMENTS}{CLIP_ARGUMENTS}
Returns:
    swd: mean over the groups and questions, a float in [0, 2].
    swd_per_group: the value of each group, its mean over the questions, a list of g floats in [0, 2].
    swd_per_question: the g values of each question, by question.
    clip_i_per_image: each image's CLIP-I with the references of its group, by group and image, in [-1, 1].
    answers: by group, question and image.
    truncated_answers: how many of the answers CLIP could not read to their end (77 tokens), an int.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("swd")
    >>> result = metric.compute(predictions=groups_of_images, references=lists_of_reference_images, floor=0.55)
    >>> result["swd_per_group"]
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Swd(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(STORED_IMAGE),
                    "references": datasets.Sequence(STORED_IMAGE),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2312.02521"],
        )

    def _compute(self, predictions, references, questions=QUESTION, floor=0.0, batch_size=32, **models):
        predictions = read_images(predictions, "predictions")
        references = read_images(references, "references")
        answer, model, processor = load_judges(**models)
        similarities = group_similarities(predictions, references, model, processor, batch_size)
        answers = group_answers(predictions, answer, questions)
        values = swd_from_embeddings(embed_answers(answers, model, processor, batch_size), similarities, floor)
        return {
            **diversity_result("swd", values, questions, answers, model, processor),
            "clip_i_per_image": [group.tolist() for group in similarities],
        }
