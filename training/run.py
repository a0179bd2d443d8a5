"""A training under way: the loop that all trainers share, and what it leaves on disk."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .arguments import OptimizationArguments
from .checkpoints import EMA, find_checkpoint, find_checkpoints, find_damage, load_ema, save_checkpoint
from .curves import MetricsLog
from .data import EpochSampler
from .preflight import check_trackers
from .processes import check_processes, check_resumable, gather_weights

logger = logging.getLogger(__name__)

# The main process alone looks at held-out figures and draws grids; so long the others wait for it.
PATIENCE = timedelta(hours=2)


def begin(args: OptimizationArguments) -> Accelerator:
    """The accelerator, with the trackers that `report_to` names; random numbers are seeded.

    Raises ImportError where a tracker is not installed; see `check_processes` for what several processes must not do.
    """
    check_trackers(args.report_to)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to or None,
        project_dir=args.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    check_processes(accelerator, args)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # which clips by itself
        accelerator.state.deepspeed_plugin.deepspeed_config["gradient_clipping"] = args.max_grad_norm
    if accelerator.is_main_process:
        logger.info("training in %d process(es), on %s", accelerator.num_processes, accelerator.device.type)
    set_seed(args.seed)
    if args.report_to:
        # Trackers take numbers and words, not lists.
        settings = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in asdict(args).items()}
        accelerator.init_trackers("retribooru", config=settings)
    return accelerator


class Run:
    """What is optimized, and how far it is. With `resume_from_checkpoint` it begins where that checkpoint ends.

    Args:
        args: of the trainer.
        accelerator: from `begin`.
        model: what a step runs through, on the accelerator's device.
        optimizer: of the parameters that are trained.
        examples: by (epoch, number), as `EpochSampler` asks for them, each with an "image_id".
    """

    def __init__(
        self,
        args: OptimizationArguments,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        examples: Dataset,
    ):
        self.args, self.accelerator, self.output_dir = args, accelerator, Path(args.output_dir)
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        self.start, checkpoint = 0, None
        if args.resume_from_checkpoint:
            checkpoint, self.start = find_checkpoint(self.output_dir, args.resume_from_checkpoint)
        if checkpoint:
            check_resumable(checkpoint, accelerator)
        self.step = self.start  # the one that is being done
        processes = accelerator.num_processes
        per_step = args.train_batch_size * args.gradient_accumulation_steps * processes
        sampler = EpochSampler(len(examples), args.max_train_steps * per_step, self.start * per_step, args.seed)
        loader = DataLoader(
            examples, batch_size=args.train_batch_size, sampler=sampler, num_workers=args.dataloader_num_workers
        )
        # accelerate steps the schedule once per process.
        schedule = get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps * processes,
            num_training_steps=args.max_train_steps * processes,
        )
        self.model, self.optimizer, self.loader, self.schedule = accelerator.prepare(model, optimizer, loader, schedule)
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.ema = EMAModel(self.trained, decay=args.ema_decay) if args.use_ema else None
        if checkpoint:
            accelerator.load_state(str(checkpoint))
            if self.ema:
                load_ema(self.ema, checkpoint / EMA)
        # A start from the beginning looks at step 0 anew.
        last_step = self.start if checkpoint else -1
        self.log = MetricsLog(self.output_dir, last_step) if accelerator.is_main_process else None

    def steps(self, compute_terms: Callable[[nn.Module, dict], dict[str, torch.Tensor]]) -> Iterator[int]:
        """Does step after step, and hands each one's number out between its end and its checkpoint.

        Args:
            compute_terms: from the model and a collated batch of examples to scalars, "loss" among them.
        """
        args = self.args
        self.model.train()  # DeepSpeed's returns nothing
        progress = tqdm(total=args.max_train_steps, initial=self.start, desc="training", unit="step",
                        disable=not self.accelerator.is_main_process)  # fmt: skip
        batches = iter(self.loader)
        for step in range(self.start + 1, args.max_train_steps + 1):
            self.step = step
            terms = self._step(step, batches, compute_terms)
            progress.update()
            progress.set_postfix(loss=f"{terms['loss']:.4f}")
            if step % args.logging_steps == 0:
                self.record(step, **terms, lr=self.schedule.get_last_lr()[-1])
            yield step
            if step % args.checkpointing_steps == 0 and step < args.max_train_steps:
                save_checkpoint(self.accelerator, self.output_dir, step, self.ema, args.checkpoints_total_limit)
                if self.log:
                    self.log.plot()
        progress.close()
        if self.sharded:
            gather_weights(self.model, self.accelerator)
        self.accelerator.wait_for_everyone()
        if self.log:
            self.log.plot()
        self._leave_processes()

    def _leave_processes(self) -> None:
        """Ends the trackers, and what the processes spoke through. `model` is bare from then on.

        DistributedDataParallel goes first, for as the last to hold the process group it would take the group along and
        wait for its threads, while these wait for Python, which waits.
        """
        self.model = self.accelerator.unwrap_model(self.model)
        self.accelerator.end_training()

    def _step(self, step: int, batches: Iterator[dict], compute_terms: Callable) -> dict[str, float]:
        """Changes the weights once; returns the mean of each term over all processes and passes."""
        accelerator, passes = self.accelerator, self.args.gradient_accumulation_steps
        sums = defaultdict(float)
        for _ in range(passes):
            examples = next(batches)
            with accelerator.accumulate(self.model):
                with accelerator.autocast():
                    terms = compute_terms(self.model, examples)
                check_finite(terms["loss"], step, examples["image_id"], self.output_dir)
                accelerator.backward(terms["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.trained, self.args.max_grad_norm)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
            for name, term in terms.items():
                sums[name] += term.detach() / passes
        if self.ema:
            self.ema.step(self.trained)
        return {name: term.item() for name, term in accelerator.reduce(dict(sums), "mean").items()}

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The bare model in evaluation mode, with the moving average in the place of the weights where there is one."""
        self.model.eval()
        if self.ema:
            self.ema.store(self.trained)
            self.ema.copy_to(self.trained)
        try:
            with torch.no_grad(), self.accelerator.autocast():
                yield self.accelerator.unwrap_model(self.model)
        finally:
            if self.ema:
                self.ema.restore(self.trained)
            self.model.train()

    def record(self, step: int, **values: float) -> None:
        """To metrics.jsonl and the trackers."""
        if self.log:
            self.log.add(step, **values)
        self.accelerator.log(values, step)

    def record_picture(self, step: int, name: str, picture: Image.Image) -> None:
        """To the trackers that show pictures."""
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
            elif tracker.name == "wandb":
                tracker.log_images({name: [picture]}, step)
            elif tracker.name == "trackio":
                import trackio

                tracker.tracker.log({name: trackio.Image(picture)}, step=step)

    @property
    def looks(self) -> bool:
        """Whether this process looks at results: the main one, and all others where each holds a part of the model."""
        return self.log is not None or self.sharded

    def is_due(self, step: int, every: int | None, at_end: bool = False) -> bool:
        """Whether this process has something to do at this step that is done every so many, and maybe at the last."""
        last = at_end and step == self.args.max_train_steps
        return self.looks and every is not None and (step % every == 0 or last)


def check_finite(loss: torch.Tensor, step: int, image_ids: list[str], output_dir: Path) -> None:
    """Raises FloatingPointError, saying where to look and where to go on from, for a loss that is no number."""
    if not torch.isfinite(loss):
        whole = [path.name for path in find_checkpoints(output_dir) if find_damage(path) is None]
        raise FloatingPointError(
            f"loss: got {loss.item()} at step {step}, for the targets {', '.join(image_ids)}; the last good checkpoint "
            f"is {whole[-1] if whole else 'none'}. A lower learning_rate, or bf16 in the place of fp16, may help."
        )
