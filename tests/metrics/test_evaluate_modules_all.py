"""What all modules of evaluate do alike: compute, batches, processes, models by name, cards, apps, a Hub."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image, ImageDraw

import retribooru.metrics
from retribooru.metrics import functional, modules
from retribooru.metrics.register import MODULES

FOLDER = Path(retribooru.metrics.__file__).parent
QUESTIONS = ["what is she wearing ?", "where ?"]


def module(name):
    return FOLDER / name / f"{name}.py"


def mask(box):
    image = Image.new("L", (40, 32))
    ImageDraw.Draw(image).rectangle(box, 255)
    return image


@pytest.fixture
def columns(noise):
    """Function of a metric's name: three rows of what it reads."""
    images = [noise(seed) for seed in range(12)]
    masks = [mask((4 * i, 2, 4 * i + 8, 20)) for i in range(4)]
    single = {"predictions": images[:3]}
    groups = {"predictions": [images[:2], images[2:5], [images[5], Image.new("RGB", (20, 20), "red")]]}
    references = [[images[0]], [images[6], images[7]], [images[8]]]
    figures = {"masks": masks[:3], "plain_masks": masks[1:4], "reference_masks": [masks[:1], masks[:2], masks[3:]]}
    return {
        "clip_i": {**single, "references": references},
        "clip_t": {**single, "references": ["solo", "one girl with a red scarf", "hat " * 100]},
        "vqa_diversity": groups,
        "swd": {**groups, "references": references},
        "leakage": {**single, "references": references, "plain": images[3:6], **figures},
    }.__getitem__


@pytest.fixture(scope="session")
def folders(clip_folder, instructblip_folder):
    """Function of a metric's name: its models, by local folder."""
    vqa = {"vqa_model_name_or_path": str(instructblip_folder), "max_new_tokens": 4, "questions": QUESTIONS}
    return lambda name: {"model_name_or_path": str(clip_folder), **(vqa if name in ("vqa_diversity", "swd") else {})}


@pytest.fixture(scope="session")
def loaded(clip_folder, instructblip_folder):
    """The models as objects."""
    model, processor = modules.load_clip(clip_folder)
    vqa_model, vqa_processor = modules.load_vqa(instructblip_folder)
    return {"model": model, "processor": processor}, {"vqa_model": vqa_model, "vqa_processor": vqa_processor}


@pytest.fixture(scope="session")
def objects(loaded):
    """Function of a metric's name: its models, as objects."""
    clip, vqa = loaded
    vqa = {**vqa, "max_new_tokens": 4, "questions": QUESTIONS}
    return lambda name: {**clip, **(vqa if name in ("vqa_diversity", "swd") else {})}


def test_a_clip_in_half_precision_scores_in_full(clip, tmp_path):
    for part in (copy.deepcopy(clip[0]).half(), clip[1]):
        part.save_pretrained(tmp_path)
    assert modules.load_clip(tmp_path)[0].dtype == torch.float32


@pytest.fixture
def expected(columns, loaded):
    """Function of a metric's name: what the plain function says, a list for each row."""
    clip, vqa = tuple(loaded[0].values()), loaded[1].values()
    answer = functional.question_answerer(*vqa, max_new_tokens=4)

    def value(name):
        rows = columns(name)
        first, second = rows["predictions"], rows.get("references")
        if name == "leakage":
            masks = (rows["masks"], rows["plain_masks"], rows["reference_masks"])
            return functional.leakage(first, rows["plain"], second, *masks, *clip)
        if name == "vqa_diversity":
            return functional.vqa_diversity(first, answer, *clip, QUESTIONS)
        if name == "swd":
            return functional.swd(first, second, answer, *clip, QUESTIONS)
        return getattr(functional, name)(first, second, *clip)

    return lambda name: value(name).tolist()


def rows_of(name, result):
    """The values of a result as the function gives them."""
    if name in ("vqa_diversity", "swd"):
        assert list(result[f"{name}_per_question"]) == QUESTIONS
        return [list(row) for row in zip(*result[f"{name}_per_question"].values())]
    return result[f"{name}_per_image"]


def flat(values):
    return [one for value in values for one in (value if isinstance(value, list) else [value])]


def check(name, result, expected):
    found = rows_of(name, result)
    assert flat(found) == pytest.approx(flat(expected), abs=1e-5)
    assert result[name] == pytest.approx(sum(flat(expected)) / len(flat(expected)), abs=1e-5)
    assert max(map(abs, flat(expected))) > 1e-3
    if name in ("vqa_diversity", "swd"):
        assert result[f"{name}_per_group"] == pytest.approx([sum(row) / 2 for row in expected], abs=1e-5)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:1 of 3 texts are longer")
def test_compute_equals_the_function(load, columns, folders, expected, name):
    metric = load(module(name))
    result = metric.compute(**columns(name), **folders(name))
    check(name, result, expected(name))
    assert metric.name == name and "2312.02521" in metric.citation
    assert ("defined by this project" if name in ("swd", "leakage") else "100 times") in metric.description
    for key in result:
        assert f"    {key}: " in metric.inputs_description, f"{key} is not described"


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:1 of 3 texts are longer")
def test_batches_with_loaded_models(load, columns, objects, expected, name):
    metric, rows = load(module(name)), columns(name)
    metric.add_batch(**{key: values[:2] for key, values in rows.items()})
    metric.add_batch(**{key: values[2:] for key, values in rows.items()})
    check(name, metric.compute(**objects(name), batch_size=2), expected(name))
    again = metric.compute(**{key: values[:1] for key, values in rows.items()}, **objects(name))
    assert rows_of(name, again) == [pytest.approx(expected(name)[0], abs=1e-5)]


def test_two_processes_count_together(tmp_path, columns, folders, expected):
    """Each adds the rows of its own; the first computes over all."""
    for name in MODULES:
        (tmp_path / name).mkdir()
        for column, values in columns(name).items():
            for i, value in enumerate(values):
                for k, one in enumerate(value if isinstance(value, list) else [value]):
                    if isinstance(one, Image.Image):
                        one.save(tmp_path / name / f"{column}-{i}-{k}.png")
    paths = {
        name: {
            column: [
                value if isinstance(value, str)
                else [str(tmp_path / name / f"{column}-{i}-{k}.png") for k in range(len(value))]
                if isinstance(value, list) else str(tmp_path / name / f"{column}-{i}-0.png")
                for i, value in enumerate(values)
            ]
            for column, values in columns(name).items()
        }
        for name in MODULES
    }  # fmt: skip
    task = tmp_path / "task.json"
    task.write_text(json.dumps({"paths": paths, "models": {name: folders(name) for name in MODULES}}))
    code = """
import json, sys
import evaluate
rank, task, cache = int(sys.argv[1]), json.load(open(sys.argv[2])), sys.argv[3]
results = {}
for name, path in zip(task["paths"], sys.argv[4:]):
    metric = evaluate.load(path, num_process=2, process_id=rank, experiment_id="two", cache_dir=cache)
    metric.add_batch(**{key: values[:2] if rank == 0 else values[2:] for key, values in task["paths"][name].items()})
    results[name] = metric.compute(**task["models"][name])
print(json.dumps(results))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "PYTHONWARNINGS": "ignore"}
    arguments = [str(task), str(tmp_path / "cache"), *(str(module(name)) for name in MODULES)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), *arguments], cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(error for _, error in outputs)
    first, second = (json.loads(output.splitlines()[-1]) for output, _ in outputs)
    assert second == dict.fromkeys(MODULES)
    for name in MODULES:
        check(name, first[name], expected(name))


@pytest.mark.filterwarnings("ignore:1 of 3 texts are longer")
def test_what_was_cut_is_counted(load, columns, objects, loaded):
    assert load(module("clip_t")).compute(**columns("clip_t"), **objects("clip_t"))["truncated_prompts"] == 1
    clip, vqa = loaded
    rows = columns("vqa_diversity")
    result = load(module("vqa_diversity")).compute(**rows, **clip, **vqa, max_new_tokens=3)
    assert result["truncated_answers"] == 0 and list(result["vqa_diversity_per_question"]) == [functional.QUESTION]
    answer = functional.question_answerer(*vqa.values(), max_new_tokens=3)
    groups = rows["predictions"]
    assert result["answers"] == [[answer(group, functional.QUESTION)] for group in groups]
    texts = [["hat " * 100, "hat"], ["hat", "hat " * 100]]
    values = functional.vqa_diversity_from_embeddings(functional.embed_answers([texts], *clip.values()))
    found = modules.diversity_result("swd", values, ["a", "b"], [texts], *clip.values())
    assert found["truncated_answers"] == 2


def test_likeness_beside_swd(load, columns, objects, loaded):
    rows = columns("swd")
    result = load(module("swd")).compute(**rows, **objects("swd"))
    for group, references, found in zip(rows["predictions"], rows["references"], result["clip_i_per_image"]):
        expected = functional.clip_i(group, [references] * len(group), *loaded[0].values()).tolist()
        assert found == pytest.approx(expected, abs=1e-5)
    none = load(module("swd")).compute(**rows, **objects("swd"), floor=0.99999)
    assert sum(none["swd_per_group"]) < sum(result["swd_per_group"])


def test_undefined_leakage_is_counted_and_left_out(load, columns, objects):
    rows = columns("leakage")
    rows["plain"] = [rows["references"][0][0], *rows["plain"][1:]]
    rows["plain_masks"] = [rows["reference_masks"][0][0], *rows["plain_masks"][1:]]
    result = load(module("leakage")).compute(**rows, **objects("leakage"))
    values = result["leakage_per_image"]
    assert result["undefined"] == 1 and values[0] != values[0]
    assert result["leakage"] == pytest.approx(sum(values[1:]) / 2, abs=1e-6)


@pytest.mark.parametrize(
    "name, change, error, message",
    [
        ("vqa_diversity", {"predictions": [["a"]]}, ValueError, r"predictions\[0\] has 1 item; wanted .* undefined"),
        ("vqa_diversity", {"predictions": [["a", "b"], []]}, ValueError, r"predictions\[1\] is empty"),
        ("vqa_diversity", {"predictions": []}, ValueError, "predictions is empty"),
        ("swd", {"references": [["a"], ["b"], []]}, ValueError, r"references\[2\] is empty"),
        ("swd", {"floor": 1.5}, ValueError, "floor is 1.5"),
        ("clip_t", {"references": ["one", "two"]}, ValueError, "Mismatch in the number of predictions"),
        ("clip_t", {"references": ["one", "two", None]}, TypeError, r"prompts\[2\] is of type NoneType"),
        (
            "clip_i",
            {"predictions": ["a", "b", "broken"]},
            ValueError,
            r"predictions\[2\] cannot .*broken.png: .*truncat",
        ),
        ("clip_i", {"predictions": ["a", "b", "absent"]}, ValueError, r"predictions\[2\] cannot be read .*absent.png"),
        ("swd", {"references": [["a"], ["b", "text"], ["a"]]}, ValueError, r"references\[1\]\[1\] cannot .*text.png"),
        ("leakage", {"plain": ["a", None, "b"]}, TypeError, r"plain\[1\] is of type NoneType; wanted a PIL"),
        ("leakage", {"masks": ["a", "b", "a"]}, TypeError, r'masks\[0\] is an image of mode "RGB"'),
        ("clip_t", {"frobnicate": 1}, TypeError, "unexpected keyword argument 'frobnicate'"),
        ("swd", {"vqa_frobnicate": 1}, TypeError, "unexpected keyword argument 'frobnicate'"),
        ("swd", {"vqa_processor": None}, ValueError, "vqa_processor is None; wanted vqa_model and vqa_processor"),
        ("swd", {"vqa_device": "cpu"}, ValueError, "vqa_device is 'cpu' beside a loaded model"),
        ("vqa_diversity", {"vqa_batch_size": 0}, ValueError, "batch_size is 0"),
    ],
)
def test_what_is_refused(load, columns, objects, noise, tmp_path, name, change, error, message):
    files = {key: tmp_path / f"{key}.png" for key in ("a", "b", "broken", "absent", "text")}
    noise(1).save(files["a"])
    noise(2).save(files["b"])
    files["broken"].write_bytes(files["a"].read_bytes()[:900])
    files["text"].write_text("no image")

    def put(value):
        return [put(one) for one in value] if isinstance(value, list) else value and str(files[value])

    if name != "clip_t":
        change = {key: put(value) if isinstance(value, list) else value for key, value in change.items()}
    with pytest.raises(error, match=message):
        load(module(name)).compute(**{**columns(name), **objects(name), **change})


def test_default_models_are_pinned_and_others_are_not(monkeypatch, clip_folder, instructblip_folder):
    asked = []

    def from_pretrained(cls, folder):
        real = cls.from_pretrained

        def load(name, revision=None, **options):
            if isinstance(name, Path):  # what the real one asks in its turn
                return real(name, **options)
            asked.append((name, revision, options.get("use_safetensors")))
            return real(folder)

        monkeypatch.setattr(cls, "from_pretrained", load)

    from_pretrained(modules.CLIPModel, clip_folder)
    from_pretrained(modules.CLIPProcessor, clip_folder)
    from_pretrained(modules.AutoConfig, instructblip_folder)
    from_pretrained(modules.transformers.InstructBlipForConditionalGeneration, instructblip_folder)
    from_pretrained(modules.transformers.AutoProcessor, instructblip_folder)

    def revisions(load, *arguments, **options):
        asked.clear()
        load(*arguments, **options, device="cpu")
        (name,), (revision,) = {one[0] for one in asked}, {one[1] for one in asked}
        assert [one[2] for one in asked].count(True) == 1
        return name, revision

    base, pinned = revisions(modules.load_clip)
    assert base == "openai/clip-vit-base-patch32" and len(pinned) == 40
    large = revisions(modules.load_clip, "openai/clip-vit-large-patch14")[1]
    vqa, vqa_pinned = revisions(modules.load_vqa)
    assert vqa == "Salesforce/instructblip-vicuna-7b" and len({pinned, large, vqa_pinned}) == 3
    assert revisions(modules.load_clip, "someone/clip") == ("someone/clip", "main")
    assert revisions(modules.load_clip, revision="v1") == (base, "v1")
    assert revisions(modules.load_vqa, "someone/vqa", "v2") == ("someone/vqa", "v2")


def test_blip_answers_too_and_other_models_are_refused(load, columns, clip_folder, blip_folder):
    metric, rows = load(module("vqa_diversity")), columns("vqa_diversity")
    models = {"model_name_or_path": str(clip_folder), "max_new_tokens": 4}
    result = metric.compute(**rows, **models, vqa_model_name_or_path=str(blip_folder))
    assert result["vqa_diversity"] > 1e-3
    with pytest.raises(ValueError, match="a checkpoint of CLIPModel; wanted one of InstructBlipForConditionalGen"):
        metric.compute(**rows, **models, vqa_model_name_or_path=str(clip_folder))


@pytest.mark.parametrize("name", MODULES)
def test_cards_and_requirements(name):
    card = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    _, front, text = card.split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["sdk"] == "gradio" and (FOLDER / name / front["app_file"]).is_file()
    assert {"evaluate", "metric"} <= set(front["tags"]) and front["title"] and front["description"]
    for part in ("$$", "Range" if name != "leakage" else "At most 1", "## How to use", "## Limits", "@article{"):
        assert part in text
    assert f'evaluate.load("{name}")' in text and "paper" in text
    assert "retribooru" in (FOLDER / name / "requirements.txt").read_text(encoding="utf-8")
    config = ConfigParser()
    config.read(FOLDER.parent / "setup.cfg")
    if config.sections():  # installed elsewhere there is none
        assert f"retribooru.metrics.{name}" in config["options"]["packages"].split()
        assert "*.md" in config["options.package_data"][f"retribooru.metrics.{name}"]


@pytest.fixture
def app(load, monkeypatch, loaded):
    """Function: the app of a metric, with the small models in the place of the default ones."""
    pytest.importorskip("gradio")

    def app(name):
        spec = importlib.util.spec_from_file_location(f"app_of_{name}", FOLDER / name / "app.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(module, "clip", lambda: loaded[0])
        monkeypatch.setattr(module, "vqa", lambda: {**loaded[1], "max_new_tokens": 4}, raising=False)
        return module.app

    return app


def test_apps(app, noise):
    import gradio

    pictures = [(noise(seed), None) for seed in range(3)]
    assert app("clip_i").fn(pictures, pictures[:1])["clip_i_per_image"][0] == pytest.approx(1, abs=1e-5)
    assert len(app("clip_t").fn(pictures, "a red hat")["clip_t_per_image"]) == 3
    questions = "\n".join(QUESTIONS)
    assert list(app("vqa_diversity").fn(pictures, questions)["vqa_diversity_per_question"]) == QUESTIONS
    assert "swd" in app("swd").fn(pictures, pictures, questions, 0.2)
    figure = mask((2, 2, 20, 20))
    leak = app("leakage")
    assert leak.fn(noise(0), figure, noise(1), figure, noise(0), figure)["leakage"] == pytest.approx(1, abs=1e-4)
    with pytest.raises(gradio.Error, match=r"plain\[0\] is of type NoneType"):
        leak.fn(noise(0), figure, None, figure, noise(0), figure)
    with pytest.raises(gradio.Error, match=r"predictions\[0\] has 1 item"):
        app("vqa_diversity").fn(pictures[:1], questions)
    assert "# Metric card: Leakage" in leak.article and "sdk:" not in leak.article


def test_modules_load_from_a_hub(hub, tmp_path):
    for name in MODULES:
        hub.commit(
            f"someone/{name}", FOLDER / name, repo_type="space", ignore_patterns=["__pycache__/*", "__init__.py"]
        )
    code = """
import sys, evaluate
print(*(evaluate.load("someone/" + name, revision="main", module_type="metric").name for name in sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, *MODULES]
    environment = hub.client(tmp_path / "home")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(MODULES)
