"""RetriBooruPipeline against plain Stable Diffusion, saved and loaded, and given wrong references."""

import numpy as np
import pytest
import torch
from PIL import Image

from handmade import draw
from retribooru import RetriBooruPipeline
from retribooru.dataset_script.concepts import CONCEPTS
from retribooru.pipeline.retrieval_unet import CONCEPT_TEXTS

QUERIES = ("decoder", "encoder")
REFERENCES = {
    "reference_images": [draw("red")[0], draw("blue", size=(30, 20))[0]],
    "reference_concepts": ["face", "body"],
}


def generate(pipeline, seed=0, prompt="1girl, solo", **options):
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "np", **options}
    return pipeline(prompt, generator=torch.Generator().manual_seed(seed), **options).images


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_fresh_pipeline_is_stable_diffusion_to_the_bit(stable_diffusion, query, guidance_scale, count):
    fresh = RetriBooruPipeline.from_stable_diffusion(stable_diffusion, retrieval_query=query)
    fresh.set_progress_bar_config(disable=True)
    references = {"reference_images": [draw("red")[0]] * count, "reference_concepts": ["figure"] * count}
    options = {"guidance_scale": guidance_scale, "num_images_per_prompt": 2}
    expected = generate(stable_diffusion, **options)
    assert np.array_equal(generate(fresh, **references, **options), expected)
    assert np.array_equal(generate(fresh, **options), expected)


def test_fresh_pipeline_at_a_size_that_the_levels_do_not_divide(stable_diffusion, pipeline):
    size = {"height": 40, "width": 56}  # 10 x 14 latents
    assert np.array_equal(generate(pipeline, **REFERENCES, **size), generate(stable_diffusion, **size))
    odd = {"height": 40, "width": 24}  # 10 x 6
    assert np.array_equal(generate(pipeline, **REFERENCES, **odd), generate(stable_diffusion, **odd))


def test_from_a_folder(stable_diffusion_dir, stable_diffusion):
    pipeline = RetriBooruPipeline.from_stable_diffusion(str(stable_diffusion_dir))
    assert np.array_equal(generate(pipeline, **REFERENCES), generate(stable_diffusion))


@pytest.mark.parametrize("query", QUERIES)
def test_save_load_equal(stable_diffusion, tmp_path, query):
    pipeline = RetriBooruPipeline.from_stable_diffusion(stable_diffusion, retrieval_query=query)
    for layer in pipeline.unet.retrieval_layers:
        torch.nn.init.normal_(layer.zero_conv.weight)
    pipeline.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pkl"))
    loaded = RetriBooruPipeline.from_pretrained(tmp_path)
    assert loaded.unet.config.retrieval_query == query
    expected = generate(pipeline, **REFERENCES)
    assert np.array_equal(generate(loaded, **REFERENCES), expected)
    assert not np.array_equal(generate(stable_diffusion), expected)


def test_half_precision_loads(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    loaded = RetriBooruPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert loaded.unet.dtype == loaded.retrieval_encoder.dtype == torch.bfloat16
    assert np.isfinite(generate(loaded, **REFERENCES)).all()


def test_references_matter_and_scale_zero_turns_them_off(trained, stable_diffusion):
    other = {**REFERENCES, "reference_images": [draw("green")[0], draw("yellow")[0]]}
    assert not np.array_equal(generate(trained, **REFERENCES), generate(trained, **other))
    swapped = {**REFERENCES, "reference_concepts": ["body", "face"]}
    assert not np.array_equal(generate(trained, **REFERENCES), generate(trained, **swapped))
    assert np.array_equal(generate(trained, **REFERENCES, retrieval_scale=0.0), generate(stable_diffusion))


def test_a_mask_removes_the_background(trained):
    image, mask = draw("red")
    elsewhere = Image.composite(image, Image.new("RGB", image.size, "green"), mask)
    call = {"reference_concepts": ["figure"]}
    with_mask = [generate(trained, reference_images=[i], reference_masks=[mask], **call) for i in (image, elsewhere)]
    without = [generate(trained, reference_images=[i], **call) for i in (image, elsewhere)]
    assert np.array_equal(*with_mask) and not np.array_equal(*without)


def test_features_encoded_once_serve_every_prompt(trained):
    features = trained.encode_references(**REFERENCES)
    for prompt in ("1girl", ["solo", "standing"]):
        expected = generate(trained, prompt=prompt, **REFERENCES)
        assert np.array_equal(generate(trained, prompt=prompt, reference_features=features), expected)


def test_tokens_of_all_references_are_concatenated(trained):
    for count in (1, 3):
        features = trained.encode_references([draw("red")[0]] * count, ["face"] * count)
        sizes = [tuple(level.shape) for level in features.tokens]
        # 8 x 8 latents, two levels; of the finer, a row of padding at either side of this upright image is dropped.
        assert sizes == [(1, count * 8 * 6, 8), (1, count * 4 * 4, 16)]


def test_concepts_are_those_of_the_dataset():
    assert set(CONCEPT_TEXTS) == set(CONCEPTS)


WRONG = {
    "unknown concept": (
        {"reference_concepts": ["face", "hat"]},
        "reference_concepts: got 'hat', wanted one of body, face",
    ),
    "fewer concepts": (
        {"reference_concepts": ["face"]},
        "reference_concepts: got 1, wanted as many as reference_images: 2",
    ),
    "a concept for all": ({"reference_concepts": "face"}, "reference_concepts: got 'face', wanted a list"),
    "no concepts": ({"reference_concepts": None}, "reference_concepts: got None, wanted a list"),
    "no images": ({"reference_images": []}, "reference_images: got an empty list, wanted at least one"),
    "one image": ({"reference_images": draw("red")[0]}, "reference_images: got Image, wanted a list"),
    "a path": ({"reference_images": ["a.png", "b.png"]}, "reference_images: got a str in the list, wanted PIL images"),
    "concepts alone": ({"reference_images": None}, "reference_images: got none with reference_concepts"),
    "fewer masks": ({"reference_masks": [None]}, "reference_masks: got 1, wanted as many as reference_images: 2"),
    "mask of another size": (
        {"reference_masks": [Image.new("L", (9, 9)), None]},
        r"reference_masks: got a mask of size \(9, 9\), wanted the image's \(40, 60\)",
    ),
}


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG)
def test_wrong_references(pipeline, change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        generate(pipeline, **{**REFERENCES, **change})


def test_features_and_images_together(pipeline):
    with pytest.raises(ValueError, match="reference_features: got them and reference_images, wanted one of the two"):
        generate(pipeline, **REFERENCES, reference_features=pipeline.encode_references(**REFERENCES))


def test_callback_sees_and_changes_latents(pipeline):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append(step)
        return {"latents": torch.zeros_like(tensors["latents"])}

    changed = generate(pipeline, **REFERENCES, callback_on_step_end=callback, output_type="latent")
    assert seen == [0, 1, 2] and not changed.any()
