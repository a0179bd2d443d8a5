"""The loss: what it counts, and what it must not."""

import pytest
import torch

from retribooru.training import objective


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    prediction, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    content, head = torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    content[0, :, :, :2] = content[0, :, :, 6:] = 0  # the first target is padded left and right
    head[:, :, 1:4, 2:5] = 1
    return prediction, noise, content, head


def test_terms_by_hand(tensors):
    prediction, noise, content, head = tensors
    terms = objective.noise_prediction_loss(prediction, noise, content, head, head_weight=0.5)
    error = (prediction - noise).square()
    counted = torch.cat([error[0, :, :, 2:6].flatten(), error[1].flatten()])
    torch.testing.assert_close(terms["content"], counted.mean())
    torch.testing.assert_close(terms["head"], error[:, :, 1:4, 2:5].mean())
    torch.testing.assert_close(terms["loss"], terms["content"] + 0.5 * terms["head"])


def test_loss_on_padding_is_exactly_zero(tensors):
    prediction, noise, content, head = tensors
    head = torch.ones_like(head)  # a head box that reaches into the padding counts no more than the padding
    elsewhere = prediction + 1000 * (1 - content)
    prediction.requires_grad_(True)
    before = objective.noise_prediction_loss(prediction, noise, content, head, 0.5)
    after = objective.noise_prediction_loss(elsewhere, noise, content, head, 0.5)
    for name in before:
        assert torch.equal(before[name], after[name])
    before["loss"].backward()
    assert (prediction.grad[(content == 0).expand_as(prediction)] == 0).all()
    assert (prediction.grad[(content == 1).expand_as(prediction)] != 0).any()


def test_all_padding_is_exactly_zero(tensors):
    prediction, noise, content, head = tensors
    terms = objective.noise_prediction_loss(prediction, noise, torch.zeros_like(content), head, 0.5)
    assert all(term.item() == 0 for term in terms.values())


def test_no_head_is_no_head_term(tensors):
    prediction, noise, content, _ = tensors
    terms = objective.noise_prediction_loss(prediction, noise, content, torch.zeros_like(content), 0.5)
    assert terms["head"].item() == 0 and torch.equal(terms["loss"], terms["content"])


def test_sample_weights(tensors):
    prediction, noise, content, head = tensors
    content = torch.ones_like(content)
    weighted = objective.noise_prediction_loss(prediction, noise, content, head, 0.0, torch.tensor([2.0, 0.0]))
    alone = objective.noise_prediction_loss(prediction[:1], noise[:1], content[:1], head[:1], 0.0)
    torch.testing.assert_close(weighted["loss"], alone["loss"])  # twice the one, over the room of two


def test_latent_mask_is_the_share_of_a_cell():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :6] = 1
    small = objective.to_latent_size(mask, (4, 4))
    assert small[0, 0, 0].tolist() == [1, 0.5, 0, 0]


def test_timesteps():
    def draw(**options):
        return objective.draw_timesteps(20_000, 1000, torch.Generator().manual_seed(0), **options)

    uniform, biased = draw(), draw(bias_begin=250, bias_portion=0.8)
    for timesteps in (uniform, biased):
        assert timesteps.min() >= 0 and timesteps.max() <= 999
    assert (uniform < 250).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (biased < 250).float().mean().item() == pytest.approx(0.2 * 0.25, abs=0.02)
    assert torch.equal(draw(), uniform)


def test_inverse_snr_weights():
    alphas = torch.tensor([0.999, 0.5, 0.25, 0.01])
    weights = objective.inverse_snr_weights(alphas, torch.tensor([0, 1, 2, 3]))
    torch.testing.assert_close(weights, torch.tensor([0.2, 1.0, 3.0, 6.0]))
