"""The dataset card: YAML that lets `datasets` read the files without any code of ours, and the words for people."""

from pathlib import Path
from string import Template

import pyarrow.parquet as pq
from datasets import DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from .figures import SPLITS
from .mini import TRUTH
from .table import count_rows, stored_features

UNKNOWN = "unknown"  # the rating of a row that has none
CARDS = Path(__file__).parent / "cards"

TASKS = {
    "figures": "one row per image",
    "reconstruct": "a target and four whole figures of its identity",
    "compose": "a target, two faces and two bodies of its identity, drawn independently",
    "face": "a target and four faces of its identity",
    "swap": "two faces of the target's identity, two bodies of another character",
}
COLUMNS = {
    "image_id": "unique; a plain name",
    "image": "the figure",
    "mask": "255 where the figure is, of the image's size",
    "head_box": "[x_min, y_min, x_max, y_max] in pixels of the image (of the target, in the tasks), null where none is known",
    "character, artist, outfit": "the identity: images that share all three show the same figure in the same clothes; "
    "where `outfit` is empty, nothing is known of these",
    "copyright": "the series that the character is from",
    "outfit_answer": "the answer to the question for the two main colours of the clothes",
    "tags, prompt": "as a booru has them; the prompt is text for a model",
    "rating": "see below",
    ", ".join(TRUTH): "what the figure shows",
}
TASK_COLUMNS = {
    "target_id, target, target_mask": "what is to be drawn. In `swap` there is no picture of the one in the other's clothes: "
    "the target is the picture of the faces' identity, and not what a model should draw",
    "reference_images, reference_masks": "what to draw it from, in parallel lists; `in_domain` refers to images of `train`",
    "reference_concepts": "figure, face or body, each",
    "reference_ids": "the images that the references are, or are cut from",
    "reference_characters, reference_artists, reference_outfits": "whose they are: the target's, but for the bodies of `swap`",
}
CITATION = """## Citation

Tang et al., *Retrieving Conditions from Reference Images for Diffusion Models*,
[arXiv:2312.02521](https://arxiv.org/abs/2312.02521), 2023."""


def dataset_card(
    infos: dict[str, DatasetInfo],
    folders: dict[str, str],
    mini: bool,
    embed_images: bool,
    license: str | None,
    ratings: tuple[str, ...],
    provenance: str,
) -> str:
    """README.md of an export.

    Args:
        infos, folders: schema and sizes, and the folder of Parquet files, of each config.
        mini: whether it is the mini edition; otherwise a table that somebody built.
        embed_images: whether the files hold pixels.
        license: a licence of the Hub's list; None: cc0-1.0 for the mini edition, other for any other.
        ratings: what is published.
        provenance: how the files were made, a sentence or more.
    """
    rows = infos["figures"].splits
    # "s" alone is the older scheme's "safe".
    audience = [] if mini or set(ratings) in ({"g"}, {"s"}) else ["not-for-all-audiences"]
    data = DatasetCardData(
        license=license or ("cc0-1.0" if mini else "other"),
        language="en",
        pretty_name="RetriBooru, mini edition" if mini else "RetriBooru",
        task_categories=["text-to-image", "image-to-image"],
        size_categories=[_size_category(sum(split.num_examples for split in rows.values()))],
        tags=["anime", "reference-conditioned generation", "retribooru", *audience],
    )
    configs = {
        config: {
            "data_files": [{"split": split, "path": f"{folder}/{split}-*"} for split in infos[config].splits],
            **({"default": True} if config == "figures" else {}),
        }
        for config, folder in folders.items()
        if config in infos
    }
    MetadataConfigs(configs).to_dataset_card_data(data)
    DatasetInfosDict(infos).to_dataset_card_data(data)
    words = Template((CARDS / ("mini.md" if mini else "full.md")).read_text(encoding="utf-8")).substitute(
        loading=_loading(embed_images, mini),
        counts=_counts(infos),
        columns=_columns(infos),
        pixels="The drawings are embedded in these files." if embed_images
        else "The drawings are not in these files, which name them alone.",
        ratings=", ".join(ratings),
        provenance=provenance,
        citation=CITATION,
    )  # fmt: skip
    return f"---\n{data}\n---\n\n{words}"


def dataset_info(folder: Path) -> DatasetInfo:
    """Schema and sizes of a config, read off its files."""
    splits, features = SplitDict(), None
    for split in SPLITS:
        files = sorted(folder.glob(f"{split}-*.parquet"))
        if files:
            features = features or stored_features(files)
            groups = [
                metadata.row_group(i)
                for metadata in map(pq.read_metadata, files)
                for i in range(metadata.num_row_groups)
            ]
            size = sum(group.total_byte_size for group in groups)
            splits.add(SplitInfo(split, num_bytes=size, num_examples=count_rows(files)))
    return DatasetInfo(
        features=features,
        splits=splits,
        download_size=sum(file.stat().st_size for file in folder.glob("*.parquet")),
        dataset_size=sum(split.num_bytes for split in splits.values()),
    )


def _size_category(rows: int) -> str:
    """The Hub's name for a number of rows."""
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if rows < limit:
            return name
    return "1M<n<10M"


def _loading(embed_images: bool, mini: bool) -> str:
    lines = [
        "```python",
        "from datasets import load_dataset",
        "",
        'figures = load_dataset("OWNER/NAME", "figures", split="train")  # no code of this project is needed',
    ]
    if embed_images:
        lines.append('compose = load_dataset("OWNER/NAME", "compose", split="train", streaming=True)')
    else:
        lines += [
            "",
            "# `image` names a file. With the image files in a folder of yours, and `pip install retribooru`:",
            "import retribooru",
            "from huggingface_hub import snapshot_download",
            "",
            'table = snapshot_download("OWNER/NAME", repo_type="dataset", allow_patterns="data/*")',
            'compose = load_dataset("retribooru", "compose", data_dir=table, images="FOLDER", split="train")',
        ]
    if mini:
        lines += ["", "# The same, drawn on your machine, after `pip install retribooru`:", "import retribooru", "",
                  'compose = load_dataset("retribooru", "compose", split="train")']  # fmt: skip
    return "\n".join([*lines, "```"])


def _counts(infos: dict[str, DatasetInfo]) -> str:
    splits = list(dict.fromkeys(split for info in infos.values() for split in info.splits))
    lines = [f"| config | a row | {' | '.join(splits)} | MB |", "|---" * (3 + len(splits)) + "|"]
    for config, info in infos.items():
        numbers = (f"{info.splits[split].num_examples:,}" if split in info.splits else "0" for split in splits)
        lines.append(f"| `{config}` | {TASKS[config]} | {' | '.join(numbers)} | {info.download_size / 1e6:,.1f} |")
    lines += [
        "",
        "`out_of_domain` has characters that occur nowhere in `train`, in no role; `in_domain` has held-out images of "
        "characters of `train`, with references from `train`. The split is a function of names and a seed.",
    ]
    return "\n".join(lines)


def _columns(infos: dict[str, DatasetInfo]) -> str:
    lines = ["| column of `figures` | what it holds |", "|---|---|"]
    lines += [
        f"| {_code(names)} | {text} |" for names, text in COLUMNS.items() if _known(names, infos["figures"].features)
    ]
    tasks = [info.features for config, info in infos.items() if config != "figures"]
    if tasks:
        lines += ["", "| further columns of the tasks | what they hold |", "|---|---|"]
        lines += [f"| {_code(names)} | {text} |" for names, text in TASK_COLUMNS.items() if _known(names, tasks[0])]
    return "\n".join(lines)


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _known(names: str, features: Features) -> bool:
    return names.split(", ")[0] in features
