"""What `python -m retribooru.metrics.truth` is told."""

from dataclasses import dataclass, field

from retribooru.dataset_script.references import RECIPES
from retribooru.training.arguments import DataArguments, check_argument, check_counts


@dataclass
class TruthArguments(DataArguments):
    """What is drawn, and how."""

    checkpoint: str = field(metadata={"help": "A RetriBooruPipeline: a folder or a Hub id."})
    classifier: str = field(metadata={"help": "What train_attributes wrote: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Where pictures and results go. Pictures that are there stay."})
    base: str | None = field(
        default=None, metadata={"help": "A StableDiffusionPipeline that draws the same prompts without references."}
    )
    tasks: list[str] = field(
        default_factory=lambda: ["reconstruct", "compose", "swap"], metadata={"help": "Some of the dataset's tasks."}
    )
    pictures: int = field(default=200, metadata={"help": "Of each task and seed."})
    seeds: int = field(default=3, metadata={"help": "How many: 0, 1, 2 and so on."})
    num_inference_steps: int = field(default=20, metadata={"help": "Of the pipelines."})
    guidance_scale: float = field(default=2.0, metadata={"help": "Of the pipelines."})
    retrieval_scale: float = field(default=1.0, metadata={"help": "Of the tables."})
    reference_guidance_scale: float | None = field(
        default=None, metadata={"help": "Of the pipeline; as guidance_scale without."}
    )
    scales: list[float] = field(
        default_factory=lambda: [0.0, 0.5, 1.0, 1.5, 2.0], metadata={"help": "Retrieval scales of the curve over them."}
    )
    references: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8], metadata={"help": "Numbers of references of the curve over them."}
    )
    curve_pictures: int = field(
        default=60, metadata={"help": "Of each task and point of a curve, with seed 0. 0: no curves."}
    )
    batch_size: int = field(default=16, metadata={"help": "Pictures that are drawn at once."})
    device: str = field(default="cpu", metadata={"help": "Where the models run."})

    def __post_init__(self):
        super().__post_init__()
        check_argument(
            "tasks", self.tasks and set(self.tasks) <= set(RECIPES), self.tasks, f"some of {', '.join(RECIPES)}"
        )
        check_counts(self, "pictures", "seeds", "num_inference_steps", "batch_size")
        fine = 0 <= self.curve_pictures <= self.pictures
        check_argument("curve_pictures", fine, self.curve_pictures, f"a number from 0 to pictures, {self.pictures}")
        check_argument("scales", self.scales and min(self.scales) >= 0, self.scales, "numbers of at least 0")
        check_argument(
            "references", self.references and min(self.references) >= 1, self.references, "numbers of at least 1"
        )
