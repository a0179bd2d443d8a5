"""A checkpoint to the Hub."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from retribooru.checkpoint_facts import read_checkpoint
from retribooru.model_card import is_edited, write_model_card

CARD = "README.md"


@dataclass
class PushReport:
    """What was uploaded, and what became of the card."""

    repo_id: str
    files: int
    size: int  # bytes
    card: str

    def __str__(self) -> str:
        return f"{self.repo_id}: {self.files} files, {self.size / 1e6:.1f} MB\n{CARD}: {self.card}"


def push_checkpoint(
    repo_id: str, folder: Path, license: str | None = None, private: bool = False, api: HfApi | None = None
) -> PushReport:
    """Writes the card and uploads a checkpoint: what belongs to it, and nothing else that lies in its folder.

    A card that people edited, in the folder or on the Hub, is not overwritten: that of the folder is uploaded as it is.

    Args:
        repo_id: "name" or "owner/name" of a model repository; it is made where there is none.
        folder: what `save_pretrained` or a training left.
        license: of the weights; see `write_model_card`.
        private: whether a repository that is made is private.
        api: the Hub to upload to, and the token for it; the one that one is logged in to without.

    Raises ValueError or FileNotFoundError, before anything is made on the Hub, unless the checkpoint is whole.
    """
    folder, api = Path(folder), api or HfApi()
    checkpoint = read_checkpoint(folder)
    edited = is_edited(folder / CARD)
    if edited and license is not None:
        raise ValueError(f"license: got {license}, but {folder / CARD} has been edited; wanted it named in there")
    repo_id = api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True).repo_id
    card, names = "as people edited it", [*checkpoint.files, CARD]
    if not edited:
        card = "written from the checkpoint's files"
        write_model_card(folder, repo_id, license)
        there = api.file_exists(repo_id, CARD, repo_type="model")
        if there and is_edited(Path(api.hf_hub_download(repo_id, CARD, repo_type="model"))):
            card = f"left as people edited it on the Hub; the one for this checkpoint is {folder / CARD}"
            names.remove(CARD)
    api.upload_folder(
        repo_id=repo_id,
        repo_type="model",
        folder_path=folder,
        allow_patterns=names,
        delete_patterns=[f"{component}/*.safetensors*" for component in checkpoint.weights],  # of an earlier push
        commit_message="RetriBooru, by `retribooru push`",
    )
    size = sum((folder / name).stat().st_size for name in names)
    return PushReport(repo_id, len(names), size, card)
