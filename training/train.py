"""Trains the retrieval on top of Stable Diffusion (or, with --train_base, a small Stable Diffusion from scratch).

accelerate launch -m retribooru.training.train --preset mini-retrieval --data_dir built/ --output_dir runs/retrieval
"""

import logging
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from .arguments import TrainArguments, parse
from .augment import Augmentation
from .checkpoints import (
    EMA,
    find_checkpoint,
    find_checkpoints,
    find_damage,
    load_ema,
    save_checkpoint,
    save_pipeline,
    training_facts,
)
from .curves import MetricsLog
from .data import EpochSampler, TrainingFigures, load_figures
from .grids import draw, held_out_rows, save_grid, square_target
from .held_out import held_out_examples, held_out_losses, other_characters, verdict
from .step import Model, concept_embeddings, encode_batch, training_loss
from .trainable import freeze_all_but, load_pipeline, make_optimizer, trainable_modules

logger = logging.getLogger(__name__)


def train(args: TrainArguments) -> Path:
    """Trains, and leaves in `output_dir`: pipeline, training.json, checkpoint-STEP, metrics.jsonl and loss.png."""
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision, gradient_accumulation_steps=args.gradient_accumulation_steps
    )
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
        augmentation=Augmentation(args.crop, args.flip, args.jitter),
        task_weights=args.task_weights,
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
    if args.gradient_checkpointing:
        for model in [pipeline.unet] if args.train_base else [pipeline.unet, pipeline.retrieval_encoder]:
            model.enable_gradient_checkpointing()
    pipeline.to(accelerator.device)
    scheduler = pipeline.scheduler

    accumulation = args.gradient_accumulation_steps
    per_step = args.train_batch_size * accumulation * accelerator.num_processes
    sampler = EpochSampler(len(figures), args.max_train_steps * per_step, start * per_step, args.seed)
    loader = DataLoader(
        figures, batch_size=args.train_batch_size, sampler=sampler, num_workers=args.dataloader_num_workers
    )
    optimizer = make_optimizer(pipeline, modules, args)
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
    ema = EMAModel(trained, decay=args.ema_decay) if args.use_ema else None
    if checkpoint:
        accelerator.load_state(str(checkpoint))
        if ema:
            load_ema(ema, checkpoint / EMA)

    concept_table, held_out = None, None
    if not args.train_base:
        concept_table = concept_embeddings(pipeline, accelerator.device)
        examples = held_out_examples(held_out_figures, args)
        held_out = encode_batch(pipeline, examples, concept_table, train_base=False)
        others = other_characters(examples["character"])
    log = MetricsLog(output_dir, start) if accelerator.is_main_process else None

    def look(step: int) -> None:
        model.eval()
        with averaged(ema, trained), accelerator.autocast():
            log.add(step, **held_out_losses(accelerator.unwrap_model(model), scheduler, held_out, others, args.seed))
        model.train()

    if args.image_validation_steps and log:
        pipeline.set_progress_bar_config(disable=True)
        shown = {
            task: held_out_rows(args.data_dir, task, args.num_validation_images, args.images) for task in args.tasks
        }
        targets = {task: [square_target(row, args.resolution) for row in rows] for task, rows in shown.items()}

    def draw_grid(step: int) -> None:
        model.eval()
        with averaged(ema, trained), accelerator.autocast():
            drawn = {
                task: [draw(pipeline, row, args.seed, args.validation_guidance_scale) for row in rows]
                for task, rows in shown.items()
            }
        folder = output_dir / "samples"
        folder.mkdir(exist_ok=True)
        save_grid(folder / f"step-{step:06d}.png", shown, drawn, targets, max(96, args.resolution))
        model.train()

    model.train()
    if held_out and log and start == 0:
        look(0)
    progress = tqdm(total=args.max_train_steps, initial=start, desc="training", unit="step",
                    disable=not accelerator.is_main_process)  # fmt: skip
    batches = iter(loader)
    for step in range(start + 1, args.max_train_steps + 1):
        sums = defaultdict(float)  # the mean of each term over all processes and passes
        for _ in range(accumulation):
            examples = next(batches)
            batch = encode_batch(pipeline, examples, concept_table, args.train_base)
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    terms = training_loss(model, scheduler, batch, args)
                check_finite(terms["loss"], step, examples["image_id"], output_dir)
                accelerator.backward(terms["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trained, args.max_grad_norm)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            for name, term in accelerator.reduce({k: v.detach() for k, v in terms.items()}, "mean").items():
                sums[name] += term.item() / accumulation
        if ema:
            ema.step(trained)
        progress.update()
        progress.set_postfix(loss=f"{sums['loss']:.4f}")
        if log and step % args.logging_steps == 0:
            log.add(step, **sums, lr=lr_scheduler.get_last_lr()[-1])
        if held_out and log and (step % args.validation_steps == 0 or step == args.max_train_steps):
            look(step)
        if args.image_validation_steps and log and step % args.image_validation_steps == 0:
            draw_grid(step)
        if step % args.checkpointing_steps == 0 and step < args.max_train_steps:
            save_checkpoint(accelerator, output_dir, step, ema, args.checkpoints_total_limit)
            if log:
                log.plot()
    progress.close()
    accelerator.wait_for_everyone()
    if log:
        model.eval()
        with averaged(ema, trained):
            save_pipeline(pipeline, output_dir, training_facts(args, log.lines))
        log.plot()
        if held_out:
            print(verdict(log.lines))
    accelerator.end_training()
    return output_dir


@contextmanager
def averaged(ema: EMAModel | None, parameters: list[nn.Parameter]) -> Iterator[None]:
    """The moving average in the place of the weights meanwhile, where there is one."""
    if ema is None:
        yield
        return
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


def check_finite(loss: torch.Tensor, step: int, image_ids: list[str], output_dir: Path) -> None:
    """Raises FloatingPointError, saying where to look and where to go on from, for a loss that is no number."""
    if not torch.isfinite(loss):
        whole = [path.name for path in find_checkpoints(output_dir) if find_damage(path) is None]
        raise FloatingPointError(
            f"loss: got {loss.item()} at step {step}, for the targets {', '.join(image_ids)}; the last good checkpoint "
            f"is {whole[-1] if whole else 'none'}. A lower learning_rate, or bf16 in the place of fp16, may help."
        )


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO)
    train(parse(TrainArguments, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
