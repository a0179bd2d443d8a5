"""Stable Diffusion's U-Net, retrieving from reference features at the entry of each decoder block (section 4.2)."""

import torch
from diffusers import ModelMixin, UNet2DConditionModel  # noqa: F401 (from_pretrained looks for ModelMixin here)
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from .retrieval_encoder import encode, same_kind, unet_init_keys, unet_options

RETRIEVAL_QUERIES = ("decoder", "encoder")


class RetrievalLayer(nn.Module):
    """Cross-attention from the picture being made to the references, then a zero-initialised 1x1 convolution.

    Args:
        query_channels: channels of the state that asks and is added to.
        key_channels: channels of the reference features, and the attention's inner width.
        heads: number of attention heads.
    """

    def __init__(self, query_channels: int, key_channels: int, heads: int):
        super().__init__()
        self.query_norm = nn.LayerNorm(query_channels)
        self.key_norm = nn.LayerNorm(key_channels)
        self.attention = Attention(
            query_dim=query_channels,
            cross_attention_dim=key_channels,
            heads=heads,
            dim_head=key_channels // heads,
            out_dim=key_channels,
        )
        self.zero_conv = nn.Conv2d(key_channels, query_channels, kernel_size=1)
        # The one place where zeros make a fresh model exactly Stable Diffusion.
        nn.init.zeros_(self.zero_conv.weight)
        nn.init.zeros_(self.zero_conv.bias)

    def forward(self, state: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """state (B, Cq, H, W) and reference tokens (B, S, Ck) -> what is to be added to the state, (B, Cq, H, W)."""
        height, width = state.shape[-2:]
        queries = self.query_norm(state.flatten(2).transpose(1, 2))  # (B, HW, Cq)
        retrieved = self.attention(queries, encoder_hidden_states=self.key_norm(tokens))  # (B, HW, Ck)
        return self.zero_conv(retrieved.transpose(1, 2).unflatten(2, (height, width)))  # (B, Cq, H, W)


class RetrievalUNet2DConditionModel(UNet2DConditionModel):
    """A U-Net with one retrieval layer per decoder block.

    The state-dict keys of the plain U-Net are unchanged; the new ones stand under `retrieval_layers`. `from_unet` makes
    one from a plain U-Net and its weights.

    Args:
        retrieval_query: "decoder" (default): the state at the entry of a decoder block asks and is added to.
            "encoder": the encoder's feature of the level asks, and the result joins what that level hands to the
            decoder (a later figure of the paper's authors), for the ablation.
        unet_config: the arguments of `UNet2DConditionModel`.
    """

    def __init__(self, retrieval_query: str = "decoder", **unet_config):
        if retrieval_query not in RETRIEVAL_QUERIES:
            raise ValueError(f"retrieval_query: got {retrieval_query!r}, wanted one of {', '.join(RETRIEVAL_QUERIES)}")
        super().__init__(**unet_config)
        self.register_to_config(retrieval_query=retrieval_query)
        levels = tuple(reversed(self.config.block_out_channels))  # of the decoder blocks
        queries = (levels[0], *levels[:-1]) if retrieval_query == "decoder" else levels
        # diffusers names the number of heads `attention_head_dim` in this U-Net.
        heads = self.config.num_attention_heads or self.config.attention_head_dim
        heads = (heads,) * len(levels) if isinstance(heads, int) else tuple(reversed(heads))
        self.retrieval_layers = nn.ModuleList(map(RetrievalLayer, queries, levels, heads))

    @staticmethod
    def _get_init_keys(input_class):
        return unet_init_keys(input_class, "retrieval_query")

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel, retrieval_query: str = "decoder") -> "RetrievalUNet2DConditionModel":
        """The U-Net with its weights, and retrieval layers that begin as its own self-attention and add nothing."""
        model = cls(retrieval_query=retrieval_query, **unet_options(unet))
        model.load_state_dict({**model.state_dict(), **unet.state_dict()})
        for layer, block in zip(model.retrieval_layers, model.up_blocks):
            layer.attention.load_state_dict({**layer.attention.state_dict(), **_fitting(layer, model, block)})
        return same_kind(model, unet)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        reference_tokens: tuple[torch.Tensor, ...] | None = None,
        retrieval_scale: float | torch.Tensor = 1.0,
        added_cond_kwargs: dict | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """
        Args:
            sample: (B, in_channels, H, W) noisy latents.
            timestep: number or (B,).
            encoder_hidden_states: (B, T, D) prompt.
            reference_tokens: per resolution level, from the finest, (B, S, C); None retrieves nothing.
            retrieval_scale: multiplies what is retrieved; a number, or (B,) with one for each item.
        """
        sample, emb, text, skips = encode(self, sample, timestep, encoder_hidden_states, added_cond_kwargs)
        sample = self.mid_block(sample, emb, encoder_hidden_states=text)  # (B, C, h, w) at the coarsest level
        skips = [skip for step in skips for skip in step]
        if isinstance(retrieval_scale, torch.Tensor):
            retrieval_scale = retrieval_scale.to(sample.dtype).view(-1, 1, 1, 1)

        for i, block in enumerate(self.up_blocks):
            count = len(block.resnets)
            block_skips, skips = skips[-count:], skips[:-count]
            if reference_tokens is not None:
                layer, tokens = self.retrieval_layers[i], reference_tokens[-1 - i]
                if self.config.retrieval_query == "decoder":
                    sample = sample + retrieval_scale * layer(sample, tokens)
                else:  # the last skip of a level is its feature before the downsampler
                    block_skips[-1] = block_skips[-1] + retrieval_scale * layer(block_skips[-1], tokens)
            options = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            # A size that the levels do not divide: upsample to what the next block's skips have.
            upsample_size = skips[-1].shape[2:] if skips else None
            sample = block(sample, tuple(block_skips), emb, upsample_size=upsample_size, **options)

        if self.conv_norm_out:
            sample = self.conv_act(self.conv_norm_out(sample))
        sample = self.conv_out(sample)  # (B, out_channels, H, W)
        return UNet2DConditionOutput(sample=sample) if return_dict else (sample,)


def _fitting(layer: RetrievalLayer, model: UNet2DConditionModel, block: nn.Module) -> dict[str, torch.Tensor]:
    """The self-attention weights of a decoder block, or of the middle block, as far as their shapes fit the layer."""
    attentions = getattr(block, "attentions", None) or getattr(model.mid_block, "attentions", None)
    if not attentions:
        return {}
    own = attentions[-1].transformer_blocks[0].attn1.state_dict()
    wanted = layer.attention.state_dict()
    return {key: value for key, value in own.items() if key in wanted and wanted[key].shape == value.shape}
