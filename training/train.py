"""Trains the retrieval on top of Stable Diffusion (or, with --train_base, a small Stable Diffusion from scratch).

accelerate launch -m retribooru.training.train --preset mini-retrieval --data_dir built/ --output_dir runs/retrieval
"""

import logging
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from retribooru.dataset_script.concepts import CONCEPTS
from retribooru.pipeline.pipeline_retribooru import RetriBooruPipeline
from retribooru.pipeline.retrieved_features import cells_with_content

from . import objective
from .arguments import TrainArguments, parse
from .augment import Augmentation
from .checkpoints import find_checkpoint, save_checkpoint, save_pipeline, training_facts
from .curves import MetricsLog
from .data import Batch, EpochSampler, TrainingFigures, load_figures
from .held_out import held_out_examples, held_out_losses, other_characters, verdict

logger = logging.getLogger(__name__)


def trainable_modules(pipeline: DiffusionPipeline, args: TrainArguments) -> list[nn.Module]:
    """What the optimizer changes. Frozen: SD's encoder and middle block, VAE, text encoder; and what is locked.

    The cross-attention and zero convolutions are trained in every setting (paper section 4.2).
    """
    if args.train_base:
        return [pipeline.unet, pipeline.text_encoder]
    unet = pipeline.unet
    modules = [unet.retrieval_layers]
    if not args.lock_decoder:
        modules += [unet.up_blocks, unet.conv_norm_out, unet.conv_out]
    if not args.lock_encoder:
        modules += [pipeline.retrieval_encoder]
    return [module for module in modules if module is not None]


def freeze_all_but(pipeline: DiffusionPipeline, modules: list[nn.Module]) -> None:
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False)
    for module in modules:
        module.requires_grad_(True)


class Model(nn.Module):
    """The parts that a training step runs through, as one module for accelerate to prepare."""

    def __init__(self, pipeline: DiffusionPipeline, train_base: bool):
        super().__init__()
        self.unet = pipeline.unet
        if train_base:
            self.text_encoder = pipeline.text_encoder
        else:
            self.retrieval_encoder = pipeline.retrieval_encoder

    def forward(self, noisy, timesteps, text, references=None, concepts=None, content=None, scale=1.0):
        """Predicts the noise in `noisy` (B, c, h, w); `text` are token ids (B, T) where the text encoder is trained.

        There may be a whole multiple of items to one item's references (B / k, N, c, h, w), whose content is
        (B / k, N, 1, H, W): k in a row share them.
        """
        if references is None:
            return self.unet(noisy, timesteps, self.text_encoder(text)[0]).sample
        if self.retrieval_encoder.config.reference_timestep == "denoising":  # what is read depends on the noise level
            references, concepts, content = (
                repeat(part, len(noisy) // len(references)) for part in (references, concepts, content)
            )
        items, count = references.shape[:2]
        read_at = timesteps.repeat_interleave(count) if items == len(noisy) else None
        features = self.retrieval_encoder(references.flatten(0, 1), concepts.flatten(0, 1), read_at).features
        tokens, biases = [], []
        for level in features:  # (items * N, C, h, w)
            tokens.append(level.flatten(2).transpose(1, 2).unflatten(0, (items, count)).flatten(1, 2))
            kept = cells_with_content(content.flatten(0, 1), level.shape[-2:]).unflatten(0, (items, count)).flatten(1)
            biases.append(torch.zeros_like(kept, dtype=level.dtype).masked_fill(~kept, -torch.inf))
        retrieved = self.unet.project_references(tokens, biases)
        return self.unet(noisy, timesteps, text, retrieved, scale).sample


@torch.no_grad()
def encode_batch(pipeline: DiffusionPipeline, examples: dict, concept_table: torch.Tensor, train_base: bool) -> Batch:
    """From a collated batch of `TrainingFigures` to what the model reads. The VAE's mode is taken, not a sample."""
    vae, device = pipeline.vae, pipeline.vae.device

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return vae.encode(pixels.to(device, vae.dtype)).latent_dist.mode() * vae.config.scaling_factor

    tokens = pipeline.tokenizer(
        examples["prompt"], padding="max_length", truncation=True, max_length=pipeline.tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids.to(device)  # fmt: skip
    latents = encode(examples["pixel_values"])
    references = examples.get("reference_pixel_values")
    size = latents.shape[-2:]
    return Batch(
        latents=latents,
        content_mask=objective.to_latent_size(examples["content_mask"].to(device), size),
        head_mask=objective.to_latent_size(examples["head_mask"].to(device), size),
        text=tokens if train_base else pipeline.text_encoder(tokens)[0],
        references=None if train_base else encode(references.flatten(0, 1)).unflatten(0, references.shape[:2]),
        content=None if train_base else examples["reference_content"].to(device),
        concepts=None if train_base else concept_table[examples["reference_concepts"].to(device)],
    )


@torch.no_grad()
def concept_embeddings(pipeline: RetriBooruPipeline, device: torch.device) -> torch.Tensor:
    """(concepts, T, D): the text of each of `CONCEPTS` through the pipeline's own text encoder."""
    texts = [pipeline.retrieval_encoder.config.concept_texts[concept] for concept in CONCEPTS]
    return pipeline.encode_prompt(texts, device, 1, False)[0]


def training_loss(
    model: nn.Module, scheduler, batch: Batch, args: TrainArguments, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """One step's loss terms. Everything random comes from `generator` (on the CPU, so that it is alike everywhere)."""
    latents, text, content_mask, head_mask = (
        repeat(part, args.noise_draws) for part in (batch.latents, batch.text, batch.content_mask, batch.head_mask)
    )
    count, device = len(latents), latents.device
    noise = torch.randn(latents.shape, generator=generator).to(device)
    timesteps = objective.draw_timesteps(
        count, scheduler.config.num_train_timesteps, generator, args.timestep_bias_begin, args.timestep_bias_portion
    ).to(device)
    keep = (torch.rand(count, generator=generator) >= args.proportion_empty_references).float().to(device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    prediction = model(noisy, timesteps, text, batch.references, batch.concepts, batch.content, keep)
    weights = None
    if args.inverse_snr_weighting:
        weights = objective.inverse_snr_weights(scheduler.alphas_cumprod.to(device), timesteps)
    return objective.noise_prediction_loss(prediction, noise, content_mask, head_mask, args.head_loss_weight, weights)


def repeat(tensor: torch.Tensor, times: int) -> torch.Tensor:
    """(B, ...) -> (B * times, ...), the copies of an item in a row."""
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=0)


def load_pipeline(args: TrainArguments) -> DiffusionPipeline:
    """The pipeline to begin with: a RetriBooruPipeline as it is, else Stable Diffusion and fresh retrieval layers."""
    name = args.pretrained_model_name_or_path
    index = DiffusionPipeline.load_config(name)
    if args.train_base:
        return StableDiffusionPipeline.from_pretrained(name)
    if RetriBooruPipeline.__name__ in index["_class_name"]:
        return RetriBooruPipeline.from_pretrained(name)
    return RetriBooruPipeline.from_stable_diffusion(
        name, retrieval_query=args.retrieval_query, reference_timestep=args.reference_timestep
    )


def parameter_groups(pipeline: DiffusionPipeline, modules: list[nn.Module], args: TrainArguments) -> list[dict]:
    """The new layers with a learning rate of their own."""
    new = [] if args.train_base else list(pipeline.unet.retrieval_layers.parameters())
    ids = {id(parameter) for parameter in new}
    rest = [parameter for module in modules for parameter in module.parameters() if id(parameter) not in ids]
    groups = [(new, args.learning_rate * args.retrieval_lr_multiplier), (rest, args.learning_rate)]
    return [{"params": params, "lr": lr} for params, lr in groups if params]


def train(args: TrainArguments) -> Path:
    """Trains, and leaves in `output_dir`: pipeline, training.json, checkpoint-STEP, metrics.jsonl and loss.png."""
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    set_seed(args.seed)
    start, checkpoint = 0, None
    if args.resume_from_checkpoint:
        checkpoint, start = find_checkpoint(output_dir, args.resume_from_checkpoint)

    figures = TrainingFigures(
        load_figures(args.data_dir, "train", args.images),
        tasks=[] if args.train_base else args.tasks,
        resolution=args.resolution,
        seed=args.seed,
        background_removal=args.background_removal,
        prompt_drop=args.proportion_empty_prompts,
        augmentation=Augmentation(args.crop, args.flip, args.jitter),
    )
    held_out_figures = None if args.train_base else load_figures(args.data_dir, "out_of_domain", args.images)

    pipeline = load_pipeline(args)
    if pipeline.scheduler.config.prediction_type != "epsilon":
        raise ValueError(
            f"pretrained_model_name_or_path: its scheduler predicts {pipeline.scheduler.config.prediction_type}, "
            "wanted epsilon: the objective is noise prediction"
        )
    modules = trainable_modules(pipeline, args)
    freeze_all_but(pipeline, modules)
    pipeline.to(accelerator.device)
    scheduler = pipeline.scheduler

    per_step = args.train_batch_size * accelerator.num_processes
    sampler = EpochSampler(len(figures), args.max_train_steps * per_step, start * per_step, args.seed)
    loader = DataLoader(
        figures, batch_size=args.train_batch_size, sampler=sampler, num_workers=args.dataloader_num_workers
    )
    optimizer = torch.optim.AdamW(parameter_groups(pipeline, modules, args), weight_decay=args.adam_weight_decay)
    # accelerate steps the schedule once per process.
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )
    model, optimizer, loader, lr_scheduler = accelerator.prepare(
        Model(pipeline, args.train_base), optimizer, loader, lr_scheduler
    )
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if checkpoint:
        accelerator.load_state(str(checkpoint))

    concept_table, held_out = None, None
    if not args.train_base:
        concept_table = concept_embeddings(pipeline, accelerator.device)
        examples = held_out_examples(held_out_figures, args)
        held_out = encode_batch(pipeline, examples, concept_table, train_base=False)
        others = other_characters(examples["character"])
    log = MetricsLog(output_dir, start) if accelerator.is_main_process else None

    def look(step: int) -> None:
        model.eval()
        with accelerator.autocast():
            log.add(step, **held_out_losses(accelerator.unwrap_model(model), scheduler, held_out, others, args.seed))
        model.train()

    model.train()
    if held_out and log and start == 0:
        look(0)
    progress = tqdm(total=args.max_train_steps, initial=start, desc="training", unit="step",
                    disable=not accelerator.is_main_process)  # fmt: skip
    for step, examples in enumerate(loader, start + 1):
        batch = encode_batch(pipeline, examples, concept_table, args.train_base)
        # A generator of its own for each step and process: going on from a checkpoint needs no state of it.
        generator = torch.Generator().manual_seed(
            (args.seed * 1_000_003 + step) * accelerator.num_processes + accelerator.process_index
        )
        with accelerator.autocast():
            terms = training_loss(model, scheduler, batch, args, generator)
        accelerator.backward(terms["loss"])
        accelerator.clip_grad_norm_(trained, args.max_grad_norm)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        progress.update()
        progress.set_postfix(loss=f"{terms['loss'].item():.4f}")
        if log and step % args.logging_steps == 0:
            log.add(step, **{name: term.item() for name, term in terms.items()}, lr=lr_scheduler.get_last_lr()[-1])
        if held_out and log and (step % args.validation_steps == 0 or step == args.max_train_steps):
            look(step)
        if step % args.checkpointing_steps == 0 and step < args.max_train_steps:
            save_checkpoint(accelerator, output_dir, step)
            if log:
                log.plot()
    progress.close()
    accelerator.wait_for_everyone()
    if log:
        model.eval()
        save_pipeline(pipeline, output_dir, training_facts(args, log.lines))
        log.plot()
        if held_out:
            print(verdict(log.lines))
    accelerator.end_training()
    return output_dir


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO)
    train(parse(TrainArguments, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
