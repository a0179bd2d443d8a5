"""What a call of RetriBooruPipeline costs, as a ratio to plain Stable Diffusion, beside IP-Adapter and ControlNet.

python benchmarks/pipeline.py --work DIR [--shapes sd15 | mini] [--size 256] [--steps 20] [--dtype bfloat16]
    [--repeats 3] [--device cpu | cuda] [--profile] [--only TEXT ...]

Seconds are of a whole call: references and prompt read, the steps with guidance on, the picture decoded. Every
measurement is a process of its own (models built with random weights, a call of one step to warm up, then the call that
counts, or the mean of those that begin within two seconds), and the methods take turns, each round beginning with
another. Peak memory is what that call held at most, weights included: on a GPU what torch had allocated, else the
process's VmHWM (Linux) beyond what it held before there were models. Tokens are those retrieved from, over all levels.

upright, square: references of 2:3, a third of whose square is padding, and square ones; both without masks.
half: square ones with masks that keep the left half.
zero, denoising: the `reference_timestep`. features given: encoded before the call. Two guidances beside the default:
    reference_guidance_scale 1 (both predictions see the references) and 3 (three predictions).
IP-Adapter: the base form (4 tokens an image), with an image encoder that runs in the call, or embeddings given.

Each result is written as it comes, into a JSON file in DIR named after the settings, with table and plot beside it. A
second call goes on where the first was ended, refusing results of another machine or of other code of the pipeline.

--profile: also where the time goes, for plain and for 4 references, by timers around the models' parts.
"""

import argparse
import json
import statistics
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import diffusers
import numpy as np
import torch
from common import PROMPT, about, collect, forget_peak, in_turns, peak, resident, stable_diffusion_15
from PIL import Image

import retribooru.pipeline
from retribooru.dataset_script.files import replacing

GUIDANCE = 9.0
ENOUGH = 2.0  # seconds: a shorter call is made again
SIZES = {"sd15": 512, "mini": 96}
COUNTS = (1, 2, 4, 8)


class Method(NamedTuple):
    """One way to make a picture."""

    kind: str  # plain, ours, ip_adapter or controlnet
    references: int = 0
    form: str = "upright"  # or square, or half
    timestep: str = "zero"
    given: bool = False  # what is read from the references is, and not the references
    reference_guidance: float | None = None


PLAIN = "plain Stable Diffusion"
IP_ADAPTER = "IP-Adapter, 4 references"
CONTROLNET = "ControlNet"
LINES = {  # of the plot: a method for each number of references
    "denoising": {n: f"denoising, {n} upright" for n in COUNTS},
    "zero": {n: f"zero, {n} upright" for n in COUNTS},
    "features given": {n: f"features given, {n} upright" for n in COUNTS},
}
METHODS = {
    PLAIN: Method("plain"),
    **{label: Method("ours", n) for n, label in LINES["zero"].items()},
    "zero, 4 square": Method("ours", 4, "square"),
    "zero, 4 half": Method("ours", 4, "half"),
    **{label: Method("ours", n, given=True) for n, label in LINES["features given"].items()},
    "features given, 4 square": Method("ours", 4, "square", given=True),
    "features given, 4 half": Method("ours", 4, "half", given=True),
    **{label: Method("ours", n, timestep="denoising") for n, label in LINES["denoising"].items()},
    "zero, 4 upright, reference guidance 1": Method("ours", 4, reference_guidance=1.0),
    "zero, 4 upright, reference guidance 3": Method("ours", 4, reference_guidance=3.0),
    "IP-Adapter, 1 reference": Method("ip_adapter", 1),
    IP_ADAPTER: Method("ip_adapter", 4),
    "IP-Adapter, 4 references, embeddings given": Method("ip_adapter", 4, given=True),
    CONTROLNET: Method("controlnet"),
}
PROFILED = [PLAIN, "zero, 4 upright", "features given, 4 half", "denoising, 4 upright"]
WANTED = {"zero, 4 upright": 1.25, "zero, 4 square": 1.25, "features given, 4 half": 1.15}


# Models with random weights


def stable_diffusion(shapes: str, size: int) -> diffusers.StableDiffusionPipeline:
    """Made for pictures of `size` pixels, so that references are read at that size too."""
    from retribooru.training.scratch import small_stable_diffusion, small_tokenizer, small_vae

    if shapes == "mini":  # the demo's
        vae = small_vae([24, 32, 64, 64], latent_channels=8, resolution=size)
        return small_stable_diffusion(vae, small_tokenizer([PROMPT]), size)
    return stable_diffusion_15(size)


def image_encoder(shapes: str):
    """ViT-H/14, the image encoder of IP-Adapter for Stable Diffusion 1.5; or one as small as the demo's models."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    if shapes == "sd15":
        config = CLIPVisionConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14,
            image_size=224, projection_dim=1024,
        )  # fmt: skip
    else:
        config = CLIPVisionConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, patch_size=8,
            image_size=64, projection_dim=64,
        )  # fmt: skip
    return CLIPVisionModelWithProjection(config)


def ip_adapter_weights(unet: diffusers.UNet2DConditionModel, image_width: int, tokens: int = 4) -> dict:
    """Random weights in the layout of IP-Adapter's files: for each cross-attention, keys and values of its own."""
    width = unet.config.cross_attention_dim
    projection = {
        "proj.weight": torch.randn(tokens * width, image_width) * image_width**-0.5,
        "proj.bias": torch.zeros(tokens * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    layers = {}
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            keys = unet.get_submodule(name.removesuffix(".processor")).to_k.weight
            for part in ("k", "v"):
                layers[f"{number}.to_{part}_ip.weight"] = torch.randn_like(keys) * width**-0.5
    return {"image_proj": projection, "ip_adapter": layers}


# One call


def draw_references(method: Method, size: int) -> dict:
    """Arguments of `encode_references`: images of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (method.references, size, size, 3), dtype=np.uint8)
    images = [Image.fromarray(each) for each in pixels]
    if method.form == "upright":
        images = [image.crop((0, 0, 2 * size // 3, size)) for image in images]
    masks = None
    if method.form == "half":
        mask = Image.new("L", (size, size))
        mask.paste(255, (0, 0, size // 2, size))
        masks = [mask] * len(images)
    concepts = [("face", "body")[i % 2] for i in range(len(images))]
    return {"reference_images": images, "reference_concepts": concepts, "reference_masks": masks}


class Prepared(NamedTuple):
    """A pipeline, the arguments of its call, and how many tokens there are to retrieve from, over all levels."""

    pipeline: diffusers.DiffusionPipeline
    options: dict
    tokens: int = 0


def prepare(method: Method, shapes: str, size: int, dtype: str, device: str) -> Prepared:
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))  # models are made in it
    try:
        pipeline = build(method, shapes, size).to(device)
    finally:
        torch.set_default_dtype(before)
    pipeline.set_progress_bar_config(disable=True)
    references = draw_references(method, size)
    if method.kind == "ours":
        features = pipeline.encode_references(**references)
        options = {"reference_features": features} if method.given else references
        tokens = sum(int(mask.sum()) for mask in features.masks)
        return Prepared(pipeline, {**options, "reference_guidance_scale": method.reference_guidance}, tokens)
    if method.kind == "ip_adapter":
        images = [references["reference_images"]]  # of one adapter
        if not method.given:
            return Prepared(pipeline, {"ip_adapter_image": images}, 4 * method.references)
        with torch.no_grad():
            embeds = pipeline.prepare_ip_adapter_image_embeds(images, None, pipeline.device, 1, True)
        return Prepared(pipeline, {"ip_adapter_image_embeds": embeds}, 4 * method.references)
    if method.kind == "controlnet":
        return Prepared(pipeline, {"image": Image.new("RGB", (size, size), "grey")})
    return Prepared(pipeline, {})


def build(method: Method, shapes: str, size: int) -> diffusers.DiffusionPipeline:
    torch.manual_seed(0)
    plain = stable_diffusion(shapes, size)
    if method.kind == "ours":
        return retribooru.RetriBooruPipeline.from_stable_diffusion(plain, reference_timestep=method.timestep)
    if method.kind == "ip_adapter":
        plain.register_modules(image_encoder=image_encoder(shapes))
        weights = ip_adapter_weights(plain.unet, plain.image_encoder.config.projection_dim)
        plain.load_ip_adapter(weights, subfolder="", weight_name="")
    if method.kind == "controlnet":
        return diffusers.StableDiffusionControlNetPipeline(
            **plain.components, controlnet=diffusers.ControlNetModel.from_unet(plain.unet),
            requires_safety_checker=False,
        )  # fmt: skip
    return plain


def measure(label: str, profile: bool, args: argparse.Namespace) -> dict:
    """Of a process of its own: seconds, peak of memory in MB, parameters, tokens; with `profile`, seconds by part."""
    held = resident("VmRSS")
    prepared = prepare(METHODS[label], args.shapes, args.size, args.dtype, args.device)
    pipeline = prepared.pipeline
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    parameters = sum(parameter.numel() for module in modules for parameter in module.parameters())

    def call(steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        image = pipeline(
            PROMPT, height=args.size, width=args.size, num_inference_steps=steps, guidance_scale=GUIDANCE,
            generator=generator, output_type="np", **prepared.options,
        ).images[0]  # fmt: skip
        if image.shape != (args.size, args.size, 3) or not np.isfinite(image).all():
            raise RuntimeError(f"{label}: got an image of shape {image.shape} or with NaN in it")

    call(1)
    forget_peak(args.device)
    calls, began = 0, time.perf_counter()
    with timers(parts_of(pipeline), args.device) if profile else nullcontext({}) as parts:
        while calls == 0 or time.perf_counter() - began < ENOUGH:
            call(args.steps)
            calls += 1
    seconds = (time.perf_counter() - began) / calls
    result = {
        "seconds": seconds,
        "peak_mb": peak(args.device, held),
        "parameters": parameters,
        "tokens": prepared.tokens,
    }
    return {**result, "parts": {part: taken / calls for part, taken in parts.items()}} if profile else result


# Where the time goes


def parts_of(pipeline) -> dict[str, list[torch.nn.Module]]:
    """The modules whose calls make up each part. The U-Net's time has its retrieval layers' in it."""
    parts = {
        "text encoder": [pipeline.text_encoder],
        "VAE encoder (references)": [pipeline.vae.encoder],
        "VAE decoder": [pipeline.vae.decoder],
        "U-Net": [pipeline.unet],
    }
    if not isinstance(pipeline, retribooru.RetriBooruPipeline):
        return parts
    parts["retrieval encoder"] = [pipeline.retrieval_encoder]
    layers = pipeline.unet.retrieval_layers
    parts["keys and values"] = [module for layer in layers for module in (layer.key_norm, layer.to_k, layer.to_v)]
    side = pipeline.unet.config.sample_size
    sizes = pipeline.retrieval_encoder.feature_sizes(side, side)
    for layer, (height, width) in zip(layers, reversed(sizes)):
        parts[f"retrieval at {height} x {width}"] = [layer]
    return parts


@contextmanager
def timers(parts: dict[str, list[torch.nn.Module]], device: str):
    """Seconds spent in the calls of each part's modules."""
    seconds, began, hooks = dict.fromkeys(parts, 0.0), {}, []

    def now() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    for part, modules in parts.items():
        for module in modules:

            def before(module, inputs):
                began[module] = now()

            def after(module, inputs, output, part=part):
                seconds[part] += now() - began[module]

            hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def shares(result: dict) -> dict[str, float]:
    """Seconds of each part of a call, none of them inside another; they sum up to the call."""
    parts = dict(result["parts"])
    unet = parts.pop("U-Net")
    own = unet - sum(seconds for part, seconds in parts.items() if part.startswith("retrieval at"))
    named = {"U-Net without retrieval layers": own, **parts}
    return {**named, "the rest": result["seconds"] - sum(named.values())}


# The run


def measure_all(args: argparse.Namespace, path: Path) -> dict:
    """Fills the file up to `--repeats` results of each method, round after round."""
    labels = [label for label in METHODS if label == PLAIN or not args.only or any(t in label for t in args.only)]
    wanted = [("calls", label) for label in in_turns(labels, args.repeats)]
    if args.profile:
        wanted += [("profiles", label) for _ in range(args.repeats) for label in PROFILED]
    known = about(settings(args), args.device, retribooru.pipeline)
    return collect(path, known, wanted, [sys.executable, *sys.argv])


def settings(args: argparse.Namespace) -> dict:
    return {name: getattr(args, name) for name in ("shapes", "size", "steps", "dtype", "device")}


# What is told


def ratios(found: dict) -> dict[str, float]:
    """Median seconds of each method over those of plain Stable Diffusion."""
    medians = {label: statistics.median(r["seconds"] for r in results) for label, results in found["calls"].items()}
    return {label: medians[label] / medians[PLAIN] for label in METHODS if label in medians}


def table(found: dict) -> str:
    told = "{shapes} shapes, {size} px, {steps} steps, guidance on, {dtype}; ".format(**found["settings"])
    lines = [
        told + "{device}; torch {torch}, diffusers {diffusers}".format(**found["machine"]),
        "",
        "| | s per image, median (least to most) | runs | ratio | peak MB | parameters, M | tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, ratio in ratios(found).items():
        results = found["calls"][label]
        seconds = sorted(result["seconds"] for result in results)
        taken = f"{statistics.median(seconds):.2f} ({seconds[0]:.2f} to {seconds[-1]:.2f})"
        peak = max(result["peak_mb"] for result in results)
        size = f"{results[0]['parameters'] / 1e6:.1f} | {results[0]['tokens'] or ''}"
        lines.append(f"| {label} | {taken} | {len(results)} | {ratio:.2f} | {peak:.0f} | {size} |")
    return "\n".join(lines) + "\n"


def profile_table(found: dict) -> str:
    """Median seconds of each part, and their share of the call."""
    profiles = {label: [shares(result) for result in found["profiles"][label]] for label in PROFILED
                if label in found["profiles"]}  # fmt: skip
    medians = {
        label: {part: statistics.median(result[part] for result in results) for part in results[0]}
        for label, results in profiles.items()
    }
    parts = dict.fromkeys(part for medians_of_one in medians.values() for part in medians_of_one)
    lines = [f"| s (share of the call) | {' | '.join(medians)} |", "|---" * (len(medians) + 1) + "|"]
    for part in [*(part for part in parts if part != "the rest"), "the rest"]:
        cells = [
            f"{of_one[part]:.2f} ({of_one[part] / sum(of_one.values()):.1%})" if part in of_one else ""
            for of_one in medians.values()
        ]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def verdicts(found: dict) -> str:
    measured = ratios(found)
    lines = []
    for label, limit in WANTED.items():
        if label not in measured:
            lines.append(f"{label}: not measured, wanted at most {limit:.2f}")
            continue
        met = "met" if measured[label] <= limit else "missed"
        lines.append(f"{label}: {measured[label]:.3f} x plain, wanted at most {limit:.2f}: {met}")
    return "\n".join(lines) + "\n"


def plot(found: dict, path: Path) -> None:
    """Ratio to plain Stable Diffusion against the number of references."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = ratios(found)
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for (name, labels), marker, color in zip(LINES.items(), "s^o", ("tab:red", "tab:blue", "tab:green"), strict=True):
        points = {n: measured[label] for n, label in labels.items() if label in measured}
        axes.plot(points.keys(), points.values(), marker=marker, color=color, label=f"RetriBooru, {name}")
    for label, style in ((CONTROLNET, "-."), (IP_ADAPTER, "--"), (PLAIN, ":")):
        if label in measured:
            axes.axhline(measured[label], linestyle=style, color="black", linewidth=1, label=label)
    told = found["settings"]
    axes.set(xlabel="references (upright, without masks)", ylabel="time of a call, plain = 1", xticks=COUNTS)
    axes.set_title("{shapes} shapes, {size} px, {steps} steps, {dtype}, {device}".format(**told), fontsize=10)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the results")
    parser.add_argument("--shapes", choices=SIZES, default="sd15")
    parser.add_argument("--size", type=int, help=f"pixels: {SIZES} by default")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="where the time goes, too")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="plain, and methods with one of these in their names")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # what a process of its own measures
    args = parser.parse_args()
    args.size = SIZES[args.shapes] if args.size is None else args.size
    if args.size <= 0 or args.size % 8:
        parser.error(f"--size: got {args.size}, wanted a multiple of 8")
    if args.one:
        kind, label = args.one
        print(json.dumps(measure(label, kind == "profiles", args)))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    path = args.work / "pipeline-{shapes}-{size}px-{steps}steps-{dtype}-{device}.json".format(**settings(args))
    found = measure_all(args, path)
    told = [table(found), *([profile_table(found)] if found.get("profiles") else []), verdicts(found)]
    with replacing(path.with_suffix(".md")) as partial:
        partial.write_text("\n".join(told))
    plot(found, path.with_suffix(".png"))
    print("\n".join(told))


if __name__ == "__main__":
    main()
