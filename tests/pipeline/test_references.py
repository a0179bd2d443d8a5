"""Several references done right: any number, with weights and masks, of one item or many, kept in files."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from handmade import draw
from retribooru import RetriBooruPipeline, RetrievedFeatures
from retribooru.pipeline.retrieved_features import same_fingerprint

RED, GREEN, BLUE = draw("red")[0], draw("green", size=(30, 20))[0], draw("blue", size=(50, 50))[0]
A = {"reference_images": [RED, GREEN], "reference_concepts": ["face", "body"]}
B = {"reference_images": [BLUE], "reference_concepts": ["figure"]}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def generate(pipeline, prompt="1girl, solo", seeds=(0,), **options):
    """Latents of a call; a seed for each picture."""
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "latent", **options}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipeline(prompt, generator=generators if len(seeds) > 1 else generators[0], **options).images


def close(one, other, **tolerance):
    torch.testing.assert_close(one, other, **{**CLOSE, **tolerance})


def differ(one, other):
    return (one - other).abs().max() > 1e-2


@pytest.fixture(params=["zero", "denoising"])
def both_kinds(request, stable_diffusion):
    """A pipeline of each kind of retrieval encoder, as after training."""
    return make_trained(stable_diffusion, reference_timestep=request.param)


def make_trained(stable_diffusion, seed=1, **options):
    torch.manual_seed(seed)
    pipeline = RetriBooruPipeline.from_stable_diffusion(stable_diffusion, **options)
    pipeline.set_progress_bar_config(disable=True)
    for layer in pipeline.unet.retrieval_layers:
        torch.nn.init.normal_(layer.zero_conv.weight)
    return pipeline


@pytest.fixture
def pipeline(stable_diffusion):
    return make_trained(stable_diffusion)


# Equalities


def test_features_given_equal_images_given(both_kinds, tmp_path):
    features = both_kinds.encode_references(**A)
    features.save(tmp_path / "hero.safetensors")
    saved = RetrievedFeatures.load(tmp_path / "hero.safetensors")
    for prompt in ("1girl", ["solo", "standing"]):
        expected = generate(both_kinds, prompt, **A)
        assert torch.equal(generate(both_kinds, prompt, reference_features=features), expected)
        assert torch.equal(generate(both_kinds, prompt, reference_features=saved), expected)
        from_file = generate(both_kinds, prompt, reference_features=tmp_path / "hero.safetensors")
        assert torch.equal(from_file, expected)


def test_order_does_not_matter(both_kinds):
    turned = {name: values[::-1] for name, values in A.items()}
    close(generate(both_kinds, **turned), generate(both_kinds, **A))


def test_weight_zero_is_leaving_out(both_kinds):
    alone = {name: values[:1] for name, values in A.items()}
    assert torch.equal(generate(both_kinds, **A, reference_weights=[1, 0]), generate(both_kinds, **alone))
    close(generate(both_kinds, **A, reference_weights=[0.3, 0]), generate(both_kinds, **alone))


def test_four_times_the_same_is_once(both_kinds):
    four = {name: values * 4 for name, values in B.items()}
    close(generate(both_kinds, **four), generate(both_kinds, **B))


def test_weight_two_is_giving_it_twice(both_kinds):
    twice = {name: [values[0], *values] for name, values in A.items()}
    weighted = generate(both_kinds, **A, reference_weights=[2, 1])
    close(weighted, generate(both_kinds, **twice))
    assert differ(weighted, generate(both_kinds, **A))
    close(generate(both_kinds, **A, reference_weights=[3, 3]), generate(both_kinds, **A))  # only relations count


def test_each_prompt_with_its_own_references_equals_separate_calls(both_kinds):
    prompts = ["1girl", "standing"]
    both = {name: [A[name], B[name]] for name in A}  # two references and one
    for options in ({}, {"reference_guidance_scale": 1.0}, {"reference_guidance_scale": 2.0}, {"guidance_scale": 1.0}):
        batch = generate(both_kinds, prompts, seeds=(1, 2, 3, 4), num_images_per_prompt=2, **both, **options)
        first = generate(both_kinds, prompts[0], seeds=(1, 2), num_images_per_prompt=2, **A, **options)
        second = generate(both_kinds, prompts[1], seeds=(3, 4), num_images_per_prompt=2, **B, **options)
        close(batch, torch.cat([first, second]))
    features = [both_kinds.encode_references(**A), both_kinds.encode_references(**B)]
    batch = generate(both_kinds, prompts, seeds=(1, 2), **both)
    close(generate(both_kinds, prompts, seeds=(1, 2), reference_features=features), batch)
    turned = generate(both_kinds, prompts, seeds=(1, 2), reference_features=features[::-1])
    assert differ(turned[0], batch[0]) and differ(turned[1], batch[1])


def test_items_with_weights_and_masks_of_their_own(pipeline):
    masks = [[None, None], [draw("blue", size=(50, 50))[1]]]
    weights = [[1, 3], [1]]
    both = {name: [A[name], B[name]] for name in A}
    batch = generate(pipeline, ["1girl", "solo"], (1, 2), **both, reference_masks=masks, reference_weights=weights)
    close(batch[:1], generate(pipeline, "1girl", (1,), **A, reference_weights=[1, 3]))
    close(batch[1:], generate(pipeline, "solo", (2,), **B, reference_masks=masks[1]))


def test_joined_features_equal_references_encoded_together(both_kinds):
    face = both_kinds.encode_references([RED], ["face"])
    clothes = both_kinds.encode_references([GREEN], ["body"])
    joined = RetrievedFeatures.join([face, clothes])
    close(generate(both_kinds, reference_features=joined), generate(both_kinds, **A))
    weighted = RetrievedFeatures.join([face, clothes], weights=[1, 3])
    close(generate(both_kinds, reference_features=weighted), generate(both_kinds, **A, reference_weights=[1, 3]))


def test_items_joined_item_by_item(both_kinds):
    faces = both_kinds.encode_references([[RED], [BLUE]], [["face"], ["face"]])
    bodies = both_kinds.encode_references([[GREEN, RED], [BLUE]], [["body", "body"], ["body"]])
    joined = RetrievedFeatures.join([faces, bodies])
    both = {"reference_images": [[RED, GREEN, RED], [BLUE, BLUE]],
            "reference_concepts": [["face", "body", "body"], ["face", "body"]]}  # fmt: skip
    batch = generate(both_kinds, ["1girl", "solo"], (1, 2), **both)
    close(generate(both_kinds, ["1girl", "solo"], (1, 2), reference_features=joined), batch)


# Masks


def test_tokens_outside_the_figure_are_dropped(both_kinds):
    mask = Image.new("L", (50, 50))
    mask.paste(255, (0, 0, 25, 50))  # the left half
    whole, half = both_kinds.encode_references(**B), both_kinds.encode_references(**B, reference_masks=[mask])
    assert [kept.shape[1] for kept in whole.masks] == [64, 16] and [kept.shape[1] for kept in half.masks] == [32, 8]
    # Whatever is outside, none of it is read.
    other = BLUE.copy()
    other.paste("yellow", (25, 0, 50, 50))
    changed = {**B, "reference_images": [other], "reference_masks": [mask]}
    assert torch.equal(generate(both_kinds, **changed), generate(both_kinds, **B, reference_masks=[mask]))
    assert differ(generate(both_kinds, **B), generate(both_kinds, **B, reference_masks=[mask]))


def test_a_cell_is_kept_for_any_part_of_the_figure(pipeline):
    mask = Image.new("L", (32, 32))
    mask.putpixel((13, 22), 255)  # of 32 x 32 pixels, in 8 x 8 and 4 x 4 cells
    image = {"reference_images": [Image.new("RGB", (32, 32), "red")], "reference_concepts": ["figure"]}
    features = pipeline.encode_references(**image, reference_masks=[mask])
    assert [kept.shape for kept in features.masks] == [(1, 1), (1, 1)]
    everything = pipeline.encode_references(**image, reference_masks=[Image.new("L", (32, 32), 255)])
    assert torch.equal(everything.tokens[0], pipeline.encode_references(**image).tokens[0])
    place = 8 * (22 // 4) + 13 // 4
    assert not torch.equal(features.tokens[0][0, 0], everything.tokens[0][0, place])  # the background was painted over


def test_a_mask_that_keeps_nothing(pipeline):
    with pytest.raises(
        ValueError, match="reference_masks: got a mask that keeps nothing at 32 pixels, for reference 1"
    ):
        pipeline.encode_references(**A, reference_masks=[None, Image.new("L", GREEN.size)])


# Scales, windows, guidance


def test_scale_zero_and_what_lies_outside_the_window_are_stable_diffusion(pipeline, stable_diffusion):
    plain = generate(stable_diffusion)
    for scale in (0, [0.0, 0.0], lambda done: 0):
        assert torch.equal(generate(pipeline, **A, retrieval_scale=scale), plain)
    seen = []

    def note(pipe, step, timestep, tensors):
        seen.append(tensors["latents"].clone())
        return {}

    generate(stable_diffusion, num_inference_steps=4, callback_on_step_end=note)
    generate(pipeline, num_inference_steps=4, callback_on_step_end=note, **A, retrieval_start=0.5)
    assert all(torch.equal(seen[step], seen[4 + step]) for step in (0, 1)) and differ(seen[2], seen[6])


def test_scale_as_number_by_level_and_as_schedule(pipeline):
    number = generate(pipeline, **A, retrieval_scale=0.7)
    close(generate(pipeline, **A, retrieval_scale=[0.7, 0.7]), number)
    close(generate(pipeline, **A, retrieval_scale=lambda done: 0.7), number)
    levels = [generate(pipeline, **A, retrieval_scale=scale) for scale in ([0.7, 0.0], [0.0, 0.7])]
    assert differ(*levels) and differ(levels[0], number)
    ramp = generate(pipeline, **A, retrieval_scale=lambda done: 0.7 if done < 0.5 else 0.0)
    close(ramp, generate(pipeline, **A, retrieval_scale=0.7, num_inference_steps=3, retrieval_end=2 / 3))


def test_scales_times_the_zero_convolution(pipeline):
    """Scaling what is retrieved is scaling the last layer of the retrieval."""
    expected = generate(pipeline, **A, retrieval_scale=[0.5, 2.0])
    for layer, scale in zip(pipeline.unet.retrieval_layers, (2.0, 0.5)):  # from the coarsest
        layer.zero_conv.weight.data *= scale
        layer.zero_conv.bias.data *= scale
    close(generate(pipeline, **A), expected)


class Counter:
    """Counts the rows that go through a module, and those that retrieve."""

    def __init__(self, pipeline):
        self.passes, self.rows, self.retrieving, self.read, self.projected = 0, 0, 0, 0, 0
        pipeline.unet.register_forward_pre_hook(self.count)
        pipeline.unet.retrieval_layers[0].register_forward_pre_hook(self.count_retrieving)
        pipeline.unet.retrieval_layers[0].to_k.register_forward_pre_hook(self.count_projected)
        pipeline.retrieval_encoder.register_forward_pre_hook(self.count_read)

    def count(self, module, arguments):
        self.passes, self.rows = self.passes + 1, self.rows + len(arguments[0])

    def count_retrieving(self, module, arguments):
        self.retrieving += arguments[0].shape[0] * arguments[0].shape[1]

    def count_read(self, module, arguments):
        self.read += 1

    def count_projected(self, module, arguments):
        self.projected += 1


@pytest.mark.parametrize(
    "options, rows, retrieving",
    [
        ({}, 2, 1),
        ({"reference_guidance_scale": 5.0}, 2, 1),
        ({"reference_guidance_scale": 1.0}, 2, 2),
        ({"reference_guidance_scale": 2.0}, 3, 2),
        ({"guidance_scale": 1.0}, 1, 1),
        ({"guidance_scale": 1.0, "reference_guidance_scale": 2.0}, 2, 1),
        ({"retrieval_scale": 0.0}, 2, 0),
    ],
)
def test_one_forward_a_step_with_the_rows_that_count(both_kinds, options, rows, retrieving):
    kind = both_kinds.retrieval_encoder.config.reference_timestep
    features = both_kinds.encode_references(**A)
    counter = Counter(both_kinds)
    generate(both_kinds, num_images_per_prompt=2, reference_features=features, **options)
    assert (counter.passes, counter.rows, counter.retrieving) == (3, 3 * 2 * rows, 3 * 2 * retrieving)
    each_step = 3 if kind == "denoising" and retrieving else 0
    assert counter.read == each_step
    assert counter.projected == (each_step or bool(retrieving))  # keys and values: once a call, or once a step


def test_guidance_on_references_is_the_formula(pipeline, stable_diffusion):
    """One step from the same noise: predictions read off runs without guidance are combined by hand."""
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    call = {"num_inference_steps": 1, "latents": latents, "negative_prompt": "hat"}

    def prediction(prompt, references):
        pipeline.scheduler.set_timesteps(1)
        features = pipeline.encode_references(**A) if references else None
        kept = pipeline.unet.project_references(features.tokens, features.biases) if references else None
        text = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
        with torch.no_grad():
            return pipeline.unet(latents, pipeline.scheduler.timesteps[0], text, kept).sample

    plain, with_references, both = prediction("hat", False), prediction("hat", True), prediction("1girl", True)
    guided = plain + 2 * (with_references - plain) + 5 * (both - with_references)
    expected = pipeline.scheduler.step(guided, pipeline.scheduler.timesteps[0], latents).prev_sample
    close(generate(pipeline, "1girl", **A, reference_guidance_scale=2.0, **call), expected)
    assert pipeline.guidance_scale == 5.0 and pipeline.reference_guidance_scale == 2.0


def test_reference_timestep_tells_the_two_kinds_apart(stable_diffusion):
    zero, denoising = (make_trained(stable_diffusion, reference_timestep=kind) for kind in ("zero", "denoising"))
    assert zero.retrieval_encoder.state_dict().keys() == denoising.retrieval_encoder.state_dict().keys()
    assert differ(generate(zero, **A), generate(denoising, **A))
    read = []
    denoising.retrieval_encoder.register_forward_pre_hook(lambda module, arguments: read.append(int(arguments[2])))
    generate(denoising, **A)
    assert read == denoising.scheduler.timesteps.tolist()


# Files


def test_a_file_holds_what_was_saved(both_kinds, tmp_path):
    features = both_kinds.encode_references([[RED, GREEN], [BLUE]], [["face", "body"], ["figure"]],
                                            reference_weights=[[1, 2], [1]])  # fmt: skip
    features.save(tmp_path / "two.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["two.safetensors"]
    loaded = RetrievedFeatures.load(tmp_path / "two.safetensors")
    assert len(loaded) == 2 and repr(loaded) == repr(features)
    for name in ("tokens", "masks", "weights", "indices"):
        assert len(getattr(features, name)) == len(getattr(loaded, name))
        assert all(torch.equal(*pair) for pair in zip(getattr(features, name), getattr(loaded, name)))
    assert features.encoder_inputs.keys() == loaded.encoder_inputs.keys()
    assert all(torch.equal(value, loaded.encoder_inputs[name]) for name, value in features.encoder_inputs.items())
    assert torch.equal(features.fingerprint, loaded.fingerprint)


def test_features_move_between_dtypes(both_kinds, tmp_path):
    features = both_kinds.encode_references(**A)
    half = features.to(torch.bfloat16)
    assert all(level.dtype == torch.bfloat16 for level in half.tokens or half.encoder_inputs.values())
    assert half.fingerprint.dtype == torch.float32 and half.masks[0].dtype == torch.bool
    assert half.weights[0].dtype == torch.float32 and all(level.dtype == torch.int64 for level in half.indices)
    close(generate(both_kinds, reference_features=half), generate(both_kinds, **A), rtol=0.1, atol=0.1)
    assert half.to("cpu").to(torch.float32).masks[0].device.type == "cpu"


def test_half_precision_models_take_the_features_of_the_full_one(both_kinds, tmp_path):
    features = both_kinds.encode_references(**A)
    both_kinds.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        half = RetriBooruPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
        half.set_progress_bar_config(disable=True)
        assert same_fingerprint(features.fingerprint, half.fingerprint())
        assert generate(half, reference_features=features).isfinite().all()


def test_features_of_another_model_are_refused(both_kinds, stable_diffusion):
    features = both_kinds.encode_references(**A)
    kind = both_kinds.retrieval_encoder.config.reference_timestep
    other = make_trained(stable_diffusion, seed=2, reference_timestep=kind)
    with pytest.raises(ValueError, match="reference_features: their fingerprint is not this pipeline's"):
        generate(other, reference_features=features)
    other_kind = make_trained(stable_diffusion, reference_timestep="zero" if kind == "denoising" else "denoising")
    with pytest.raises(ValueError, match="reference_features: got .* they are of another model"):
        generate(other_kind, reference_features=features)
    with pytest.raises(ValueError, match="features: got some of one model and some of another"):
        RetrievedFeatures.join([features, other.encode_references(**A)])
    # After a step of training, too.
    optimizer = torch.optim.AdamW(both_kinds.unet.retrieval_layers.parameters(), lr=1e-3)
    sum(parameter.sum() for parameter in both_kinds.unet.retrieval_layers.parameters()).backward()
    optimizer.step()
    with pytest.raises(ValueError, match="reference_features: their fingerprint is not this pipeline's"):
        generate(both_kinds, reference_features=features)


def test_files_that_hold_no_features(tmp_path):
    with pytest.raises(FileNotFoundError, match="path: got .*missing, wanted a file that RetrievedFeatures.save wrote"):
        RetrievedFeatures.load(tmp_path / "missing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="path: got .*text, which is no safetensors file"):
        RetrievedFeatures.load(tmp_path / "text")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="path: got .*other.safetensors, whose format is None, wanted"):
        RetrievedFeatures.load(tmp_path / "other.safetensors")


def test_a_file_whose_parts_do_not_fit(pipeline, tmp_path):
    features = pipeline.encode_references(**A)
    features.tokens = (features.tokens[0][:, :-1], features.tokens[1])
    features.save(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="path: got .*cut.safetensors, whose tokens have the shapes"):
        RetrievedFeatures.load(tmp_path / "cut.safetensors")


# Wrong input


TWO = {name: [A[name], B[name]] for name in A}
WRONG = {
    "nan weight": ({**A, "reference_weights": [1, math.nan]}, "reference_weights: got nan, wanted finite numbers"),
    "negative weight": ({**A, "reference_weights": [1, -1]}, "reference_weights: got -1, wanted finite numbers"),
    "only zeros": ({**A, "reference_weights": [0, 0]}, "reference_weights: got only zeros"),
    "fewer weights": ({**A, "reference_weights": [1]}, "reference_weights: got 1, wanted as many as reference_images"),
    "a weight": ({**A, "reference_weights": 1.0}, "reference_weights: got float, wanted a list"),
    "an empty item": ({**TWO, "reference_images": [[RED, GREEN], []]}, "reference_images: got an empty list"),
    "mixed": ({**TWO, "reference_images": [RED, [GREEN]]}, "reference_images: got images and lists of images"),
    "items and concepts": ({**TWO, "reference_concepts": ["face", "body"]}, "reference_concepts: got 'face', wanted a"),
    "fewer items": ({**TWO, "reference_concepts": [["face", "body"]]}, "reference_concepts: got 1 lists, wanted as"),
    "items for one prompt": (TWO, "reference_images: got 2 lists of references for 1 prompts, wanted 1 for"),
    "a mask of arrays": ({**B, "reference_masks": [np.zeros((50, 50))]}, "reference_masks: got a ndarray in the list"),
    "nan scale": ({**A, "retrieval_scale": math.nan}, "retrieval_scale: got nan"),
    "negative scale": ({**A, "retrieval_scale": -0.5}, "retrieval_scale: got -0.5"),
    "three levels": ({**A, "retrieval_scale": [1, 1, 1]}, "retrieval_scale: got 3 values, wanted one, or one for"),
    "nan guidance": ({**A, "guidance_scale": math.nan}, "guidance_scale: got nan, wanted a finite number"),
    "negative reference guidance": ({**A, "reference_guidance_scale": -1}, "reference_guidance_scale: got -1, wanted"),
    "window": ({**A, "retrieval_start": 0.6, "retrieval_end": 0.3}, "retrieval_start, retrieval_end: got 0.6 and 0.3"),
    "no features": ({"reference_features": 1}, "reference_features: got int, wanted RetrievedFeatures"),
    "no file of features": ({"reference_features": "hero"}, "path: got hero, wanted a file that RetrievedFeatures.save"),
    "no list of features": ({"reference_features": []}, "features: got an empty list"),
    "weights alone": ({"reference_weights": [1]}, "reference_images: got none with reference_weights, wanted them too"),
}  # fmt: skip


@pytest.mark.parametrize("call, message", WRONG.values(), ids=WRONG)
def test_wrong_input(pipeline, call, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        generate(pipeline, **call)


@pytest.mark.parametrize("size", [0, 30, -32, 31.5])
def test_wrong_reference_size(pipeline, size):
    with pytest.raises(ValueError, match=f"reference_size: got {size}, wanted a multiple of 4"):
        pipeline.encode_references(**A, reference_size=size)


def test_references_read_at_another_size(pipeline):
    features = pipeline.encode_references(**B, reference_size=64)
    assert [kept.shape[1] for kept in features.masks] == [256, 64]
    smaller = generate(pipeline, reference_features=features)
    assert torch.equal(generate(pipeline, **B, reference_size=64), smaller) and differ(generate(pipeline, **B), smaller)
