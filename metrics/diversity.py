"""How much the images of one group differ: VQA diversity, and SWD, which weighs it by likeness to the references."""

from collections.abc import Sequence
from itertools import chain

import torch
from PIL import Image
from torch import Tensor

from .answers import Answer
from .checks import check_pairs, check_same_length, checked_image_lists, checked_texts
from .embeddings import text_embeddings, unit_vectors
from .similarity import clip_i

QUESTION = "Describe the image in detail."  # ours: the paper's question is not published


def mean_pairwise_distance(embeddings: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""Mean cosine distance over all ordered pairs of different rows, exact, in linear time and memory.

    With unit vectors :math:`u_i` and weights :math:`w_i` (1 where none are given),

    .. math:: \frac{1}{n(n-1)} \sum_{i \neq j} w_i w_j (1 - u_i \cdot u_j)
        = \frac{W^2 - \|\sum_i w_i u_i\|^2}{n(n-1)} = \frac{W \sum_i w_i \|u_i - m\|^2}{n(n-1)},
        \quad W = \sum_i w_i, \quad m = \frac{1}{W} \sum_i w_i u_i

    The last form is computed: where all vectors are close, the squares before it are large and nearly cancel.

    Args:
        embeddings: (..., n, d), n >= 2, vectors of any length above 0, on any device.
        weights: (..., n), at least 0, or None for the plain mean.

    Returns:
        Tensor (...), on the device of the embeddings; in float64 where the embeddings are, else in float32, where it is
        right to some 1e-6. Without weights in [0, 2] up to rounding (at most n / (n - 1), so 2 for n = 2 alone): 0 for
        equal directions, 1 on average for unrelated ones.

    Raises:
        ValueError: n < 2, where the mean is undefined, a vector without direction, or weights of another shape or
            below 0.

    Example:
        >>> mean_pairwise_distance(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]]))
        tensor(0.6667)
    """
    units = unit_vectors(embeddings, "embeddings")
    n = units.shape[-2] if units.ndim > 1 else 1
    check_pairs(n, "embeddings")
    weights = torch.ones_like(units[..., 0]) if weights is None else weights.to(units)
    if weights.shape != units.shape[:-1]:
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}; wanted {tuple(units.shape[:-1])}, one for each row."
        )
    if not (weights >= 0).all():
        raise ValueError(f"weights has {weights.min().item()} as its least; wanted numbers of at least 0.")
    total = weights.sum(dim=-1)
    shares = weights / total.clamp(min=torch.finfo(units.dtype).tiny).unsqueeze(-1)
    mean = shares.unsqueeze(-2) @ units
    squares = torch.linalg.vector_norm(units - mean, dim=-1) ** 2
    return total * (weights * squares).sum(dim=-1) / (n * (n - 1))


def vqa_diversity(
    predictions, answer: Answer, model, processor, questions: str | list[str] = QUESTION, batch_size: int = 32
) -> Tensor:
    r"""Mean pairwise cosine distance of a VQA model's answers about the images of each group, in CLIP's text space.

    .. math:: \text{VQA}(x_1, \dots, x_n) = \frac{1}{n(n-1)} \sum_{i \neq j} (1 - u_i \cdot u_j), \quad
        u_i = \frac{E_T(a_i)}{\|E_T(a_i)\|}, \quad a_i = \text{answer}(x_i, q)

    Args:
        predictions: g groups, lists of two or more images generated from the same references and prompt.
        answer: function of (images, question) that gives one answer an image, such as
            :func:`~retribooru.metrics.answers.question_answerer` makes of a VQA model.
        model, processor: the CLIP whose text tower embeds the answers, as for :func:`clip_t`.
        questions: one or several. The paper does not publish its own; the default is ours.
        batch_size: answers per forward pass of CLIP.

    Returns:
        Tensor (g, q), float32, on the CPU: a value for each group and question, in [0, 2] up to rounding, higher is
        more diverse. The mean over the questions is the group's value; the paper prints 100 times the mean over
        groups. Compare only models of like CLIP-I and CLIP-T: one that makes a mess scores high (see :func:`swd`).

    Raises:
        ValueError: no predictions, a group of fewer than two images (undefined), an image that cannot be read, or
            another number of answers than images.

    Source: arXiv:2312.02521, section 5.3.

    Example:
        >>> answer = question_answerer(vqa_model, vqa_processor)
        >>> vqa_diversity([four_images], answer, model, processor, ["What is she wearing?", "Where is she?"]).shape
        torch.Size([1, 2])
    """
    return vqa_diversity_from_embeddings(
        embed_answers(group_answers(predictions, answer, questions), model, processor, batch_size)
    )


def vqa_diversity_from_embeddings(answers: Sequence[Tensor]) -> Tensor:
    """:func:`vqa_diversity` of answers that are embedded already.

    Args:
        answers: g tensors (n_i, d) or (q, n_i, d), n_i >= 2, vectors of any length above 0.

    Returns:
        Tensor (g,) or (g, q) in [0, 2] up to rounding; device and precision as for :func:`mean_pairwise_distance`.

    Example:
        >>> vqa_diversity_from_embeddings([torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])])
        tensor([1.0000, 0.6667])
    """
    for i, vectors in enumerate(answers):
        check_pairs(vectors.shape[-2], f"answers[{i}]")
    return torch.stack([mean_pairwise_distance(vectors) for vectors in answers])


def swd(
    predictions,
    references,
    answer: Answer,
    model,
    processor,
    questions: str | list[str] = QUESTION,
    floor: float = 0.0,
    batch_size: int = 32,
) -> Tensor:
    r"""Similarity weighted diversity: VQA diversity in which an image counts as far as it resembles its references.

    The name is of a later version of the paper, whose formula is not published. This definition is ours:

    .. math:: \text{SWD} = \frac{1}{n(n-1)} \sum_{i \neq j} w_i w_j (1 - u_i \cdot u_j), \quad
        w_i = \min\left(1, \max\left(0, \frac{s_i - s_0}{1 - s_0}\right)\right)

    with the answers' unit embeddings :math:`u_i` of :func:`vqa_diversity`, :math:`s_i` the :func:`clip_i` of image i
    with the group's references and :math:`s_0` the ``floor``. A mess (:math:`s_i \le s_0`) scores 0, copies score 0
    for want of distance, and faithful images that differ score highest: never more than their VQA diversity.

    Args:
        predictions: g groups, lists of two or more images, as for :func:`vqa_diversity`.
        references: g lists of one or more reference images; ``references[i]`` belongs to ``predictions[i]``.
        answer, model, processor, questions, batch_size: as for :func:`vqa_diversity`; the CLIP embeds images too.
        floor: CLIP-I of images that have nothing to do with the references, below 1. CLIP gives unrelated images
            more than 0, so 0, the default, weighs a mess too high: measure it with references of other characters.

    Returns:
        Tensor (g, q), float32, on the CPU: a value for each group and question, in [0, 2] up to rounding, higher is
        better. Values of different floors, questions or models are not comparable.

    Raises:
        ValueError: as :func:`vqa_diversity` and :func:`clip_i`; floor is not below 1.

    Example:
        >>> swd([four_images], [[front, side]], answer, model, processor, floor=0.55).mean()
    """
    similarities = group_similarities(predictions, references, model, processor, batch_size)
    answers = group_answers(predictions, answer, questions)
    return swd_from_embeddings(embed_answers(answers, model, processor, batch_size), similarities, floor)


def swd_from_embeddings(answers: Sequence[Tensor], similarities: Sequence[Tensor], floor: float = 0.0) -> Tensor:
    """:func:`swd` of answers that are embedded, and images that are compared with their references already.

    Args:
        answers: g tensors (n_i, d) or (q, n_i, d), n_i >= 2, vectors of any length above 0.
        similarities: g tensors (n_i,): each image's CLIP-I with the references of its group.
        floor: as for :func:`swd`.

    Returns:
        Tensor (g,) or (g, q) in [0, 2] up to rounding; device and precision as for :func:`mean_pairwise_distance`.

    Example:
        >>> swd_from_embeddings([torch.eye(2)], [torch.tensor([1.0, 0.75])], floor=0.5)
        tensor([0.5000])
    """
    if not floor < 1:
        raise ValueError(f"floor is {floor!r}; wanted the CLIP-I of unrelated images, below 1.")
    check_same_length(answers, similarities, "similarities", "answers")
    values = []
    for i, (vectors, similarity) in enumerate(zip(answers, similarities)):
        check_pairs(vectors.shape[-2], f"answers[{i}]")
        if similarity.shape != vectors.shape[-2:-1]:
            raise ValueError(
                f"similarities[{i}] has shape {tuple(similarity.shape)}; wanted ({vectors.shape[-2]},), one for each "
                f"image of answers[{i}]."
            )
        weights = ((similarity - floor) / (1 - floor)).clamp(0, 1)
        values.append(mean_pairwise_distance(vectors, weights.expand(vectors.shape[:-1])))
    return torch.stack(values)


def group_similarities(predictions, references, model, processor, batch_size: int = 32) -> list[Tensor]:
    """:func:`clip_i` of every image with the references of its group: g tensors (n_i,). Arguments: see :func:`swd`."""
    predictions = _checked_groups(predictions)
    references = checked_image_lists(references, "references")
    check_same_length(predictions, references, "references")
    repeated = [images for group, images in zip(predictions, references) for _ in group]
    similarities = clip_i(list(chain.from_iterable(predictions)), repeated, model, processor, batch_size)
    return list(similarities.split([len(group) for group in predictions]))


def group_answers(predictions, answer: Answer, questions: str | list[str] = QUESTION) -> list[list[list[str]]]:
    """The answers about the images of each group, by group, question and image: ``answers[g][q][i]``.

    Args:
        predictions, answer, questions: as for :func:`vqa_diversity`. Each question is put once, over the images of all
            groups, so that the answerer can make its batches of them.
    """
    groups = _checked_groups(predictions)
    questions = checked_texts([questions] if isinstance(questions, str) else questions, "questions")
    images = list(chain.from_iterable(groups))
    found = [[] for _ in groups]
    for question in questions:
        answers = answer(images, question)
        if not isinstance(answers, list) or len(answers) != len(images):
            got = f"{len(answers)} answers" if isinstance(answers, list) else f"a {type(answers).__name__}"
            raise ValueError(f"answer gave {got} about {len(images)} images; wanted a list of one string an image.")
        rest = iter(checked_texts(answers, "answers"))
        for group, lists in zip(groups, found):
            lists.append([next(rest) for _ in group])
    return found


def embed_answers(answers: list[list[list[str]]], model, processor, batch_size: int = 32) -> list[Tensor]:
    """CLIP text embeddings of what :func:`group_answers` gives: g tensors (q, n_i, d). An answer is embedded once."""
    texts = [text for lists in answers for texts in lists for text in texts]
    row = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    embedded = text_embeddings(list(row), model, processor, batch_size)
    return [torch.stack([embedded[[row[text] for text in texts]] for texts in lists]) for lists in answers]


def _checked_groups(predictions) -> list[list[Image.Image]]:
    groups = checked_image_lists(predictions, "predictions")
    for i, group in enumerate(groups):
        check_pairs(len(group), f"predictions[{i}]")
    return groups
