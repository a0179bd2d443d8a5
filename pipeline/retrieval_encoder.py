"""The retrieval encoder: reads what the reference images show (paper section 4.1)."""

import inspect
from dataclasses import dataclass

import torch
from diffusers import ModelMixin, UNet2DConditionModel  # noqa: F401 (from_pretrained looks for ModelMixin here)
from diffusers.utils import BaseOutput
from torch import nn

# What the encoder is told to look for, by concept.
CONCEPT_TEXTS = {"figure": "figure", "face": "face", "body": "clothes"}


@dataclass
class RetrievalEncoderOutput(BaseOutput):
    """`features`: per resolution level, from the finest, a tensor (batch, channels, height, width)."""

    features: tuple[torch.Tensor, ...]


def encode(
    unet: UNet2DConditionModel,
    sample: torch.Tensor,
    timestep: torch.Tensor | float,
    encoder_hidden_states: torch.Tensor,
    added_cond_kwargs: dict | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, ...]]]:
    """The encoder half of a U-Net, up to its middle block.

    Args:
        sample: (B, in_channels, H, W) latents.
        timestep: number or (B,).
        encoder_hidden_states: (B, T, D) text.

    Returns:
        state (B, C, h, w) of the last down block; time embedding (B, E); text as the blocks want it; and the skips: one
        tuple per step of the encoder, `conv_in` first, then of each down block (its layers, then its downsampler).
    """
    if unet.config.center_input_sample:
        sample = 2 * sample - 1.0
    emb = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))  # (B, E)
    aug = unet.get_aug_embed(emb=emb, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs)
    emb = emb if aug is None else emb + aug
    text = unet.process_encoder_hidden_states(encoder_hidden_states, added_cond_kwargs=added_cond_kwargs)  # (B, T, D)

    sample = unet.conv_in(sample)  # (B, C0, H, W)
    skips = [(sample,)]
    for block in unet.down_blocks:
        sample, block_skips = block(sample, emb, **({"encoder_hidden_states": text} if _reads_text(block) else {}))
        skips.append(block_skips)
    return sample, emb, text, skips


def _reads_text(block: nn.Module) -> bool:
    return getattr(block, "has_cross_attention", False)


class RetrievalEncoder(UNet2DConditionModel):
    """The down blocks of a U-Net, reading un-noised reference latents and a text that names the concept.

    Its configuration is the U-Net's, and its state-dict keys are those of the U-Net's encoder.

    Args:
        concept_texts: {concept: text} that the encoder was trained with; the concepts a pipeline call may name.
        unet_config: the arguments of `UNet2DConditionModel`.
    """

    def __init__(self, concept_texts: dict[str, str] | None = None, **unet_config):
        super().__init__(**unet_config)
        self.register_to_config(concept_texts=concept_texts or dict(CONCEPT_TEXTS))
        # Only the encoder is kept. Built and dropped, so that every option of the library's constructor holds here too.
        self.up_blocks = nn.ModuleList()
        self.mid_block = self.conv_norm_out = self.conv_act = self.conv_out = None

    @staticmethod
    def _get_init_keys(input_class):
        return unet_init_keys(input_class, "concept_texts")

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel, **kwargs) -> "RetrievalEncoder":
        """A retrieval encoder with a copy of the U-Net's encoder weights, of the same dtype and device."""
        encoder = cls(**unet_options(unet), **kwargs)
        wanted = encoder.state_dict().keys()
        encoder.load_state_dict({key: value for key, value in unet.state_dict().items() if key in wanted})
        return same_kind(encoder, unet)

    def forward(
        self,
        sample: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor | float = 0,
        added_cond_kwargs: dict | None = None,
    ) -> RetrievalEncoderOutput:
        """
        Args:
            sample: (R, in_channels, H, W) latents of R references, un-noised, scaled as the U-Net's input.
            encoder_hidden_states: (R, T, D) text naming the concept of each.
            timestep: 0 by default: references carry no noise, and their features serve every denoising step.
        """
        _, _, _, skips = encode(self, sample, timestep, encoder_hidden_states, added_cond_kwargs)
        # The feature of a level is the one before its downsampler.
        features = tuple(skip[len(block.resnets) - 1] for skip, block in zip(skips[1:], self.down_blocks))
        return RetrievalEncoderOutput(features=features)


def same_kind(model: nn.Module, unet: UNet2DConditionModel) -> nn.Module:
    """The model on the U-Net's device, in its dtype."""
    model = model.to(unet.device)
    return model if model.dtype == unet.dtype else model.to(unet.dtype)


def unet_init_keys(input_class: type, *own: str) -> set[str]:
    """What `ConfigMixin` reads off a signature, for a class that takes a U-Net's arguments by **unet_config."""
    keys = set(inspect.signature(UNet2DConditionModel.__init__).parameters)
    return keys if input_class is UNet2DConditionModel else keys | set(own)


def unet_options(unet: UNet2DConditionModel) -> dict:
    """The arguments that a U-Net was made with."""
    options = unet_init_keys(UNet2DConditionModel) - {"self"}
    return {key: value for key, value in unet.config.items() if key in options}
