"""What any pipeline of diffusers can do, done with references; on a fresh pipeline it equals Stable Diffusion's."""

import re

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    TCDScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.utils import is_torchsde_available
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil

from generating import REFERENCES, STEPS, close, generate
from handmade import draw
from retribooru import RetriBooruPipeline

SCHEDULERS = sorted({*DDIMScheduler().compatibles, LCMScheduler, TCDScheduler}, key=lambda kind: kind.__name__)
TENSORS = ["latents", "prompt_embeds", "negative_prompt_embeds"]


def differ(one, other):
    return not close(one, other, 1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, thousands, about diffusers' own arithmetic
@pytest.mark.parametrize("kind", SCHEDULERS, ids=lambda kind: kind.__name__)
def test_every_scheduler(kind, stable_diffusion, pipeline, trained_like):
    if kind.__name__ == "DPMSolverSDEScheduler" and not is_torchsde_available():
        pytest.skip("needs torchsde")
    trained, steps = trained_like(pipeline), {"num_inference_steps": 5}
    for each in (stable_diffusion, pipeline, trained):
        each.scheduler = kind.from_config(each.scheduler.config)
    plain = generate(stable_diffusion, **steps)
    assert torch.equal(generate(pipeline, **REFERENCES, **steps), plain)
    drawn = generate(trained, **REFERENCES, **steps)
    assert drawn.isfinite().all() and differ(drawn, plain)


def test_two_calls_with_a_seed_are_equal(trained):
    assert torch.equal(generate(trained, **REFERENCES), generate(trained, **REFERENCES))
    assert differ(generate(trained, **REFERENCES), generate(trained, seeds=(1,), **REFERENCES))


# What is asked for


def test_negative_prompt(trained):
    drawn = [generate(trained, **REFERENCES, negative_prompt=text) for text in (None, "", "standing")]
    assert torch.equal(drawn[0], drawn[1]) and differ(drawn[0], drawn[2])
    both = generate(trained, ["solo", "1girl"], (0, 1), negative_prompt=["standing", ""], **REFERENCES)
    alone = [generate(trained, "solo", (0,), negative_prompt="standing", **REFERENCES),
             generate(trained, "1girl", (1,), negative_prompt="", **REFERENCES)]  # fmt: skip
    assert close(both, torch.cat(alone))


def test_embeddings_in_place_of_prompts(trained):
    expected = generate(trained, "solo", negative_prompt="standing", **REFERENCES)
    embeds, negative = trained.encode_prompt("solo", "cpu", 1, True, negative_prompt="standing")
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    assert torch.equal(generate(trained, None, **given, **REFERENCES), expected)
    with pytest.raises(ValueError, match="Cannot forward both `prompt`"):
        generate(trained, "solo", **given)


def test_latents_in_place_of_a_generator(trained):
    noise = trained.prepare_latents(1, 4, 32, 32, torch.float32, "cpu", torch.Generator().manual_seed(0))
    expected = generate(trained, **REFERENCES)
    assert torch.equal(generate(trained, seeds=(5,), latents=noise, **REFERENCES), expected)


@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("count", [1, 3])
def test_several_images_per_prompt_equal_single_calls(trained, prompts, count):
    """Prompts that share references, and a generator for each picture."""
    texts, seeds = ["1girl, solo", "standing"][:prompts], tuple(range(prompts * count))
    drawn = generate(trained, texts, seeds, num_images_per_prompt=count, **REFERENCES)
    alone = [generate(trained, texts[seed // count], (seed,), **REFERENCES) for seed in seeds]
    assert len(drawn) == prompts * count and close(drawn, torch.cat(alone))


def test_wrong_number_of_generators(trained):
    with pytest.raises(ValueError, match="list of generators of length 2"):
        generate(trained, seeds=(0, 1), **REFERENCES)


# What is given back


def test_output_types(trained):
    latents = generate(trained, **REFERENCES)
    picture = generate(trained, **REFERENCES, output_type="np")
    assert latents.shape == (1, 4, 8, 8) and picture.shape == (1, 32, 32, 3) and picture.dtype == np.float32
    assert 0 <= picture.min() < picture.max() <= 1
    tensor = generate(trained, **REFERENCES, output_type="pt")
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), picture)
    image = generate(trained, **REFERENCES, output_type="pil")[0]
    assert isinstance(image, Image.Image) and np.array_equal(np.asarray(image), (picture[0] * 255).round())
    with torch.no_grad():
        decoded = trained.vae.decode(latents / trained.vae.config.scaling_factor).sample
    assert np.array_equal(trained.image_processor.postprocess(decoded, "np"), picture)


def test_a_tuple_where_no_dict_is_wanted(trained):
    options = {"num_inference_steps": STEPS, "output_type": "np", **REFERENCES}
    drawn = [trained("solo", generator=torch.Generator().manual_seed(0), return_dict=given, **options)
             for given in (True, False)]  # fmt: skip
    assert isinstance(drawn[1], tuple) and np.array_equal(drawn[1][0], drawn[0].images)
    assert drawn[1][1] is drawn[0].nsfw_content_detected is None


def test_progress_bar(trained, capsys):
    generate(trained, **REFERENCES)
    assert not capsys.readouterr().err
    trained.set_progress_bar_config(disable=False)
    generate(trained, **REFERENCES)
    assert re.search(rf"100%.* {STEPS}/{STEPS} ", capsys.readouterr().err)


# Callbacks: on a fresh pipeline each does what it does on Stable Diffusion


def see_all(pipe, step, timestep, tensors):
    return tensors


def halve_latents(pipe, step, timestep, tensors):
    return {"latents": tensors["latents"] / 2} if step == 1 else {}


def swap_prompts(pipe, step, timestep, tensors):
    if step == 0:
        tensors["prompt_embeds"] = tensors["prompt_embeds"].flip(0)
    return tensors  # all of them, as diffusers' own callbacks do


def raise_guidance(pipe, step, timestep, tensors):
    pipe._guidance_scale += 1
    return tensors


def rescale_guidance(pipe, step, timestep, tensors):
    pipe._guidance_rescale = pipe.guidance_rescale + 0.3
    return tensors


def stop_after_the_first(pipe, step, timestep, tensors):
    pipe._interrupt = True
    return tensors


CALLBACKS = {
    "sees": see_all,
    "latents": halve_latents,
    "prompt_embeds": swap_prompts,
    "guidance": raise_guidance,
    "rescale": rescale_guidance,
    "interrupt": stop_after_the_first,
    "cutoff": SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0),
    "several": MultiPipelineCallbacks([SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)]),
}


@pytest.mark.parametrize("callback", CALLBACKS.values(), ids=CALLBACKS)
def test_callback(stable_diffusion, pipeline, trained_like, callback):
    options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": TENSORS}
    plain = generate(stable_diffusion, **options)
    assert torch.equal(generate(pipeline, **REFERENCES, **options), plain)
    assert differ(generate(trained_like(pipeline), **REFERENCES, **options), plain)
    assert torch.equal(plain, generate(stable_diffusion)) == (callback is see_all)


def test_callback_sees_the_tensors_named(trained):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        return {}

    options = {"callback_on_step_end": callback, "num_images_per_prompt": 2, **REFERENCES}
    generate(trained, callback_on_step_end_tensor_inputs=TENSORS, **options)
    text = (2, 16, 16)
    wanted = {"latents": (2, 4, 8, 8), "prompt_embeds": (4, 16, 16), "negative_prompt_embeds": text}
    assert seen == [wanted] * STEPS
    assert set(TENSORS) <= set(trained._callback_tensor_inputs) and trained.num_timesteps == STEPS
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        generate(trained, callback_on_step_end_tensor_inputs=["noise"], **options)


def test_callback_changes_the_negative_prompt(trained):
    _, other = trained.encode_prompt("", "cpu", 1, True, negative_prompt="standing, solo")

    def callback(pipe, step, timestep, tensors):
        return {"negative_prompt_embeds": other}

    drawn = generate(trained, callback_on_step_end=callback, **REFERENCES)
    assert differ(drawn, generate(trained, **REFERENCES))


# Components


def test_a_pipeline_of_the_components(trained):
    again = RetriBooruPipeline(**trained.components)
    again.set_progress_bar_config(disable=True)
    expected = generate(trained, **REFERENCES)
    assert torch.equal(generate(again, **REFERENCES), expected)
    again = RetriBooruPipeline.from_pipe(trained)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(generate(again, **REFERENCES), expected)


def test_saved_features_and_embeddings_need_no_text_encoder(trained, tmp_path):
    embeds, negative = trained.encode_prompt("solo", "cpu", 1, True)
    features = trained.encode_references(**REFERENCES)
    trained.save_pretrained(tmp_path)
    lean = RetriBooruPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    lean.set_progress_bar_config(disable=True)
    drawn = generate(
        lean, None, prompt_embeds=embeds, negative_prompt_embeds=negative, reference_features=features
    )  # fmt: skip
    assert torch.equal(drawn, generate(trained, "solo", **REFERENCES))


def test_vae_slicing_and_tiling(trained):
    large = {"height": 64, "width": 64, "num_images_per_prompt": 2, "output_type": "pt", **REFERENCES}
    plain = generate(trained, **large)
    trained.vae.enable_slicing()
    assert close(generate(trained, **large), plain)
    trained.vae.enable_tiling()
    tiled = generate(trained, **large)
    assert tiled.shape == plain.shape and not close(tiled, plain)  # tiles do not see each other: another picture


@pytest.mark.parametrize("found", [True, False])
def test_safety_checker(stable_diffusion, tmp_path, found):
    """A tiny one of the real class, which finds something in every picture, or in none."""
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(vision_config={**tiny, "image_size": 32, "patch_size": 16}, text_config=tiny, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config).eval()
    checker.concept_embeds_weights.data.fill_(-2.0 if found else 2.0)  # what a cosine must be above
    checker.special_care_embeds_weights.data.fill_(2.0)
    checked = StableDiffusionPipeline(
        **{**stable_diffusion.components, "safety_checker": checker,
           "feature_extractor": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)},
    )  # fmt: skip
    RetriBooruPipeline.from_stable_diffusion(checked).save_pretrained(tmp_path)
    pipeline = RetriBooruPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.config.requires_safety_checker
    out = pipeline(["solo", "1girl"], num_inference_steps=2, output_type="np", **REFERENCES)
    assert out.nsfw_content_detected == [found] * 2
    assert (out.images.max() == 0) == found


@pytest.fixture
def controlnet(stable_diffusion):
    """A tiny one whose zero convolutions are no longer zero."""
    torch.manual_seed(2)
    # Two halvings from pixels to latents, as this VAE's.
    controlnet = ControlNetModel.from_unet(stable_diffusion.unet, conditioning_embedding_out_channels=(16, 32, 96))
    for conv in [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]:
        torch.nn.init.normal_(conv.weight)
    torch.nn.init.normal_(controlnet.controlnet_cond_embedding.conv_out.weight)
    return controlnet


def test_controlnet(stable_diffusion, pipeline, trained_like, controlnet, tmp_path):
    components = {**stable_diffusion.components, "controlnet": controlnet}
    plain = StableDiffusionControlNetPipeline(**components, requires_safety_checker=False)
    plain.set_progress_bar_config(disable=True)
    pose, strength = draw("white", (32, 32))[0], {"controlnet_conditioning_scale": 0.7, "num_images_per_prompt": 2}
    fresh = RetriBooruPipeline(**{**pipeline.components, "controlnet": controlnet})
    fresh.save_pretrained(tmp_path)
    fresh = RetriBooruPipeline.from_pretrained(tmp_path)
    fresh.set_progress_bar_config(disable=True)
    for guidance in (1.0, 5.0):
        expected = generate(plain, image=pose, guidance_scale=guidance, **strength)
        options = {"control_image": pose, "guidance_scale": guidance, **strength}
        assert torch.equal(generate(fresh, **REFERENCES, **options), expected)
        assert differ(generate(fresh, guidance_scale=guidance, num_images_per_prompt=2), expected)
        assert differ(generate(trained_like(fresh), **REFERENCES, **options), expected)


def test_control_images_for_each_prompt(trained, controlnet):
    trained = RetriBooruPipeline(**{**trained.components, "controlnet": controlnet})
    trained.set_progress_bar_config(disable=True)
    poses, texts = [draw(color, (32, 32))[0] for color in ("white", "red")], ["solo", "1girl"]
    both = generate(trained, texts, (0, 1), control_image=poses, **REFERENCES)
    alone = [generate(trained, texts[i], (i,), control_image=poses[i], **REFERENCES) for i in (0, 1)]
    assert close(both, torch.cat(alone)) and differ(both[:1], both[1:])
    with pytest.raises(ValueError, match="control_image: got 3 for 2 pictures, wanted 1 or one per prompt"):
        generate(trained, texts, (0, 1), control_image=[*poses, poses[0]])


def test_a_control_image_without_a_controlnet(trained):
    with pytest.raises(ValueError, match="control_image: got one, but the pipeline has no controlnet"):
        generate(trained, control_image=draw("white", (32, 32))[0])
