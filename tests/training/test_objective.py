"""The loss: what it counts, and what it must not."""

import pytest
import torch
from diffusers import DDIMScheduler

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
    terms = objective.prediction_loss(prediction, noise, content, head, head_weight=0.5)
    error = (prediction - noise).square()
    each = torch.stack([error[0, :, :, 2:6].mean(), error[1].mean()])
    torch.testing.assert_close(terms["content"], each.mean())
    torch.testing.assert_close(terms["head"], error[:, :, 1:4, 2:5].mean())
    torch.testing.assert_close(terms["loss"], terms["content"] + 0.5 * terms["head"])


def test_loss_on_padding_is_exactly_zero(tensors):
    prediction, noise, content, head = tensors
    head = torch.ones_like(head)  # a head box that reaches into the padding counts no more than the padding
    elsewhere = prediction + 1000 * (1 - content)
    prediction.requires_grad_(True)
    before = objective.prediction_loss(prediction, noise, content, head, 0.5)
    after = objective.prediction_loss(elsewhere, noise, content, head, 0.5)
    for name in before:
        assert torch.equal(before[name], after[name])
    before["loss"].backward()
    assert (prediction.grad[(content == 0).expand_as(prediction)] == 0).all()
    assert (prediction.grad[(content == 1).expand_as(prediction)] != 0).any()


def test_all_padding_is_exactly_zero(tensors):
    prediction, noise, content, head = tensors
    terms = objective.prediction_loss(prediction, noise, torch.zeros_like(content), head, 0.5)
    assert all(term.item() == 0 for term in terms.values())


def test_no_head_is_no_head_term(tensors):
    prediction, noise, content, _ = tensors
    terms = objective.prediction_loss(prediction, noise, content, torch.zeros_like(content), 0.5)
    assert terms["head"].item() == 0 and torch.equal(terms["loss"], terms["content"])


def test_sample_weights(tensors):
    prediction, noise, content, head = tensors
    content = torch.ones_like(content)
    weighted = objective.prediction_loss(prediction, noise, content, head, 0.0, torch.tensor([2.0, 0.0]))
    alone = objective.prediction_loss(prediction[:1], noise[:1], content[:1], head[:1], 0.0)
    torch.testing.assert_close(weighted["loss"], alone["loss"])  # the mean of twice the one and nothing


def test_the_loss_of_a_batch_is_the_mean_of_its_items(tensors):
    whole = objective.prediction_loss(*tensors, 0.5)
    items = [objective.prediction_loss(*(part[i : i + 1] for part in tensors), 0.5) for i in range(2)]
    for name, term in whole.items():
        torch.testing.assert_close(term, (items[0][name] + items[1][name]) / 2)


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


def test_min_snr_weights():
    alphas = torch.tensor([0.99, 0.9, 0.5, 0.01])  # SNR 99, 9, 1, 1/99
    weights = objective.min_snr_weights(alphas, torch.tensor([0, 1, 2, 3]), gamma=5.0)
    torch.testing.assert_close(weights, torch.tensor([5 / 99, 5 / 9, 1.0, 1.0]))


def test_targets_are_those_of_the_scheduler(tensors):
    """v as diffusers defines it; whoever predicts it without error has the picture."""
    latents, noise, _, _ = tensors
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type="v_prediction",
    )  # fmt: skip
    scheduler.set_timesteps(1000)
    timesteps = torch.tensor([20, 990])
    target = objective.prediction_target("v_prediction", latents, noise, scheduler.alphas_cumprod, timesteps)
    torch.testing.assert_close(target, scheduler.get_velocity(latents, noise, timesteps))
    noisy = scheduler.add_noise(latents, noise, timesteps)
    for i, timestep in enumerate(timesteps):
        found = scheduler.step(target[i], timestep, noisy[i]).pred_original_sample
        torch.testing.assert_close(found, latents[i], atol=1e-4, rtol=0)
    assert objective.prediction_target("epsilon", latents, noise, scheduler.alphas_cumprod, timesteps) is noise


@pytest.mark.parametrize("options", [{"inverse_snr": True}, {"snr_gamma": 5.0}])
def test_weights_make_both_predictions_the_same_loss(tensors, options):
    """The same guess of the picture, told as noise and as v."""
    latents, noise, content, head = tensors
    alphas, timesteps = torch.linspace(0.99, 0.01, 100).double(), torch.tensor([10, 80])
    a = alphas[timesteps].view(-1, 1, 1, 1)
    latents, noise = latents.double(), noise.double()
    noisy, guess = a.sqrt() * latents + (1 - a).sqrt() * noise, latents + 0.1
    as_noise = (noisy - a.sqrt() * guess) / (1 - a).sqrt()
    losses = []
    for kind in objective.PREDICTION_TYPES:
        prediction = objective.prediction_target(kind, guess, as_noise, alphas, timesteps)
        target = objective.prediction_target(kind, latents, noise, alphas, timesteps)
        weights = objective.loss_weights(kind, alphas, timesteps, **options)
        losses.append(objective.prediction_loss(prediction, target, content, head, 0.5, weights)["loss"])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    assert objective.loss_weights("v_prediction", alphas, timesteps) is None


@pytest.mark.parametrize("rates", [(0.5, 0.1, 0.0), (0.3, 0.2, 0.25), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)])
def test_conditions_are_dropped_at_their_rates(rates):
    text, references = objective.draw_conditions(50_000, torch.Generator().manual_seed(0), *rates)
    empty_text, empty_references, both = rates

    def share(which):
        return pytest.approx(which.float().mean().item(), abs=0.01)

    assert (1 - both) * (1 - empty_text) == share(text)
    assert (1 - both) * (1 - empty_references) == share(references)
    assert both + (1 - both) * empty_text * empty_references == share(~text & ~references)
