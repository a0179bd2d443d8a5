"""CLIP-I and CLIP-T: values known by hand, a real tiny CLIP, what is refused."""

import copy
import doctest
import math
import statistics
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from retribooru.metrics.functional import (
    bootstrap_interval,
    clip_i,
    clip_i_from_embeddings,
    clip_t,
    clip_t_from_embeddings,
    image_embeddings,
    leakage_from_embeddings,
    mean_pairwise_distance,
    swd_from_embeddings,
    text_embeddings,
    truncated_texts,
    vqa_diversity_from_embeddings,
)


def test_clip_i_is_the_mean_cosine_to_its_own_references(table, vector_image):
    image = vector_image
    predictions = [image(2, 0), image(0, 5), image(1, 1)]
    references = [[image(3, 4), image(0, 7), image(-1, 0)], [image(0, 1)], [image(10, 0), image(-3, -3)]]
    scores = clip_i(predictions, references, *table)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor([(0.6 + 0 - 1) / 3, 1.0, (0.5**0.5 - 1) / 2]))


def test_clip_t_is_the_cosine_to_its_own_prompt(table, vector_image):
    scores = clip_t([vector_image(1, 0), vector_image(3, 4)], ["3 4", "4 -3"], *table)
    torch.testing.assert_close(scores, torch.tensor([0.6, 0.0]), atol=1e-6, rtol=0)


def test_every_reference_object_is_embedded_once(table, vector_image):
    model, processor = table
    shared, own = vector_image(0, 1), vector_image(3, 4)
    scores = clip_i([vector_image(1, 0), vector_image(0, 1)], [[shared, own, shared], [shared]], model, processor)
    torch.testing.assert_close(scores, torch.tensor([0.2, 1.0]))
    assert model.embedded == 2 + 2


def test_batch_size_bounds_the_batches(table, vector_image):
    model, processor = table
    image_embeddings([vector_image(1, i) for i in range(7)], model, processor, batch_size=3)
    assert model.batches == [3, 3, 1]


def test_training_mode_is_put_back_and_dropout_is_off(table, vector_image):
    model, processor = table
    model.dropout.eval()
    assert model.training
    image_embeddings([vector_image(1, 0)], model, processor)
    assert model.training and not model.dropout.training
    model.dropout.train()
    vectors = image_embeddings([vector_image(1, 1)] * 20, model, processor)
    torch.testing.assert_close(vectors, torch.full((20, 2), 0.5**0.5))
    assert model.dropout.training and not vectors.requires_grad


def test_training_mode_is_put_back_after_an_error(table, vector_image):
    model, processor = table
    model.get_image_features = None
    with pytest.raises(TypeError):
        image_embeddings([vector_image(1, 0)], model, processor)
    assert model.training and model.dropout.training and torch.is_grad_enabled()


@pytest.mark.parametrize("vector", [(0, 0), (float("nan"), 1), (float("inf"), 1)])
def test_an_embedding_without_direction_is_refused(table, vector_image, vector):
    with pytest.raises(ValueError, match=r"images\[1\] has length"):
        image_embeddings([vector_image(1, 0), vector_image(*vector)], *table)


@pytest.mark.parametrize(
    ("references", "error", "message"),
    [
        ([], ValueError, "references is empty"),
        ([["image"]], ValueError, "references has 1 items and predictions 2"),
        ([["image"], []], ValueError, r"references\[1\] is empty"),
        ([["image"], "image"], TypeError, r"references\[1\] is of type Image; wanted a list"),
        ([["image"], ["image", None]], TypeError, r"references\[1\]\[1\] is of type NoneType; wanted a PIL"),
    ],
)
def test_clip_i_refuses_references(table, vector_image, references, error, message):
    image = vector_image(1, 0)
    put = {"image": image}.get
    references = [put(item) if isinstance(item, str) else [put(one) for one in item] for item in references]
    with pytest.raises(error, match=message):
        clip_i([image, image], references, *table)


def test_predictions_and_prompts_are_checked(table, vector_image):
    image = vector_image(1, 0)
    with pytest.raises(ValueError, match="predictions is empty"):
        clip_i([], [], *table)
    with pytest.raises(TypeError, match=r"predictions\[0\] is of type str; wanted a PIL.Image.Image"):
        clip_i(["a.png"], [[image]], *table)
    with pytest.raises(TypeError, match="predictions is of type Image; wanted a list"):
        clip_t(image, ["1 0"], *table)
    with pytest.raises(TypeError, match="prompts is of type str; wanted a list"):
        clip_t([image], "1 0", *table)
    with pytest.raises(TypeError, match=r"prompts\[0\] is of type int; wanted a string"):
        clip_t([image], [1], *table)
    with pytest.raises(ValueError, match="prompts has 2 items and predictions 1"):
        clip_t([image], ["1 0", "0 1"], *table)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_batch_size_is_checked(table, vector_image, batch_size):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
        image_embeddings([vector_image(1, 0)], *table, batch_size=batch_size)


def test_real_clip_gives_one_for_an_image_against_itself(clip, noise):
    same = clip_i([noise(1), noise(2)], [[noise(1)], [noise(2), noise(2)]], *clip)
    torch.testing.assert_close(same, torch.ones(2))
    assert clip_i([noise(1)], [[noise(2)]], *clip).item() < 0.999


def test_real_clip_agrees_with_its_own_forward_pass(clip, noise):
    model, processor = clip
    images, texts = [noise(1), noise(2)], ["one girl", "a blue hat and a red scarf, brown eyes"]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model.eval()(**inputs)
    torch.testing.assert_close(image_embeddings(images, model, processor), output.image_embeds)
    torch.testing.assert_close(text_embeddings(texts, model, processor), output.text_embeds)
    cosines = output.logits_per_image.diagonal() / model.logit_scale.exp()
    torch.testing.assert_close(clip_t(images, texts, model, processor), cosines.detach())


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batch_size_does_not_change_the_values(clip, noise, batch_size):
    images = [noise(seed) for seed in range(5)]
    references = [[noise(10 + seed), *images[: seed + 1]] for seed in range(5)]
    prompts = ["solo", "one girl with a red scarf", "a blue hat", "long hair, brown eyes, solo, upper body", "hat"]
    tight = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(
        clip_i(images, references, *clip, batch_size=batch_size), clip_i(images, references, *clip), **tight
    )
    torch.testing.assert_close(
        clip_t(images, prompts, *clip, batch_size=batch_size), clip_t(images, prompts, *clip), **tight
    )


def test_cut_texts_are_counted_in_a_warning(clip):
    long = "scarf " * 200
    with pytest.warns(UserWarning, match=r"2 of 3 texts are longer than the 77 tokens"):
        cut = text_embeddings([long, "solo", long + "hat"], *clip)
    torch.testing.assert_close(cut[0], cut[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text_embeddings(["solo", "scarf " * 3], *clip)


def test_the_shorter_of_model_and_tokenizer_limit_counts(clip):
    model, processor = copy.deepcopy(clip)
    processor.tokenizer.model_max_length = 10**30
    with pytest.warns(UserWarning, match="1 of 1 texts are longer than the 77 tokens"):
        text_embeddings(["scarf " * 200], model, processor)
    processor.tokenizer.model_max_length = 10
    with pytest.warns(UserWarning, match="1 of 1 texts are longer than the 10 tokens"):
        text_embeddings(["scarf " * 20], model, processor)


def test_half_precision_model_gives_float32(clip, noise):
    model, processor = copy.deepcopy(clip)
    expected = image_embeddings([noise(1)], model, processor)
    vectors = image_embeddings([noise(1)], model.to(torch.bfloat16), processor)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(1))
    torch.testing.assert_close(vectors, expected, atol=0.05, rtol=0)


class WithTensors:
    """A CLIP whose features are tensors, as torchmetrics 1.9 expects and transformers 5 no longer gives."""

    def __init__(self, model):
        self.model, self.config = model.eval(), model.config

    def to(self, device):
        return self

    def get_image_features(self, pixel_values):
        return self.model.get_image_features(pixel_values).pooler_output

    def get_text_features(self, input_ids, attention_mask):
        return self.model.get_text_features(input_ids, attention_mask).pooler_output


@torch.no_grad()
def test_a_hundred_times_the_value_is_torchmetrics_clip_score(clip, noise):
    clip_score = pytest.importorskip("torchmetrics.functional.multimodal").clip_score
    model, processor = clip
    images, others = [noise(seed) for seed in range(6)], [noise(10 + seed) for seed in range(6)]
    prompts = ["solo", "one girl with a red scarf", "a blue hat", "long hair, brown eyes", "hat", "upper body"]

    def theirs(image, other):
        pixels = [torch.from_numpy(np.array(item)).permute(2, 0, 1) for item in (image, other) if item not in prompts]
        source, target = pixels if len(pixels) == 2 else (pixels[0], other)
        return clip_score(source, target, lambda: (WithTensors(model), processor))

    to_references = clip_i(images, [[other] for other in others], model, processor)
    to_prompts = clip_t(images, prompts, model, processor)
    assert (to_prompts > 0).any() and to_references.std() > 1e-4
    for values, targets in ((to_references, others), (to_prompts, prompts)):
        found = torch.stack([theirs(image, target) for image, target in zip(images, targets)])
        torch.testing.assert_close(100 * values.clamp(min=0), found, atol=2e-4, rtol=0)


def slow_cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_embeddings_agree_with_the_definitions(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 7, 24, generator=generator, dtype=torch.float64).unbind()
    references = [torch.randn(count, 24, generator=generator, dtype=torch.float64) for count in (1, 2, 3, 4, 3, 2, 1)]
    to_references = [
        statistics.fmean(slow_cosine(image, one) for one in own)
        for image, own in zip(images.tolist(), [own.tolist() for own in references])
    ]
    to_texts = [slow_cosine(image, text) for image, text in zip(images.tolist(), texts.tolist())]
    found_i = clip_i_from_embeddings(images.to(dtype), [own.to(dtype) for own in references])
    found_t = clip_t_from_embeddings(images.to(dtype), texts.to(dtype))
    assert found_i.dtype == found_t.dtype == torch.promote_types(dtype, torch.float32)
    assert found_i.tolist() == pytest.approx(to_references, abs=tolerance)
    assert found_t.tolist() == pytest.approx(to_texts, abs=tolerance)
    as_one = clip_i_from_embeddings(images.to(dtype), torch.stack([own[:1] for own in references]).to(dtype))
    assert as_one.tolist() == pytest.approx(
        [slow_cosine(image, own[0]) for image, own in zip(images.tolist(), [own.tolist() for own in references])],
        abs=tolerance,
    )


def test_embeddings_are_checked():
    images = torch.eye(3)
    with pytest.raises(TypeError, match="predictions is of type list; wanted a torch.Tensor"):
        clip_t_from_embeddings([[1.0]], images)
    with pytest.raises(ValueError, match="prompts has 2 items and predictions 3"):
        clip_t_from_embeddings(images, images[:2])
    with pytest.raises(ValueError, match="references has 2 items and predictions 3"):
        clip_i_from_embeddings(images, [images, images])
    with pytest.raises(ValueError, match=r"references\[1\] is empty"):
        clip_i_from_embeddings(images, [images, images[:0], images])
    with pytest.raises(ValueError, match=r"references\[2\]\[1\] has length 0.0 and no direction"):
        clip_i_from_embeddings(images, [images, images, torch.tensor([[1.0, 0, 0], [0, 0, 0]])])


def test_an_image_that_cannot_be_read_is_named(clip, noise, tmp_path):
    noise(0).save(tmp_path / "whole.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"references\[0\]\[1\] cannot be read \(.*broken.png: .*truncated"):
        clip_i([noise(0)], [[noise(1), Image.open(broken)]], *clip)


def test_truncated_texts_are_named(clip):
    texts = ["scarf " * 200, "solo", "scarf " * 3, "hat " * 100]
    assert truncated_texts(texts, *clip) == [0, 3]
    assert truncated_texts(["solo"], *clip) == []


@pytest.mark.parametrize(
    "function",
    [clip_i_from_embeddings, clip_t_from_embeddings, vqa_diversity_from_embeddings, swd_from_embeddings,
     leakage_from_embeddings, mean_pairwise_distance, bootstrap_interval],
)  # fmt: skip
def test_examples_of_the_docstrings(function):
    found = doctest.DocTestFinder().find(function, globs={"torch": torch, function.__name__: function})
    assert sum(len(test.examples) for test in found) >= 1
    runner = doctest.DocTestRunner()
    assert all(runner.run(test).failed == 0 for test in found)
