"""The metrics as plain functions: everything public, from one place.

Each metric is there twice: ``clip_i`` takes images and the models that the caller has loaded,
``clip_i_from_embeddings`` takes vectors, on any device, keeps float64 and otherwise computes in float32. Both return a
value for every image or group, never a mean alone; :func:`bootstrap_interval` says how sure their mean is.

clip_i: (n,), an image's cosine in [-1, 1], higher is closer. Paper, section 5.3: prints 100 times this.
clip_t: (n,), an image's cosine in [-1, 1], higher is closer. Paper, section 5.3: prints 100 times this.
vqa_diversity: (g, q), of a group and a question, in [0, 2]; at like CLIP scores higher is better. Paper, section 5.3:
    prints 100 times this.
swd: (g, q), of a group and a question, in [0, 2], higher is better. Ours.
leakage: (n,), of an image, at most 1; 0 is none, 1 the references' background itself. Ours.

The paper is "Retrieving Conditions from Reference Images for Diffusion Models" (arXiv:2312.02521).
"""

from .answers import question_answerer
from .backgrounds import leakage, leakage_from_embeddings, without_figure
from .diversity import (
    QUESTION,
    embed_answers,
    group_answers,
    group_similarities,
    mean_pairwise_distance,
    swd,
    swd_from_embeddings,
    vqa_diversity,
    vqa_diversity_from_embeddings,
)
from .embeddings import image_embeddings, text_embeddings, truncated_texts, unit_vectors
from .intervals import bootstrap_interval
from .similarity import clip_i, clip_i_from_embeddings, clip_t, clip_t_from_embeddings, embed_image_lists

__all__ = [
    "QUESTION",
    "bootstrap_interval",
    "clip_i",
    "clip_i_from_embeddings",
    "clip_t",
    "clip_t_from_embeddings",
    "embed_answers",
    "embed_image_lists",
    "group_answers",
    "group_similarities",
    "image_embeddings",
    "leakage",
    "leakage_from_embeddings",
    "mean_pairwise_distance",
    "question_answerer",
    "swd",
    "swd_from_embeddings",
    "text_embeddings",
    "truncated_texts",
    "unit_vectors",
    "vqa_diversity",
    "vqa_diversity_from_embeddings",
    "without_figure",
]
