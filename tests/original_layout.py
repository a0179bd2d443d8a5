"""Stable Diffusion as one file, with the names of its first release: what `from_single_file` reads."""

import re
from pathlib import Path

from safetensors.torch import save_file

# Own names, and what the first release called them.
RESNET = [
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"), ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"),
]  # fmt: skip
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_original(pipeline, path: Path) -> Path:
    """Writes a StableDiffusionPipeline of tiny or full size, all of whose U-Net's blocks have attention."""
    tensors = {
        f"model.diffusion_model.{_unet_name(pipeline.unet, k)}": v for k, v in pipeline.unet.state_dict().items()
    }
    tensors |= {f"first_stage_model.{name}": value for name, value in _vae(pipeline.vae)}
    for name, value in pipeline.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def _unet_name(unet, name: str) -> str:
    """down_blocks.1.attentions.0.norm.weight -> input_blocks.4.1.norm.weight (two layers a block), and so on."""
    layers = unet.config.layers_per_block
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
    if found:
        side, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if side == "down":
            place = 1 + block * (layers + 1) + (layers if kind == "downsamplers" else layer)
        else:
            place = block * (layers + 1) + (layers if kind == "upsamplers" else layer)
        part = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2}[kind]
        name = f"{'input' if side == 'down' else 'output'}_blocks.{place}.{part}.{rest}"
        name = name.replace(".0.conv.", ".0.op.") if kind == "downsamplers" else name
    else:
        kind = "resnets" if "resnets" in name else None
        for own, original in UNET.items():
            name = re.sub(rf"^{re.escape(own)}\.", f"{original}.", name)
    if kind == "resnets":
        for own, original in RESNET:
            name = name.replace(f".{own}.", f".{original}.")
    return name


def _vae(vae):
    """Names and values; the attention's matrices are 1x1 convolutions there."""
    levels = len(vae.config.block_out_channels)
    for name, value in vae.state_dict().items():
        if ".attentions." in name:
            for own, original in VAE_ATTENTION.items():
                name = name.replace(f"mid_block.attentions.0.{own}.", f"mid.attn_1.{original}.")
            value = value[:, :, None, None] if value.dim() == 2 else value
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        yield name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out"), value
