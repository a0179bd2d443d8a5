"""What a training step computes is what the pipeline does."""

import pytest
import torch

from handmade import draw
from retribooru import RetriBooruPipeline
from retribooru.pipeline.reference_processor import ReferenceProcessor
from retribooru.training.arguments import TrainArguments
from retribooru.training.data import Batch
from retribooru.training.step import Model, draw_noise, training_loss
from retribooru.training.trainable import load_pipeline

IMAGES, CONCEPTS = [draw("red")[0], draw("green", size=(30, 20))[0], draw("blue")[0]], ["face", "body", "figure"]
MASKS = [draw("red")[1], None, None]


@pytest.mark.parametrize("reference_timestep", ["zero", "denoising"])
@torch.no_grad()
def test_training_predicts_what_the_pipeline_does(stable_diffusion, reference_timestep):
    """Two items with two references each, three noised targets of each; masked and padded tokens are left out."""
    pipeline = RetriBooruPipeline.from_stable_diffusion(stable_diffusion, reference_timestep=reference_timestep)
    for layer in pipeline.unet.retrieval_layers:
        torch.nn.init.normal_(layer.zero_conv.weight)
    generator = torch.Generator().manual_seed(0)
    noisy, text = torch.randn(6, 4, 8, 8, generator=generator), torch.randn(6, 16, 16, generator=generator)
    timesteps = torch.tensor([900, 700, 500, 300, 100, 1])

    items = [(0, 1), (2, 0)]
    pixels, content = ReferenceProcessor(32)(IMAGES, MASKS)
    latents = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    texts = [pipeline.retrieval_encoder.config.concept_texts[concept] for concept in CONCEPTS]
    concepts = pipeline.encode_prompt(texts, "cpu", 1, False)[0]
    batch = [torch.stack([part[list(item)] for item in items]) for part in (latents, concepts, content)]
    trained = Model(pipeline, train_base=False)(noisy, timesteps, text, *batch)

    for number, item in enumerate(items):
        chosen = [[part[i] for i in item] for part in (IMAGES, CONCEPTS, MASKS)]
        features = pipeline.encode_references(*chosen)
        for row in range(3 * number, 3 * number + 3):
            tokens = features.tokens or pipeline._read_tokens(features, timesteps[row])
            references = pipeline.unet.project_references(tokens, features.biases)
            expected = pipeline.unet(noisy[row : row + 1], timesteps[row], text[row : row + 1], references).sample
            torch.testing.assert_close(trained[row : row + 1], expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def batch():
    """Two targets without references."""
    return Batch(
        latents=torch.randn(2, 4, 8, 8), content_mask=torch.ones(2, 1, 8, 8), head_mask=torch.ones(2, 1, 8, 8),
        text=torch.randn(2, 16, 16), empty_text=torch.zeros(1, 16, 16), samples=torch.tensor([0, 1]),
        references=None, content=None, concepts=None,
    )  # fmt: skip


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_of_what_the_scheduler_says_is_predicted(stable_diffusion, batch, prediction_type):
    """A model that knows the picture has none, by what the scheduler makes of its prediction."""
    scheduler = type(stable_diffusion.scheduler).from_config(
        stable_diffusion.scheduler.config, prediction_type=prediction_type
    )
    scheduler.set_timesteps(1000)

    def model(noisy, timesteps, *_):
        a = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noise = (noisy - a.sqrt() * batch.latents) / (1 - a).sqrt()
        prediction = noise if prediction_type == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * batch.latents
        for i, timestep in enumerate(timesteps):
            found = scheduler.step(prediction[i], timestep, noisy[i]).pred_original_sample
            torch.testing.assert_close(found, batch.latents[i], atol=1e-3, rtol=0)
        return prediction

    args = TrainArguments(output_dir="out", proportion_empty_prompts=0.0)
    assert training_loss(model, scheduler, batch, args)["loss"] < 1e-6


def test_what_is_drawn_is_each_samples_own():
    args = TrainArguments(output_dir="out", noise_draws=2, proportion_empty_references=0.5)
    together = draw_noise([5, 900], torch.Size((4, 8, 8)), 1000, args)
    alone = [draw_noise([sample], torch.Size((4, 8, 8)), 1000, args) for sample in (5, 900)]
    for both, one, other in zip(together, *alone):
        assert torch.equal(both, torch.cat([one, other])) and len(both) == 4
    noise, timesteps, _, _ = together
    assert not torch.equal(noise[0], noise[1]) and len(set(timesteps.tolist())) == 4


@pytest.mark.parametrize("step, as_if", [
    (3, {"inverse_snr_weighting": True, "timestep_bias_portion": 1.0}),
    (4, {"snr_gamma": 5.0, "timestep_bias_portion": 0.0}),
])  # fmt: skip
def test_timesteps_are_favoured_for_the_first_steps_alone(stable_diffusion, batch, step, as_if):
    common = {"output_dir": "out", "noise_draws": 4, "timestep_bias_begin": 900}
    both = {"inverse_snr_weighting": True, "timestep_bias_portion": 1.0, "timestep_bias_steps": 3, "snr_gamma": 5.0}
    seen = []

    def model(noisy, timesteps, *_):
        seen.append(timesteps)
        return torch.zeros_like(noisy)

    found = training_loss(model, stable_diffusion.scheduler, batch, TrainArguments(**common, **both), step)
    expected = training_loss(model, stable_diffusion.scheduler, batch, TrainArguments(**common, **as_if))
    assert torch.equal(*seen) and (seen[0].min() >= 900) == (step == 3)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_another_prediction_is_refused(stable_diffusion, tmp_path):
    stable_diffusion.scheduler.register_to_config(prediction_type="sample")
    stable_diffusion.save_pretrained(tmp_path)
    args = TrainArguments(output_dir="out", pretrained_model_name_or_path=str(tmp_path))
    with pytest.raises(ValueError, match="its scheduler predicts sample, wanted one of epsilon, v_prediction"):
        load_pipeline(args)


@pytest.mark.parametrize("train_base", [False, True])
def test_a_base_in_half_precision_is_trained_in_full(stable_diffusion, tmp_path, train_base):
    stable_diffusion.to(torch.float16).save_pretrained(tmp_path)
    args = TrainArguments(output_dir="out", pretrained_model_name_or_path=str(tmp_path), train_base=train_base)
    models = [part for part in load_pipeline(args).components.values() if isinstance(part, torch.nn.Module)]
    assert len(models) == 4 - train_base and {model.dtype for model in models} == {torch.float32}


def test_a_base_that_is_not_there_is_refused():
    args = TrainArguments(output_dir="out", pretrained_model_name_or_path="no/such/folder")
    with pytest.raises(ValueError, match="pretrained_model_name_or_path: got no/such/folder, wanted a pipeline"):
        load_pipeline(args)
