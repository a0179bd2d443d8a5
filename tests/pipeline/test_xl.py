"""Pipelines around other U-Nets than Stable Diffusion 1.5's: Stable Diffusion XL and 2.1."""

import sys

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.callbacks import SDXLCFGCutoffCallback
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from handmade import draw
from retribooru import RetriBooruPipeline, RetriBooruXLPipeline, RetrievedFeatures
from retribooru.training.scratch import small_tokenizer, small_vae

RED, GREEN, BLUE = draw("red")[0], draw("green", size=(30, 20))[0], draw("blue", size=(50, 50))[0]
A = {"reference_images": [RED, GREEN], "reference_concepts": ["face", "body"]}
B = {"reference_images": [BLUE], "reference_concepts": ["figure"]}
BOTH = {key: [A[key], B[key]] for key in A}
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
NEGATIVE_SIZES = {"negative_original_size": (16, 8), "negative_target_size": (64, 64)}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def text_config(tokenizer, width, activation, projection):
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=tokenizer.model_max_length, projection_dim=projection,
        hidden_act=activation, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer(["1girl, solo, standing"] * 3, length=16, vocab_size=500)


@pytest.fixture(scope="module")
def xl_folder(tokenizer, tmp_path_factory):
    """A tiny Stable Diffusion XL; 32 x 32 pixels, 8 x 8 latents."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 32),
        layers_per_block=2,
        norm_num_groups=8,
        attention_head_dim=(1, 2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 3),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12 + 20,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=small_vae([8, 8, 8], latent_channels=4, resolution=32),
        text_encoder=CLIPTextModel(text_config(tokenizer, 12, "quick_gelu", 12)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer, 20, "gelu", 24)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
        add_watermarker=False,
    )
    pipeline.vae.decoder.conv_out.reset_parameters()  # a small VAE begins with pictures that are nearly grey
    folder = tmp_path_factory.mktemp("stable_diffusion_xl")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def xl(xl_folder):
    return quiet(StableDiffusionXLPipeline.from_pretrained(xl_folder, add_watermarker=False))


@pytest.fixture
def fresh(xl):
    return make_fresh(xl)


@pytest.fixture
def trained(fresh):
    return as_trained(fresh)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_fresh(xl, **options):
    torch.manual_seed(0)  # of what the retrieval layers do not take over from the U-Net
    return quiet(RetriBooruXLPipeline.from_stable_diffusion(xl, **options))


def as_trained(pipeline):
    """The zero convolutions are no longer zero."""
    generator = torch.Generator().manual_seed(1)
    for layer in pipeline.unet.retrieval_layers:
        torch.nn.init.normal_(layer.zero_conv.weight, generator=generator)
    return pipeline


def generate(pipeline, prompt="1girl, solo", seeds=(0,), **options):
    """Pictures of a call, as tensors; a seed for each."""
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "pt", **options}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipeline(prompt, generator=generators if len(seeds) > 1 else generators[0], **options).images


def assert_same(loaded, saved):
    """Weights to the bit. Pictures nearly: where a file's tensors lie in memory can change how sums are rounded."""
    for name in ("unet", "retrieval_encoder", "vae", "text_encoder"):
        one, other = (getattr(pipeline, name).state_dict() for pipeline in (loaded, saved))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    torch.testing.assert_close(generate(loaded, **A), generate(saved, **A), rtol=1e-5, atol=1e-5)


def differ(one, other):
    return (one - other).abs().max() > 1e-3


# A fresh pipeline is the plain one

OPTIONS = {
    "guided": {},
    "not guided": {"guidance_scale": 1.0},
    "two texts": {"prompt_2": "standing", "negative_prompt": "solo", "negative_prompt_2": "1girl"},
    "sizes": {"original_size": (40, 24), "crops_coords_top_left": (3, 5), "target_size": (48, 48)},
    "negative sizes": {**NEGATIVE_SIZES, "negative_crops_coords_top_left": (1, 2)},
    "another size": {"height": 40, "width": 24},
    "clip_skip": {"clip_skip": 1},
    "guidance_rescale": {"guidance_rescale": 0.7},
    "several": {"prompt": ["1girl", "standing"], "num_images_per_prompt": 2, "seeds": (0, 1, 2, 3)},
    "latents": {"latents": torch.ones(1, 4, 8, 8), "output_type": "latent"},
    "timesteps": {"timesteps": [900, 500, 20]},
    "sigmas": {"sigmas": [10.0, 2.0, 0.5]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_fresh_pipeline_is_stable_diffusion_xl_to_the_bit(xl, fresh, options):
    expected = generate(xl, **options)
    assert torch.equal(generate(fresh, **A, **options), expected)
    assert torch.equal(generate(fresh, **options), expected)


@pytest.mark.parametrize("query", ["decoder", "encoder"])
@pytest.mark.parametrize("reference_timestep", ["zero", "denoising"])
@pytest.mark.parametrize("count", [1, 3])
def test_fresh_pipelines_of_every_kind(xl, query, reference_timestep, count):
    fresh = make_fresh(xl, retrieval_query=query, reference_timestep=reference_timestep)
    references = {"reference_images": [RED] * count, "reference_concepts": ["figure"] * count}
    assert torch.equal(generate(fresh, **references), generate(xl))


SCHEDULERS = {
    "ddim": (DDIMScheduler, {"set_alpha_to_one": False, "clip_sample": False}),
    "euler ancestral": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "timesteps that round to one": (
        DPMSolverMultistepScheduler,
        {"num_train_timesteps": 5, "use_karras_sigmas": True, "num_inference_steps": 24},
    ),
}


@pytest.mark.parametrize("scheduler, config", SCHEDULERS.values(), ids=SCHEDULERS)
def test_other_schedulers(xl, fresh, scheduler, config):
    config = dict(config)
    steps = {"num_inference_steps": config.pop("num_inference_steps", 4)}
    xl.scheduler = fresh.scheduler = scheduler(**NOISE, **config)
    assert torch.equal(generate(fresh, **A, **steps), generate(xl, **steps))


def test_an_empty_negative_prompt_is_encoded_where_the_configuration_says_so(xl):
    expected = generate(xl)
    xl.register_to_config(force_zeros_for_empty_prompt=False)
    fresh = make_fresh(xl)
    assert torch.equal(generate(fresh, **A), generate(xl)) and differ(generate(xl), expected)


def test_embeddings_in_place_of_prompts(fresh, xl):
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeds = dict(zip(names, xl.encode_prompt("1girl, solo", negative_prompt="standing")))
    expected = generate(xl, negative_prompt="standing")
    assert torch.equal(generate(fresh, prompt=None, **A, **embeds), expected)


def test_latents_with_a_mean_and_a_deviation(xl):
    config = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.5, 2.0, 1.0]}
    expected, pixels = generate(xl), torch.rand(2, 3, 32, 32)
    plain = make_fresh(xl)._encode_pixels(pixels)
    xl.vae.register_to_config(**config)
    fresh = make_fresh(xl)
    assert torch.equal(generate(fresh, **A), generate(xl)) and differ(generate(xl), expected)
    mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in config.values())
    wanted = (plain - mean * xl.vae.config.scaling_factor) / std
    torch.testing.assert_close(fresh._encode_pixels(pixels), wanted)


def test_from_a_folder(xl_folder, xl):
    fresh = quiet(RetriBooruXLPipeline.from_stable_diffusion(str(xl_folder), add_watermarker=False))
    assert torch.equal(generate(fresh, **A), generate(xl))


def test_from_a_single_file(xl, monkeypatch):
    """What is read from the file is the library's work; here it is a pipeline at hand."""
    asked = []
    monkeypatch.setattr(
        StableDiffusionXLPipeline, "from_single_file", lambda *args, **kw: asked.append((args, kw)) or xl
    )
    for load in (RetriBooruXLPipeline.from_single_file, RetriBooruXLPipeline.from_stable_diffusion):
        loaded = quiet(load("xl.safetensors", dtype=torch.float32))
        assert type(loaded) is RetriBooruXLPipeline and torch.equal(generate(loaded, **A), generate(xl))
    assert asked == [(("xl.safetensors",), {"dtype": torch.float32})] * 2


def test_controlnet(xl, fresh):
    controlnet = ControlNetModel.from_unet(xl.unet, conditioning_embedding_out_channels=(8, 8, 16))
    for parameter in controlnet.parameters():  # its zero convolutions too
        torch.nn.init.normal_(parameter, std=0.05)
    expected = generate(
        quiet(StableDiffusionXLControlNetPipeline(**xl.components, controlnet=controlnet, add_watermarker=False)),
        image=BLUE, controlnet_conditioning_scale=0.5, height=32, width=32,
    )  # fmt: skip
    with_control = quiet(RetriBooruXLPipeline(**{**fresh.components, "controlnet": controlnet}, add_watermarker=False))
    control = {"control_image": BLUE, "controlnet_conditioning_scale": 0.5}
    assert torch.equal(generate(with_control, **A, **control), expected)
    assert differ(generate(with_control, **A), expected)


# A trained one


def test_save_load_equal(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    loaded = quiet(RetriBooruXLPipeline.from_pretrained(tmp_path, add_watermarker=False))
    assert_same(loaded, trained)


def test_a_checkpoint_is_loaded_by_its_own_code(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    trained.save_pretrained(tmp_path / "checkpoint")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "checkpoint", trust_remote_code=True, add_watermarker=False)
    of_the_checkpoint = [type(loaded), type(loaded.unet), type(loaded.retrieval_encoder)]
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        del sys.modules[name]
    assert all(kind.__module__.startswith("diffusers_modules.") for kind in of_the_checkpoint)
    assert_same(quiet(loaded), trained)


def test_references_matter_and_scale_zero_turns_them_off(trained, xl):
    expected = generate(trained, **A)
    assert differ(expected, generate(xl)) and differ(expected, generate(trained, **B))
    assert differ(expected, generate(trained, **{**A, "reference_concepts": ["body", "face"]}))
    assert torch.equal(generate(trained, **A, retrieval_scale=0.0), generate(xl))


@pytest.mark.parametrize("reference_timestep", ["zero", "denoising"])
def test_features_given_equal_images_given(xl, reference_timestep, tmp_path):
    trained = as_trained(make_fresh(xl, reference_timestep=reference_timestep))
    trained.encode_references(**BOTH).save(tmp_path / "both.safetensors")
    features = RetrievedFeatures.load(tmp_path / "both.safetensors")
    options = {"prompt": ["1girl", "standing"], "seeds": (0, 1)}
    assert torch.equal(generate(trained, reference_features=features, **options), generate(trained, **BOTH, **options))


def test_what_the_retrieval_encoder_is_told(xl):
    pipeline = make_fresh(xl, reference_timestep="denoising")
    told = pipeline.encode_references(**A, reference_size=16).encoder_inputs
    assert told["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    for i, text in enumerate(("face", "clothes")):
        embeds, _, pooled, _ = xl.encode_prompt(text, do_classifier_free_guidance=False)
        torch.testing.assert_close(told["encoder_hidden_states"][i : i + 1], embeds)
        torch.testing.assert_close(told["text_embeds"][i : i + 1], pooled)


def test_two_prompts_each_with_its_own_references_equal_two_calls(trained):
    options = {**NEGATIVE_SIZES, "original_size": (40, 40), "negative_prompt": "solo", "reference_guidance_scale": 2.0}
    batch = generate(
        trained, ["1girl", "standing"], seeds=(0, 1), **BOTH, **{**options, "negative_prompt": ["solo"] * 2}
    )
    single = [generate(trained, "1girl", (0,), **A, **options), generate(trained, "standing", (1,), **B, **options)]
    torch.testing.assert_close(batch, torch.cat(single), **CLOSE)
    assert differ(*single)


@pytest.mark.parametrize("guidance_scale, reference_guidance_scale, rows", [
    (1.0, None, 1), (1.0, 3.0, 2), (5.0, None, 2), (5.0, 1.0, 2), (5.0, 3.0, 3),
])  # fmt: skip
def test_guidance(trained, guidance_scale, reference_guidance_scale, rows):
    """Of the first step, against the predictions asked for one by one."""
    seen, given = [], {}
    handle = trained.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    text, negative, pooled, negative_pooled = trained.encode_prompt("1girl", negative_prompt="solo")
    added = trained.prepare_added_conditions(pooled, (32, 32), (0, 0), (32, 32))
    negative_added = trained.prepare_added_conditions(negative_pooled, (16, 8), (0, 0), (64, 64))
    features = trained.encode_references(**A)
    trained.scheduler.set_timesteps(3)
    timestep = trained.scheduler.timesteps[0]
    start = trained.prepare_latents(1, 4, 32, 32, torch.float32, "cpu", torch.Generator().manual_seed(0))
    latents = trained.denoise(
        start, trained.scheduler.timesteps[:1], text, negative, features, guidance_scale=guidance_scale,
        reference_guidance_scale=reference_guidance_scale, added_cond_kwargs=added,
        negative_added_cond_kwargs=negative_added,
    )  # fmt: skip
    handle.remove()
    assert seen == [rows]

    trained.scheduler.set_timesteps(3)
    sample = trained.scheduler.scale_model_input(start, timestep)
    keys_values = trained.unet.project_references(features.tokens, features.biases)
    with torch.no_grad():
        for name, conditions in (("P", (text, added)), ("-", (negative, negative_added))):
            for retrieved in (None, keys_values):
                noise = trained.unet(sample, timestep, conditions[0], retrieved, added_cond_kwargs=conditions[1]).sample
                given[name, retrieved is not None] = noise
    if guidance_scale == 1.0:
        scale = reference_guidance_scale or 1.0
        wanted = given["P", False] + scale * (given["P", True] - given["P", False])
    else:
        scale = guidance_scale if reference_guidance_scale is None else reference_guidance_scale
        wanted = given["-", False] + scale * (given["-", True] - given["-", False])
        wanted = wanted + guidance_scale * (given["P", True] - given["-", True])
    wanted = trained.scheduler.step(wanted, timestep, start).prev_sample
    torch.testing.assert_close(latents, wanted, **CLOSE)


def test_callback_sees_and_changes_latents(fresh):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    names = ["latents", "prompt_embeds"]
    changed = generate(
        fresh, **A, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names, output_type="latent"
    )
    assert seen == [(step, names) for step in range(3)] and not changed.any()


def test_diffusers_callback_ends_guidance_as_in_the_plain_pipeline(xl, fresh):
    options = {"guidance_rescale": 0.5, "callback_on_step_end": SDXLCFGCutoffCallback(0.5)}
    options |= NEGATIVE_SIZES
    assert torch.equal(generate(fresh, **A, **options), generate(xl, **options))
    assert not torch.equal(generate(xl, **options), generate(xl, **{**options, "callback_on_step_end": None}))


def test_callback_sees_guidance_and_changes_added_conditions(fresh):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append((pipeline.guidance_scale, pipeline.guidance_rescale, len(tensors["add_time_ids"])))
        return {"add_time_ids": tensors["add_time_ids"] * 2}

    options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["add_time_ids"]}
    changed = generate(fresh, **A, guidance_rescale=0.5, **options)
    assert not torch.equal(changed, generate(fresh, **A, guidance_rescale=0.5))
    assert seen == [(5.0, 0.5, 2)] * 3


def test_pictures_of_a_prompt(trained):
    options = {"num_images_per_prompt": 2, "seeds": (0, 1)}
    pictures = generate(trained, **A, **options)
    torch.testing.assert_close(pictures[1:], generate(trained, seeds=(1,), **A), **CLOSE)
    images = trained("1girl", **A, num_inference_steps=1, num_images_per_prompt=2, return_dict=False)[0]
    assert [image.size for image in images] == [(32, 32)] * 2


# Half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_no_nan(trained, tmp_path, dtype):
    trained.save_pretrained(tmp_path)
    loaded = quiet(RetriBooruXLPipeline.from_pretrained(tmp_path, dtype=dtype, add_watermarker=False))
    images = generate(loaded, **A)
    assert {model.dtype for model in (loaded.unet, loaded.retrieval_encoder, loaded.vae)} == {dtype}
    assert images.isfinite().all()
    assert (images.float() - generate(trained, **A)).abs().mean() < 0.05


def test_a_vae_that_overflows_in_float16_works_in_float32_and_is_put_back(xl, fresh, monkeypatch):
    fresh.to(torch.float16)
    seen = []
    for name in ("encode", "decode"):
        method = getattr(AutoencoderKL, name)

        def spy(vae, x, *args, name=name, method=method, **kwargs):
            seen.append((name, x.dtype, vae.dtype))
            return method(vae, x, *args, **kwargs)

        monkeypatch.setattr(AutoencoderKL, name, spy)
    generate(fresh, **A)
    wide = (torch.float32, torch.float32)
    assert seen == [*[("encode", *wide)] * len(A["reference_images"]), ("decode", *wide)]
    assert fresh.vae.dtype == torch.float16

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(AutoencoderKL, "decode", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(fresh, **A)
    assert fresh.vae.dtype == torch.float16

    monkeypatch.undo()
    fresh.vae.register_to_config(force_upcast=False)
    assert fresh.decode(torch.zeros(1, 4, 8, 8)).dtype == torch.float16


# Wrong input

WRONG = {
    "unknown concept": ({"reference_concepts": ["face", "hat"]}, "reference_concepts: got 'hat', wanted one of body"),
    "pooled missing": ({"prompt": None, "prompt_embeds": torch.zeros(1, 16, 32)}, "`pooled_prompt_embeds` also have"),
    "one number": ({"original_size": 32}, "original_size: got 32, wanted two numbers of pixels"),
    "three numbers": ({"target_size": (1, 2, 3)}, r"target_size: got \(1, 2, 3\), wanted two numbers of pixels"),
    "half of the negative sizes": (
        {"negative_original_size": (32, 32)},
        "negative_target_size: got None with a negative_original_size, wanted both or neither",
    ),
    "the other half": (
        {"negative_target_size": (32, 32)},
        "negative_original_size: got None with a negative_target_size, wanted both or neither",
    ),
    "a negative crop alone": (
        {"negative_crops_coords_top_left": (1, 1)},
        r"negative_crops_coords_top_left: got \(1, 1\) without negative sizes, wanted them too",
    ),
    "size": ({"height": 33}, "have to be divisible by 8"),
    "control without a controlnet": (
        {"control_image": RED},
        "control_image: got one, but the pipeline has no controln",
    ),
    "lists of references": (
        {**BOTH, "prompt": ["1girl"] * 3, "seeds": (0, 1, 2)},
        "reference_images: got 2 lists of references for 3 prompts",
    ),
}


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG)
def test_wrong_input(fresh, change, message):
    with pytest.raises(ValueError, match=message):
        generate(fresh, **{**A, **change})


def test_features_of_another_model(fresh, stable_diffusion):
    features = RetriBooruPipeline.from_stable_diffusion(stable_diffusion).encode_references(**A)
    with pytest.raises(ValueError, match="they are of another model"):
        generate(fresh, reference_features=features)


def test_options_with_a_pipeline(xl):
    with pytest.raises(ValueError, match="kwargs: got variant with a pipeline, wanted them with an id or a folder"):
        RetriBooruXLPipeline.from_stable_diffusion(xl, variant="fp16")


# Stable Diffusion 2.1


@pytest.fixture
def stable_diffusion_2(tokenizer):
    """A tiny one: heads by level, linear projections, OpenCLIP's activation, a U-Net that predicts velocity."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(10, 20, 40, 40),
        layers_per_block=2,
        norm_num_groups=5,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
        upcast_attention=True,
        cross_attention_dim=16,
    )
    return quiet(
        StableDiffusionPipeline(
            vae=small_vae([8, 8, 8], latent_channels=4, resolution=32),
            text_encoder=CLIPTextModel(text_config(tokenizer, 16, "gelu", 16)),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DDIMScheduler(**NOISE, prediction_type="v_prediction", set_alpha_to_one=False, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


@pytest.mark.parametrize("query", ["decoder", "encoder"])
def test_stable_diffusion_2(stable_diffusion_2, query, tmp_path):
    torch.manual_seed(0)
    pipeline = quiet(RetriBooruPipeline.from_stable_diffusion(stable_diffusion_2, retrieval_query=query))
    plain = generate(stable_diffusion_2)
    assert torch.equal(generate(pipeline, **A), plain)
    assert torch.equal(generate(pipeline, **A, guidance_scale=1.0), generate(stable_diffusion_2, guidance_scale=1.0))
    assert differ(generate(as_trained(pipeline), **A), plain)
    pipeline.save_pretrained(tmp_path)
    loaded = quiet(RetriBooruPipeline.from_pretrained(tmp_path))
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert_same(loaded, pipeline)
