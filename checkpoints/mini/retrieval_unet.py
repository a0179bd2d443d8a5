"""The two models: a retrieval encoder that reads references, and a U-Net that retrieves from what it read.

One file that imports nothing beside diffusers: it travels with every checkpoint, into the folder of each model.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ModelMixin, UNet2DConditionModel  # noqa: F401 (from_pretrained looks for ModelMixin here)
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils import BaseOutput, apply_lora_scale
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

# What the encoder is told to look for, by concept.
CONCEPT_TEXTS = {"figure": "figure", "face": "face", "body": "clothes"}
REFERENCE_TIMESTEPS = ("zero", "denoising")
RETRIEVAL_QUERIES = ("decoder", "encoder")

# Of one decoder block: keys and values (I, S, heads, dim) of I items, and what is added to the logits, (I, 1, 1, S).
KeysValues = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


@dataclass
class RetrievalEncoderOutput(BaseOutput):
    """`features`: per resolution level, from the finest, a tensor (batch, channels, height, width)."""

    features: tuple[torch.Tensor, ...]


def encode(
    unet: UNet2DConditionModel,
    sample: torch.Tensor,
    timestep: torch.Tensor | float,
    encoder_hidden_states: torch.Tensor,
    timestep_cond: torch.Tensor | None = None,
    added_cond_kwargs: dict | None = None,
    cross_attention_kwargs: dict | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, ...]]]:
    """The encoder half of a U-Net, up to its middle block.

    Args:
        sample: (B, in_channels, H, W) latents.
        timestep: number or (B,).
        encoder_hidden_states: (B, T, D) text.
        timestep_cond: (B, time_cond_proj_dim), for U-Nets that are told their guidance.
        added_cond_kwargs: text_embeds (B, P) and time_ids (B, 6) for the U-Net of SDXL.
        cross_attention_kwargs: for the blocks' attention processors.

    Returns:
        state (B, C, h, w) of the last down block; time embedding (B, E); text as the blocks want it; and the skips: one
        tuple per step of the encoder, `conv_in` first, then of each down block (its layers, then its downsampler).
    """
    if unet.config.center_input_sample:
        sample = 2 * sample - 1.0
    emb = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), timestep_cond)  # (B, E)
    aug = unet.get_aug_embed(emb=emb, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs)
    emb = emb if aug is None else emb + aug
    emb = emb if unet.time_embed_act is None else unet.time_embed_act(emb)
    text = unet.process_encoder_hidden_states(encoder_hidden_states, added_cond_kwargs=added_cond_kwargs)  # (B, T, D)

    sample = unet.conv_in(sample)  # (B, C0, H, W)
    skips = [(sample,)]
    for block in unet.down_blocks:
        sample, block_skips = block(sample, emb, **_text_of(block, text, cross_attention_kwargs))
        skips.append(block_skips)
    return sample, emb, text, skips


def _text_of(block: nn.Module, text: torch.Tensor, cross_attention_kwargs: dict | None) -> dict:
    """What a block is told beside the state: the text, if it reads it."""
    if not getattr(block, "has_cross_attention", False):
        return {}
    return {"encoder_hidden_states": text, "cross_attention_kwargs": cross_attention_kwargs}


class RetrievalEncoder(UNet2DConditionModel):
    """The down blocks of a U-Net, reading un-noised reference latents and a text that names the concept (section 4.1).

    Its configuration is the U-Net's, and its state-dict keys are those of the U-Net's encoder.

    Args:
        concept_texts: {concept: text} that the encoder was trained with; the concepts a pipeline call may name.
        reference_timestep: "zero" (default): the encoder reads with timestep 0, so that what it reads serves every
            denoising step. "denoising": it reads anew at every step, with the step's timestep (a later figure of the
            paper's authors).
        unet_config: the arguments of `UNet2DConditionModel`.
    """

    def __init__(self, concept_texts: dict[str, str] | None = None, reference_timestep: str = "zero", **unet_config):
        _check_choice("reference_timestep", reference_timestep, REFERENCE_TIMESTEPS)
        super().__init__(**_supported(unet_config))
        self.register_to_config(
            concept_texts=concept_texts or dict(CONCEPT_TEXTS), reference_timestep=reference_timestep
        )
        # Only the encoder is kept. Built and dropped, so that every option of the library's constructor holds here too.
        self.up_blocks = nn.ModuleList()
        self.mid_block = self.conv_norm_out = self.conv_act = self.conv_out = None

    @staticmethod
    def _get_init_keys(input_class):
        return unet_init_keys(input_class, "concept_texts", "reference_timestep")

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel, **kwargs) -> "RetrievalEncoder":
        """A retrieval encoder with a copy of the U-Net's encoder weights, of the same dtype and device."""
        encoder = _unfilled(cls, unet, **kwargs)
        wanted = encoder.state_dict().keys()
        encoder.load_state_dict({key: value for key, value in unet.state_dict().items() if key in wanted})
        return encoder

    def forward(
        self,
        sample: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor | float | None = None,
        added_cond_kwargs: dict | None = None,
    ) -> RetrievalEncoderOutput:
        """
        Args:
            sample: (R, in_channels, H, W) latents of R references, un-noised, scaled as the U-Net's input.
            encoder_hidden_states: (R, T, D) text naming the concept of each.
            timestep: of the denoising step, a number or (R,), where `reference_timestep` is "denoising"; else unused.
            added_cond_kwargs: see `encode`.
        """
        if self.config.reference_timestep == "zero":
            timestep = 0
        elif timestep is None:
            raise ValueError("timestep: got None, wanted the denoising step's: reference_timestep is 'denoising'")
        _, _, _, skips = encode(self, sample, timestep, encoder_hidden_states, added_cond_kwargs=added_cond_kwargs)
        # The feature of a level is the one before its downsampler.
        features = tuple(skip[len(block.resnets) - 1] for skip, block in zip(skips[1:], self.down_blocks))
        return RetrievalEncoderOutput(features=features)

    def feature_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(h, w) of the feature of each level, from the finest, for latents of this size."""
        sizes = []
        for block in self.down_blocks:
            sizes.append((height, width))
            if block.downsamplers is not None:
                height, width = (height + 1) // 2, (width + 1) // 2
        return sizes


class RetrievalLayer(nn.Module):
    """Cross-attention from the picture being made to the references, then a zero-initialised 1x1 convolution.

    Args:
        query_channels: channels of the state that asks and is added to.
        key_channels: channels of the reference features, and the attention's inner width.
        heads: number of attention heads.
    """

    def __init__(self, query_channels: int, key_channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(query_channels)
        self.key_norm = nn.LayerNorm(key_channels)
        self.to_q = nn.Linear(query_channels, key_channels, bias=False)
        self.to_k = nn.Linear(key_channels, key_channels, bias=False)
        self.to_v = nn.Linear(key_channels, key_channels, bias=False)
        self.to_out = nn.Linear(key_channels, key_channels)
        self.zero_conv = nn.Conv2d(key_channels, query_channels, kernel_size=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random weights, in the way of each kind of module, but for the last."""
        for module in self.children():
            module.reset_parameters()
        # The one place where zeros make a fresh model exactly Stable Diffusion.
        nn.init.zeros_(self.zero_conv.weight)
        nn.init.zeros_(self.zero_conv.bias)

    def project(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reference tokens (I, S, Ck) -> keys and values, (I, S, heads, Ck / heads)."""
        tokens = self.key_norm(tokens)
        return tuple(project(tokens).unflatten(2, (self.heads, -1)) for project in (self.to_k, self.to_v))

    def forward(self, state: torch.Tensor, references: KeysValues) -> torch.Tensor:
        """state (I, k, Cq, H, W), k pictures of each of I items -> what is to be added to it, of the same shape.

        The pictures of an item ask together: its keys and values are read once, and never copied.
        """
        key, value, bias = references
        items, pictures, _, height, width = state.shape
        queries = self.query_norm(state.permute(0, 1, 3, 4, 2).flatten(1, 3))  # (I, k H W, Cq)
        queries = self.to_q(queries).unflatten(2, (self.heads, -1))  # (I, k H W, heads, d)
        retrieved = dispatch_attention_fn(queries, key, value, attn_mask=bias)  # (I, k H W, heads, d)
        retrieved = self.to_out(retrieved.flatten(2))  # (I, k H W, Ck)
        retrieved = retrieved.unflatten(1, (pictures, height, width)).flatten(0, 1).permute(0, 3, 1, 2)
        return self.zero_conv(retrieved).unflatten(0, (items, pictures))  # (I, k, Cq, H, W)


class RetrievalUNet2DConditionModel(UNet2DConditionModel):
    """A U-Net with one retrieval layer at the entry of each decoder block (paper section 4.2).

    The state-dict keys of the plain U-Net are unchanged; the new ones stand under `retrieval_layers`. `from_unet` makes
    one from a plain U-Net and its weights.

    Args:
        retrieval_query: "decoder" (default): the state at the entry of a decoder block asks and is added to.
            "encoder": the encoder's feature of the level asks, and the result joins what that level hands to the
            decoder (a later figure of the paper's authors), for the ablation.
        unet_config: the arguments of `UNet2DConditionModel`.
    """

    def __init__(self, retrieval_query: str = "decoder", **unet_config):
        _check_choice("retrieval_query", retrieval_query, RETRIEVAL_QUERIES)
        super().__init__(**_supported(unet_config))
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
        model = _unfilled(cls, unet, retrieval_query=retrieval_query)
        model.load_state_dict({**model.state_dict(), **unet.state_dict()})
        for layer, block in zip(model.retrieval_layers, model.up_blocks):
            layer.reset_parameters()
            layer.load_state_dict({**layer.state_dict(), **_fitting(layer, model, block)})
        return model

    @apply_forward_hook
    def project_references(
        self, tokens: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None] | None = None
    ) -> tuple[KeysValues, ...]:
        """Keys and values of every retrieval layer: computed once, they serve every denoising step.

        Args:
            tokens: per resolution level, from the finest, (I, S, C): what the retrieval encoder read for I items.
            biases: per level, (I, S) added to the logits of the attention (-inf: as if the token were not there), or
                None.

        Returns:
            Per decoder block, from the coarsest: keys, values, bias.
        """
        projected = []
        for layer, level in zip(self.retrieval_layers, reversed(range(len(tokens)))):
            key, value = layer.project(tokens[level])
            bias = None if biases is None or biases[level] is None else biases[level][:, None, None].to(key.dtype)
            projected.append((key, value, bias))
        return tuple(projected)

    @apply_lora_scale("cross_attention_kwargs")
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        references: Sequence[KeysValues] | None = None,
        retrieval_scale: float | torch.Tensor = 1.0,
        plain: int = 0,
        timestep_cond: torch.Tensor | None = None,
        added_cond_kwargs: dict | None = None,
        cross_attention_kwargs: dict | None = None,
        down_block_additional_residuals: Sequence[torch.Tensor] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """
        Args:
            sample: (B, in_channels, H, W) noisy latents.
            timestep: number or (B,).
            encoder_hidden_states: (B, T, D) prompt.
            references: what `project_references` returned, for I items; B is a multiple of I, and the first B / I rows
                are the first item's. None retrieves nothing.
            retrieval_scale: multiplies what is retrieved: a number, or a tensor that broadcasts to (levels, B), levels
                from the finest: (B,) weighs the rows, (levels, 1) the levels.
            plain: of each item's rows, so many of the first retrieve nothing (and compute nothing for it).
            timestep_cond, added_cond_kwargs, cross_attention_kwargs: see `encode`; "scale" in the last weighs a LoRA.
            down_block_additional_residuals, mid_block_additional_residual: of a ControlNet.
        """
        sample, emb, text, skips = encode(
            self, sample, timestep, encoder_hidden_states, timestep_cond, added_cond_kwargs, cross_attention_kwargs
        )
        if self.mid_block is not None:
            sample = self.mid_block(sample, emb, **_text_of(self.mid_block, text, cross_attention_kwargs))
        skips = [skip for step in skips for skip in step]
        if down_block_additional_residuals is not None:
            skips = [skip + residual for skip, residual in zip(skips, down_block_additional_residuals, strict=True)]
        if mid_block_additional_residual is not None:
            sample = sample + mid_block_additional_residual  # (B, C, h, w) at the coarsest level
        if references is not None and isinstance(retrieval_scale, torch.Tensor):
            retrieval_scale = retrieval_scale.to(sample).expand(len(self.up_blocks), len(sample))

        for i, block in enumerate(self.up_blocks):
            count = len(block.resnets)
            block_skips, skips = skips[-count:], skips[:-count]
            if references is not None:
                scale = retrieval_scale if isinstance(retrieval_scale, (int, float)) else retrieval_scale[-1 - i]
                if self.config.retrieval_query == "decoder":
                    sample = _retrieve(self.retrieval_layers[i], sample, references[i], scale, plain)
                else:  # the last skip of a level is its feature before the downsampler
                    block_skips[-1] = _retrieve(self.retrieval_layers[i], block_skips[-1], references[i], scale, plain)
            options = _text_of(block, text, cross_attention_kwargs)
            # A size that the levels do not divide: upsample to what the next block's skips have.
            upsample_size = skips[-1].shape[2:] if skips else None
            sample = block(sample, tuple(block_skips), emb, upsample_size=upsample_size, **options)

        if self.conv_norm_out:
            sample = self.conv_act(self.conv_norm_out(sample))
        sample = self.conv_out(sample)  # (B, out_channels, H, W)
        return UNet2DConditionOutput(sample=sample) if return_dict else (sample,)


def _retrieve(
    layer: RetrievalLayer, state: torch.Tensor, references: KeysValues, scale: float | torch.Tensor, plain: int
) -> torch.Tensor:
    """state (B, C, H, W) + what its rows retrieve from their item's references, but for each item's first `plain`."""
    state = state.unflatten(0, (len(references[0]), -1))  # (I, k, C, H, W)
    asking = state[:, plain:]
    if isinstance(scale, torch.Tensor):
        scale = scale.unflatten(0, state.shape[:2])[:, plain:, None, None, None]  # (I, k - plain, 1, 1, 1)
    asking = asking + scale * layer(asking, references)
    return (torch.cat([state[:, :plain], asking], dim=1) if plain else asking).flatten(0, 1)


def _fitting(layer: RetrievalLayer, model: UNet2DConditionModel, block: nn.Module) -> dict[str, torch.Tensor]:
    """The self-attention weights of a decoder block, or of the middle block, as far as their shapes fit the layer."""
    attentions = getattr(block, "attentions", None) or getattr(model.mid_block, "attentions", None)
    if not attentions:
        return {}
    own = attentions[-1].transformer_blocks[0].attn1.state_dict()
    own = {key.replace("to_out.0.", "to_out."): value for key, value in own.items()}
    wanted = layer.state_dict()
    return {key: value for key, value in own.items() if key in wanted and wanted[key].shape == value.shape}


def _unfilled(model_class: type, unet: UNet2DConditionModel, **options) -> nn.Module:
    """A model of the U-Net's configuration, device and dtype, with weights still to be set.

    Made without memory first: random float32 weights of an XL U-Net would be 10 GB, to be thrown away.
    """
    if getattr(unet, "peft_config", None):
        raise ValueError("unet: got one with adapters, wanted it without: unload or fuse them first")
    with torch.device("meta"):
        model = model_class(**unet_options(unet), **options)
    # nn.Module's own `to`: that of diffusers warns of modules to be kept in float32, of which there are none here.
    return nn.Module.to(model, unet.dtype).to_empty(device=unet.device)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(choices)}")


def _supported(unet_config: dict) -> dict:
    """Refuses the kinds of U-Net whose forward pass does more than the one here."""
    for name in ("class_embed_type", "num_class_embeds"):
        if unet_config.get(name) is not None:
            raise ValueError(f"{name}: got {unet_config[name]!r}, wanted None: U-Nets of classes are not supported")
    kinds = (None, "text", "text_time")
    if unet_config.get("addition_embed_type") not in kinds:
        raise ValueError(f"addition_embed_type: got {unet_config['addition_embed_type']!r}, wanted one of {kinds}")
    return unet_config


def unet_init_keys(input_class: type, *own: str) -> set[str]:
    """What `ConfigMixin` reads off a signature, for a class that takes a U-Net's arguments by **unet_config."""
    keys = set(inspect.signature(UNet2DConditionModel.__init__).parameters)
    return keys if input_class is UNet2DConditionModel else keys | set(own)


def unet_options(unet: UNet2DConditionModel) -> dict:
    """The arguments that a U-Net was made with."""
    options = unet_init_keys(UNet2DConditionModel) - {"self"}
    return {key: value for key, value in unet.config.items() if key in options}
