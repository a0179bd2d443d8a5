"""`retribooru generate`: pictures, the grid, what they say of themselves, and what is refused."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file
from typer.testing import CliRunner

from handmade import draw
from retribooru import RetriBooruPipeline, RetrievedFeatures
from retribooru import generate as module
from retribooru.cli import app
from retribooru.generate import Settings, cut_off, generate
from retribooru.generate_files import read_settings, save_new
from retribooru.generate_grid import cell_size, draw_grid
from retribooru.generate_references import read_reference

PROMPTS = ["1girl, solo", "standing"]
SHORT = {"steps": 3, "guidance_scale": 5.0}


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def save_checkpoint(stable_diffusion_dir: Path, folder: Path, seed: int | None) -> Path:
    """A tiny pipeline: as after training, or fresh where the seed is None."""
    torch.manual_seed(0)
    pipeline = RetriBooruPipeline.from_stable_diffusion(str(stable_diffusion_dir))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for layer in pipeline.unet.retrieval_layers:
            torch.nn.init.normal_(layer.zero_conv.weight, generator=generator)
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(stable_diffusion_dir, tmp_path_factory) -> Path:
    return save_checkpoint(stable_diffusion_dir, tmp_path_factory.mktemp("checkpoints") / "trained", seed=1)


@pytest.fixture(scope="module")
def other_checkpoint(stable_diffusion_dir, tmp_path_factory) -> Path:
    return save_checkpoint(stable_diffusion_dir, tmp_path_factory.mktemp("checkpoints") / "other", seed=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A red face with a mask of its own, a blue body with a mask in a folder, something else of another size."""
    folder = tmp_path_factory.mktemp("references")
    (folder / "masks").mkdir()
    face, mask = draw("red")
    face.putalpha(mask)
    face.save(folder / "face.png")
    body, mask = draw("blue")
    body.save(folder / "body.jpg", quality=95)
    mask.save(folder / "masks" / "body.png")
    Image.new("RGB", (30, 20), "green").save(folder / "other.png")
    return {"face": folder / "face.png", "body": folder / "body.jpg", "other": folder / "other.png",
            "masks": folder / "masks"}  # fmt: skip


@pytest.fixture
def references(files) -> list[tuple[str, Path]]:
    return [("face", files["face"]), ("body", files["body"])]


def test_pictures_and_grid_and_nothing_is_overwritten(checkpoint, references, tmp_path):
    call = {"references": references, "images_per_prompt": 2, **SHORT}
    first = generate(PROMPTS, str(checkpoint), tmp_path, **call)
    names = ["00001-seed0.png", "00002-seed1.png", "00003-seed0.png", "00004-seed1.png", "grid.png"]
    assert [file.name for file in first] == names
    before = {file: file.read_bytes() for file in first}
    assert len({pixels(file) for file in first}) == 5
    second = generate(PROMPTS[:1], str(checkpoint), tmp_path, **call)
    assert [file.name for file in second] == ["00005-seed0.png", "00006-seed1.png", "grid-2.png"]
    assert all(file.read_bytes() == data for file, data in before.items())
    assert sorted(tmp_path.iterdir()) == sorted([*first, *second])
    assert [pixels(file) for file in second[:2]] == [pixels(file) for file in first[:2]]


@pytest.mark.parametrize("scheduler", [None, "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler"])
def test_any_picture_of_many_is_the_one_drawn_alone(checkpoint, references, tmp_path, scheduler):
    call = {"references": references, "scheduler": scheduler, **SHORT}
    many = generate(PROMPTS, str(checkpoint), tmp_path / "many", images_per_prompt=3, seed=5, **call)
    for prompt, seed, file in [(PROMPTS[0], 7, many[2]), (PROMPTS[1], 6, many[4])]:
        alone = generate([prompt], str(checkpoint), tmp_path / f"alone-{seed}", seed=seed, **call)
        assert pixels(alone[0]) == pixels(file)
    assert len({pixels(file) for file in many}) == 7


def test_settings_in_the_picture_draw_it_with_the_pipeline(checkpoint, references, tmp_path):
    settings = {"negative_prompt": "solo", "reference_guidance_scale": 2.0, "retrieval_scale": [1.0, 0.5],
                "height": 40, "width": 24, **SHORT}  # fmt: skip
    file = generate(PROMPTS[:1], str(checkpoint), tmp_path, references=references, seed=3, **settings)[0]
    said = read_settings(file)
    assert {name: said[name] for name in settings} == settings
    assert said["prompt"] == PROMPTS[0] and said["seed"] == 3 and said["checkpoint"] == "trained"
    assert said["scheduler"] == "DDIMScheduler" and said["dtype"] == "float32" and len(said["model"]) == 16
    assert [(entry["concept"], entry["file"]) for entry in said["references"]] == [
        ("face", "face.png"), ("body", "body.jpg")
    ]  # fmt: skip
    assert str(tmp_path.parent) not in json.dumps(said)  # no folder of the user's

    face, body = (read_reference(*reference) for reference in references)
    drawn = RetriBooruPipeline.from_pretrained(checkpoint)(
        said["prompt"], [face.image, body.image], ["face", "body"], [face.mask, body.mask],
        retrieval_scale=said["retrieval_scale"], height=said["height"], width=said["width"],
        num_inference_steps=said["steps"], guidance_scale=said["guidance_scale"],
        reference_guidance_scale=said["reference_guidance_scale"], negative_prompt=said["negative_prompt"],
        generator=torch.Generator().manual_seed(said["seed"]),
    ).images[0]  # fmt: skip
    difference = torch.tensor(list(drawn.tobytes())) - torch.tensor(list(pixels(file)))
    assert difference.abs().max() <= 1  # references in another order round differently


def test_parameters_as_other_tools_read_them(checkpoint, references, tmp_path):
    prompt = "1girl, été, 少女"
    call = {"references": references, "negative_prompt": "blurry", **SHORT}
    file, grid = generate([prompt], str(checkpoint), tmp_path, **call)
    with Image.open(file) as image:
        lines = image.info["parameters"].split("\n")
    assert lines[:2] == [prompt, "Negative prompt: blurry"]
    assert lines[2].startswith("Steps: 3, Sampler: DDIM, CFG scale: 5.0, Seed: 0, Size: 32x32, Model: trained, ")
    assert 'References: "face face.png, body body.jpg"' in lines[2]
    assert read_settings(grid) == {**read_settings(file), "prompt": [prompt], "seed": [0]}


def test_the_same_picture_again(checkpoint, other_checkpoint, files, references, tmp_path, capsys):
    call = {"references": references, "masks": files["masks"]}
    settings = {"scheduler": "EulerAncestralDiscreteScheduler", "retrieval_scale": [0.5, 1.0], **SHORT}
    drawn = generate(PROMPTS, str(checkpoint), tmp_path, images_per_prompt=2, **call, **settings)
    turned = {**call, "references": references[::-1]}
    again = generate([], str(checkpoint), tmp_path, again=drawn[3], **turned)
    assert "expect small differences" not in capsys.readouterr().out
    assert [file.name for file in again] == ["00005-seed1.png", "grid-2.png"]
    assert pixels(again[0]) == pixels(drawn[3]) and read_settings(again[0])["prompt"] == PROMPTS[1]

    def refused(message, checkpoint=checkpoint, picture=drawn[3], prompts=(), **options):
        with pytest.raises(ValueError, match=message):
            generate(list(prompts), str(checkpoint), tmp_path, again=picture, **{**call, **options})

    refused("references: got face face.png, wanted the files, unchanged, that .* body body.jpg",
            references=references[:1])  # fmt: skip
    refused("references: got face face.png, body body.jpg, wanted the files, unchanged", masks=None)
    refused("checkpoint: got .*other, wanted trained, which .* was drawn with", checkpoint=other_checkpoint)
    refused("again: got .* and prompts, steps, wanted the picture's own settings alone", prompts=["a"], steps=4)
    refused("again: got .*grid.png, a grid, wanted one of its pictures", picture=drawn[-1])
    assert len(list(tmp_path.iterdir())) == 7

    elsewhere = save_new(
        Image.new("RGB", (8, 8)), iter([tmp_path / "a.png"]), {**read_settings(drawn[3]), "device": "cuda"}
    )
    generate([], str(checkpoint), tmp_path, again=elsewhere, **call)
    assert "drawn on another kind of device or with other versions" in capsys.readouterr().out


def test_a_saved_character_is_its_references(checkpoint, references, tmp_path):
    hero, face, body = (tmp_path / f"{name}.safetensors" for name in ("hero", "face", "body"))
    expected = generate(
        PROMPTS[:1], str(checkpoint), tmp_path / "a", references=references, save_character=hero, **SHORT
    )
    from_file = generate(PROMPTS[:1], str(checkpoint), tmp_path / "b", characters=[hero], **SHORT)
    assert pixels(from_file[0]) == pixels(expected[0])
    for reference, file in zip(references, (face, body)):
        assert generate([], str(checkpoint), references=[reference], save_character=file) == []

    turned = tmp_path / "turned.safetensors"
    generate([], str(checkpoint), references=references[::-1], save_character=turned)
    assert turned.read_bytes() == hero.read_bytes()  # not even rounded differently

    # Joined: a face and clothes saved apart, and clothes saved beside a face that is not.
    for i, sources in enumerate([{"characters": [face, body]}, {"characters": [body], "references": references[:1]}]):
        both = tmp_path / f"both-{i}.safetensors"
        generate([], str(checkpoint), save_character=both, **sources)
        for found, wanted in zip(RetrievedFeatures.load(both).tokens, RetrievedFeatures.load(hero).tokens):
            assert found.shape == wanted.shape
            torch.testing.assert_close(found.sum(dim=1), wanted.sum(dim=1))  # in whatever order
        joined = generate(PROMPTS[:1], str(checkpoint), tmp_path / f"joined-{i}", **sources, **SHORT)
        difference = torch.tensor(list(pixels(joined[0]))) - torch.tensor(list(pixels(expected[0])))
        assert difference.abs().max() <= 1
    assert [entry["file"] for entry in read_settings(joined[0])["characters"]] == ["body.safetensors"]


def test_without_references_it_is_stable_diffusion_and_says_so(checkpoint, stable_diffusion_dir, tmp_path, capsys):
    file = generate(PROMPTS[:1], str(checkpoint), tmp_path, **SHORT)[0]
    assert "No references: this is plain Stable Diffusion." in capsys.readouterr().out
    stable_diffusion = StableDiffusionPipeline.from_pretrained(stable_diffusion_dir)
    plain = stable_diffusion(
        PROMPTS[0], num_inference_steps=3, guidance_scale=5.0, generator=torch.Generator().manual_seed(0)
    ).images[0]
    assert pixels(file) == plain.tobytes()


def test_an_untrained_checkpoint_says_so(stable_diffusion_dir, references, tmp_path, capsys):
    fresh = save_checkpoint(stable_diffusion_dir, tmp_path / "fresh", seed=None)
    generate(PROMPTS[:1], str(fresh), tmp_path / "out", references=references, **SHORT)
    assert "This checkpoint's retrieval is untrained: it ignores references." in capsys.readouterr().out


def test_what_is_cut_off_is_said_once(checkpoint, tmp_path, capsys):
    prompt, warned = "1girl, solo, standing, 1girl, solo, standing, sitting", []
    handler = logging.Handler()
    handler.emit = lambda record: warned.append(record.getMessage())
    diffusers.utils.logging.add_handler(handler)
    try:
        generate([prompt], str(checkpoint), tmp_path, images_per_prompt=2, **SHORT)
    finally:
        diffusers.utils.logging.remove_handler(handler)
    out = capsys.readouterr().out
    lost = cut_off(RetriBooruPipeline.from_pretrained(checkpoint).tokenizer, prompt)
    assert lost.endswith("sitting") and not lost.startswith("1girl")
    assert out.count(f"Too long for this model, which does not see the end of {prompt[:40]!r}"[:-1]) == 1
    assert repr(lost) in out and not [text for text in warned if "truncated" in text]


def test_a_run_that_is_stopped_leaves_whole_files(checkpoint, tmp_path, monkeypatch):
    def stop(pipeline, prompt, settings, features, draw=module.draw):
        if settings.seed == 1:
            raise KeyboardInterrupt
        return draw(pipeline, prompt, settings, features)

    monkeypatch.setattr(module, "draw", stop)
    with pytest.raises(KeyboardInterrupt):
        generate(PROMPTS[:1], str(checkpoint), tmp_path, images_per_prompt=2, **SHORT)
    assert [file.name for file in tmp_path.iterdir()] == ["00001-seed0.png"]
    assert read_settings(tmp_path / "00001-seed0.png")["seed"] == 0


def test_a_name_that_is_taken_is_left_alone(checkpoint, tmp_path):
    described = read_settings(generate(PROMPTS[:1], str(checkpoint), tmp_path / "out", **SHORT)[0])
    taken, free = tmp_path / "taken.png", tmp_path / "free.png"
    taken.write_text("mine")
    assert save_new(Image.new("RGB", (8, 8)), iter([taken, free]), described) == free
    assert taken.read_text() == "mine" and read_settings(free) == described
    assert sorted(file.name for file in tmp_path.iterdir()) == ["free.png", "out", "taken.png"]


def test_where_a_mask_comes_from(tmp_path):
    image, mask = draw("red")
    (tmp_path / "masks").mkdir()
    rgba = image.copy()
    rgba.putalpha(mask)
    rgba.save(tmp_path / "rgba.png")
    grey = image.convert("L")
    grey.putalpha(mask)
    grey.save(tmp_path / "grey.png")
    palette = Image.new("P", image.size, 0)
    palette.putpalette([0, 255, 0, 255, 0, 0])
    palette.paste(1, mask=mask)
    palette.save(tmp_path / "palette.png", transparency=0)
    for name in ("rgba", "grey", "palette"):
        found = read_reference("face", tmp_path / f"{name}.png")
        assert found.mask.tobytes() == mask.tobytes() and found.image.mode == "RGB"
    image.convert("RGBA").save(tmp_path / "opaque.png")
    assert read_reference("face", tmp_path / "opaque.png").mask is None

    half = Image.new("L", image.size, 0)
    half.paste(255, (0, 0, 20, 60))
    half.save(tmp_path / "masks" / "rgba.png")
    assert read_reference("face", tmp_path / "rgba.png", tmp_path / "masks").mask.tobytes() == half.tobytes()
    assert read_reference("face", tmp_path / "grey.png", tmp_path / "masks").mask.tobytes() == mask.tobytes()


def test_pictures_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image, mask = draw("red")
    lying = image.convert("RGBA")
    lying.putalpha(mask)
    lying = lying.transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "lying.png", exif=exif)
    found = read_reference("face", tmp_path / "lying.png")
    assert found.image.size == image.size and found.mask.tobytes() == mask.tobytes()


def test_grid_places():
    colors = ["red", "green", "blue", "yellow", "orange", "purple"]
    cells = [Image.new("RGB", (256, 128), color) for color in colors]
    grid = draw_grid([], [], ["a " * 400, "b"], [7, 8, 9], cells, "x " * 400)
    assert grid.width == 24 * 2 + 3 * 256 + 2 * 10
    found = [grid.getpixel((24 + column * 266 + 128, y)) for y in (130, 330) for column in range(3)]
    assert found == [cell.getpixel((0, 0)) for cell in cells]
    assert len({grid.getpixel((x, y)) for x in range(24) for y in range(grid.height)}) == 1  # nothing in the margins


def test_grid_shows_references_without_their_background(references, tmp_path):
    read = [read_reference(*reference) for reference in references]
    cells = [Image.new("RGB", (512, 512), "green")]
    without, with_references, with_character = (
        draw_grid(given, characters, ["a"], [0], cells, "")
        for given, characters in (([], []), (read, []), (read, [tmp_path / "hero.safetensors"]))
    )
    assert with_references.height == with_character.height > without.height
    colors = {color for _, color in with_references.crop((24, 60, 24 + 120, 60 + 100)).getcolors(1 << 16)}
    assert (255, 0, 0) in colors and (255, 255, 255) in colors and (128, 128, 128) not in colors
    assert with_character.tobytes() != with_references.tobytes()


def test_grid_of_many_is_not_too_large():
    assert cell_size(512, 512, 4, 3) == (512, 512)
    assert cell_size(32, 32, 4, 3) == (256, 256)
    assert cell_size(1024, 512, 2, 2) == (512, 256)
    assert cell_size(512, 512, 16, 1) == (256, 256)
    assert cell_size(512, 512, 1, 1000) == (128, 128)


WRONG = {
    "no prompt": ({"prompts": []}, r"prompts: got none, wanted at least one \(or save_character\)"),
    "a blank prompt": ({"prompts": [" "]}, "prompts: got ' ', wanted some text"),
    "no Unicode": ({"prompts": ["a\udcff"]}, "prompts: got .*, which is no Unicode, wanted UTF-8"),
    "scale NaN": ({"guidance_scale": float("nan")}, "guidance_scale: got nan, wanted a finite number of at least 0"),
    "negative": ({"retrieval_scale": [1.0, -1.0]}, "retrieval_scale: got -1.0, wanted a finite number of at least 0"),
    "infinite": ({"reference_guidance_scale": float("inf")}, "reference_guidance_scale: got inf, wanted a finite"),
    "no steps": ({"steps": 0}, "steps: got 0, wanted a whole number from 1 to 1000"),
    "height 0": ({"height": 0}, "height: got 0, wanted a whole number from 8 to 8192"),
    "width 33": ({"width": 33}, "width: got 33, wanted a multiple of 8"),
    "a seed too many": ({"seed": 2**63 - 1, "images_per_prompt": 2}, "seed: got 9223372036854775808, wanted a whole"),
    "no pictures": ({"images_per_prompt": 0}, "images_per_prompt: got 0, wanted a whole number from 1 to 10000"),
    "scheduler": ({"scheduler": "Euler"}, "scheduler: got 'Euler', wanted one of DDIMScheduler, "),
    "dtype": ({"dtype": "int8"}, "dtype: got 'int8', wanted one of float32, float16, bfloat16"),
    "device": ({"device": "abacus"}, "device: got 'abacus', which is not to be had: "),
    "no such file": ({"references": [("face", "none.png")]}, "face: got none.png, wanted an image file"),
    "text": ({"references": [("face", "text.png")]}, "face: text.png cannot be read: it is of no known format, wanted"),
    "cut short": ({"references": [("face", "short.png")]}, "face: short.png cannot be read: "),
    "too large": ({"references": [("face", "bomb.png")]}, "face: bomb.png has 9000 x 9000 pixels, wanted at most"),
    "transparent": ({"references": [("body", "clear.png")]}, "body: got clear.png with a mask that keeps nothing"),
    "no mask": (
        {"references": [("face", "ok.png")], "masks": "empty"},
        "masks: got empty, wanted ok.png in it for ok.png, which has no transparency",
    ),
    "mask of another size": (
        {"references": [("face", "ok.png")], "masks": "masks"},
        r"masks: got masks/ok.png of size \(9, 9\), wanted \(40, 60\) as ok.png",
    ),
    "no folder of masks": (
        {"references": [("face", "ok.png")], "masks": "ok.png"},
        "masks: got ok.png, wanted a folder",
    ),
    "masks alone": ({"masks": "masks"}, "masks: got masks without references, wanted references too"),
    "no character": ({"characters": ["none"]}, "character: got none, wanted a file that RetrievedFeatures.save wrote"),
    "no features": ({"characters": ["ok.png"]}, "character: got ok.png, which is no safetensors file"),
    "two characters": ({"characters": ["two.safetensors"]}, "character: got two.safetensors with 2 characters"),
    "nothing to save": ({"save_character": "new"}, "save_character: got new without references or a character"),
    "character there": (
        {"references": [("face", "ok.png")], "save_character": "text.png"},
        "save_character: got text.png, which is there already, wanted a new file",
    ),
    "out is a file": ({"out": "ok.png"}, "out: got ok.png, which cannot be made a folder: "),
    "no picture": ({"prompts": [], "again": "none.png"}, "again: got none.png, wanted a picture that"),
}


@pytest.fixture(scope="module")
def wrong_files(tmp_path_factory) -> Path:
    """The files that WRONG names."""
    folder = tmp_path_factory.mktemp("wrong")
    for name in ("masks", "empty"):
        (folder / name).mkdir()
    draw("red")[0].save(folder / "ok.png")
    Image.new("L", (9, 9), 255).save(folder / "masks" / "ok.png")
    Image.new("RGBA", (9, 9)).save(folder / "clear.png")
    (folder / "text.png").write_text("hello")
    (folder / "short.png").write_bytes((folder / "ok.png").read_bytes()[:-60])
    Image.new("1", (9000, 9000)).save(folder / "bomb.png")
    two = RetrievedFeatures(
        (torch.zeros(2, 3, 4),), (torch.ones(2, 3, dtype=torch.bool),), (torch.ones(2, 3),), torch.zeros(1)
    )
    two.save(folder / "two.safetensors")
    return folder


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG)
def test_refused_before_the_model_is_loaded(wrong_files, monkeypatch, change, message):
    def loaded(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(module, "load_pipeline", loaded)
    monkeypatch.chdir(wrong_files)
    before = sorted(wrong_files.rglob("*"))
    with pytest.raises(ValueError, match=f"^{message}"):
        generate(**{"prompts": ["1girl"], "checkpoint": "some/model", "out": ".", **change})
    assert sorted(wrong_files.rglob("*")) == before


def test_checkpoints_that_do_not_serve(checkpoint, other_checkpoint, stable_diffusion_dir, references, tmp_path):
    def refused(message, checkpoint, **options):
        with pytest.raises(ValueError, match=message):
            generate(PROMPTS, str(checkpoint), tmp_path / "out", **options, **SHORT)

    refused("checkpoint: .* it is a StableDiffusionPipeline, wanted one of RetriBooruPipeline, .*ignores references",
            stable_diffusion_dir)  # fmt: skip
    refused("checkpoint: got .*, which cannot be loaded: .*no file named model_index.json", tmp_path)
    refused("^retrieval_scale: got 3 values, wanted one, or one for each of 2 levels", checkpoint,
            retrieval_scale=[1.0, 1.0, 1.0])  # fmt: skip
    hero = tmp_path / "hero.safetensors"
    generate([], str(other_checkpoint), references=references, save_character=hero)
    refused("character: got .*hero.safetensors; reference_features: their fingerprint is not", checkpoint,
            characters=[hero])  # fmt: skip

    refused("^steps: got 3, which PNDMScheduler does not take", checkpoint, scheduler="PNDMScheduler")


def test_pickled_weights_are_not_read(checkpoint, tmp_path):
    pickled = shutil.copytree(checkpoint, tmp_path / "pickled")
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match="checkpoint: got .*pickled, which cannot be loaded: .*safetensors"):
        generate(PROMPTS, str(pickled), tmp_path / "out")


@pytest.mark.parametrize("text", ["[1", "[" * 5000, "[]", "{}", '{"prompt": "a"}'])
def test_pictures_with_other_settings(tmp_path, text):
    info = PngInfo()
    info.add_itxt("retribooru", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(ValueError, match="path: got .*a.png, (which cannot be read|whose settings are not those)"):
        read_settings(tmp_path / "a.png")


def test_pictures_with_settings_that_were_tampered_with(checkpoint, tmp_path):
    said = read_settings(generate(PROMPTS[:1], str(checkpoint), tmp_path, **SHORT)[0])
    for change in ({"steps": "3"}, {"retrieval_scale": None}, {"scheduler": ["x"]}, {"seed": True}, {"prompt": ""}):
        info = PngInfo()
        info.add_itxt("retribooru", json.dumps({**said, **change}))
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
        with pytest.raises(ValueError, match=f"{next(iter(change))}s?: got "):
            generate([], str(checkpoint), tmp_path / "out", again=tmp_path / "a.png")


def invoke(*args):
    return CliRunner().invoke(app, ["generate", *map(str, args)])


def test_command(checkpoint, files, tmp_path):
    (tmp_path / "prompts.txt").write_text("standing\n\n1girl\n")
    options = ["--steps", 2, "--guidance-scale", 4, "--retrieval-scale", "1,0.5", "--seed", 9, "--negative-prompt",
               "solo", "--reference-guidance-scale", 1]  # fmt: skip
    done = invoke(
        "1girl, solo", "--checkpoint", checkpoint, "--face", files["face"], "--face", files["other"], "--body",
        files["body"], "--out", tmp_path / "out", "--prompts-file", tmp_path / "prompts.txt", "--save-character",
        tmp_path / "hero.safetensors", *options,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    drawn = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in drawn] == [*(f"0000{i}-seed9.png" for i in (1, 2, 3)), "grid.png"]
    assert all(str(file) in done.output for file in drawn)
    said = [read_settings(file) for file in drawn]
    prompts = ["1girl, solo", "standing", "1girl"]
    assert [one["prompt"] for one in said] == [*prompts, prompts]
    assert said[0]["steps"] == 2 and said[0]["retrieval_scale"] == [1.0, 0.5] and said[0]["negative_prompt"] == "solo"
    assert said[0]["guidance_scale"] == 4.0 and said[0]["reference_guidance_scale"] == 1.0
    assert [entry["concept"] for entry in said[0]["references"]] == ["face", "face", "body"]

    done = invoke("1girl, solo", "--checkpoint", checkpoint, "--character", tmp_path / "hero.safetensors", "--out",
                  tmp_path / "out", *options)  # fmt: skip
    assert done.exit_code == 0 and pixels(tmp_path / "out" / "00004-seed9.png") == pixels(drawn[0])
    done = invoke("--checkpoint", checkpoint, "--character", tmp_path / "hero.safetensors", "--out", tmp_path / "out",
                  "--again", tmp_path / "out" / "00004-seed9.png")  # fmt: skip
    assert done.exit_code == 0 and pixels(tmp_path / "out" / "00005-seed9.png") == pixels(drawn[0])


@pytest.mark.parametrize("args, message", [
    (["a"], "checkpoint: got none, wanted a folder or a Hub id of a RetriBooru pipeline"),
    (["a", "--checkpoint", "b", "--retrieval-scale", "1,x"],
     "retrieval_scale: got '1,x', wanted a number, or several with commas between"),
    (["--checkpoint", "b", "--prompts-file", "ok.png"], "prompts_file: got ok.png, which cannot be read: "),
    (["--checkpoint", "b", "--prompts-file", "none"], "prompts_file: got none, which cannot be read: "),
    (["a", "--checkpoint", "b", "--face", "none.png"], "face: got none.png, wanted an image file"),
])  # fmt: skip
def test_command_says_in_one_line_what_is_wrong(wrong_files, monkeypatch, args, message):
    monkeypatch.chdir(wrong_files)
    done = invoke(*args)
    assert done.exit_code == 1 and done.output.startswith(f"error: {message}") and done.output.count("\n") == 1


def test_help_tells_the_defaults():
    shown = " ".join(invoke("--help").output.split())
    defaults = Settings()
    assert f"Denoising steps; {defaults.steps} without" in shown
    assert f"Pulls towards the prompt; {defaults.guidance_scale:g} without" in shown
    assert f"first picture; {defaults.seed} without" in shown


def test_help_is_quick():
    """The command line is there without torch."""
    code = "import sys, retribooru.cli; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_real_figures(checkpoint, real_figures, tmp_path):
    ids = [record["id"] for record in json.loads((real_figures / "retribooru.json").read_text())[:3]]
    references = [("figure", real_figures / "images" / f"{image_id}.png") for image_id in ids]
    call = {"references": references, "masks": real_figures / "masks"}
    file, grid = generate(PROMPTS[:1], str(checkpoint), tmp_path, **call, **SHORT)
    assert [entry["file"] for entry in read_settings(file)["references"]] == [f"{image_id}.png" for image_id in ids]
    with Image.open(grid) as image:
        assert image.size[0] > 500
