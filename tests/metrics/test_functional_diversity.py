"""VQA diversity and SWD: the linear sums against loops over pairs, limits, real small models, what is refused."""

import copy
import math

import pytest
import torch
from PIL import Image

from retribooru.metrics.functional import (
    QUESTION,
    clip_i,
    embed_answers,
    group_answers,
    mean_pairwise_distance,
    question_answerer,
    swd,
    swd_from_embeddings,
    text_embeddings,
    vqa_diversity,
    vqa_diversity_from_embeddings,
)


def loop(vectors, weights=None):
    """The definition, pair by pair, in Python's own numbers."""
    rows = torch.as_tensor(vectors).double().tolist()
    weights = [1.0] * len(rows) if weights is None else [float(weight) for weight in weights]
    total, n = 0.0, len(rows)
    for i in range(n):
        for j in range(n):
            if i != j:
                dot = sum(a * b for a, b in zip(rows[i], rows[j]))
                lengths = math.sqrt(sum(a * a for a in rows[i])) * math.sqrt(sum(b * b for b in rows[j]))
                total += weights[i] * weights[j] * (1 - dot / lengths)
    return total / (n * (n - 1))


def random(*shape, seed=0, shift=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


# float32: the vectors themselves are rounded, some 1e-7
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("shift", [0.0, 1.0, 100.0], ids=["any direction", "one side", "nearly the same"])
@pytest.mark.parametrize("n", [2, 3, 40])
def test_the_sum_is_the_loop_over_pairs(n, shift, dtype, tolerance):
    vectors, weights = random(n, 16, shift=shift).to(dtype), random(n, seed=1).sigmoid()
    found = mean_pairwise_distance(vectors)
    assert found.shape == () and found.dtype == torch.promote_types(dtype, torch.float32)
    assert found.item() == pytest.approx(loop(vectors), abs=tolerance)
    assert mean_pairwise_distance(vectors, weights).item() == pytest.approx(loop(vectors, weights), abs=tolerance)


def test_leading_dimensions_are_batches():
    vectors, weights = random(2, 3, 5, 8), random(2, 3, 5, seed=1).sigmoid()
    found, weighted = mean_pairwise_distance(vectors), mean_pairwise_distance(vectors, weights)
    assert found.shape == weighted.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert found[i, j].item() == pytest.approx(loop(vectors[i, j]), abs=1e-12)
            assert weighted[i, j].item() == pytest.approx(loop(vectors[i, j], weights[i, j]), abs=1e-12)


def test_lengths_of_vectors_do_not_count():
    vectors = random(6, 4)
    scaled = vectors * torch.tensor([[0.01], [1.0], [3.0], [1e6], [7.0], [0.5]])
    torch.testing.assert_close(mean_pairwise_distance(scaled), mean_pairwise_distance(vectors))


def test_range():
    vector = random(1, 8)
    assert mean_pairwise_distance(vector.expand(50, 8)).item() == pytest.approx(0, abs=1e-12)
    assert mean_pairwise_distance(vector.float().expand(5000, 8)).item() == pytest.approx(0, abs=1e-6)
    assert mean_pairwise_distance(torch.cat([vector, -vector])).item() == pytest.approx(2)
    assert mean_pairwise_distance(torch.eye(7)).item() == pytest.approx(1)


@pytest.mark.parametrize("vectors", [torch.ones(1, 4), torch.ones(3, 1, 4), torch.ones(4)])
def test_no_pair_no_value(vectors):
    with pytest.raises(ValueError, match="embeddings has 1 item; wanted at least 2: a mean over pairs is undefined"):
        mean_pairwise_distance(vectors)


def test_weights_are_checked():
    with pytest.raises(ValueError, match=r"weights has shape \(2,\); wanted \(3,\)"):
        mean_pairwise_distance(torch.eye(3), torch.ones(2))
    with pytest.raises(ValueError, match="weights has -1.0 as its least; wanted numbers of at least 0"):
        mean_pairwise_distance(torch.eye(3), torch.tensor([1.0, -1.0, 1.0]))
    assert mean_pairwise_distance(torch.eye(3), torch.zeros(3)) == 0


def test_groups_of_any_size_and_several_questions():
    groups = [random(3, 8), random(5, 8, seed=1), random(2, 8, seed=2)]
    found = vqa_diversity_from_embeddings(groups)
    assert found.tolist() == pytest.approx([loop(group) for group in groups], abs=1e-12)
    twice = vqa_diversity_from_embeddings([torch.stack([group, group[:, :4].repeat(1, 2)]) for group in groups])
    assert twice.shape == (3, 2)
    assert twice[:, 0].tolist() == found.tolist()
    assert twice[:, 1].tolist() == pytest.approx([loop(group[:, :4]) for group in groups], abs=1e-12)


def test_swd_is_the_loop_over_pairs():
    groups, likeness = [random(4, 8), random(6, 8, seed=1)], [random(4, seed=2).tanh(), random(6, seed=3).tanh()]
    for floor in (0.0, 0.3, -0.5):
        weights = [[min(1, max(0, (s - floor) / (1 - floor))) for s in group.tolist()] for group in likeness]
        expected = [loop(vectors, own) for vectors, own in zip(groups, weights)]
        assert swd_from_embeddings(groups, likeness, floor).tolist() == pytest.approx(expected, abs=1e-12)
        single = swd_from_embeddings([group.float() for group in groups], [s.float() for s in likeness], floor)
        assert single.tolist() == pytest.approx(expected, abs=1e-6)
    stacked = swd_from_embeddings([group.expand(2, *group.shape) for group in groups], likeness)
    assert stacked.shape == (2, 2) and torch.equal(stacked[:, 0], stacked[:, 1])


def test_limits_of_swd():
    varied, alike = random(20, 64), random(1, 64).expand(20, 64)
    close, far, some = torch.full((20,), 0.95), torch.full((20,), 0.45), torch.full((20,), 0.75)
    mess, copies, good, middling, dull = swd_from_embeddings(
        [varied, alike, varied, varied, alike], [far, close, close, some, far], floor=0.5
    ).tolist()
    assert mess == 0 and copies == pytest.approx(0, abs=1e-12) and dull == 0
    assert 0.7 < good < vqa_diversity_from_embeddings([varied]).item() and 0 < middling < good / 2
    full = swd_from_embeddings([varied], [torch.ones(20)])
    torch.testing.assert_close(full, vqa_diversity_from_embeddings([varied]))


def test_swd_is_checked():
    vectors, likeness = torch.eye(3), torch.ones(3)
    with pytest.raises(ValueError, match="floor is 1.0; wanted .* below 1"):
        swd_from_embeddings([vectors], [likeness], floor=1.0)
    with pytest.raises(ValueError, match="floor is nan"):
        swd_from_embeddings([vectors], [likeness], floor=float("nan"))
    with pytest.raises(ValueError, match="similarities has 2 items and answers 1"):
        swd_from_embeddings([vectors], [likeness, likeness])
    with pytest.raises(ValueError, match=r"similarities\[1\] has shape \(2,\); wanted \(3,\)"):
        swd_from_embeddings([vectors, vectors], [likeness, likeness[:2]])
    with pytest.raises(ValueError, match=r"answers\[1\] has 1 item; wanted at least 2: .* undefined"):
        swd_from_embeddings([vectors, vectors[:1]], [likeness, likeness[:1]])
    with pytest.raises(ValueError, match=r"answers\[0\] has 1 item"):
        vqa_diversity_from_embeddings([vectors[:1]])


def test_answers_by_hand(table, vector_image):
    """A VQA model that says what the image has: numbers, which the fake CLIP takes for its embedding."""
    a, b, c = (vector_image(*vector) for vector in ((1, 0), (0, 1), (3, 4)))
    asked = []

    def answer(images, question):
        asked.append((question, len(images)))
        first = "{:g} {:g}" if question == "there?" else "{:g} 0"
        return [first.format(*image.info["vector"]) if image is not b else "0 1" for image in images]

    groups, references = [[a, b], [a, c, c]], [[a], [c, a]]
    expected = torch.tensor([[1.0, 1.0], [(0.4 + 0.4) * 2 / 6, 0.0]])
    found = vqa_diversity(groups, answer, *table, questions=["there?", "here?"])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert asked == [("there?", 5), ("here?", 5)]
    assert group_answers(groups, answer, "there?") == [[["1 0", "0 1"]], [["1 0", "3 4", "3 4"]]]
    weighted = swd(groups, references, answer, *table, questions="there?", floor=0.5)
    likeness = [clip_i(group, [own] * len(group), *table) for group, own in zip(groups, references)]
    weights = [((own - 0.5) / 0.5).clamp(0, 1).tolist() for own in likeness]
    by_hand = [loop([[1, 0], [0, 1]], weights[0]), loop([[1, 0], [3, 4], [3, 4]], weights[1])]
    assert weighted.flatten().tolist() == pytest.approx(by_hand, abs=1e-6)
    assert by_hand[0] == 0 and by_hand[1] > 0.05


def test_wrong_answers_and_groups(table, vector_image):
    image = vector_image(1, 0)
    with pytest.raises(ValueError, match="answer gave 1 answers about 2 images"):
        vqa_diversity([[image, image]], lambda images, question: ["1 0"], *table)
    with pytest.raises(ValueError, match="answer gave a str about 2 images"):
        vqa_diversity([[image, image]], lambda images, question: "no", *table)
    with pytest.raises(TypeError, match=r"answers\[1\] is of type NoneType; wanted a string"):
        vqa_diversity([[image, image]], lambda images, question: ["1 0", None], *table)

    def never(images, question):
        raise AssertionError("asked before the groups were checked")

    with pytest.raises(ValueError, match="predictions is empty"):
        vqa_diversity([], never, *table)
    with pytest.raises(ValueError, match=r"predictions\[1\] is empty"):
        vqa_diversity([[image, image], []], never, *table)
    with pytest.raises(ValueError, match=r"predictions\[1\] has 1 item; wanted at least 2: .* undefined"):
        vqa_diversity([[image, image], [image]], never, *table)
    with pytest.raises(ValueError, match=r"predictions\[0\] has 1 item; wanted at least 2: .* undefined"):
        swd([[image]], [[image]], never, *table)
    with pytest.raises(ValueError, match="references has 2 items and predictions 1"):
        swd([[image, image]], [[image], [image]], never, *table)
    with pytest.raises(ValueError, match="questions is empty"):
        vqa_diversity([[image, image]], never, *table, questions=[])


@pytest.fixture(params=["instructblip", "blip"])
def vqa(request):
    """(model, processor): small ones with random weights, of the real classes."""
    import transformers

    folder = request.getfixturevalue(f"{request.param}_folder")
    name = {"instructblip": "InstructBlipForConditionalGeneration", "blip": "BlipForQuestionAnswering"}[request.param]
    return getattr(transformers, name).from_pretrained(folder), transformers.AutoProcessor.from_pretrained(folder)


def test_a_vqa_model_answers_each_image(vqa, noise):
    model, processor = vqa
    images = [noise(seed) for seed in range(5)]
    model.train()
    answers = question_answerer(model, processor, batch_size=2, max_new_tokens=5)(images, "what is she wearing ?")
    assert model.training and len(answers) == 5 and len(set(answers)) > 1
    assert not any(answer.startswith("what is she wearing") for answer in answers)
    assert all(1 <= len(answer.replace(".", " .").split()) <= 5 for answer in answers)
    for batch_size in (1, 5):
        assert question_answerer(model, processor, batch_size, 5)(images, "what is she wearing ?") == answers
    other = question_answerer(model, processor, 5, 5)(images, "where ?")
    assert other != answers


def test_images_of_any_mode_are_asked_about(vqa, noise):
    answer = question_answerer(*vqa, max_new_tokens=3)
    grey = noise(0).convert("L")
    assert answer([grey, grey.convert("RGBA")], "where ?") == answer([grey.convert("RGB")] * 2, "where ?")


def test_half_precision_vqa(vqa, noise):
    model, processor = copy.deepcopy(vqa[0]).to(torch.bfloat16), vqa[1]
    assert len(question_answerer(model, processor, max_new_tokens=3)([noise(0)], "where ?")) == 1


def test_real_models_end_to_end(vqa, clip, noise):
    groups = [[noise(0), *(Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "white"))], [noise(9)] * 3]
    answer = question_answerer(*vqa, max_new_tokens=5)
    found = vqa_diversity(groups, answer, *clip, questions=[QUESTION, "where ?"])
    said = [answer(groups[0], question) for question in (QUESTION, "where ?")]
    expected = [loop(text_embeddings(texts, *clip)) for texts in said]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-5) and max(expected) > 1e-3
    assert found[1].tolist() == pytest.approx([0, 0], abs=1e-6)
    weighted = swd(groups, [[noise(0), noise(50)], [noise(9)]], answer, *clip, questions=[QUESTION, "where ?"])
    likeness = clip_i(groups[0], [[noise(0), noise(50)]] * 4, *clip)
    expected = [loop(text_embeddings(texts, *clip), likeness.clamp(0, 1)) for texts in said]
    assert weighted[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_answers_are_embedded_once_and_in_their_places(table):
    model, processor = table
    embedded = embed_answers([[["1 0", "0 1"], ["1 0", "1 0"]], [["0 1", "1 0", "0 1"], ["1 0"] * 3]], model, processor)
    assert [one.shape for one in embedded] == [(2, 2, 2), (2, 3, 2)] and model.embedded == 2
    assert embedded[1][0].tolist() == [[0, 1], [1, 0], [0, 1]]
