"""Latents encoded before the training are those that would be encoded during it."""

from random import Random
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from retribooru.dataset_script.concepts import CONCEPTS
from retribooru.training import latent_cache
from retribooru.training.augment import Augmentation
from retribooru.training.data import TrainingFigures, load_figures
from retribooru.training.latent_cache import cache_latents
from retribooru.training.scratch import small_vae
from retribooru.training.step import encode_batch
from retribooru.training.views import TARGET, Views


@pytest.fixture(scope="module")
def figures(data_dir):
    return load_figures(str(data_dir), "train")


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return small_vae([8, 8], 4, 32).eval()


@pytest.fixture
def cache(figures, vae, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_cache, "SHARD", 5)

    def cache(views=None, variants=2, folder=tmp_path / "latents"):
        views = views or Views(figures, 32, 0.5, Augmentation())
        return cache_latents(folder, views, list(CONCEPTS), vae, variants, 0, Accelerator(), batch_size=3)

    return cache


@torch.no_grad()
def encoded(vae, pixels):
    return (vae.encode(pixels[None]).latent_dist.mode() * vae.config.scaling_factor)[0]


def test_every_view_is_what_the_vae_makes_of_it(cache, figures, vae):
    cached, views = cache(), Views(figures, 32, 0.5, Augmentation())
    for position in (0, 4, len(figures) - 1):
        image_id = figures[position]["image_id"]
        for variant in (0, 1):
            rng = FixedVariant(variant)
            expected = views.target(position, Random(f"0/cached/{image_id}/{TARGET}/{variant}"))
            got = cached.target(position, rng)
            assert torch.allclose(got["latents"], encoded(vae, expected["pixel_values"]), rtol=1e-3, atol=1e-3)
            for name in ("content_mask", "head_mask"):
                small = torch.nn.functional.interpolate(expected[name][None], size=(16, 16), mode="area")[0]
                assert torch.allclose(got[name], small, atol=1e-3)
            for concept in CONCEPTS:
                expected = views.reference(position, concept, Random(f"0/cached/{image_id}/{concept}/{variant}"))
                got = cached.reference(position, concept, rng)
                assert torch.allclose(got["latents"], encoded(vae, expected["pixel_values"]), rtol=1e-3, atol=1e-3)
                assert torch.equal(got["content"], expected["content"])


class FixedVariant:
    def __init__(self, variant):
        self.variant = variant

    def randrange(self, count):
        return self.variant


@pytest.fixture
def pipeline_parts(vae):
    class Tokenizer:
        model_max_length = 4

        def __call__(self, texts, **options):
            return SimpleNamespace(input_ids=torch.zeros(len(texts), 4, dtype=torch.long))

    pipeline = SimpleNamespace(vae=vae, tokenizer=Tokenizer(), text_encoder=lambda ids: (torch.zeros(*ids.shape, 8),))
    return pipeline, torch.zeros(len(CONCEPTS), 4, 8)


def test_a_batch_of_latents_is_a_batch_of_pixels(cache, figures, pipeline_parts):
    pipeline, concepts = pipeline_parts
    views = Views(figures, 32, 1.0)
    batches = []
    for seen in (views, cache(views, 1)):
        data = TrainingFigures(figures, seen, ["compose"])
        examples = torch.utils.data.default_collate([data[0, i] for i in range(3)])
        batches.append(encode_batch(pipeline, examples, concepts, train_base=False))
    one, two = batches
    # The colour of the padding and of the removed background is another: what is content is the same.
    assert torch.equal(one.content, two.content) and torch.equal(one.concepts, two.concepts)
    assert one.latents.shape == two.latents.shape and one.references.shape == two.references.shape
    assert torch.allclose(one.content_mask, two.content_mask, atol=1e-3)


def test_what_is_there_is_kept_and_what_lacks_is_made(cache, tmp_path):
    cache()
    folder = tmp_path / "latents"
    files = sorted(folder.glob("*.safetensors"))
    before = {file.name: file.read_bytes() for file in files}
    files[0].unlink()
    files[-1].unlink()
    kept = files[1].stat().st_mtime_ns
    cache()
    assert {file.name: file.read_bytes() for file in folder.glob("*.safetensors")} == before
    assert files[1].stat().st_mtime_ns == kept
    assert not list(folder.glob("*.partial"))


def test_latents_of_something_else_are_refused(cache, figures, tmp_path):
    cache()
    with pytest.raises(ValueError, match=r"latent_cache: got .*, which was made with variants 2 \(wanted 1\)"):
        cache(variants=1)
    with pytest.raises(ValueError, match=r"resolution 32 \(wanted 64\)"):
        cache(Views(figures, 64, 0.5, Augmentation()))
    with pytest.raises(ValueError, match=r"figures \d+ \(wanted \d+\)"):
        cache(Views(figures.select(range(5)), 32, 0.5, Augmentation()))


def test_a_figure_without_head_takes_its_place(cache, figures, vae, tmp_path):
    headless = figures.map(lambda row, i: {"head_box": None if i == 1 else row["head_box"]}, with_indices=True)
    views = Views(headless, 32, 0.0)
    cached = cache(views, 1, tmp_path / "headless")
    expected = views.reference(2, "face", Random(f"0/cached/{figures[2]['image_id']}/face/0"))["pixel_values"]
    got = cached.reference(2, "face", Random(0))["latents"]
    assert torch.allclose(got, encoded(vae, expected), rtol=1e-3, atol=1e-3)
