"""Half precision, offloading, compilation, kernels of attention: the picture stays what it is."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import attention_backend
from diffusers.models.attention_processor import AttnProcessor2_0

from generating import REFERENCES, close, generate
from handmade import draw
from retribooru import RetriBooruPipeline, RetrievedFeatures

# Two characters with unlike numbers of references, masks and weights: rows are filled up and masked.
RED, GREEN, BLUE = draw("red"), draw("green"), draw("blue")
UNEQUAL = {
    "reference_images": [[RED[0], GREEN[0]], [BLUE[0]]],
    "reference_concepts": [["face", "body"], ["figure"]],
    "reference_masks": [[RED[1], None], [BLUE[1]]],
    "reference_weights": [[1, 0.5], [1]],
}
WITH_BIAS = {**REFERENCES, "reference_weights": [1, 2]}


@pytest.mark.parametrize("dtype, error", [(torch.float16, 0.02), (torch.bfloat16, 0.15)], ids=["fp16", "bf16"])
@pytest.mark.parametrize("how", ["to", "from_pretrained"])
def test_half_precision(trained, tmp_path, dtype, error, how):
    options = {"prompt": ["solo", "1girl"], "seeds": (0, 1), "output_type": "np"}
    expected, plain = generate(trained, **options, **UNEQUAL), generate(trained, **options)
    trained.encode_references(**UNEQUAL).save(tmp_path / "features.safetensors")
    if how == "to":
        half = trained.to(dtype)
    else:
        trained.save_pretrained(tmp_path)
        half = RetriBooruPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
        half.set_progress_bar_config(disable=True)
    assert {parameter.dtype for parameter in half.unet.parameters()} == {dtype}
    drawn = generate(half, **options, **UNEQUAL)
    assert np.isfinite(drawn).all()
    assert np.abs(drawn - expected).max() < error < np.abs(expected - plain).max()
    saved = RetrievedFeatures.load(tmp_path / "features.safetensors")  # in full precision
    assert np.abs(generate(half, **options, reference_features=saved) - expected).max() < error


def models_of(pipeline):
    return [model for model in pipeline.components.values() if isinstance(model, torch.nn.Module)]


@pytest.fixture(params=["zero", "denoising"])
def either(request, stable_diffusion, trained_like):
    """A pipeline with each kind of retrieval encoder."""
    torch.manual_seed(0)
    pipeline = RetriBooruPipeline.from_stable_diffusion(stable_diffusion, reference_timestep=request.param)
    pipeline.set_progress_bar_config(disable=True)
    return trained_like(pipeline)


def test_model_offload(either):
    """The processor stands in for the accelerator: shows that every model is called where its hook sees it."""
    expected, features = generate(either, **REFERENCES), either.encode_references(**REFERENCES)
    either.enable_model_cpu_offload(device="cpu")
    assert all(hasattr(model, "_hf_hook") for model in models_of(either))
    for _ in range(2):
        assert torch.equal(generate(either, **REFERENCES), expected)
    again = either.encode_references(**REFERENCES)
    for saved in (features, again):
        assert torch.equal(generate(either, reference_features=saved), expected)


def test_sequential_offload(either):
    """Weights wait on the meta device and come for a layer's forward only, the fingerprint's included."""
    expected, features = generate(either, **REFERENCES), either.encode_references(**REFERENCES)
    for model in models_of(either):  # as enable_sequential_cpu_offload, whose "cpu:0" accelerate takes for no "cpu"
        cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)
    assert all(parameter.is_meta for model in models_of(either) for parameter in model.parameters())
    assert torch.equal(either.fingerprint(), features.fingerprint)
    assert torch.equal(generate(either, **REFERENCES), expected)
    assert torch.equal(generate(either, reference_features=features), expected)
    assert all(parameter.is_meta for model in models_of(either) for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offload(either, kind):
    expected, cpu = generate(either, **REFERENCES), torch.device("cpu")
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    either.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=kind, **blocks)
    assert torch.equal(generate(either, **REFERENCES), expected)


def test_keys_and_values_are_made_under_the_models_hook(trained):
    class Counts(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    hook, features = Counts(), trained.encode_references(**REFERENCES)
    add_hook_to_module(trained.unet, hook)
    trained.unet.project_references(features.tokens, features.biases)
    assert hook.calls == 1


def test_channels_last(trained):
    expected = generate(trained, **REFERENCES)
    for model in (trained.unet, trained.retrieval_encoder, trained.vae):
        model.to(memory_format=torch.channels_last)
    assert trained.unet.retrieval_layers[0].zero_conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert close(generate(trained, **REFERENCES), expected, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_unet(trained, in_place):
    """One graph for steps with retrieval and one for those without, whatever the schedule; none breaks."""
    options = {"num_inference_steps": 6, "retrieval_scale": lambda done: 1 - done, "retrieval_end": 0.7}
    expected = generate(trained, **REFERENCES, **options)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    how = {"fullgraph": True, "dynamic": False, "backend": backend}
    if in_place:
        trained.unet.compile(**how)
    else:
        trained.unet = torch.compile(trained.unet, **how)
    for _ in range(2):
        assert close(generate(trained, **REFERENCES, **options), expected)
        assert len(graphs) == 2
    features = trained.encode_references(**REFERENCES)
    assert close(generate(trained, reference_features=features, **options), expected)
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["native", "_native_math"])
def test_attention_backends(trained, name):
    expected = generate(trained, **WITH_BIAS)
    with attention_backend(name):
        assert close(generate(trained, **WITH_BIAS), expected, 1e-3)


@pytest.mark.parametrize("switch", ["context", "model"])
def test_the_switch_of_backends_reaches_the_retrieval_layers(trained, switch):
    """A backend that takes no mask says so where, and only where, references have weights."""
    expected = generate(trained, **REFERENCES)
    with attention_backend("_native_flash" if switch == "context" else "native"):  # sets the old one back afterwards
        if switch == "model":
            trained.unet.set_attention_backend("_native_flash")
        assert close(generate(trained, **REFERENCES), expected, 1e-3)
        with pytest.raises(ValueError, match="`attn_mask` is not supported for native flash attention"):
            generate(trained, **WITH_BIAS)
    assert generate(trained, **WITH_BIAS).isfinite().all()


def test_attention_processors(trained):
    expected = generate(trained, **REFERENCES)
    trained.unet.set_attn_processor(AttnProcessor2_0())
    assert torch.equal(generate(trained, **REFERENCES), expected)
    trained.enable_attention_slicing()
    assert close(generate(trained, **REFERENCES), expected, 1e-3)
    trained.disable_attention_slicing()
    trained.unet.fuse_qkv_projections()
    assert close(generate(trained, **REFERENCES), expected, 1e-3)
    trained.unet.unfuse_qkv_projections()
    assert torch.equal(generate(trained, **REFERENCES), expected)


def test_freeu(stable_diffusion, pipeline, trained_like):
    trained = trained_like(pipeline)
    expected = generate(trained, **REFERENCES)
    for each in (stable_diffusion, pipeline, trained):
        each.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert torch.equal(generate(pipeline, **REFERENCES), generate(stable_diffusion))
    assert not close(generate(trained, **REFERENCES), expected, 1e-2)
    trained.disable_freeu()
    assert torch.equal(generate(trained, **REFERENCES), expected)
