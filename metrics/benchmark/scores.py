"""Scores of every picture and of every group of pictures, kept as Parquet.

A part is a method's pictures of one character: scores/METHOD/CHARACTER.groups.parquet and CHARACTER.parquet; with the
second it is done. All pictures of a method, a character and a prompt are one group (paper, section 5.5).
"""

import json
import warnings
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from retribooru.dataset_script.files import replacing

from ..diversity import swd_from_embeddings, vqa_diversity_from_embeddings
from ..embeddings import image_embeddings, text_embeddings, truncated_texts
from ..modules import load_judges
from ..similarity import clip_i_from_embeddings, clip_t_from_embeddings
from .families import Method
from .leakage import Leakage
from .pictures import read_picture
from .plan import Plan

OF_METHOD = [("method", pa.string()), ("family", pa.string()), ("scale", pa.float64())]
OF_CHARACTER = [("character", pa.string()), ("domain", pa.string()), ("prompt_number", pa.int32())]
SCORES = pa.schema(
    [
        *OF_METHOD,
        *OF_CHARACTER,
        ("prompt", pa.string()),
        ("seed", pa.int32()),
        ("image", pa.int32()),
        ("file", pa.string()),  # below the output folder
        ("clip_i", pa.float64()),  # cosine
        ("clip_t", pa.float64()),  # cosine
        ("leakage", pa.float64()),  # at most 1; null where it is undefined
        ("answers", pa.list_(pa.string())),  # one for each question
        ("cut_for_method", pa.bool_()),  # whether the prompt's end was not seen; null where that is not known
        ("cut_for_clip", pa.bool_()),
    ]
)
GROUPS = pa.schema(
    [
        *OF_METHOD,
        *OF_CHARACTER,
        ("pictures", pa.int32()),
        ("vqa_diversity", pa.float64()),  # 0 to 2, mean over the questions; null for a group of one picture
        ("swd", pa.float64()),  # likewise
        ("vqa_diversity_per_question", pa.list_(pa.float64())),
        ("cut_answers", pa.int32()),
        ("floor", pa.float64()),  # of swd
    ]
)


def score_pictures(plan: Plan, numbers: Iterable[int], device: torch.device) -> None:
    """Scores the pictures of the characters of these numbers, those of them that are not scored yet by these judges."""
    settings = plan.judges
    parts = [(number, method) for number in numbers for method in plan.methods]
    todo = [part for part in parts if not _is_done(_part(plan, *part), settings)]
    if not todo:
        return
    scorer = Scorer(plan, device)
    with tqdm(total=len(parts), initial=len(parts) - len(todo), desc="scores", unit="character") as bar:
        for number, method in todo:
            path = _part(plan, number, method)
            path.parent.mkdir(parents=True, exist_ok=True)
            scores, groups = scorer.score(number, method)
            _write(path.with_suffix(".groups.parquet"), groups, GROUPS, settings)
            _write(path, scores, SCORES, settings)
            bar.update()


def gather(plan: Plan) -> tuple[pa.Table, pa.Table]:
    """All scores and all groups, methods and characters in their order; leaves scores.parquet and groups.parquet."""
    parts = [_part(plan, number, method) for method in plan.methods for number in range(len(plan.characters))]
    scores = pa.concat_tables(pq.read_table(part) for part in parts)
    groups = pa.concat_tables(pq.read_table(part.with_suffix(".groups.parquet")) for part in parts)
    for name, table in (("scores", scores), ("groups", groups)):
        with replacing(plan.out / f"{name}.parquet") as partial:
            pq.write_table(table, partial)
    return scores, groups


def unrelated_similarity(references: Sequence[Tensor]) -> float:
    r"""Mean CLIP-I of references of different characters, the floor of SWD: exact, in linear time.

    With :math:`m_c` the mean of the unit vectors of a character's references and C characters,

    .. math:: \frac{1}{C (C - 1)} \sum_{a \neq b} m_a \cdot m_b
        = \frac{\|\sum_c m_c\|^2 - \sum_c \|m_c\|^2}{C (C - 1)}

    Args:
        references: C tensors (k_i, d) of unit vectors, C >= 2.
    """
    means = torch.stack([vectors.double().mean(dim=0) for vectors in references])  # (C, d)
    count = len(means)
    return ((means.sum(dim=0).square().sum() - means.square().sum()) / (count * (count - 1))).item()


class Scorer:
    """The judges, and what they see in characters and prompts."""

    def __init__(self, plan: Plan, device: torch.device):
        self.plan, args = plan, plan.args
        self.answer, self.model, self.processor = load_judges(
            args.vqa_batch_size, args.max_new_tokens, model_name_or_path=args.clip, device=device,
            vqa_model_name_or_path=args.vqa, vqa_device=device,
        )  # fmt: skip
        self.references = [self.see(one.reference_images) for one in plan.characters]
        self.floor = unrelated_similarity(self.references)
        self.prompts = self.read(plan.prompts)
        self.cut_prompts = truncated_texts(plan.prompts, self.model, self.processor)
        self.leakage = Leakage(plan, self.see)

    def see(self, images: Sequence[Image.Image]) -> Tensor:
        return image_embeddings(list(images), self.model, self.processor, self.plan.args.batch_size)

    def read(self, texts: Sequence[str]) -> Tensor:
        """Each text once; how many are cut is counted elsewhere."""
        distinct = list(dict.fromkeys(texts))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* texts are longer than")
            embedded = text_embeddings(distinct, self.model, self.processor, self.plan.args.batch_size)
        return embedded[[distinct.index(text) for text in texts]]

    def score(self, number: int, method: Method) -> tuple[list[dict], list[dict]]:
        """Rows of `SCORES` and of `GROUPS`: a method's pictures of a character."""
        plan, character = self.plan, self.plan.characters[number]
        keys = plan.pictures()
        images, said = zip(*(read_picture(plan, method, number, key) for key in keys))
        embedded = self.see(images)
        similar = clip_i_from_embeddings(embedded, [self.references[number]] * len(keys))
        obeying = clip_t_from_embeddings(embedded, self.prompts[[key.prompt_number - 1 for key in keys]])
        leaked = self.leakage(number, method, images)
        answers = [self.answer(list(images), question) for question in plan.args.questions]  # by question and image
        answered = self.read([text for texts in answers for text in texts]).unflatten(0, (len(answers), len(keys)))

        common = {"method": method.name, "family": method.family, "scale": method.scale}
        common |= {"character": character.name, "domain": character.domain}
        scores = [
            {
                **common, **key._asdict(), "prompt": plan.prompts[key.prompt_number - 1],
                "file": plan.path(method, number, key).relative_to(plan.out).as_posix(),
                "clip_i": similar[i].item(), "clip_t": obeying[i].item(), "leakage": leaked[i],
                "answers": [texts[i] for texts in answers],
                "cut_for_method": said[i]["prompt_cut"],
                "cut_for_clip": key.prompt_number - 1 in self.cut_prompts,
            }
            for i, key in enumerate(keys)
        ]  # fmt: skip
        groups = []
        for prompt_number, members in groupby(range(len(keys)), key=lambda i: keys[i].prompt_number):
            members = list(members)
            texts = [texts[i] for texts in answers for i in members]
            groups.append(
                {
                    **common, "prompt_number": prompt_number, "pictures": len(members), "floor": self.floor,
                    "cut_answers": len(truncated_texts(texts, self.model, self.processor)),
                    **self.diversity(answered[:, members], similar[members]),
                }
            )  # fmt: skip
        return scores, groups

    def diversity(self, answered: Tensor, similar: Tensor) -> dict:
        """Of a group: answers (q, n, d) and each picture's CLIP-I (n,). None where n is 1: there is no pair."""
        if len(similar) < 2:
            return {"vqa_diversity": None, "swd": None, "vqa_diversity_per_question": None}
        (diverse,) = vqa_diversity_from_embeddings([answered])
        (weighted,) = swd_from_embeddings([answered], [similar], self.floor)
        return {
            "vqa_diversity": diverse.mean().item(),
            "swd": weighted.mean().item(),
            "vqa_diversity_per_question": diverse.tolist(),
        }


def _part(plan: Plan, number: int, method: Method) -> Path:
    return plan.out / "scores" / method.slug / f"{plan.character_slug(number)}.parquet"


def _is_done(part: Path, settings: dict) -> bool:
    return part.is_file() and json.loads((pq.read_schema(part).metadata or {}).get(b"judges", b"{}")) == settings


def _write(path: Path, rows: list[dict], schema: pa.Schema, settings: dict) -> None:
    schema = schema.with_metadata({"judges": json.dumps(settings)})
    with replacing(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial)
