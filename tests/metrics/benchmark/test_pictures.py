"""Pictures are drawn once, alike for all methods, and say how."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from retribooru import RetriBooruPipeline
from retribooru.metrics.benchmark.families import read_families
from retribooru.metrics.benchmark.methods import load_family
from retribooru.metrics.benchmark.pictures import KEY, draw_pictures, generator, read_picture
from retribooru.metrics.benchmark.plan import Picture, begin, make_plan

CPU = torch.device("cpu")


@pytest.fixture
def plan(arguments, functions, tmp_path):
    """Of a function that notes its calls in calls.jsonl."""
    options = {"function": f"{functions}:draw", "log": str(tmp_path / "calls.jsonl"), "scale": [0.5, 1.0]}
    plan = make_plan(arguments(tmp_path / "out", {"mine": options}))
    begin(plan)
    return plan


def calls(plan):
    return [json.loads(line) for line in (plan.out.parent / "calls.jsonl").read_text().splitlines()]


def test_every_call_is_of_one_prompt_and_seed_and_made_once(plan, files):
    draw_pictures(plan, range(4), CPU)
    made = calls(plan)
    assert len(made) == 4 * 2 * 2 * 2 and all(len(seeds) == 2 for *_, seeds in made)
    assert len({(name, prompt, scale, *seeds) for name, prompt, scale, seeds in made}) == len(made)
    noise = {}
    for name, prompt, scale, seeds in made:
        noise.setdefault(scale, set()).update((name, prompt, seed) for seed in seeds)
    assert noise[0.5] == noise[1.0] and len(noise[1.0]) == 32  # the same for every method
    assert len({seed for _, _, seed in noise[1.0]}) == 32  # and no other picture's
    before = files(plan.out)
    assert sum(name.endswith(".png") for name in before) == 64
    draw_pictures(plan, range(4), CPU)
    assert len(calls(plan)) == len(made) and files(plan.out) == before


def test_what_is_missing_is_drawn_with_its_call_and_the_rest_is_left(plan, files):
    draw_pictures(plan, range(4), CPU)
    before, made = files(plan.out), len(calls(plan))
    lost = [plan.path(plan.methods[1], 2, Picture(2, 1, 0)), plan.path(plan.methods[0], 0, Picture(1, 0, 1))]
    kept = plan.path(plan.methods[1], 2, Picture(2, 1, 1))
    for path in lost:
        path.unlink()
    written = kept.stat().st_mtime_ns
    draw_pictures(plan, range(4), CPU)
    assert files(plan.out) == before and kept.stat().st_mtime_ns == written
    assert len(calls(plan)) == made + 2


def test_shares_make_a_whole(plan, files, tmp_path):
    draw_pictures(plan, [1, 3], CPU)
    drawn = {name.split("/")[2] for name in files(plan.out) if name.endswith(".png")}
    assert drawn == {plan.character_slug(1), plan.character_slug(3)}
    draw_pictures(plan, [0, 2], CPU)
    assert len(calls(plan)) == 32


def test_noise():
    assert torch.equal(
        torch.randn(3, generator=generator(0, "a", 1, 0)), torch.randn(3, generator=generator(0, "a", 1, 0))
    )
    others = [(1, "a", 1, 0), (0, "b", 1, 0), (0, "a", 2, 0), (0, "a", 1, 1), (0, "a", 11, 0)]
    assert len({generator(*key).initial_seed() for key in [(0, "a", 1, 0), *others]}) == 6
    assert generator(0, "a", 1, 0).device == CPU


def test_a_picture_says_how_it_was_drawn(arguments, described, tmp_path):
    plan = make_plan(arguments(tmp_path, {"Ours": described["RetriBooru"]}, in_domain=2, out_of_domain=0))
    begin(plan)
    draw_pictures(plan, [1], CPU)
    with Image.open(plan.path(plan.methods[0], 1, Picture(2, 1, 0))) as picture:
        said = json.loads(picture.info[KEY])
        assert picture.size == (32, 32)
    expected = {
        "method": "Ours 0.5", "kind": "retribooru", "scale": 0.5, "guidance_scale": 2.0, "num_inference_steps": 2,
        "prompt": plan.prompts[1], "prompt_number": 2, "seed": 1, "image": 0, "dtype": "float32", "prompt_cut": False,
        "character": plan.characters[1].name, "references": plan.characters[1].reference_ids,
        "remove_background": True, "negative_prompt": None,
    }  # fmt: skip
    assert {key: said[key] for key in expected} == expected
    assert len(said["weights"]) == 8 and set(said["versions"]) == {"retribooru", "diffusers", "transformers", "torch"}
    assert "/" not in said["checkpoint"]


def test_references_are_encoded_once_for_each_character(arguments, described, tmp_path, monkeypatch):
    encoded, encode = [], RetriBooruPipeline.encode_references

    def counting(self, images, *args, **more):
        encoded.append(images)
        return encode(self, images, *args, **more)

    monkeypatch.setattr(RetriBooruPipeline, "encode_references", counting)
    plan = make_plan(arguments(tmp_path, {"Ours": described["RetriBooru"]}))
    draw_pictures(plan, range(4), CPU)
    assert [id(images) for images in encoded] == [id(one.reference_images) for one in plan.characters]


@pytest.fixture
def conditioned(described, stable_diffusion_dir, controlnet_dir):
    """The three kinds that see references, each at scale 0 and at another, and plain Stable Diffusion."""
    return {
        "plain": described["Stable Diffusion"],
        "retribooru": {"kind": "retribooru", "checkpoint": described["RetriBooru"]["checkpoint"],
                       "retrieval_scale": [0.0, 1.0]},
        "ip-adapter": {**described["IP-Adapter"], "scale": [0.0, 1.0]},
        "controlnet": {"kind": "controlnet", "checkpoint": str(stable_diffusion_dir), "controlnet": str(controlnet_dir),
                       "scale": [0.0, 1.0]},
    }  # fmt: skip


def test_every_kind_draws_the_base_where_its_references_do_not_count(arguments, conditioned, tmp_path):
    """The same noise, prompt, steps and guidance: only what is seen of the references makes a difference."""
    plan = make_plan(arguments(tmp_path, conditioned))
    draw_pictures(plan, [0], CPU)
    key = Picture(1, 0, 1)
    drawn = {method.name: np.asarray(read_picture(plan, method, 0, key)[0], dtype=float) for method in plan.methods}
    plain = drawn.pop("plain")
    assert len(drawn) == 6 and plain.std() > 1
    for name, picture in drawn.items():
        assert (np.abs(picture - plain).max() <= 1) == name.endswith(" 0"), name


def test_every_reference_counts_for_an_ip_adapter_and_the_first_for_a_controlnet(arguments, conditioned, tmp_path):
    plan = make_plan(arguments(tmp_path, conditioned))
    families = {family.name: load_family(family, CPU) for family in read_families(plan.args) if family.name != "plain"}
    character, noise = plan.characters[0], ("a", 1, 0)
    for name, counting in {"retribooru": [0, 3], "ip-adapter": [0, 3], "controlnet": [0]}.items():
        before = np.asarray(families[name](character, "a girl", [generator(0, *noise)], 1.0)[0])
        for position in (0, 3):
            images, masks = list(character.reference_images), list(character.reference_masks)
            images[position], masks[position] = Image.new("RGB", (64, 40), "red"), Image.new("L", (64, 40), 255)
            other = type(character)(f"{name} {position}", "in_domain", [], images, masks, character.reference_concepts)
            after = np.asarray(families[name](other, "a girl", [generator(0, *noise)], 1.0)[0])
            assert (before != after).any() == (position in counting), (name, position)


def test_backgrounds_of_references_can_be_taken_away(arguments, conditioned, tmp_path):
    kinds = {f"{name} {removed}": {**conditioned[name], "remove_background": removed}
             for name in ("retribooru", "ip-adapter") for removed in (True, False)}  # fmt: skip
    plan = make_plan(arguments(tmp_path, kinds))
    character = plan.characters[0]
    painted = [Image.composite(image, Image.new("RGB", image.size, "red"), mask)
               for image, mask in zip(character.reference_images, character.reference_masks)]  # fmt: skip
    other = type(character)("other", "in_domain", [], painted, character.reference_masks, character.reference_concepts)
    for family in plan.families:
        draw = load_family(family, CPU)
        first, second = (
            np.asarray(draw(one, "a girl", [generator(0, "a", 1, 0)], 1.0)[0]) for one in (character, other)
        )
        assert (first == second).all() == family.name.endswith("True"), family.name


def test_prompts_that_are_too_long_are_known(arguments, described, tmp_path):
    (tmp_path / "long.txt").write_text("1girl\n" + ", ".join(["standing"] * 30) + "\n")
    plan = make_plan(
        arguments(tmp_path / "out", {"plain": described["Stable Diffusion"]}, prompts=str(tmp_path / "long.txt"))
    )
    draw_pictures(plan, [0], CPU)
    said = [read_picture(plan, plan.methods[0], 0, Picture(number, 0, 0))[1]["prompt_cut"] for number in (1, 2)]
    assert said == [False, True]  # the tiny tokenizer reads 16 tokens


WRONG_FUNCTIONS = {"too_few": "1 items", "no_images": "a NoneType among them", "no_list": "a Image"}


@pytest.mark.parametrize("function, got", WRONG_FUNCTIONS.items(), ids=WRONG_FUNCTIONS)
def test_functions_that_return_something_else(arguments, functions, tmp_path, function, got):
    plan = make_plan(arguments(tmp_path, {"mine": {"function": f"{functions}:{function}"}}))
    with pytest.raises(ValueError, match=f"methods: mine: got {got} from its function, wanted a list of 2 PIL images"):
        draw_pictures(plan, [0], CPU)
    assert not list(tmp_path.rglob("*.png"))


def test_other_settings_are_refused_by_name(arguments, described, tmp_path, files):
    begin(make_plan(arguments(tmp_path)))
    before = files(tmp_path)
    others = {
        "seeds was 2 and is 3": {"seeds": 3},
        "images_per_prompt was 2 and is 1; *": {"images_per_prompt": 1},
        "characters was .* and is": {"in_domain": 1},
        "task was \"reconstruct\" and is \"face\"": {"task": "face"},
        "prompts was .* and is": {"prompts": "mini"},
        "num_inference_steps was 2 and is 3": {"num_inference_steps": 3},
    }  # fmt: skip
    for message, more in others.items():
        with pytest.raises(
            ValueError, match=f"got other settings than those of the pictures in .*: .*{message.rstrip('; *')}"
        ):
            begin(make_plan(arguments(tmp_path, **more)))
    changed = {**described, "IP-Adapter": {**described["IP-Adapter"], "remove_background": True}}
    with pytest.raises(
        ValueError, match="methods: IP-Adapter 0.3: got other .*: remove_background was false and is true"
    ):
        begin(make_plan(arguments(tmp_path, changed)))
    assert files(tmp_path) == before


def test_other_pixels_of_the_same_references_are_refused(arguments, tmp_path):
    plan = make_plan(arguments(tmp_path))
    begin(plan)
    plan.characters[3].reference_images[0].putpixel((0, 0), (1, 2, 3))
    with pytest.raises(ValueError, match="output_dir: got other settings than .*: characters was"):
        begin(plan)


def test_methods_come_and_go(arguments, described, functions, tmp_path):
    begin(make_plan(arguments(tmp_path, {"plain": described["Stable Diffusion"]})))
    begin(make_plan(arguments(tmp_path, {"mine": {"function": f"{functions}:draw"}})))
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"plain", "mine"}


def test_other_weights_are_refused(arguments, described, stable_diffusion, tmp_path):
    """In a folder of the same name."""
    methods = {"plain": {**described["Stable Diffusion"], "checkpoint": str(tmp_path / "model")}}
    stable_diffusion.save_pretrained(tmp_path / "model")
    plan = make_plan(arguments(tmp_path / "out", methods))
    draw_pictures(plan, [0], CPU)
    torch.nn.init.ones_(stable_diffusion.unet.conv_out.bias)
    stable_diffusion.save_pretrained(tmp_path / "model")
    draw_pictures(plan, [0], CPU)  # nothing is drawn: nothing is loaded
    with pytest.raises(ValueError, match="methods: plain: got a checkpoint whose weights are .*, but .* was drawn by"):
        draw_pictures(plan, [1], CPU)


def test_a_pickle_is_not_loaded(arguments, described, tmp_path, stable_diffusion):
    stable_diffusion.save_pretrained(tmp_path / "model", safe_serialization=False)
    plan = make_plan(arguments(tmp_path / "out", {"plain": {**described["Stable Diffusion"],
                                                            "checkpoint": str(tmp_path / "model")}}))  # fmt: skip
    with pytest.raises(
        ValueError, match="methods: plain: checkpoint: got .*model, wanted a folder .* with safetensors"
    ):
        draw_pictures(plan, [0], CPU)


def test_an_adapter_of_another_model_is_refused(arguments, described, tmp_path, ip_adapter_dir):
    missing = {"a": {**described["IP-Adapter"], "weight_name": "other.safetensors"}}
    with pytest.raises(ValueError, match="methods: a: adapter: got .*, wanted an IP-Adapter of this checkpoint"):
        draw_pictures(make_plan(arguments(tmp_path, missing)), [0], CPU)
    missing = {"a": {**described["IP-Adapter"], "image_encoder": str(tmp_path / "nothing")}}
    with pytest.raises(ValueError, match="methods: a: image_encoder: got .*nothing, wanted a folder or a Hub id"):
        draw_pictures(make_plan(arguments(tmp_path, missing)), [0], CPU)


def test_pictures_that_cannot_be_read_or_are_others(plan):
    draw_pictures(plan, [0], CPU)
    path, other = (plan.path(plan.methods[0], 0, Picture(1, 0, image)) for image in (0, 1))
    path.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match="output_dir: got .*1-0-0.png, whose image are others; wanted .* delete it"):
        read_picture(plan, plan.methods[0], 0, Picture(1, 0, 0))
    for content in (b"", other.read_bytes()[:-60], b"no picture"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="output_dir: got .*1-0-0.png, which cannot be read .* delete it"):
            read_picture(plan, plan.methods[0], 0, Picture(1, 0, 0))
    Image.new("RGB", (32, 32)).save(path)
    with pytest.raises(ValueError, match="output_dir: got .*1-0-0.png, which cannot be read .*retribooru"):
        read_picture(plan, plan.methods[0], 0, Picture(1, 0, 0))
