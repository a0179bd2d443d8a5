"""What methods.yaml and the arguments may say."""

import datetime
import json
import shutil
import sys

import pytest

from retribooru.dataset_script.mini_face import EXPRESSIONS
from retribooru.dataset_script.mini_figure import POSES
from retribooru.dataset_script.mini_scenery import BACKGROUNDS
from retribooru.metrics.benchmark import judges
from retribooru.metrics.benchmark.arguments import read_prompts
from retribooru.metrics.benchmark.characters import choose_characters
from retribooru.metrics.benchmark.families import read_families, slug
from retribooru.metrics.benchmark.judges import are_small, with_judges
from retribooru.metrics.benchmark.plan import make_plan
from retribooru.metrics.modules import CLIP, VQA


def test_a_list_of_scales_makes_a_family(arguments, tmp_path):
    families = read_families(arguments(tmp_path))
    assert [family.name for family in families] == ["RetriBooru", "Stable Diffusion", "IP-Adapter"]
    methods = [method for family in families for method in family.methods]
    assert [(method.name, method.family, method.scale) for method in methods] == [
        ("RetriBooru 0.5", "RetriBooru", 0.5),
        ("RetriBooru 1", "RetriBooru", 1.0),
        ("Stable Diffusion", "Stable Diffusion", None),
        ("IP-Adapter 0.3", "IP-Adapter", 0.3),
        ("IP-Adapter 1", "IP-Adapter", 1.0),
    ]
    assert [method.settings["guidance_scale"] for method in methods] == [2.0, 2.0, 9.0, 9.0, 9.0]
    assert "/" not in methods[0].settings["checkpoint"]
    assert methods[3].slug == "ip-adapter-0.3" and slug("A / b: c") == "a-b-c" and slug("..") == "_"


def test_one_scale_is_a_method_of_the_familys_name(arguments, described, tmp_path):
    (family,) = read_families(arguments(tmp_path, {"Ours": {**described["RetriBooru"], "retrieval_scale": 1.5}}))
    assert [(method.name, method.scale) for method in family.methods] == [("Ours", 1.5)]


def test_no_paths_of_this_machine_are_written_down(arguments, described, tmp_path):
    options = {"function": "json:dumps", "log": str(tmp_path / "a.log"), "name": "a/b"}
    families = read_families(arguments(tmp_path, {**described, "mine": options}))
    written = json.dumps([method.settings for family in families for method in family.methods])
    assert str(tmp_path.parent) not in written and '"a.log"' in written and '"a/b"' in written
    assert families[-1].options["log"] == str(tmp_path / "a.log")


def with_options(name, **options):
    return lambda described: {name: {**described[name], **options}}


WRONG_METHODS = {
    "unknown kind": (lambda d: {"a": {"kind": "dreambooth"}}, "methods: a: kind: got dreambooth, wanted one of stable"),
    "no kind": (lambda d: {"a": {"checkpoint": "b"}}, "methods: a: kind: got None, wanted one of stable-diffusion"),
    "unknown key": (with_options("RetriBooru", scale=1), "methods: RetriBooru: got scale, wanted some of checkpoint, "),
    "no adapter": (with_options("IP-Adapter", adapter=None), "methods: IP-Adapter: got none of adapter, wanted checkp"),
    "pickle": (with_options("IP-Adapter", weight_name="a.bin"), "IP-Adapter: weight_name: got a.bin, wanted a .safete"),
    "no scale": (with_options("IP-Adapter", scale=[]), r"IP-Adapter: scale: got \[\], wanted numbers"),
    "text as scale": (with_options("IP-Adapter", scale=["a"]), r"IP-Adapter: scale: got \['a'\], wanted numbers"),
    "scale below 0": (with_options("IP-Adapter", scale=-1), r"IP-Adapter: scale: got \[-1\], wanted numbers"),
    "a scale twice": (with_options("IP-Adapter", scale=[1, 1.0]), r"scale: got \[1, 1.0\], wanted .* that differ"),
    "no steps": (with_options("RetriBooru", num_inference_steps=0), "num_inference_steps: got 0, wanted a whole"),
    "guidance": (with_options("RetriBooru", guidance_scale="high"), "guidance_scale: got high, wanted a number"),
    "negative": (with_options("RetriBooru", negative_prompt=3), "negative_prompt: got 3, wanted a text"),
    "missing checkpoint": (
        with_options("RetriBooru", checkpoint="no/such/folder"),
        "methods: RetriBooru: checkpoint: got no/such/folder, wanted a RetriBooruPipeline or RetriBooruXLPipeline",
    ),
    "another checkpoint": (
        lambda d: {"a": {**d["Stable Diffusion"], "kind": "retribooru"}},
        "methods: a: checkpoint: got .*, which is a StableDiffusionPipeline; wanted a RetriBooruPipeline",
    ),
    "two plain ones": (
        lambda d: {"a": d["Stable Diffusion"], "b": d["Stable Diffusion"]},
        "methods: got a and b, wanted at most one of kind stable-diffusion",
    ),
    "folders of one name": (
        lambda d: {"My: IP": {**d["IP-Adapter"]}, "my ip": d["IP-Adapter"]},
        "methods: got several that are called my-ip-0.3, my-ip-1, wanted names that differ",
    ),
    "a method of another's name": (
        lambda d: {"a 1": d["Stable Diffusion"], "a": {**d["IP-Adapter"], "scale": [1.0]}},
        "methods: got several that are called a-1",
    ),
    "no function": (lambda d: {"a": {"function": "no_such_module:f"}}, "a: function: got no_such_module:f, wanted mod"),
    "no such function": (lambda d: {"a": {"function": "json:f"}}, "methods: a: function: got json:f, wanted module:f"),
    "not a function": (lambda d: {"a": {"function": "json:__name__"}}, "a: function: got json:__name__, wanted module"),
    "options that JSON has not": (
        lambda d: {"a": {"function": "json:dumps", "options": {1: "b"}}},
        r"methods: a: got .*\{1: 'b'\}.*, wanted numbers, texts, lists and maps of texts",
    ),
    "a date": (
        lambda d: {"a": {"function": "json:dumps", "day": datetime.date(2024, 1, 1)}},
        "methods: a: got .*, wanted",
    ),
    "a list": (lambda d: ["a"], r"methods: got .* with \['a'\], wanted the options of a method or more, by name"),
    "no options": (lambda d: {"a": None}, "methods: got .*, wanted the options of a method or more, by name"),
}


@pytest.mark.parametrize("make, message", WRONG_METHODS.values(), ids=WRONG_METHODS)
def test_wrong_methods(arguments, described, tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        read_families(arguments(tmp_path, make(described)))


def test_a_name_that_comes_twice(arguments, tmp_path):
    file = tmp_path / "methods.yaml"
    file.write_text("a: {function: 'json:dumps'}\na: {function: 'json:loads'}\n")
    with pytest.raises(ValueError, match="methods: got .*, wanted a YAML file of methods by name .*a is there twice"):
        read_families(with_methods(arguments(tmp_path), file))
    with pytest.raises(ValueError, match="methods: got no/such.yaml, wanted a YAML file"):
        read_families(with_methods(arguments(tmp_path), "no/such.yaml"))


def with_methods(args, file):
    args.methods = str(file)
    return args


WRONG = {
    "task": ({"task": "swap"}, "task: got swap, wanted one of reconstruct, compose, face"),
    "dtype": ({"dtype": "int8"}, "dtype: got int8, wanted one of float32"),
    "seeds": ({"seeds": 0}, "seeds: got 0, wanted at least 1"),
    "images": ({"images_per_prompt": 0}, "images_per_prompt: got 0, wanted at least 1"),
    "level": ({"level": 95.0}, "level: got 95.0, wanted a number between 0 and 1"),
    "below none": ({"in_domain": -1}, "in_domain: got -1, wanted at least 0"),
    "one character": ({"in_domain": 1, "out_of_domain": 0}, "in_domain: got 1, wanted at least 2 characters"),
    "questions": ({"questions": [" "]}, r"questions: got \[' '\], wanted texts"),
    "two editions": ({"characters": 30}, "characters: got 30, wanted none with data_dir"),
    "actors": ({"ray_actors": 2}, "ray_actors: got 2, wanted none without ray"),
    "masks": ({"masks": "none"}, "masks: got none, wanted typical or module:function"),
    "too few in domain": ({"in_domain": 100}, r"in_domain: got 100, wanted at most \d+: so many characters have"),
    "too few out of domain": ({"out_of_domain": 9}, "out_of_domain: got 9, wanted at most 4: so many characters"),
    "no prompts": (
        {"prompts": "no/such.txt"},
        "prompts: got no/such.txt, wanted a text file .*, or one of mini, paper",
    ),
    "clip": ({"clip": "no/such/clip"}, "clip: got no/such/clip, wanted a CLIPModel: a Hub id or a folder"),
    "vqa": ({"vqa": "no/such/vqa"}, "vqa: got no/such/vqa, wanted a InstructBlip.* or BlipForQuestionAnswering"),
    "function of masks": ({"masks": "json:f"}, "masks: got json:f, wanted module:function"),
}


@pytest.mark.parametrize("wrong, message", WRONG.values(), ids=WRONG)
def test_wrong_arguments(arguments, described, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        args = arguments(tmp_path, {"a": described["Stable Diffusion"]}, **wrong)
        make_plan(args)


def test_judges_of_another_kind(arguments, tmp_path, clip_folder, blip_folder):
    with pytest.raises(ValueError, match="clip: got .*, a BlipForQuestionAnswering, wanted a CLIPModel"):
        make_plan(arguments(tmp_path, clip=str(blip_folder)))
    with pytest.raises(ValueError, match="vqa: got .*, a CLIPModel, wanted a InstructBlip"):
        make_plan(arguments(tmp_path, vqa=str(clip_folder)))


@pytest.fixture
def shipped(monkeypatch, retribooru_dir, clip_folder, blip_folder, tmp_path):
    """A checkpoint and judges where those that come along would lie."""
    folders = {"mini": retribooru_dir, "mini-clip": clip_folder, "mini-vqa": blip_folder}
    for name, folder in folders.items():
        shutil.copytree(folder, tmp_path / "shipped" / name)
    monkeypatch.setattr(judges, "MINI", tmp_path / "shipped" / "mini")
    monkeypatch.setattr(judges, "SMALL", {name: tmp_path / "shipped" / f"mini-{name}" for name in ("clip", "vqa")})
    return tmp_path / "shipped"


def test_small_judges_are_the_default_for_the_checkpoint_that_comes_along(arguments, described, shipped):
    mini = {"kind": "retribooru", "checkpoint": str(shipped / "mini")}
    args = arguments(shipped / "out", {"a": mini, "b": described["Stable Diffusion"]}, clip=None, vqa=None)
    chosen = with_judges(args, read_families(args))
    assert (chosen.clip, chosen.vqa) == (str(shipped / "mini-clip"), str(shipped / "mini-vqa"))
    assert are_small(chosen) and args.clip is None


@pytest.mark.parametrize("methods", [["Stable Diffusion"], ["RetriBooru"], ["mini", "RetriBooru"]])
def test_large_judges_are_the_default_for_all_else(arguments, described, shipped, methods, monkeypatch):
    found = []
    monkeypatch.setattr(judges.AutoConfig, "from_pretrained", lambda name, **more: found.append(name) or Found(name))
    mini = {"kind": "retribooru", "checkpoint": str(shipped / "mini")}
    args = arguments(
        shipped / "out", {name: {**described, "mini": mini}[name] for name in methods}, clip=None, vqa=None
    )
    assert not are_small(with_judges(args, read_families(args))) and found == [CLIP, VQA]


class Found:
    """The configuration of a model of the Hub."""

    def __init__(self, name):
        self.architectures = ["CLIPModel" if name == CLIP else "InstructBlipForConditionalGeneration"]


def test_prompts(tmp_path):
    paper = read_prompts("paper")
    assert len(paper) == 5 and paper[0].startswith("1girl, bare_shoulders, blue_eyes, blush, detached_sleeves")
    assert all(tag == tag.strip() and " " not in tag for prompt in paper for tag in prompt.split(", "))
    (tmp_path / "mine.txt").write_text("\n a, b \n\nc\n")
    assert read_prompts(str(tmp_path / "mine.txt")) == ["a, b", "c"]
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="prompts: got .*empty.txt, which holds none, wanted a text file"):
        read_prompts(str(tmp_path / "empty.txt"))


def test_prompts_of_the_mini_edition_are_ones_that_it_draws():
    possible = {
        frozenset(["1girl", "solo", *pose.tags, *expression, gaze, *background])
        for pose in POSES.values()
        for expression in EXPRESSIONS.values()
        for gaze in ("looking_at_viewer", "looking_to_the_side")
        for background in BACKGROUNDS.values()
    }
    prompts = read_prompts("mini")
    assert len(prompts) == 5 and all(frozenset(prompt.split(", ")) in possible for prompt in prompts)


def test_characters(arguments, tmp_path):
    characters = choose_characters(arguments(tmp_path, in_domain=3, task="compose"))
    assert [one.domain for one in characters] == ["in_domain"] * 3 + ["out_of_domain"] * 2
    assert len({one.name for one in characters}) == 5
    for one in characters:
        assert one.reference_concepts == ["face", "face", "body", "body"] and len(one.reference_ids) == 4
        for image, mask in zip(one.reference_images, one.reference_masks, strict=True):
            assert (image.mode, mask.mode) == ("RGB", "L") and image.size == mask.size
    assert [one.name for one in choose_characters(arguments(tmp_path, in_domain=0))] == [
        one.name for one in characters[3:]
    ]


def test_a_function_of_the_working_directory(arguments, functions_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(functions_dir)])
    monkeypatch.delitem(sys.modules, "benchmark_functions", raising=False)
    monkeypatch.chdir(functions_dir)
    (family,) = read_families(arguments(tmp_path, {"mine": {"function": "benchmark_functions:draw", "scale": [1, 2]}}))
    assert [method.name for method in family.methods] == ["mine 1", "mine 2"] and family.kind == "function"
