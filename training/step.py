"""One training step: from a batch of examples to the terms of the loss."""

from dataclasses import replace

import torch
from diffusers import DiffusionPipeline
from torch import nn

from retribooru.dataset_script.concepts import CONCEPTS
from retribooru.pipeline.pipeline_retribooru import RetriBooruPipeline
from retribooru.pipeline.retrieved_features import kept_tokens, take_tokens

from . import objective
from .arguments import TrainArguments
from .data import Batch


class Model(nn.Module):
    """The parts that a training step runs through, as one module for accelerate to prepare."""

    def __init__(self, pipeline: DiffusionPipeline, train_base: bool):
        super().__init__()
        self.unet = pipeline.unet
        if not train_base:
            self.retrieval_encoder = pipeline.retrieval_encoder

    def forward(self, noisy, timesteps, text, references=None, concepts=None, content=None, scale=1.0):
        """Predicts the noise in `noisy` (B, c, h, w), or v, from the encoded `text` (B, T, D).

        There may be a whole multiple of items to one item's references (B / k, N, c, h, w), whose content is
        (B / k, N, 1, H, W): k in a row share them.
        """
        if references is None:
            return self.unet(noisy, timesteps, text).sample
        if self.retrieval_encoder.config.reference_timestep == "denoising":  # what is read depends on the noise level
            references, concepts, content = (
                repeat(part, len(noisy) // len(references)) for part in (references, concepts, content)
            )
        items, count = references.shape[:2]
        read_at = timesteps.repeat_interleave(count) if items == len(noisy) else None
        features = self.retrieval_encoder(references.flatten(0, 1), concepts.flatten(0, 1), read_at).features
        sizes, weights = [level.shape[-2:] for level in features], torch.ones(items * count)
        indices, masks, _ = kept_tokens(content.flatten(0, 1).cpu(), [count] * items, weights, sizes)
        tokens = take_tokens(features, [chosen.to(noisy.device) for chosen in indices])
        biases = [torch.where(mask, 0.0, -torch.inf).to(noisy.device) for mask in masks]
        retrieved = self.unet.project_references(tokens, biases)
        return self.unet(noisy, timesteps, text, retrieved, scale).sample


@torch.no_grad()
def encode_batch(pipeline: DiffusionPipeline, examples: dict, concept_table: torch.Tensor, train_base: bool) -> Batch:
    """From a collated batch of `TrainingFigures` to what the model reads. The VAE's mode is taken, not a sample."""
    vae, device = pipeline.vae, pipeline.vae.device

    def encoded(view: str) -> torch.Tensor:
        if f"{view}latents" in examples:
            return examples[f"{view}latents"].to(device)
        pixels = examples[f"{view}pixel_values"].to(device, vae.dtype)
        latents = vae.encode(pixels.flatten(0, -4)).latent_dist.mode() * vae.config.scaling_factor
        return latents.unflatten(0, pixels.shape[:-3])

    tokenizer = pipeline.tokenizer
    tokens = tokenizer(
        [*examples["prompt"], ""], padding="max_length", truncation=True, max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids.to(device)  # fmt: skip
    text = pipeline.text_encoder(tokens)[0]
    latents = encoded("")
    size = latents.shape[-2:]
    return Batch(
        latents=latents,
        content_mask=objective.to_latent_size(examples["content_mask"].to(device), size),
        head_mask=objective.to_latent_size(examples["head_mask"].to(device), size),
        text=text[:-1],
        empty_text=text[-1:],
        samples=examples["sample"],
        references=None if train_base else encoded("reference_"),
        content=None if train_base else examples["reference_content"].to(device),
        concepts=None if train_base else concept_table[examples["reference_concepts"].to(device)],
    )


@torch.no_grad()
def concept_embeddings(pipeline: RetriBooruPipeline, device: torch.device) -> torch.Tensor:
    """(concepts, T, D): the text of each of `CONCEPTS` through the pipeline's own text encoder."""
    texts = [pipeline.retrieval_encoder.config.concept_texts[concept] for concept in CONCEPTS]
    return pipeline.encode_prompt(texts, device, 1, False)[0]


def draw_noise(
    samples: list[int], shape: torch.Size, num_train_timesteps: int, args: TrainArguments
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """All that is random of a step, `noise_draws` times for each sample.

    It comes from a generator of each sample's own, on the CPU: the same in whichever batch, process or device a sample
    is, and after every restart.

    Args:
        samples: numbers of examples, B of them.
        shape: (c, h, w) of a latent.

    Returns:
        noise (B draws, c, h, w), timesteps (B draws,), and which keep their text and their references, (B draws,) bool.
    """
    drawn = []
    for sample in samples:
        generator = torch.Generator().manual_seed(args.seed * 1_000_000_007 + sample)
        drawn.append((
            torch.randn(args.noise_draws, *shape, generator=generator),
            objective.draw_timesteps(
                args.noise_draws, num_train_timesteps, generator, args.timestep_bias_begin, args.timestep_bias_portion
            ),
            *objective.draw_conditions(
                args.noise_draws, generator, args.proportion_empty_prompts, args.proportion_empty_references,
                args.proportion_empty_both,
            ),
        ))  # fmt: skip
    return tuple(map(torch.cat, zip(*drawn)))


def training_loss(
    model: nn.Module, scheduler, batch: Batch, args: TrainArguments, step: int = 1
) -> dict[str, torch.Tensor]:
    """The loss terms of a step, which `timestep_bias_steps` compares with."""
    if args.timestep_bias_steps is not None and step > args.timestep_bias_steps:
        args = replace(args, timestep_bias_portion=0.0, inverse_snr_weighting=False)
    latents, text, content_mask, head_mask = (
        repeat(part, args.noise_draws) for part in (batch.latents, batch.text, batch.content_mask, batch.head_mask)
    )
    noise, timesteps, keep_text, keep_references = (
        part.to(latents.device)
        for part in draw_noise(
            batch.samples.tolist(), batch.latents.shape[1:], scheduler.config.num_train_timesteps, args
        )
    )
    text = torch.where(keep_text.view(-1, *[1] * (text.dim() - 1)), text, batch.empty_text)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    prediction = model(noisy, timesteps, text, batch.references, batch.concepts, batch.content, keep_references.float())
    kind, alphas = scheduler.config.prediction_type, scheduler.alphas_cumprod.to(latents.device)
    target = objective.prediction_target(kind, latents, noise, alphas, timesteps)
    weights = objective.loss_weights(kind, alphas, timesteps, args.inverse_snr_weighting, args.snr_gamma)
    return objective.prediction_loss(prediction, target, content_mask, head_mask, args.head_loss_weight, weights)


def repeat(tensor: torch.Tensor, times: int) -> torch.Tensor:
    """(B, ...) -> (B * times, ...), the copies of an item in a row."""
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=0)
