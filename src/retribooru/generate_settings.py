"""What draws a picture, beside its checkpoint, references and prompt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

DTYPES = ("float32", "float16", "bfloat16")
# Left out: DPMSolverSDE draws noise that no seed of ours governs, EDMEuler is for models trained in another way.
SCHEDULERS = sorted(
    {*KarrasDiffusionSchedulers.__members__, "LCMScheduler", "TCDScheduler"}
    - {"DPMSolverSDEScheduler", "EDMEulerScheduler"}
)
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Settings:
    """What draws one picture, beside checkpoint, references and prompt. See `RetriBooruPipeline.__call__`.

    height, width (pixels), scheduler and dtype of None stand for the checkpoint's and the device's own. Raises
    ValueError, naming the setting, for what nothing can be drawn with.
    """

    negative_prompt: str | None = None
    seed: int = 0
    steps: int = 20
    guidance_scale: float = 9.0
    reference_guidance_scale: float | None = None
    retrieval_scale: float | list[float] = 1.0
    height: int | None = None
    width: int | None = None
    scheduler: str | None = None
    dtype: str | None = None

    def __post_init__(self):
        if self.negative_prompt is not None:
            check_text("negative_prompt", self.negative_prompt)
        check_whole("seed", self.seed, 0, MAX_SEED)
        check_whole("steps", self.steps, 1, 1000)  # the steps that Stable Diffusion was trained with
        _check_scale("guidance_scale", self.guidance_scale)
        if self.reference_guidance_scale is not None:
            _check_scale("reference_guidance_scale", self.reference_guidance_scale)
        scales = self.retrieval_scale
        for value in scales if isinstance(scales, (list, tuple)) else [scales]:
            _check_scale("retrieval_scale", value)
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value, 8, 8192)
                if value % 8:
                    raise ValueError(f"{name}: got {value}, wanted a multiple of 8")
        _check_choice("scheduler", self.scheduler, SCHEDULERS)
        _check_choice("dtype", self.dtype, DTYPES)


SETTINGS = [field.name for field in fields(Settings)]


def check_text(name: str, text: str) -> None:
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise ValueError(f"{name}: got {text!r}, wanted some text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: got {text!r}, which is no Unicode, wanted UTF-8") from None


def check_whole(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name}: got {value!r}, wanted a whole number from {least} to {most}")


def _check_scale(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: got {value!r}, wanted a finite number of at least 0")


def _check_choice(name: str, value: str | None, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(choices)}")
