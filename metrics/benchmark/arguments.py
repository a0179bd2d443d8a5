"""What `retribooru benchmark` is told."""

from dataclasses import dataclass, field
from pathlib import Path

from retribooru.dataset_script.references import TRAINABLE
from retribooru.training.arguments import DataArguments, check_argument, check_counts

from ..diversity import QUESTION
from ..modules import CLIP, VQA

PROMPTS = Path(__file__).parent / "prompts"
MAX_SEEDS = 10_000


@dataclass
class BenchmarkArguments(DataArguments):
    """What is drawn, and who judges it. By default the paper's test set (section 5.3): 5,000 pictures of a method."""

    methods: str = field(metadata={"help": "A YAML file of the methods, by name."})
    output_dir: str = field(metadata={"help": "Where pictures, scores and tables go. Pictures that are there stay."})
    task: str = field(default="reconstruct", metadata={"help": f"Draws the references: {', '.join(TRAINABLE)}."})
    in_domain: int = field(default=40, metadata={"help": "Characters that were trained on, with other pictures."})
    out_of_domain: int = field(default=10, metadata={"help": "Characters that were never trained on."})
    prompts: str = field(
        default="paper", metadata={"help": "A text file, a line each; or paper (its five), or mini (the edition's)."}
    )
    seeds: int = field(default=5, metadata={"help": "How many: 0, 1, 2 and so on."})
    images_per_prompt: int = field(default=4, metadata={"help": "Pictures of each seed, drawn at once."})
    num_inference_steps: int = field(default=20, metadata={"help": "Of every method that has no number of its own."})
    guidance_scale: float = field(default=9.0, metadata={"help": "Of every method that has none of its own."})
    dtype: str = field(default="float32", metadata={"help": "Of the drawing models: float32, float16 or bfloat16."})
    clip: str | None = field(
        default=None,
        metadata={"help": f"The CLIP that judges: a Hub id or a folder. Without: {CLIP}; of what "
                          "checkpoints/mini.sh made the small one that it made."},
    )  # fmt: skip
    vqa: str | None = field(
        default=None,
        metadata={"help": f"The InstructBLIP or BLIP that answers: a Hub id or a folder. Without: {VQA}, or the small "
                          "one."},
    )  # fmt: skip
    questions: list[str] = field(
        default_factory=lambda: [QUESTION], metadata={"help": "What it is asked about every picture."}
    )
    batch_size: int = field(default=32, metadata={"help": "Pictures that CLIP reads at once."})
    vqa_batch_size: int = field(default=8, metadata={"help": "Pictures that are asked about at once."})
    max_new_tokens: int = field(default=64, metadata={"help": "Of an answer."})
    masks: str = field(
        default="typical",
        metadata={"help": "Figures in drawn pictures, for leakage: typical, where those of the table are; or "
                          "module:function, which gives a mask for each of a list of pictures."},
    )  # fmt: skip
    level: float = field(default=0.95, metadata={"help": "Of the bootstrap intervals over characters."})
    resamples: int = field(default=1000, metadata={"help": "Of the bootstrap."})
    device: str | None = field(default=None, metadata={"help": "Where the models run; the GPU where there is one."})
    ray: str | None = field(
        default=None, metadata={"help": "Address of a Ray cluster to work on: auto, local, or HOST:PORT."}
    )
    ray_actors: int | None = field(
        default=None, metadata={"help": "With ray: how many; without, one for each GPU, or for each core."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_argument("task", self.task in TRAINABLE, self.task, f"one of {', '.join(TRAINABLE)}")
        dtypes = ("float32", "float16", "bfloat16")
        check_argument("dtype", self.dtype in dtypes, self.dtype, f"one of {', '.join(dtypes)}")
        check_counts(self, "seeds", "images_per_prompt", "num_inference_steps", "batch_size", "vqa_batch_size",
                     "max_new_tokens", "resamples", "ray_actors")  # fmt: skip
        check_argument("seeds", self.seeds <= MAX_SEEDS, self.seeds, f"at most {MAX_SEEDS}")
        check_argument("level", 0 < self.level < 1, self.level, "a number between 0 and 1")
        for name in ("in_domain", "out_of_domain"):
            check_argument(name, getattr(self, name) >= 0, getattr(self, name), "at least 0")
        count = self.in_domain + self.out_of_domain
        check_argument("in_domain", count >= 2, count, "at least 2 characters with out_of_domain: the measures that "
                       "tell one character from another need another")  # fmt: skip
        check_argument("questions", all(map(str.strip, self.questions)) and self.questions, self.questions, "texts")
        check_argument("ray_actors", self.ray or self.ray_actors is None, self.ray_actors, "none without ray")
        masks = self.masks == "typical" or ":" in self.masks
        check_argument("masks", masks, self.masks, "typical or module:function")


def read_prompts(name: str) -> list[str]:
    """The lines of a text file, or of one that comes along, by name. Raises ValueError where there is no prompt."""
    shipped = {path.stem: path for path in sorted(PROMPTS.glob("*.txt"))}
    path = shipped.get(name, Path(name))
    wanted = f"a text file with a prompt on each line, or one of {', '.join(shipped)}"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts: got {name}, wanted {wanted} ({error})") from error
    prompts = [line.strip() for line in lines if line.strip()]
    check_argument("prompts", prompts, f"{name}, which holds none", wanted)
    return prompts


def shown(name: str) -> str:
    """A Hub id as it is; of a folder of this machine its last part, as it may be published."""
    return Path(name).resolve().name if Path(name).exists() else name
