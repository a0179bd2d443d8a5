"""What a training step costs, as a ratio to diffusers' own training step of a ControlNet on the same U-Net.

python benchmarks/training.py --work DIR [--shapes sd15 mini] [--rounds 2] [--seconds 4] [--device cpu | cuda]
    [--only TEXT ...]

sd15: Stable Diffusion 1.5's shapes with random weights, 256 px, batch 1; float32 weights, under bf16 autocast where the
    device computes in bf16. It takes 16 GB of memory and more.
mini: the small Stable Diffusion that the mini checkpoint began with, 64 px, batch 8, in the same precision.

ControlNet: what diffusers' examples/controlnet/train_controlnet.py does in a step: picture to latents, prompt to text,
    ControlNet and frozen U-Net, mean squared error, backward, clipping, AdamW. What is frozen stands in the precision
    of the autocast.
References: the loop of `retribooru.training.run` over `encode_batch` and `training_loss`. No references: the decoder
    alone is trained, nothing is read and nothing retrieved.
latents cached: neither the target nor the references go through the VAE in the step. (ControlNet's conditioning picture
    never does.)

The pictures are noise, and ready in memory: reading them is what benchmarks/loader.py measures. Every measurement is a
process of its own: models built, one step to warm up, then steps for so many seconds, at least two. The methods take
turns, each round beginning with another. Peak memory is what those steps held at most, weights and optimizer included:
on a GPU what torch had allocated, else the process's VmHWM (Linux) beyond what it held before there were models.

The parts of a step are told apart by hooks, in the same steps; on a GPU each waits for what was begun. A model's
backward goes from where autograd meets its output to where it meets the next one's: first that of the U-Net with its
retrieval layers, then that of the retrieval encoder.

Each result is written as it comes, into a JSON file in DIR named after the settings; a second call goes on where the
first was ended, refusing results of another machine or of other code. Tables are printed and stand in DIR/training.md,
the plot in DIR/training.png.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import diffusers
import torch
from common import PROMPT, about, collect, forget_peak, in_turns, peak, resident, stable_diffusion_15
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import retribooru.pipeline
import retribooru.training
from retribooru.checkpoints import MINI
from retribooru.dataset_script.files import replacing
from retribooru.training.arguments import TrainArguments, native_precision
from retribooru.training.run import Run, begin
from retribooru.training.step import Model, concept_embeddings, encode_batch, training_loss
from retribooru.training.trainable import add_lora, freeze_all_but, make_optimizer, trainable_modules

SETTINGS = {
    "sd15": {"size": 256, "batch": 1, "mixed_precision": native_precision()},
    "mini": {"size": 64, "batch": 8, "mixed_precision": native_precision()},
}
WANTED = 0.7  # of ControlNet's step rate, at 4 references


class Method(NamedTuple):
    """One training step."""

    references: int | None = None  # for each target; None: ControlNet
    cached: bool = False  # latents are given, not pixels
    options: dict = {}  # of `TrainArguments`


CONTROLNET = "ControlNet"
CONTROLNET_CACHED = "ControlNet, latents cached"
COUNTS = {"no references": 0, "1 reference": 1, "4 references": 4, "8 references": 8}
VARIANTS = {
    "lock_decoder": {"lock_decoder": True},
    "noise_draws 3": {"noise_draws": 3},
    "lora_rank 16": {"lora_rank": 16},
}
METHODS = {
    CONTROLNET: Method(),
    CONTROLNET_CACHED: Method(cached=True),
    **{name: Method(count) for name, count in COUNTS.items()},
    **{f"{name}, latents cached": Method(count, cached=True) for name, count in COUNTS.items()},
    **{f"4 references, latents cached, {name}": Method(4, True, options) for name, options in VARIANTS.items()},
}
JUDGED = [
    ("4 references", CONTROLNET),
    ("4 references, latents cached", CONTROLNET),
    ("4 references, latents cached", CONTROLNET_CACHED),
]


def stable_diffusion(shapes: str) -> diffusers.StableDiffusionPipeline:
    if shapes == "sd15":
        return stable_diffusion_15(SETTINGS[shapes]["size"])
    return diffusers.StableDiffusionPipeline.from_pretrained(MINI.with_name("mini-base"), dtype=torch.float32)


class Examples(Dataset):
    """Noise in the place of `TrainingFigures`: targets with references of 2:3, padded to squares; and for ControlNet.

    Args:
        pipeline: whose latents they are.
        size: side of all pictures in pixels.
    """

    def __init__(self, pipeline: diffusers.DiffusionPipeline, size: int, method: Method):
        side = size // 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        latent = (pipeline.vae.config.latent_channels, side, side)
        name, shape, mask = ("latents", latent, side) if method.cached else ("pixel_values", (3, size, size), size)
        self.example = {
            "prompt": PROMPT,
            "image_id": "noise",
            name: torch.randn(shape),
            "content_mask": torch.ones(1, mask, mask),
            "head_mask": torch.ones(1, mask, mask),
        }
        if method.references is None:
            tokens = pipeline.tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids[0]
            self.example |= {"input_ids": tokens, "conditioning_pixel_values": torch.rand(3, size, size)}
            return
        content = torch.zeros(method.references, 1, size, size, dtype=torch.bool)
        content[..., size // 6 : size - size // 6] = True
        self.example |= {
            f"reference_{name}": torch.randn(method.references, *shape),
            "reference_content": content,
            "reference_concepts": torch.arange(method.references) % 2,
        }

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, key: tuple[int, int]) -> dict:
        return {**self.example, "sample": key[1]}


# The steps


class WithoutReferences(Model):
    """Reads nothing and retrieves nothing."""

    def forward(self, noisy, timesteps, text, *_):
        return self.unet(noisy, timesteps, text).sample


def prepare(label: str, shapes: str, output_dir: str, clock: "Clock") -> tuple[Iterator, torch.optim.Optimizer]:
    """What does a step with each `next`, and its optimizer."""
    method, settings = METHODS[label], SETTINGS[shapes]
    args = TrainArguments(
        output_dir, resolution=settings["size"], train_batch_size=settings["batch"], max_train_steps=1_000_000,
        mixed_precision=settings["mixed_precision"], logging_steps=1_000_000, checkpointing_steps=1_000_000,
        **method.options,
    )  # fmt: skip
    accelerator = begin(args)
    pipeline = stable_diffusion(shapes)
    examples = Examples(pipeline, settings["size"], method)
    steps = controlnet_steps if method.references is None else our_steps
    return steps(pipeline, examples, method, args, accelerator, clock)


def our_steps(pipeline, examples, method, args, accelerator, clock):
    """As `retribooru.training.train`."""
    pipeline = retribooru.RetriBooruPipeline.from_stable_diffusion(pipeline)
    if args.lora_rank is not None:
        add_lora(pipeline.unet, args.lora_rank, args.lora_alpha)
    modules = trainable_modules(pipeline, args)
    freeze_all_but(pipeline, modules)
    pipeline.to(accelerator.device)
    optimizer = make_optimizer(pipeline, modules, args)
    model = (Model if method.references else WithoutReferences)(pipeline, train_base=False)
    run = Run(args, accelerator, model, optimizer, examples)
    concepts = concept_embeddings(pipeline, accelerator.device)
    clock.watch(pipeline.vae.encoder, "VAE, targets", *["VAE, references"] * bool(method.references))
    clock.watch(pipeline.text_encoder, "text encoder")
    clock.watch(pipeline.retrieval_encoder, "retrieval encoder")
    clock.watch(pipeline.unet, "U-Net")
    clock.watch_optimizer(optimizer)

    def terms(model: nn.Module, examples: dict) -> dict[str, torch.Tensor]:
        batch = encode_batch(pipeline, examples, concepts, train_base=not method.references)
        return training_loss(model, pipeline.scheduler, batch, args)

    return run.steps(terms), optimizer


def controlnet_steps(pipeline, examples, method, args, accelerator, clock):
    """As diffusers' examples/controlnet/train_controlnet.py."""
    # Its conditioning picture is halved as often as the VAE halves the target: diffusers' default is SD 1.5's.
    channels = (16, 32, 96, 256)[: len(pipeline.vae.config.block_out_channels)]
    controlnet = diffusers.ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=channels)
    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.mixed_precision]
    vae, text_encoder, unet = pipeline.vae, pipeline.text_encoder, pipeline.unet
    for module in (vae, text_encoder, unet):
        module.requires_grad_(False)
        module.to(accelerator.device, dtype)
    controlnet.train()
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=args.learning_rate, weight_decay=args.adam_weight_decay)
    schedule = diffusers.optimization.get_scheduler("constant", optimizer)
    keys = [(0, number) for number in range(len(examples))]
    loader = DataLoader(examples, batch_size=args.train_batch_size, sampler=keys)
    watched = controlnet
    controlnet, optimizer, loader, schedule = accelerator.prepare(controlnet, optimizer, loader, schedule)
    clock.watch(vae.encoder, "VAE, targets")
    clock.watch(text_encoder, "text encoder")
    clock.watch(watched, "ControlNet")
    clock.watch(unet, "U-Net")
    clock.watch_optimizer(optimizer.optimizer)

    def steps() -> Iterator[float]:
        for batch in loader:
            with accelerator.accumulate(controlnet):
                if method.cached:
                    latents = batch["latents"].to(dtype)
                else:
                    latents = vae.encode(batch["pixel_values"].to(dtype)).latent_dist.sample()
                    latents = latents * vae.config.scaling_factor
                noise = torch.randn_like(latents)
                timesteps = torch.randint(
                    0, pipeline.scheduler.config.num_train_timesteps, (len(latents),), device=latents.device
                )
                noisy = pipeline.scheduler.add_noise(latents.float(), noise.float(), timesteps).to(dtype)
                text = text_encoder(batch["input_ids"], return_dict=False)[0]
                down, middle = controlnet(
                    noisy, timesteps, encoder_hidden_states=text,
                    controlnet_cond=batch["conditioning_pixel_values"].to(dtype), return_dict=False,
                )  # fmt: skip
                prediction = unet(
                    noisy, timesteps, encoder_hidden_states=text,
                    down_block_additional_residuals=[residual.to(dtype) for residual in down],
                    mid_block_additional_residual=middle.to(dtype),
                ).sample  # fmt: skip
                loss = F.mse_loss(prediction.float(), noise.float())
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(controlnet.parameters(), args.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            yield loss.detach().item()

    return steps(), optimizer.optimizer


# Where the time goes

REST = "the rest"


class Clock:
    """Seconds by part: from each mark to the next one, so that all parts together are the whole."""

    def __init__(self, device: str):
        self.device = device
        self.restart()

    def restart(self) -> None:
        self.seconds, self.part, self.since = defaultdict(float), REST, self._now()

    def mark(self, part: str) -> None:
        """From here on, the time is of this part."""
        now = self._now()
        self.seconds[self.part] += now - self.since
        self.part, self.since = part, now

    def _now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def watch(self, module: nn.Module, *parts: str) -> None:
        """The calls of a module, in turns one of each part; and the backward through what they return."""
        turns = cycle(parts)

        def before(module, inputs):
            self.mark(next(turns))

        def after(module, inputs, output):
            part = self.part

            def backward(gradient):
                self.mark(part)
                # Called when the whole backward is done; clipping and the optimizer's step are next.
                torch.autograd.Variable._execution_engine.queue_callback(lambda: self.mark("optimizer"))

            for tensor in tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(backward)
            self.mark(REST)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def watch_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_post_hook(lambda *_: self.mark(REST))


def tensors(output) -> Iterator[torch.Tensor]:
    """All that a module returned, however it is wrapped."""
    if isinstance(output, torch.Tensor):
        yield output
    else:
        for each in output.values() if isinstance(output, dict) else output:
            yield from tensors(each)


# The run


def measure(label: str, shapes: str, args: argparse.Namespace) -> dict:
    """Of a process of its own: seconds of each step, peak of memory in MB, trained parameters, seconds by part."""
    held = resident("VmRSS")
    os.environ["ACCELERATE_USE_CPU"] = str(args.device == "cpu")
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(args.device)
        steps, optimizer = prepare(label, shapes, folder, clock)
        next(steps)
        forget_peak(args.device)
        clock.restart()
        seconds = []
        while len(seconds) < 2 or sum(seconds) < args.seconds:
            began = time.perf_counter()
            next(steps)
            clock.mark(REST)
            seconds.append(time.perf_counter() - began)
        parts = {part: taken / len(seconds) for part, taken in clock.seconds.items()}
        return {
            "seconds": seconds,
            "peak_mb": peak(args.device, held),
            "trained": sum(parameter.numel() for parameter in optimizer.state),
            "parts": parts,
        }


def measure_all(shapes: str, args: argparse.Namespace) -> dict:
    """Fills the file up to `--rounds` results of each method."""
    labels = [label for label in METHODS if not args.only or any(text in label for text in (CONTROLNET, *args.only))]
    settings = {"shapes": shapes, **SETTINGS[shapes], "device": args.device}
    path = args.work / "training-{shapes}-{size}px-batch{batch}-{device}.json".format(**settings)
    wanted = [("steps", label) for label in in_turns(labels, args.rounds)]
    known = about(settings, args.device, retribooru.pipeline, retribooru.training)
    return collect(path, known, wanted, [sys.executable, *sys.argv, "--shapes", shapes])


# What is told


def medians(found: dict) -> dict[str, float]:
    """Seconds of a step, over the steps of all rounds."""
    results = found["steps"]
    return {
        label: statistics.median(second for result in results[label] for second in result["seconds"])
        for label in METHODS
        if label in results
    }


def parts(found: dict) -> dict[str, dict[str, float]]:
    """Median over the rounds of the seconds of each part, in the order in which they come."""
    told = {}
    for label in medians(found):
        results = [result["parts"] for result in found["steps"][label]]
        names = [*(name for name in results[0] if name != REST), REST]
        told[label] = {name: statistics.median(result[name] for result in results) for name in names}
    return told


def setting(found: dict) -> str:
    kind = found["settings"]["mixed_precision"]
    precision = "float32" if kind == "no" else f"{kind} autocast"
    return "{shapes} shapes, {size} px, batch {batch}, ".format(**found["settings"]) + precision


def title(found: dict) -> str:
    return setting(found) + "; {device}; torch {torch}, diffusers {diffusers}".format(**found["machine"])


def table(found: dict) -> str:
    lines = [
        title(found),
        "",
        "| | s per step, median (least to most) | steps | step rate, ControlNet = 1 | noised targets per s | peak MB "
        "| trained, M |",
        "|---|---|---|---|---|---|---|",
    ]
    measured = medians(found)
    for label, median in measured.items():
        results = found["steps"][label]
        seconds = sorted(second for result in results for second in result["seconds"])
        taken = f"{median:.3g} ({seconds[0]:.3g} to {seconds[-1]:.3g})"
        targets = found["settings"]["batch"] * METHODS[label].options.get("noise_draws", 1) / median
        ratio, most = measured[CONTROLNET] / median, max(result["peak_mb"] for result in results)
        size = results[0]["trained"] / 1e6
        lines.append(f"| {label} | {taken} | {len(seconds)} | {ratio:.2f} | {targets:.2f} | {most:.0f} | {size:.1f} |")
    return "\n".join(lines) + "\n"


def parts_table(found: dict) -> str:
    """The share of each part in a step."""
    told = parts(found)
    names = list(dict.fromkeys(name for of_one in told.values() for name in of_one if name != REST)) + [REST]
    lines = [f"| share of the step | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for label, of_one in told.items():
        whole = sum(of_one.values())
        cells = (f"{of_one[name] / whole:.1%}" if name in of_one else "" for name in names)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def verdicts(found: dict) -> str:
    measured = medians(found)
    lines = []
    for label, reference in JUDGED:
        if label not in measured:
            lines.append(f"{label}: not measured, wanted at least {WANTED} of the step rate of {reference}")
            continue
        ratio = measured[reference] / measured[label]
        met = "met" if ratio >= WANTED else "missed"
        lines.append(f"{label}: {ratio:.3f} of the step rate of {reference}, wanted at least {WANTED}: {met}")
    return "\n".join(lines) + "\n"


def plot(all_found: list[dict], path: Path) -> None:
    """Bars of what a step takes, in parts, with ControlNet's step as 1."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, all_axes = plt.subplots(
        1, len(all_found), figsize=(6.4 * len(all_found), 5), layout="constrained", squeeze=False
    )
    told = [parts(found) for found in all_found]
    names = list(dict.fromkeys(name for shape in told for of_one in shape.values() for name in of_one if name != REST))
    colors = dict(zip([*names, REST], plt.get_cmap("tab10").colors))
    for axes, found, shape in zip(all_axes[0], all_found, told):
        labels, whole = list(shape), sum(shape[CONTROLNET].values())
        left = [0.0] * len(labels)
        for name, color in colors.items():
            widths = [shape[label].get(name, 0.0) / whole for label in labels]
            axes.barh(labels, widths, left=left, color=color)
            left = [begin + width for begin, width in zip(left, widths)]
        axes.invert_yaxis()
        axes.axvline(1, linestyle=":", color="black", linewidth=1)
        axes.set_xlabel("time of a step, ControlNet = 1")
        axes.set_title(setting(found) + ", {device}".format(**found["settings"]), fontsize=10)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in colors.values()]
    figure.legend(handles, colors, loc="outside lower center", ncols=4, fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the results")
    parser.add_argument("--shapes", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4, help="of steps in each measurement")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--only", nargs="+", metavar="TEXT", help="ControlNet, and methods with one of these in their names"
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # what a process of its own measures
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds: got {args.rounds}, wanted at least 1")
    if args.one:
        print(json.dumps(measure(args.one[1], args.shapes[0], args)))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    found = [measure_all(shapes, args) for shapes in args.shapes]
    told = [part(each) for each in found for part in (table, parts_table, verdicts)]
    with replacing(args.work / "training.md") as partial:
        partial.write_text("\n".join(told))
    plot(found, args.work / "training.png")
    print("\n".join(told))


if __name__ == "__main__":
    main()
