"""The retrieval U-Net and the retrieval encoder."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from retribooru import RetrievalEncoder, RetrievalUNet2DConditionModel

CONFIG = {
    "sample_size": 8,
    "block_out_channels": (8, 16, 24),
    "layers_per_block": 2,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
# The shape of Stable Diffusion 2.1: heads by level, linear projections. Its kinds of blocks are CONFIG's.
SD2 = {**CONFIG, "attention_head_dim": (2, 4, 4), "use_linear_projection": True}


def keys_values(model, features, items=2):
    """Of all tokens of every item's references."""
    tokens = [level.flatten(2).transpose(1, 2).reshape(items, -1, level.shape[1]) for level in features]
    return model.project_references(tokens)


@pytest.fixture(params=[CONFIG, SD2], ids=["sd1", "sd2"])
def unet(request):
    torch.manual_seed(0)
    return UNet2DConditionModel(**request.param)


def inputs(batch=2, references=3):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, 4, 8, 8, generator=generator),
        torch.randn(batch, 5, 12, generator=generator),
        torch.randn(batch * references, 4, 8, 8, generator=generator),
        torch.randn(batch * references, 3, 12, generator=generator),
    )


@pytest.mark.parametrize("query", ["decoder", "encoder"])
@torch.no_grad()
def test_fresh_model_equals_the_plain_unet_to_the_bit(unet, query):
    noisy, text, references, concepts = inputs()
    model = RetrievalUNet2DConditionModel.from_unet(unet, retrieval_query=query)
    features = RetrievalEncoder.from_unet(unet)(references, concepts).features
    expected = unet(noisy, 500, text).sample
    assert torch.equal(model(noisy, 500, text, keys_values(model, features)).sample, expected)
    assert torch.equal(model(noisy, 500, text).sample, expected)
    with_weights = [layer.zero_conv for layer in model.retrieval_layers]
    assert not any(parameter.any() for conv in with_weights for parameter in conv.parameters())


def test_state_dict_keys_of_the_plain_unet_are_unchanged(unet):
    model = RetrievalUNet2DConditionModel.from_unet(unet)
    plain = unet.state_dict()
    own = {key: value for key, value in model.state_dict().items() if not key.startswith("retrieval_layers.")}
    assert own.keys() == plain.keys() and all(torch.equal(own[key], plain[key]) for key in plain)
    _, unexpected = model.load_state_dict(plain, strict=False)
    assert not unexpected


def test_one_retrieval_layer_per_decoder_block_with_its_channels(unet):
    for query, expected in (("decoder", [24, 24, 16]), ("encoder", [24, 16, 8])):
        model = RetrievalUNet2DConditionModel.from_unet(unet, retrieval_query=query)
        assert [layer.zero_conv.out_channels for layer in model.retrieval_layers] == expected
        assert [layer.zero_conv.in_channels for layer in model.retrieval_layers] == [24, 16, 8]


def test_retrieval_layers_begin_as_the_decoders_self_attention(unet):
    model = RetrievalUNet2DConditionModel.from_unet(unet)
    layer, block = model.retrieval_layers[2], model.up_blocks[2]
    own = block.attentions[-1].transformer_blocks[0].attn1
    assert torch.equal(layer.to_k.weight, own.to_k.weight)
    assert torch.equal(layer.to_v.weight, own.to_v.weight)
    assert torch.equal(layer.to_out.weight, own.to_out[0].weight)


@torch.no_grad()
def test_encoder_is_the_unets_encoder_before_its_downsamplers(unet):
    _, _, references, concepts = inputs()
    encoder = RetrievalEncoder.from_unet(unet)
    plain = unet.state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in encoder.state_dict().items())
    assert not any("up_blocks" in key or "mid_block" in key or "conv_out" in key for key in encoder.state_dict())
    seen = []
    hooks = [
        block.resnets[-1].register_forward_hook(lambda *args: seen.append(args[2].shape)) for block in unet.down_blocks
    ]
    unet(references, 0, concepts)
    features = encoder(references, concepts).features
    assert [feature.shape for feature in features] == seen
    assert [tuple(feature.shape[1:]) for feature in features] == [(8, 8, 8), (16, 4, 4), (24, 2, 2)]
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_save_load_equal(unet, tmp_path):
    noisy, text, references, concepts = inputs()
    encoder = RetrievalEncoder.from_unet(unet, concept_texts={"face": "a face"})
    model = RetrievalUNet2DConditionModel.from_unet(unet, retrieval_query="encoder")
    for layer in model.retrieval_layers:
        torch.nn.init.normal_(layer.zero_conv.weight)
    encoder.save_pretrained(tmp_path / "encoder")
    model.save_pretrained(tmp_path / "unet")
    encoder2 = RetrievalEncoder.from_pretrained(tmp_path / "encoder")
    model2 = RetrievalUNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert encoder2.config.concept_texts == {"face": "a face"} and model2.config.retrieval_query == "encoder"
    results = []
    for e, m in ((encoder, model), (encoder2, model2)):
        results.append(m(noisy, 500, text, keys_values(m, e(references, concepts).features)).sample)
    assert torch.equal(*results)


@torch.no_grad()
def test_retrieval_scale_for_each_item(unet):
    noisy, text, references, concepts = inputs()
    model = RetrievalUNet2DConditionModel.from_unet(unet)
    for layer in model.retrieval_layers:
        torch.nn.init.normal_(layer.zero_conv.weight)
    tokens = keys_values(model, RetrievalEncoder.from_unet(unet)(references, concepts).features)
    mixed = model(noisy, 500, text, tokens, retrieval_scale=torch.tensor([0.0, 1.0])).sample
    full, none = model(noisy, 500, text, tokens).sample, model(noisy, 500, text).sample
    torch.testing.assert_close(mixed, torch.stack([none[0], full[1]]))
    assert not torch.allclose(full[0], none[0])


def test_unknown_query():
    with pytest.raises(ValueError, match="retrieval_query: got 'middle', wanted one of decoder, encoder"):
        RetrievalUNet2DConditionModel(retrieval_query="middle", **CONFIG)
