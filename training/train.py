"""Trains the retrieval on top of Stable Diffusion (or, with --train_base, a small Stable Diffusion from scratch).

accelerate launch -m retribooru.training.train --preset compose9k --data_dir built/ --output_dir runs/compose
"""

import logging
import sys
from pathlib import Path

import torch
from torch import nn

from retribooru.dataset_script.references import RECIPES
from retribooru.push import push_checkpoint

from .arguments import TrainArguments
from .augment import Augmentation
from .checkpoints import save_lora, save_pipeline, training_facts
from .data import TrainingFigures, load_figures
from .grids import ValidationPictures
from .held_out import HeldOut, verdict
from .latent_cache import cache_latents
from .parsing import parse
from .preflight import check_disk, check_files, check_hub, check_lora, check_pipeline
from .run import Run, begin
from .step import Model, concept_embeddings, encode_batch, training_loss
from .trainable import add_lora, freeze_all_but, load_pipeline, make_optimizer, merge_lora, trainable_modules
from .views import Views


def train(args: TrainArguments) -> Path:
    """Trains, and leaves in `output_dir`: pipeline, training.json, checkpoint-STEP, metrics.jsonl and loss.png.

    With `lora_rank` the adapters are a part of the pipeline's weights, and lora/ holds them alone.
    """
    output_dir = Path(args.output_dir)
    check_lora(args)
    check_hub(args)
    check_files(args, ["train"] if args.train_base else ["train", "out_of_domain"])
    accelerator = begin(args)
    rows = load_figures(args.data_dir, "train", args.images, args.characters)
    held_out_rows = (
        None if args.train_base else load_figures(args.data_dir, "out_of_domain", args.images, args.characters)
    )
    pipeline = load_pipeline(args)
    check_pipeline(pipeline, args)
    if args.lora_rank is not None:
        add_lora(pipeline.unet, args.lora_rank, args.lora_alpha)
    modules = trainable_modules(pipeline, args)
    freeze_all_but(pipeline, modules)
    if args.gradient_checkpointing:
        for model in [pipeline.unet] if args.train_base else [pipeline.unet, pipeline.retrieval_encoder]:
            model.enable_gradient_checkpointing()
    pipeline.to(accelerator.device)
    model = Model(pipeline, args.train_base)
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    check_disk(args, model, sum(parameter.nbytes for part in parts for parameter in part.parameters()))
    pictures = None
    if args.image_validation_steps and accelerator.is_main_process:
        pictures = ValidationPictures(pipeline, args)

    tasks = [] if args.train_base else args.tasks
    views = Views(rows, args.resolution, args.background_removal, Augmentation(args.crop, args.flip, args.jitter))
    if args.latent_cache:
        concepts = sorted({concept for task in tasks for concept in RECIPES[task]})
        views = cache_latents(
            Path(args.latent_cache), views, concepts, pipeline.vae, args.latent_cache_variants, args.seed, accelerator,
            num_workers=args.dataloader_num_workers,
        )  # fmt: skip
    figures = TrainingFigures(rows, views, tasks, args.seed, args.task_weights)
    optimizer = make_optimizer(pipeline, modules, args)
    run = Run(args, accelerator, model, optimizer, figures)
    concept_table, held_out = None, None
    if not args.train_base:
        concept_table = concept_embeddings(pipeline, accelerator.device)
        held_out = HeldOut(held_out_rows, pipeline, concept_table, args) if run.looks else None

    def look(step: int) -> None:
        with run.evaluating() as model:
            run.record(step, **held_out.losses(model))

    def terms(model: nn.Module, examples: dict) -> dict[str, torch.Tensor]:
        batch = encode_batch(pipeline, examples, concept_table, args.train_base)
        return training_loss(model, pipeline.scheduler, batch, args, run.step)

    if held_out and run.start == 0 and run.is_due(0, args.validation_steps):
        look(0)
    for step in run.steps(terms):
        if held_out and run.is_due(step, args.validation_steps, at_end=True):
            look(step)
        if pictures and run.is_due(step, args.image_validation_steps):
            with run.evaluating():
                drawn = pictures.draw()
            run.record_picture(step, "held-out characters", pictures.save(step, drawn))
            if args.validation_clip:
                run.record(step, **pictures.scores(drawn))
    if accelerator.is_main_process:
        with run.evaluating():
            if args.lora_rank is not None:
                save_lora(pipeline.unet, output_dir / "lora")
                merge_lora(pipeline.unet)
            save_pipeline(pipeline, output_dir, training_facts(args, run.log.lines))
        if held_out:
            print(verdict(run.log.lines))
        if args.push_to_hub:
            print(push_checkpoint(args.hub_model_id, output_dir, private=args.hub_private_repo))
    return output_dir


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO)
    train(parse(TrainArguments, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
