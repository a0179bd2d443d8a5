"""Checkpoints as Hub repositories: loaded by plain diffusers with their code, by this package without it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, DDPMScheduler, DiffusionPipeline
from diffusers.utils.dynamic_modules_utils import get_relative_import_files, get_relative_imports
from safetensors.torch import load_file

import retribooru.pipeline
from draw_with import draw
from hub import OWNER
from retribooru import RetriBooruPipeline, RetrievalEncoder, RetrievalUNet2DConditionModel

DRAW_WITH = Path(__file__).parents[1] / "draw_with.py"
SOURCES = Path(retribooru.pipeline.__file__).parent
MODULES = {
    "checkpoint", "guidance", "pipeline_retribooru", "reference_arguments", "denoising_mixin", "reference_mixin", "reference_processor",
    "retrieval_unet", "retrieved_features",
}  # fmt: skip
COMPONENTS = {"scheduler", "text_encoder", "tokenizer", "vae", "unet", "retrieval_encoder"}


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
    """diffusers keeps the code of checkpoints apart, and forgets it afterwards."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        del sys.modules[name]


@pytest.fixture
def checkpoint(trained, tmp_path) -> Path:
    trained.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def tamper(folder: Path) -> Path:
    """Makes every module of a checkpoint leave a trace when it is run: the returned file."""
    trace = folder.with_name(f"{folder.name}-has-run")
    files = list(folder.rglob("*.py"))
    assert len(files) == len(MODULES) + 2
    for file in files:
        file.write_text(f"open({str(trace)!r}, 'w').close()\nraise SystemExit\n")
    return trace


def index_of(folder: Path) -> dict:
    return json.loads((folder / "model_index.json").read_text())


def test_a_checkpoint_names_the_code_that_it_holds(checkpoint):
    index = index_of(checkpoint)
    assert index["_class_name"] == ["pipeline_retribooru", "RetriBooruPipeline"]
    assert index["unet"] == ["retrieval_unet", "RetrievalUNet2DConditionModel"]
    assert index["retrieval_encoder"] == ["retrieval_unet", "RetrievalEncoder"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"] and index["controlnet"] == [None, None]
    modules = {f"{name}.py" for name in MODULES}
    assert {path.name for path in checkpoint.iterdir()} == {"model_index.json"} | modules | COMPONENTS
    for file in [*modules, "unet/retrieval_unet.py", "retrieval_encoder/retrieval_unet.py"]:
        assert (checkpoint / file).read_bytes() == (SOURCES / Path(file).name).read_bytes(), file
    kinds = {path.suffix for path in checkpoint.rglob("*") if path.is_file()}
    assert kinds == {".py", ".json", ".safetensors"}


@pytest.mark.parametrize("file", sorted(SOURCES.glob("pipeline_*.py")), ids=lambda path: path.stem)
def test_a_pipelines_module_imports_every_module_that_it_needs(file):
    """Of a local folder, diffusers takes along what the pipeline's module imports, not what that imports in turn."""
    needed = {Path(path).stem for path in get_relative_import_files(file)}
    assert set(get_relative_imports(file)) == needed >= {"checkpoint", "reference_mixin", "retrieval_unet"}
    assert not get_relative_imports(SOURCES / "retrieval_unet.py")


def test_saved_and_loaded_here(trained, checkpoint):
    loaded = RetriBooruPipeline.from_pretrained(checkpoint)
    assert type(loaded.unet) is RetrievalUNet2DConditionModel and type(loaded.retrieval_encoder) is RetrievalEncoder
    assert torch.equal(draw(loaded), draw(trained))


def test_code_of_the_checkpoint_is_not_run_here(trained, checkpoint):
    trace = tamper(checkpoint)
    assert torch.equal(draw(RetriBooruPipeline.from_pretrained(checkpoint)), draw(trained))
    (checkpoint / "unet" / "retribooru.pipeline.retrieval_unet.py").write_text(f"open({str(trace)!r}, 'w').close()")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        RetriBooruPipeline.from_pretrained(checkpoint)
    assert not trace.exists()


def test_code_of_the_checkpoint_is_not_run_without_leave(checkpoint):
    trace = tamper(checkpoint)
    with pytest.raises(ValueError, match="contains custom code in pipeline_retribooru.py(.|\n)*trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(checkpoint)
    assert not trace.exists()
    with pytest.raises(SystemExit):  # the trap itself works
        DiffusionPipeline.from_pretrained(checkpoint, trust_remote_code=True)
    assert trace.exists()


def test_no_pickles(trained, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="safe_serialization: got False, wanted True"):
        trained.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert not (tmp_path / "pickled").exists()
    with pytest.raises(ValueError, match="use_safetensors: got False, wanted True"):
        RetriBooruPipeline.from_pretrained(checkpoint, use_safetensors=False)
    weights = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(OSError, match="diffusion_pytorch_model.safetensors"):
        RetriBooruPipeline.from_pretrained(checkpoint)


def test_options_of_diffusers(checkpoint):
    scheduler = DDPMScheduler()
    loaded = RetriBooruPipeline.from_pretrained(
        checkpoint, torch_dtype={"unet": torch.bfloat16, "default": torch.float64}, scheduler=scheduler, vae=None
    )
    assert loaded.unet.dtype == torch.bfloat16 and loaded.retrieval_encoder.dtype == torch.float64
    assert loaded.scheduler is scheduler and loaded.vae is None
    loaded = RetriBooruPipeline.from_pretrained(checkpoint, low_cpu_mem_usage=False, torch_dtype=torch.float16)
    assert {module.dtype for module in (loaded.unet, loaded.vae, loaded.retrieval_encoder)} == {torch.float16}


def test_variant(trained, checkpoint):
    trained.to(torch.float16).save_pretrained(checkpoint, variant="fp16")
    for component in ("unet", "retrieval_encoder", "vae", "text_encoder"):
        names = {path.name for path in (checkpoint / component).glob("*.safetensors")}
        assert len(names) == 2 and sum(".fp16." in name for name in names) == 1
    half = RetriBooruPipeline.from_pretrained(checkpoint, variant="fp16", torch_dtype=torch.float16)
    whole = RetriBooruPipeline.from_pretrained(checkpoint)
    assert half.unet.dtype == torch.float16 and whole.unet.dtype == torch.float32
    for rounded, exact, kept in zip(half.unet.parameters(), whole.unet.parameters(), trained.unet.parameters()):
        assert torch.equal(rounded, exact.half()) and torch.equal(rounded, kept)


def test_half_precision_is_loaded_as_single_unless_asked_for(trained, tmp_path):
    trained.to(torch.float16).save_pretrained(tmp_path / "half")
    loaded = RetriBooruPipeline.from_pretrained(tmp_path / "half")
    parts = (loaded.unet, loaded.vae, loaded.retrieval_encoder, loaded.text_encoder)
    assert {part.dtype for part in parts} == {torch.float32}
    draw(loaded)
    plain = DiffusionPipeline.from_pretrained(tmp_path / "half", trust_remote_code=True)
    assert plain.text_encoder.dtype == plain.unet.dtype == torch.float32
    loaded = RetriBooruPipeline.from_pretrained(tmp_path / "half", dtype=torch.float16)
    assert loaded.text_encoder.dtype == loaded.unet.dtype == torch.float16


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_saved_whole_where_there_were_shards(trained, tmp_path, variant):
    for options in ({}, {"max_shard_size": "100KB"}, {}):
        trained.save_pretrained(tmp_path, variant=variant, **options)
        assert bool(list(tmp_path.rglob("*-of-*"))) == bool(options)
        assert torch.equal(draw(RetriBooruPipeline.from_pretrained(tmp_path, variant=variant)), draw(trained))


def test_controlnet(trained, tmp_path):
    trained.register_modules(controlnet=ControlNetModel.from_unet(trained.unet))
    trained.save_pretrained(tmp_path)
    assert index_of(tmp_path)["controlnet"] == ["diffusers", "ControlNetModel"]
    loaded = RetriBooruPipeline.from_pretrained(tmp_path)
    expected = trained.controlnet.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.controlnet.state_dict().items())
    assert DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True).controlnet is not None


def test_a_derived_class_is_saved_as_ours(trained, tmp_path):
    class Derived(RetriBooruPipeline):
        pass

    derived = Derived(**trained.components)
    derived.save_pretrained(tmp_path)
    assert index_of(tmp_path)["_class_name"] == ["pipeline_retribooru", "RetriBooruPipeline"]
    assert type(Derived.from_pretrained(tmp_path)) is Derived


def test_loaded_and_saved_again(trained, checkpoint, tmp_path):
    """By this package and by the checkpoint's own code: the same files, and nothing that names a folder."""
    for name, loaded in {
        "here": RetriBooruPipeline.from_pretrained(checkpoint),
        "theirs": DiffusionPipeline.from_pretrained(checkpoint, trust_remote_code=True),
    }.items():
        again = tmp_path / name
        loaded.save_pretrained(again)
        for file in [path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file()]:
            if file.name != "tokenizer_config.json":  # transformers notes that it was loaded
                assert (again / file).read_bytes() == (checkpoint / file).read_bytes(), file
            assert str(tmp_path).encode() not in (again / file).read_bytes(), file


def test_a_killed_save_leaves_nothing_that_loads(trained, checkpoint, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(trained.vae, "save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        trained.save_pretrained(checkpoint)
    with pytest.raises(OSError, match="no file named model_index.json"):
        RetriBooruPipeline.from_pretrained(checkpoint)
    monkeypatch.undo()
    trained.save_pretrained(checkpoint)
    assert not list(checkpoint.rglob("*.partial"))
    RetriBooruPipeline.from_pretrained(checkpoint)


def test_push_to_hub(trained, checkpoint, monkeypatch):
    """diffusers' own method uploads the same files."""
    uploaded = {}

    def keep(folder_path, **options):
        uploaded.update({path.relative_to(folder_path): path.read_bytes()
                         for path in Path(folder_path).rglob("*") if path.is_file()})  # fmt: skip

    class Card:
        def save(self, path):
            Path(path).write_text("card")

    module = sys.modules[type(trained).push_to_hub.__module__]
    monkeypatch.setattr(module, "create_repo", lambda repo_id, **options: type("Url", (), {"repo_id": repo_id}))
    monkeypatch.setattr(module, "load_or_create_model_card", lambda *args, **options: Card())
    monkeypatch.setattr(module, "populate_model_card", lambda card: card)
    monkeypatch.setattr(module, "upload_folder", keep)
    trained.push_to_hub("somebody/retrieval")
    saved = {path.relative_to(checkpoint): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    assert uploaded == {**saved, Path("README.md"): b"card"}


def drawn_elsewhere(python, env, folder, library, name, checkpoint, *again, **options) -> torch.Tensor:
    """Latents that another Python draws, with nothing of the tests' own on its path."""
    folder.mkdir()
    out = folder / "latents.safetensors"
    command = [python, "-I", DRAW_WITH, library, name, checkpoint, json.dumps(options), out, *again]
    done = subprocess.run(list(map(str, command)), check=False, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(out)["latents"]


@pytest.mark.slow
def test_from_the_hub(trained, checkpoint, hub, environments, tmp_path):
    python, repo_id, expected = environments["diffusers"], f"{OWNER}/checkpoint", draw(trained)
    for package in ("retribooru", "accelerate", "peft", "datasets"):
        assert subprocess.run([python, "-I", "-c", f"import {package}"], check=False, capture_output=True).returncode
    hub.commit(repo_id, checkpoint, repo_type="model")
    plain = ("diffusers", "DiffusionPipeline")
    with pytest.raises(AssertionError, match="contains custom code in pipeline_retribooru.py"):
        drawn_elsewhere(python, hub.client(tmp_path / "hf_home"), tmp_path / "without_leave", *plain, repo_id)
    for name, source in {"id": repo_id, "folder": checkpoint}.items():
        folder = tmp_path / name
        env = hub.client(tmp_path / f"{name}-hf-home")
        got = drawn_elsewhere(python, env, folder, *plain, source, folder / "again", trust_remote_code=True)
        assert torch.equal(got, expected)
        assert torch.equal(draw(RetriBooruPipeline.from_pretrained(folder / "again")), expected)


@pytest.mark.slow
def test_from_the_hub_without_its_code(trained, checkpoint, hub, tmp_path):
    repo_id, ours = f"{OWNER}/tampered", ("retribooru", "RetriBooruPipeline")
    trace = tamper(checkpoint)
    hub.commit(repo_id, checkpoint, repo_type="model")
    env = hub.client(tmp_path / "hf_home")
    assert torch.equal(drawn_elsewhere(sys.executable, env, tmp_path / "ours", *ours, repo_id), draw(trained))
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    drawn_elsewhere(sys.executable, offline, tmp_path / "offline", *ours, repo_id)
    assert not trace.exists()
