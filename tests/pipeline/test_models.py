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
# Of Stable Diffusion XL: no attention at the finest level, several layers of it in a block, added conditions.
SDXL = {
    **CONFIG,
    "attention_head_dim": (1, 2, 3),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 3),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 10,
}


def keys_values(model, features, items=2):
    """Of all tokens of every item's references."""
    tokens = [level.flatten(2).transpose(1, 2).reshape(items, -1, level.shape[1]) for level in features]
    return model.project_references(tokens)


@pytest.fixture(params=[CONFIG, SD2, SDXL], ids=["sd1", "sd2", "sdxl"])
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


def added(unet, text, device="cpu"):
    """What the U-Net is told beside each text."""
    if unet.config.addition_embed_type is None:
        return {}
    pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    generator = None if device == "meta" else torch.Generator().manual_seed(1)
    text_embeds = torch.randn(len(text), pooled, generator=generator, device=device)
    time_ids = torch.tensor([[64, 64, 0, 0, 64, 64]] * len(text), device=device)
    return {"added_cond_kwargs": {"text_embeds": text_embeds, "time_ids": time_ids}}


@pytest.mark.parametrize("query", ["decoder", "encoder"])
@torch.no_grad()
def test_fresh_model_equals_the_plain_unet_to_the_bit(unet, query):
    noisy, text, references, concepts = inputs()
    model = RetrievalUNet2DConditionModel.from_unet(unet, retrieval_query=query)
    features = RetrievalEncoder.from_unet(unet)(references, concepts, **added(unet, concepts)).features
    expected = unet(noisy, 500, text, **added(unet, text)).sample
    assert torch.equal(model(noisy, 500, text, keys_values(model, features), **added(unet, text)).sample, expected)
    assert torch.equal(model(noisy, 500, text, **added(unet, text)).sample, expected)
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
    layer, block = model.retrieval_layers[1], model.up_blocks[1]
    own = block.attentions[-1].transformer_blocks[0].attn1
    assert torch.equal(layer.to_k.weight, own.to_k.weight)
    assert torch.equal(layer.to_v.weight, own.to_v.weight)
    assert torch.equal(layer.to_out.weight, own.to_out[0].weight)
    for layer in model.retrieval_layers:  # and the rest as PyTorch begins it
        assert all((norm.weight == 1).all() and not norm.bias.any() for norm in (layer.query_norm, layer.key_norm))
        assert 0 < layer.to_q.weight.abs().max() <= layer.to_q.in_features**-0.5


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
    unet(references, 0, concepts, **added(unet, concepts))
    features = encoder(references, concepts, **added(unet, concepts)).features
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
        features = e(references, concepts, **added(unet, concepts)).features
        results.append(m(noisy, 500, text, keys_values(m, features), **added(unet, text)).sample)
    assert torch.equal(*results)


@torch.no_grad()
def test_retrieval_scale_for_each_item(unet):
    noisy, text, references, concepts = inputs()
    model = RetrievalUNet2DConditionModel.from_unet(unet)
    for layer in model.retrieval_layers:
        torch.nn.init.normal_(layer.zero_conv.weight)
    features = RetrievalEncoder.from_unet(unet)(references, concepts, **added(unet, concepts)).features
    tokens = keys_values(model, features)
    mixed = model(noisy, 500, text, tokens, torch.tensor([0.0, 1.0]), **added(unet, text)).sample
    full, none = (model(noisy, 500, text, given, **added(unet, text)).sample for given in (tokens, None))
    torch.testing.assert_close(mixed, torch.stack([none[0], full[1]]))
    assert not torch.allclose(full[0], none[0])


def test_unknown_query():
    with pytest.raises(ValueError, match="retrieval_query: got 'middle', wanted one of decoder, encoder"):
        RetrievalUNet2DConditionModel(retrieval_query="middle", **CONFIG)


def test_made_from_a_unet_of_another_precision(unet):
    unet = unet.to(torch.bfloat16)
    for model in (RetrievalUNet2DConditionModel.from_unet(unet), RetrievalEncoder.from_unet(unet)):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        own, plain = model.state_dict(), unet.state_dict()
        assert all(torch.equal(own[key], plain[key]) for key in own.keys() & plain.keys())
        assert own["conv_in.weight"].data_ptr() != plain["conv_in.weight"].data_ptr()  # a copy


# The published checkpoints: their U-Nets' arguments, and how many parameters they have.
FULL_SIZE = {
    "sd1.5": ({"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}, 859_520_964),
    "sd2.1": (
        {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        865_910_724,
    ),
    "sdxl": (
        {
            **SDXL,
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "norm_num_groups": 32,
            "transformer_layers_per_block": (1, 2, 10),
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        2_567_463_684,
    ),
}


def count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def layer_parameters(query, key):
    """Of a retrieval layer: two norms, three projections without a bias, one with, and the zero convolution."""
    return 2 * query + 2 * key + query * key + 2 * key * key + (key * key + key) + (key * query + query)


@pytest.mark.parametrize("query", ["decoder", "encoder"])
@pytest.mark.parametrize("config, published", FULL_SIZE.values(), ids=FULL_SIZE)
@torch.no_grad()
def test_full_size(config, published, query):
    """Without memory: on the meta device."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    model = RetrievalUNet2DConditionModel.from_unet(unet, retrieval_query=query)
    encoder = RetrievalEncoder.from_unet(unet)
    assert count(unet) == published
    levels = unet.config.block_out_channels[::-1]
    queries = (levels[0], *levels[:-1]) if query == "decoder" else levels
    assert count(model) == published + sum(map(layer_parameters, queries, levels))
    dropped = (unet.up_blocks, unet.mid_block, unet.conv_norm_out, unet.conv_out)
    assert count(encoder) == published - count(*dropped)

    keys = model.state_dict().keys()
    assert keys - unet.state_dict().keys() == {key for key in keys if key.startswith("retrieval_layers.")}
    assert keys > unet.state_dict().keys() > encoder.state_dict().keys()
    heads = config["attention_head_dim"]
    heads = [heads] * len(levels) if isinstance(heads, int) else list(reversed(heads))
    assert [layer.heads for layer in model.retrieval_layers] == heads

    size, text = 32, torch.empty(2, 77, config["cross_attention_dim"], device="meta")
    sample = torch.empty(2, 4, size, size, device="meta")
    features = encoder(sample, text, **added(unet, text, "meta")).features
    assert [tuple(level.shape[1:]) for level in features] == [
        (channels, size >> level, size >> level) for level, channels in enumerate(levels[::-1])
    ]
    retrieved = model(sample, 0, text, keys_values(model, features), **added(unet, text, "meta")).sample
    assert retrieved.shape == sample.shape
