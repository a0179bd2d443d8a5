"""A small Stable Diffusion with random weights, of the real classes: what one trains where no checkpoint can be had.

python -m retribooru.training.scratch --preset mini-scratch --vae runs/mini-vae --output_dir runs/mini-scratch
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from retribooru.dataset_script.files import replacing_folder
from retribooru.pipeline.retrieval_unet import CONCEPT_TEXTS

from .arguments import check_argument
from .data import load_figures
from .objective import PREDICTION_TYPES
from .parsing import parse


@dataclass
class ScratchArguments:
    """Making a small Stable Diffusion to train with --train_base."""

    output_dir: str = field(metadata={"help": "Where it is written."})
    vae: str = field(metadata={"help": "Its VAE: a Hub id or a folder, such as `train_vae` leaves."})
    data_dir: str | None = field(
        default=None, metadata={"help": "The figures whose prompts the tokenizer learns; without, the mini edition."}
    )
    characters: int | None = field(default=None, metadata={"help": "Of the mini edition; 300 without."})
    resolution: int = field(default=64, metadata={"help": "Side of its pictures in pixels."})
    block_out_channels: list[int] = field(
        default_factory=lambda: [64, 96, 128], metadata={"help": "Of the U-Net, a level each."}
    )
    text_width: int = field(default=64, metadata={"help": "Of the text encoder."})
    text_steps: int = field(default=500, metadata={"help": "In which the text encoder learns to tell tags apart."})
    prediction_type: str = field(
        default="epsilon",
        metadata={"help": "What the U-Net is to predict: epsilon as SD 1.5, or v_prediction, which is easier where "
                          "noise is strong."},
    )  # fmt: skip
    seed: int = field(default=0, metadata={"help": "Of the weights."})

    def __post_init__(self):
        kind = self.prediction_type
        check_argument("prediction_type", kind in PREDICTION_TYPES, kind, f"one of {', '.join(PREDICTION_TYPES)}")
        check_argument("text_steps", self.text_steps >= 0, self.text_steps, "at least 0")


def small_vae(block_out_channels: list[int], latent_channels: int, resolution: int) -> AutoencoderKL:
    """A VAE of one layer per level; each level but the last halves the size.

    Made to learn in minutes: one group to normalise by, so that colours survive; no attention, so that it may be
    trained on windows; orthogonal weights; and a posterior that begins narrow.
    """
    levels = len(block_out_channels)
    vae = AutoencoderKL(
        block_out_channels=tuple(block_out_channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=latent_channels,
        layers_per_block=1,
        norm_num_groups=1,
        sample_size=resolution,
        mid_block_add_attention=False,
    )
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(vae.decoder.conv_out.weight, std=0.02)
    with torch.no_grad():
        vae.quant_conv.weight[latent_channels:] *= 0.1  # the log-variance
        vae.quant_conv.bias[latent_channels:] = -5.0
    return vae


def small_tokenizer(prompts: Iterable[str], length: int = 48, vocab_size: int = 1000) -> CLIPTokenizer:
    """A byte-pair tokenizer of CLIP's class, learned from prompts.

    Every letter is shown to it alone and at the end of a word: CLIP's class takes a letter it has not seen for the end
    of the text. The numbers of tokens differ from run to run, as the library's training counts words in no fixed order.
    """
    letters = [chr(code) for code in range(33, 127)]
    alphabet = [" ".join(letters), " ".join(letter * 2 for letter in letters)]
    corpus = [*alphabet, *CONCEPT_TEXTS.values(), *prompts]
    return CLIPTokenizer(model_max_length=length).train_new_from_iterator(corpus, vocab_size=vocab_size)


def small_stable_diffusion(
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    resolution: int,
    block_out_channels: tuple[int, ...] = (64, 96, 128),
    text_width: int = 64,
    prediction_type: str = "epsilon",
) -> StableDiffusionPipeline:
    """U-Net and text encoder with random weights around a VAE; DDIM with Stable Diffusion's noise schedule."""
    levels = len(block_out_channels)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    unet = UNet2DConditionModel(
        sample_size=resolution // factor,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=block_out_channels,
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=4,  # the number of heads, in this U-Net
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=text_width,
            intermediate_size=2 * text_width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=text_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def teach_tags(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, prompts: Sequence[str], steps: int, seed: int = 0
) -> float:
    """Teaches a text encoder to tell prompts apart by their tags, from the prompts alone.

    Stable Diffusion begins with CLIP's text encoder, which knows words. One with random weights tells two prompts that
    differ in a single tag hardly apart, and a short training of a U-Net then learns nothing of what changes few pixels,
    such as a pose. Here a linear layer, thrown away afterwards, learns to name a prompt's tags from the mean of the
    states after its end.

    Args:
        prompts: tags with commas between them; the thousand most frequent tags count.
        steps: of 128 prompts each.
        seed: of the order of the prompts.

    Returns:
        The share of the last step's prompts whose tags were all named, and no other.
    """
    sets = [set(prompt.split(", ")) for prompt in prompts]
    known = [tag for tag, _ in Counter(tag for tags in sets for tag in sorted(tags)).most_common(1000)]
    wanted = torch.tensor([[float(tag in tags) for tag in known] for tags in sets])
    ids = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    after = (ids == tokenizer.eos_token_id).unsqueeze(-1)  # the end of the text, and the padding, which is the same
    generator, right = torch.Generator().manual_seed(seed), 0.0
    head = nn.Linear(text_encoder.config.hidden_size, len(known))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    parameters = [*text_encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=max(steps, 1))
    text_encoder.train()
    for _ in tqdm(range(steps), desc="text encoder", unit="step", disable=not steps):
        drawn = torch.randint(len(sets), (128,), generator=generator)
        states = text_encoder(ids[drawn]).last_hidden_state  # (128, T, D)
        logits = head((states * after[drawn]).sum(1) / after[drawn].sum(1))
        loss = F.binary_cross_entropy_with_logits(logits, wanted[drawn], reduction="sum") / len(drawn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        right = ((logits > 0) == (wanted[drawn] > 0)).all(dim=1).float().mean().item()
    text_encoder.eval()
    return right


def make(args: ScratchArguments) -> Path:
    """Leaves a StableDiffusionPipeline in `output_dir`."""
    vae = AutoencoderKL.from_pretrained(args.vae, use_safetensors=True)
    prompts = load_figures(args.data_dir, "train", characters=args.characters)["prompt"]
    torch.manual_seed(args.seed)
    channels = tuple(args.block_out_channels)
    pipeline = small_stable_diffusion(
        vae, small_tokenizer(prompts), args.resolution, channels, args.text_width, args.prediction_type
    )
    right = teach_tags(pipeline.text_encoder, pipeline.tokenizer, prompts, args.text_steps, args.seed)
    print(f"The text encoder tells all tags of {100 * right:.1f} % of the prompts.")
    with replacing_folder(Path(args.output_dir)) as folder:
        pipeline.save_pretrained(folder)
    return Path(args.output_dir)


def main(argv: list[str] | None = None) -> None:
    make(parse(ScratchArguments, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
