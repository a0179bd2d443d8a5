"""VQA diversity as a module of evaluate; the computation is in retribooru.metrics.functional."""

# evaluate reads the import lines of this file: one module a line, and no comment behind an import.
import datasets
import evaluate

from retribooru.metrics.functional import QUESTION, embed_answers, group_answers, vqa_diversity_from_embeddings
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
VQA diversity is the mean pairwise cosine distance, in the text space of CLIP, of a VQA model's answers about the images
of a group. It lies in [0, 2], higher is more diverse; the paper prints 100 times the mean over groups.
"""

_KWARGS_DESCRIPTION = f"""
Args:
    predictions: g groups, lists of two or more images (PIL images, paths or arrays) generated from the same references
        and prompt.
{VQA_ARGUMENTS}{CLIP_ARGUMENTS}
Returns:
    vqa_diversity: mean over the groups and questions, a float in [0, 2].
    vqa_diversity_per_group: the value of each group, its mean over the questions, a list of g floats in [0, 2].
    vqa_diversity_per_question: the g values of each question, by question.
    answers: by group, question and image.
    truncated_answers: how many of the answers CLIP could not read to their end (77 tokens), an int.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("vqa_diversity")
    >>> result = metric.compute(predictions=groups_of_images, questions=["What is she wearing?", "Where is she?"])
    >>> 100 * result["vqa_diversity"]  # the paper's scale
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class VqaDiversity(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(STORED_IMAGE)}),
            reference_urls=["https://arxiv.org/abs/2312.02521"],
        )

    def _compute(self, predictions, questions=QUESTION, batch_size=32, **models):
        predictions = read_images(predictions, "predictions")
        answer, model, processor = load_judges(**models)
        answers = group_answers(predictions, answer, questions)
        values = vqa_diversity_from_embeddings(embed_answers(answers, model, processor, batch_size))
        return diversity_result("vqa_diversity", values, questions, answers, model, processor)
