"""The arguments of the trainers, by the names of diffusers' trainers, and what each may be."""

from dataclasses import dataclass, field, fields

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from diffusers.optimization import SchedulerType

from retribooru.dataset_script.references import TRAINABLE
from retribooru.pipeline.retrieval_unet import REFERENCE_TIMESTEPS, RETRIEVAL_QUERIES


@dataclass(kw_only=True)
class DataArguments:
    """Which figures."""

    data_dir: str | None = field(
        default=None, metadata={"help": "A folder that `retribooru build` wrote; without, the mini edition."}
    )
    images: str | None = field(
        default=None, metadata={"help": "Folder of the image files, for a data_dir that does not hold them."}
    )
    characters: int | None = field(
        default=None, metadata={"help": "Of the mini edition, where no data_dir is given; 300 without."}
    )

    def __post_init__(self):
        given = self.characters is not None and self.data_dir is not None
        check_argument("characters", not given, self.characters, "none with data_dir")


@dataclass
class OptimizationArguments(DataArguments):
    """What every training here has."""

    output_dir: str = field(metadata={"help": "Where checkpoints, curves and the result are written."})
    resolution: int = field(default=512, metadata={"help": "Side of targets and references in pixels."})
    seed: int = field(default=0, metadata={"help": "Of everything drawn."})
    train_batch_size: int = field(default=4, metadata={"help": "Targets per process and backward pass."})
    max_train_steps: int = field(default=9000, metadata={"help": "The paper's tables have 9,000 and 45,000."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Not published; ours."})
    lr_scheduler: str = field(default="constant_with_warmup", metadata={"help": "A name of diffusers' schedules."})
    lr_warmup_steps: int = field(default=100, metadata={"help": "Steps from 0 to the learning rate."})
    adam_beta2: float = field(default=0.999, metadata={"help": "Of AdamW: how long squared gradients are remembered."})
    adam_weight_decay: float = field(default=1e-2, metadata={"help": "Of AdamW."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to it."})
    mixed_precision: str = field(
        default="no", metadata={"help": "no, fp16, bf16, or auto: bf16 where the device computes in it, else no."}
    )
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that prepare examples."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Backward passes per step."})
    use_8bit_adam: bool = field(default=False, metadata={"help": "AdamW of bitsandbytes, which must be installed."})
    use_ema: bool = field(default=False, metadata={"help": "Keep a moving average of the weights; it is the result."})
    ema_decay: float = field(default=0.9999, metadata={"help": "Of the moving average, once it has warmed up."})
    checkpointing_steps: int = field(default=500, metadata={"help": "Steps between checkpoints."})
    checkpoints_total_limit: int | None = field(
        default=None, metadata={"help": "The newest so many are kept; all without."}
    )
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "A checkpoint's folder, or latest."})
    report_to: list[str] = field(
        default_factory=list,
        metadata={"help": "Trackers, as accelerate names them: tensorboard, wandb, trackio. None without."},
    )
    logging_steps: int = field(default=10, metadata={"help": "Steps between two lines of metrics.jsonl."})
    crop: float = field(default=0.1, metadata={"help": "Largest share of width and height cropped away."})
    flip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    jitter: float = field(default=0.05, metadata={"help": "Range of the colour jitter."})

    def __post_init__(self):
        super().__post_init__()
        check_counts(
            self,
            "resolution",
            "train_batch_size",
            "max_train_steps",
            "logging_steps",
            "checkpointing_steps",
            "gradient_accumulation_steps",
            "checkpoints_total_limit",
        )
        check_argument("learning_rate", self.learning_rate > 0, self.learning_rate, "more than 0")
        schedules = [schedule.value for schedule in SchedulerType]
        check_argument(
            "lr_scheduler", self.lr_scheduler in schedules, self.lr_scheduler, f"one of {', '.join(schedules)}"
        )
        check_argument("ema_decay", 0 < self.ema_decay < 1, self.ema_decay, "a number between 0 and 1")
        check_argument("adam_beta2", 0 < self.adam_beta2 < 1, self.adam_beta2, "a number between 0 and 1")
        if self.mixed_precision == "auto":
            self.mixed_precision = native_precision()
        precisions = ("no", "fp16", "bf16")
        check_argument(
            "mixed_precision", self.mixed_precision in precisions, self.mixed_precision, "no, fp16, bf16 or auto"
        )
        trackers = sorted(LOGGER_TYPE_TO_CLASS)
        check_argument(
            "report_to", set(self.report_to) <= set(trackers), self.report_to, f"some of {', '.join(trackers)}"
        )
        for name in ("crop", "flip", "jitter"):
            check_argument(name, 0 <= getattr(self, name) < 1 or name == "flip", getattr(self, name), "a share below 1")


@dataclass
class VaeArguments(OptimizationArguments):
    """Training a small VAE from scratch."""

    block_out_channels: list[int] = field(
        default_factory=lambda: [24, 32, 64],
        metadata={"help": "A level each; all but the last halve the size."},
    )
    latent_channels: int = field(default=4, metadata={"help": "Channels of the latents."})
    kl_weight: float = field(default=1e-6, metadata={"help": "Of the KL term."})
    pretrained_model_name_or_path: str | None = field(
        default=None, metadata={"help": "A VAE to go on from: a Hub id or a folder. Random weights without."}
    )
    window: int | None = field(
        default=None, metadata={"help": "Side in pixels of the windows of pictures to train on; whole ones without."}
    )
    windows: int = field(default=1, metadata={"help": "Windows of each picture."})
    validation_steps: int = field(default=500, metadata={"help": "Steps between two looks at held-out pictures."})
    validation_pictures: int = field(default=64, metadata={"help": "Held-out pictures looked at."})

    def __post_init__(self):
        super().__post_init__()
        factor = 2 ** (len(self.block_out_channels) - 1)
        if self.window is None:
            self.window = self.resolution
        fine = 0 < self.window <= self.resolution and self.window % factor == 0
        check_argument("window", fine, self.window, f"a multiple of {factor} up to the resolution, {self.resolution}")
        check_argument("resolution", self.resolution % factor == 0, self.resolution, f"a multiple of {factor}")
        check_counts(self, "windows", "validation_steps", "validation_pictures")


@dataclass
class AttributeArguments(OptimizationArguments):
    """Training the classifier that reads the truth off pictures of the mini edition."""

    block_out_channels: list[int] = field(
        default_factory=lambda: [48, 96, 160],
        metadata={"help": "A level each, the first at half the resolution; each of the others halves it."},
    )
    degradation: float = field(
        default=0.5,
        metadata={
            "help": "Probability of each: blur, lost resolution, JPEG and noise, as pictures that are generated."
        },
    )
    validation_steps: int = field(default=500, metadata={"help": "Steps between two looks at held-out pictures."})

    def __post_init__(self):
        super().__post_init__()
        check_argument(
            "block_out_channels", min(self.block_out_channels, default=0) >= 2, self.block_out_channels, "2 or more"
        )
        factor = 2 ** len(self.block_out_channels)
        check_argument("resolution", self.resolution % factor == 0, self.resolution, f"a multiple of {factor}")
        check_argument("degradation", 0 <= self.degradation <= 1, self.degradation, "a share between 0 and 1")
        check_counts(self, "validation_steps")


@dataclass
class JudgeArguments(OptimizationArguments):
    """What the trainers of the small judges share: a vision transformer that reads whole pictures in patches."""

    patch_size: int = field(default=16, metadata={"help": "Side in pixels of a patch."})
    vision_width: int = field(default=192, metadata={"help": "Of the layers that read pictures."})
    vision_layers: int = field(default=6, metadata={"help": "How many of them."})
    text_width: int = field(default=128, metadata={"help": "Of the layers that read and write text."})
    text_layers: int = field(default=2, metadata={"help": "How many of them."})
    tag_loss_weight: float = field(default=10.0, metadata={"help": "Of naming the tags, beside the judge's own loss."})
    validation_steps: int = field(default=500, metadata={"help": "Steps between two looks at held-out pictures."})
    validation_pictures: int = field(default=500, metadata={"help": "Held-out pictures looked at, at most."})

    def __post_init__(self):
        super().__post_init__()
        check_counts(self, "patch_size", "vision_layers", "text_layers", "validation_steps", "validation_pictures")
        check_argument("tag_loss_weight", self.tag_loss_weight >= 0, self.tag_loss_weight, "at least 0")
        for name in ("vision_width", "text_width"):
            width = getattr(self, name)
            check_argument(name, width >= 32 and width % 32 == 0, width, "a multiple of 32, the width of a head")
        fine = self.resolution % self.patch_size == 0
        check_argument("resolution", fine, self.resolution, f"a multiple of patch_size, {self.patch_size}")


@dataclass
class ClipArguments(JudgeArguments):
    """Training a small CLIP on pictures and their tags."""

    projection_dim: int = field(default=128, metadata={"help": "Of the embeddings."})

    def __post_init__(self):
        super().__post_init__()
        check_counts(self, "projection_dim")
        check_argument("train_batch_size", self.train_batch_size >= 2, self.train_batch_size, "at least 2, to contrast")


@dataclass
class VqaArguments(JudgeArguments):
    """Training a small BLIP that answers questions about pictures of the mini edition."""

    vision_width: int = field(default=160, metadata={"help": "Of the layers that read pictures."})
    text_width: int = field(default=160, metadata={"help": "Of the layers that read and write text: as vision_width."})
    questions_per_picture: int = field(default=6, metadata={"help": "Asked at once about a picture that is read once."})

    def __post_init__(self):
        super().__post_init__()
        check_counts(self, "questions_per_picture")
        # BLIP's answers look at the question, and the question at the picture, through layers of one shape.
        same = self.text_width == self.vision_width
        check_argument("text_width", same, self.text_width, f"vision_width, {self.vision_width}")


@dataclass
class TrainArguments(OptimizationArguments):
    """Training the retrieval (or, with --train_base, the small Stable Diffusion it stands on)."""

    pretrained_model_name_or_path: str = field(
        default="stable-diffusion-v1-5/stable-diffusion-v1-5",
        metadata={"help": "Stable Diffusion or a RetriBooruPipeline to begin with: a Hub id or a folder."},
    )
    tasks: list[str] = field(
        default_factory=lambda: ["reconstruct"],
        metadata={"help": "Some of reconstruct, compose and face, mixed evenly."},
    )
    task_weights: list[float] | None = field(
        default=None, metadata={"help": "How often each of the tasks is drawn, in relation; evenly without."}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Compute again what would take memory."})
    train_base: bool = field(
        default=False,
        metadata={"help": "Train the U-Net without references: a base."},
    )
    lock_decoder: bool = field(default=False, metadata={"help": "Keep the decoder frozen (lockDecoder)."})
    lock_encoder: bool = field(default=False, metadata={"help": "Keep the retrieval encoder frozen (both: lockBoth)."})
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "Train LoRA adapters of this rank on the decoder's attention, by peft, in place of the decoder."
        },
    )
    lora_alpha: int | None = field(
        default=None, metadata={"help": "What the adapters add is scaled by lora_alpha / lora_rank; lora_rank without."}
    )
    retrieval_query: str = field(default="decoder", metadata={"help": "decoder, or encoder for the authors' figure."})
    reference_timestep: str = field(
        default="zero", metadata={"help": "zero, or denoising: references are read anew at every step."}
    )
    retrieval_lr_multiplier: float = field(default=1.0, metadata={"help": "Of the learning rate, for the new layers."})
    head_loss_weight: float = field(default=0.5, metadata={"help": "Of the head term. Not published; ours."})
    inverse_snr_weighting: bool = field(default=False, metadata={"help": "Weigh the loss by clamp(1/SNR, 0.2, 6)."})
    snr_gamma: float | None = field(default=None, metadata={"help": "Of min-SNR weighting; 5 is common. None without."})
    timestep_bias_begin: int = field(default=250, metadata={"help": "Where the favoured timesteps begin."})
    timestep_bias_portion: float = field(default=0.0, metadata={"help": "Share of samples drawn from those alone."})
    timestep_bias_steps: int | None = field(
        default=None,
        metadata={"help": "Steps, the first ones, that favour timesteps and weigh by inverse SNR; all without. Those "
                          "after them draw timesteps evenly and weigh by min-SNR, where there is a snr_gamma."},
    )  # fmt: skip
    noise_draws: int = field(
        default=1,
        metadata={"help": "Times each target is noised; its references are read once."},
    )
    proportion_empty_prompts: float = field(default=0.5, metadata={"help": "Prompts dropped (paper: 0.5)."})
    proportion_empty_references: float = field(default=0.1, metadata={"help": "Samples without references. Ours."})
    proportion_empty_both: float = field(default=0.0, metadata={"help": "Samples without either, besides. Ours."})
    background_removal: float = field(default=0.5, metadata={"help": "Share of references without background. Ours."})
    latent_cache: str | None = field(
        default=None, metadata={"help": "A folder to encode all pictures into, once, before the training."}
    )
    latent_cache_variants: int = field(
        default=1,
        metadata={"help": "Times that each picture's augmentations and background removal are drawn for the cache."},
    )
    validation_steps: int = field(default=100, metadata={"help": "Steps between two looks at the held-out characters."})
    validation_targets: int = field(default=32, metadata={"help": "Held-out targets looked at."})
    image_validation_steps: int | None = field(
        default=None, metadata={"help": "Steps between two grids of pictures of held-out characters; none without."}
    )
    num_validation_images: int = field(default=4, metadata={"help": "Pictures of each task in a grid."})
    validation_guidance_scale: float = field(default=7.5, metadata={"help": "Of the pictures in the grids."})
    validation_clip: str | None = field(
        default=None, metadata={"help": "A CLIP that scores each grid, CLIP-I and CLIP-T: a Hub id or a folder."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Upload the result, with its card, to hub_model_id."})
    hub_model_id: str | None = field(default=None, metadata={"help": "The repository: NAME or OWNER/NAME."})
    hub_private_repo: bool = field(default=False, metadata={"help": "Private, where the repository is made."})

    def __post_init__(self):
        super().__post_init__()
        check_argument(
            "tasks", self.tasks and set(self.tasks) <= set(TRAINABLE), self.tasks, f"some of {', '.join(TRAINABLE)}"
        )
        for name in ("timestep_bias_portion", "proportion_empty_prompts", "proportion_empty_references",
                     "proportion_empty_both", "background_removal"):  # fmt: skip
            check_argument(name, 0 <= getattr(self, name) <= 1, getattr(self, name), "a share between 0 and 1")
        gamma = self.snr_gamma
        check_argument("snr_gamma", gamma is None or gamma > 0, gamma, "more than 0")
        both = gamma is not None and self.inverse_snr_weighting and self.timestep_bias_steps is None
        check_argument("snr_gamma", not both, gamma, "none with inverse_snr_weighting, or timestep_bias_steps, too")
        check_counts(
            self,
            "noise_draws",
            "timestep_bias_steps",
            "validation_steps",
            "validation_targets",
            "image_validation_steps",
            "num_validation_images",
            "latent_cache_variants",
            "lora_rank",
            "lora_alpha",
        )
        grids = self.image_validation_steps is not None
        check_argument(
            "image_validation_steps",
            not (grids and self.train_base),
            self.image_validation_steps,
            "none with train_base",
        )
        scale = self.validation_guidance_scale
        check_argument("validation_guidance_scale", 0 <= scale < float("inf"), scale, "a finite number of at least 0")
        weights = self.task_weights
        check_argument(
            "task_weights",
            weights is None or (len(weights) == len(self.tasks) and min(weights) >= 0 and sum(weights) > 0),
            weights,
            f"a number of at least 0 for each of {len(self.tasks)} tasks",
        )
        for name, choices in (("retrieval_query", RETRIEVAL_QUERIES), ("reference_timestep", REFERENCE_TIMESTEPS)):
            check_argument(name, getattr(self, name) in choices, getattr(self, name), f"one of {', '.join(choices)}")
        for name in ("lock_decoder", "lock_encoder"):
            check_argument(
                name, not (self.train_base and getattr(self, name)), True, "none of the locks with train_base"
            )
        for name in ("train_base", "lock_decoder"):
            fine = self.lora_rank is None or not getattr(self, name)
            check_argument("lora_rank", fine, self.lora_rank, f"none with {name}")
        fine = self.lora_alpha is None or self.lora_rank is not None
        check_argument("lora_alpha", fine, self.lora_alpha, "none without lora_rank")
        fine = self.validation_clip is None or grids
        check_argument("validation_clip", fine, self.validation_clip, "none without image_validation_steps")
        check_argument("push_to_hub", not (self.push_to_hub and self.train_base), True, "none with train_base")
        for name in ("hub_model_id", "hub_private_repo"):
            fine = self.push_to_hub or not getattr(self, name)
            check_argument(name, fine, getattr(self, name), "none without push_to_hub")
        named = self.hub_model_id or not self.push_to_hub
        check_argument("hub_model_id", named, self.hub_model_id, "NAME or OWNER/NAME with push_to_hub")


def native_precision() -> str:
    """bf16 where the device that is trained on computes in it, else no: there bf16 is many times slower."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if "AVX512" in torch.backends.cpu.get_cpu_capability() else "no"


def check_argument(name: str, fine: object, got: object, wanted: str) -> None:
    """Raises ValueError, naming the argument, what came and what was wanted, unless it is fine."""
    if not fine:
        raise ValueError(f"{name}: got {got}, wanted {wanted}")


def check_counts(args: DataArguments, *names: str) -> None:
    """Raises ValueError for an argument below 1. None is fine where it is the default."""
    optional = {one.name for one in fields(args) if one.default is None}
    for name in names:
        got = getattr(args, name)
        check_argument(name, name in optional if got is None else got >= 1, got, "at least 1")
