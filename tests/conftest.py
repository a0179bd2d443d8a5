"""What the tests share: figures made by hand, and tiny pipelines of the real classes."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from environments import environments_wanted, make_environments, python_of
from handmade import write_figures

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the Hub; read when huggingface_hub is imported: later
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as they are told to be: a thread for each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
REAL_FIGURES = Path(__file__).parents[2] / "shared" / "real_figures"
ENVIRONMENTS = "RETRIBOORU_TEST_ENVIRONMENTS"  # of all processes that share the tests out among them
MINI = {"size": 64, "characters": 30}  # a mini edition with all three splits, train in three shards


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ[ENVIRONMENTS] = tempfile.mkdtemp(prefix="environments-")


def pytest_unconfigure(config):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ[ENVIRONMENTS], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Datasets of the tests are cached apart, and gone afterwards."""
    import datasets

    cache = tmp_path_factory.mktemp("datasets_cache")
    datasets.config.HF_DATASETS_CACHE = cache
    yield
    shutil.rmtree(cache, ignore_errors=True)


@pytest.fixture(scope="session")
def real_figures() -> Path:
    if not (REAL_FIGURES / "retribooru.json").is_file():
        pytest.skip(f"needs the real figures beside the project, in {'/'.join(REAL_FIGURES.parts[-2:])}")
    return REAL_FIGURES


@pytest.fixture(scope="session")
def figures_folder(tmp_path_factory) -> Path:
    return write_figures(tmp_path_factory.mktemp("figures") / "authors_form")


@pytest.fixture(scope="session")
def data_dir(figures_folder, tmp_path_factory) -> Path:
    """A built data_dir with all three splits."""
    from retribooru.dataset_script.build import build_figures

    out = tmp_path_factory.mktemp("built")
    build_figures(
        figures_folder / "retribooru.json", figures_folder / "images", figures_folder / "masks", out, seed=2,
        out_of_domain=0.25, in_domain=0.15,
    )  # fmt: skip
    return out


@pytest.fixture(scope="session")
def mini_options() -> dict[str, int]:
    """Arguments of a small mini edition."""
    return dict(MINI)


@pytest.fixture(scope="session")
def edition(tmp_path_factory) -> Path:
    """The figures of a small mini edition, with the truth about them, as a data_dir."""
    from retribooru.dataset_script.mini import draw_edition

    return draw_edition(tmp_path_factory.mktemp("edition"), size=64, characters=40)


@pytest.fixture(scope="session")
def mini_export(tmp_path_factory) -> Path:
    """What the Hub's repository of the small mini edition holds."""
    from retribooru.dataset_script.export import export_dataset

    return export_dataset(tmp_path_factory.mktemp("exports") / "mini", **MINI).out


@pytest.fixture(scope="session")
def environments() -> dict[str, Path]:
    """The Python of each environment of `environments_wanted`, made by the first process that asks."""
    folder, wanted = Path(os.environ[ENVIRONMENTS]), environments_wanted()
    with FileLock(folder / "lock"):
        if not (folder / "made").exists():
            make_environments(folder, wanted)
            (folder / "made").touch()
    return {name: python_of(folder / name) for name in wanted}


@pytest.fixture(scope="session")
def hub(environments, tmp_path_factory):
    """A Hub on this machine."""
    from hub import serve

    with serve(environments["hub"], tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="session")
def stable_diffusion_dir(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion with random weights, of the real classes; 32 x 32 pixels, 8 x 8 latents."""
    import torch

    from retribooru.training.scratch import small_stable_diffusion, small_tokenizer, small_vae

    torch.manual_seed(0)
    tokenizer = small_tokenizer(["1girl, solo, standing"] * 3, length=16, vocab_size=500)
    vae = small_vae([8, 8, 8], latent_channels=4, resolution=32)
    pipeline = small_stable_diffusion(vae, tokenizer, 32, block_out_channels=(8, 16), text_width=16)
    folder = tmp_path_factory.mktemp("stable_diffusion")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def stable_diffusion(stable_diffusion_dir):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(stable_diffusion_dir)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
