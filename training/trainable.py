"""What a training begins with, and what of it is trained."""

from functools import partial

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

from retribooru.checkpoint_facts import check_pipeline
from retribooru.pipeline.pipeline_retribooru import RetriBooruPipeline

from .arguments import OptimizationArguments, TrainArguments
from .objective import PREDICTION_TYPES

# What LoRA adapts: the attention of the decoder, and not that of the retrieval layers, which have the same names.
LORA_TARGETS = r"up_blocks\..*\.(to_q|to_k|to_v|to_out\.0)"


def trainable_modules(pipeline: DiffusionPipeline, args: TrainArguments) -> list[nn.Module]:
    """What the optimizer changes. Frozen: SD's encoder and middle block, VAE, text encoder; and what is locked.

    The cross-attention and zero convolutions are trained in every setting (paper section 4.2). With `lora_rank`, the
    adapters of `add_lora` stand in the place of the decoder.
    """
    if args.train_base:
        return [pipeline.unet]
    unet = pipeline.unet
    modules = [unet.retrieval_layers]
    if args.lora_rank is not None:
        modules += lora_layers(unet)
    elif not args.lock_decoder:
        modules += [unet.up_blocks, unet.conv_norm_out, unet.conv_out]
    if not args.lock_encoder:
        modules += [pipeline.retrieval_encoder]
    return [module for module in modules if module is not None]


def add_lora(unet: UNet2DConditionModel, rank: int, alpha: int | None = None) -> None:
    """Adapters on the attention of the decoder; their weights begin at random, and what they add as nothing.

    Args:
        alpha: what they add is scaled by alpha / rank; by 1 without.
    """
    from peft import LoraConfig

    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=alpha or rank, init_lora_weights="gaussian", target_modules=LORA_TARGETS)
    )


def lora_layers(unet: UNet2DConditionModel) -> list[nn.Module]:
    return [module for name, module in unet.named_modules() if name.endswith((".lora_A", ".lora_B"))]


def merge_lora(unet: UNet2DConditionModel) -> None:
    """Makes the adapters a part of the weights that they adapt. What is left is a plain U-Net."""
    with torch.autocast(unet.device.type, enabled=False):  # else half of the digits would be lost
        unet.fuse_lora(safe_fusing=True)
    unet.unload_lora()


def freeze_all_but(pipeline: DiffusionPipeline, modules: list[nn.Module]) -> None:
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False)
    for module in modules:
        module.requires_grad_(True)


def load_pipeline(args: TrainArguments) -> DiffusionPipeline:
    """The pipeline to begin with: a RetriBooruPipeline as it is, else Stable Diffusion and fresh retrieval layers.

    Raises ValueError where there is none, and for one that predicts something else than `PREDICTION_TYPES`.
    """
    name = args.pretrained_model_name_or_path
    kind = check_pipeline("pretrained_model_name_or_path", name)
    if args.train_base:
        pipeline = StableDiffusionPipeline.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
    elif kind == RetriBooruPipeline.__name__:
        pipeline = RetriBooruPipeline.from_pretrained(name)
    else:
        pipeline = RetriBooruPipeline.from_stable_diffusion(
            name, retrieval_query=args.retrieval_query, reference_timestep=args.reference_timestep
        )
    predicted = pipeline.scheduler.config.prediction_type
    if predicted not in PREDICTION_TYPES:
        raise ValueError(
            f"pretrained_model_name_or_path: its scheduler predicts {predicted}, wanted one of "
            f"{', '.join(PREDICTION_TYPES)}"
        )
    return pipeline


def parameter_groups(pipeline: DiffusionPipeline, modules: list[nn.Module], args: TrainArguments) -> list[dict]:
    """The new layers with a learning rate of their own."""
    new = [] if args.train_base else list(pipeline.unet.retrieval_layers.parameters())
    ids = {id(parameter) for parameter in new}
    rest = [parameter for module in modules for parameter in module.parameters() if id(parameter) not in ids]
    groups = [(new, args.learning_rate * args.retrieval_lr_multiplier), (rest, args.learning_rate)]
    return [{"params": params, "lr": lr} for params, lr in groups if params]


def make_optimizer(
    pipeline: DiffusionPipeline, modules: list[nn.Module], args: TrainArguments
) -> torch.optim.Optimizer:
    return adamw(parameter_groups(pipeline, modules, args), args)


def adamw(groups: list[dict], args: OptimizationArguments) -> torch.optim.Optimizer:
    """AdamW; with `use_8bit_adam` that of bitsandbytes. Raises ImportError where it is not installed."""
    kind = partial(torch.optim.AdamW, fused=True)
    if args.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit as kind
        except ImportError as error:
            raise ImportError(
                "use_8bit_adam: got True, but bitsandbytes is not installed: pip install bitsandbytes"
            ) from error
    return kind(groups, lr=args.learning_rate, betas=(0.9, args.adam_beta2), weight_decay=args.adam_weight_decay)
