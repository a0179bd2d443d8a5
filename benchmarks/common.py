"""What the benchmarks of the models share: Stable Diffusion 1.5, memory, and results that are kept as they come."""

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import diffusers
import torch
from tqdm import tqdm

from retribooru.dataset_script.files import replacing

PROMPT = "1girl, solo, standing, looking at viewer, smile, long hair, school uniform, outdoors"


def stable_diffusion_15(size: int) -> diffusers.StableDiffusionPipeline:
    """Stable Diffusion 1.5's shapes with random weights, made for pictures of `size` pixels."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from retribooru.training.scratch import small_tokenizer

    tokenizer = small_tokenizer([PROMPT], length=77)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text_config = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        projection_dim=768, **special,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, sample_size=size,
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(sample_size=size // 8, cross_attention_dim=768, attention_head_dim=8),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


# Memory


def resident(what: str) -> float:
    """A line of the kernel's account of this process (Linux), in MB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(what))


def forget_peak(device: str) -> None:
    """Counts the peak from here on: what building the models took does not matter."""
    if device == "cpu":
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed
        Path("/proc/self/clear_refs").write_text("5")
    else:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str, held: float) -> float:
    """MB at most since `forget_peak`: what torch had allocated on a GPU, else this process's beyond `held` MB."""
    return resident("VmHWM") - held if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20


# Results


def about(settings: dict, device: str, *packages: ModuleType) -> dict:
    """What results must agree in to be put together: settings, machine, and the sources of the packages measured."""
    if device == "cpu":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
        name = f"{name}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads"
    else:
        name = torch.cuda.get_device_name()
    sources = [source for package in packages for source in sorted(Path(package.__file__).parent.glob("*.py"))]
    return {
        "settings": settings,
        "machine": {"device": name, "torch": torch.__version__, "diffusers": diffusers.__version__},
        "code": hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12],
    }


def in_turns(labels: Sequence[str], rounds: int) -> Iterator[str]:
    """Every label once a round, each round beginning with another one: the machine's moods hit all alike."""
    for turn in range(rounds):
        first = turn * len(labels) // rounds
        yield from (*labels[first:], *labels[:first])


def collect(path: Path, about: dict, wanted: Sequence[tuple[str, str]], command: Sequence[str]) -> dict:
    """Fills a JSON file up to the results that are wanted, and returns what is in it.

    Args:
        path: of the file. It is written after every result; what is in it is not measured again.
        about: see the function of this name. Exits with a message where the file's differs.
        wanted: (kind, label) of each measurement, in their order, as often as each is to be made.
        command: with `--one KIND LABEL` after it, what measures in a process of its own, and prints JSON in its last
            line.

    Returns:
        What is in `about`, and by kind and label the list of results.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that what is being measured ends too
    found = dict(about)
    if path.is_file():
        found = json.loads(path.read_text())
        for name, value in about.items():
            if found[name] != value:
                raise SystemExit(f"{path}: got results with {name} {found[name]}, wanted {value}: "
                                 "name another --work, or delete the file")  # fmt: skip
    there = Counter()
    for kind in {kind for kind, _ in wanted}:
        there.update({(kind, label): len(results) for label, results in found.setdefault(kind, {}).items()})
    todo = []
    for measurement in wanted:
        there[measurement] -= 1
        if there[measurement] < 0:
            todo.append(measurement)
    quiet = {"DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
    for kind, label in (bar := tqdm(todo, unit="process")):
        bar.set_postfix_str(label)
        done = subprocess.run(
            [*command, "--one", kind, label], capture_output=True, text=True, env={**os.environ, **quiet}
        )
        if done.returncode:
            raise SystemExit(f"{label}: ended with {done.returncode}\n{done.stderr}")
        found[kind].setdefault(label, []).append(json.loads(done.stdout.splitlines()[-1]))
        with replacing(path) as partial:
            partial.write_text(json.dumps(found, indent=1))
    return found
