"""Tables and plots of numbers made by hand."""

import re
from itertools import product

import pytest
from PIL import Image

from retribooru.metrics.benchmark.plots import plot_frontier, plot_prompts
from retribooru.metrics.benchmark.report import columns, estimate
from retribooru.metrics.benchmark.tables import escaped, latex, long_form, markdown

METHODS = {"A_1 & 50%": ("A_1", 0.5), "plain": ("plain", None)}


def found(mean, reach=0.01):
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "count": 8, "undefined": 0}


@pytest.fixture
def result():
    """Of two methods and two prompts; nothing is known of leakage."""
    names = columns(2)
    row = {name: found(0.1 * i) for i, name in enumerate(names, 1)}
    row["leakage"] = {"mean": None, "low": None, "high": None, "count": 0, "undefined": 8}
    return {
        "settings": {
            "task": "compose", "prompts": ["1girl, long_hair", "{50%} & #1"], "seeds": 2, "images_per_prompt": 4,
            "level": 0.9, "in_domain": 3, "out_of_domain": 1,
        },
        "judges": {"clip": "mini-clip", "clip_weights": "1234567890", "vqa": "mini_vqa", "small": False,
                   "vqa_weights": "main", "questions": ["Who & what?"], "floor": 0.5},
        "notes": ["100 % of it is noise_"],
        "methods": {name: {"family": family, "scale": scale} for name, (family, scale) in METHODS.items()},
        "tables": {domain: {name: dict(row) for name in METHODS} for domain in ("all", "in_domain", "out_of_domain")},
    }  # fmt: skip


@pytest.mark.parametrize("small", [False, True])
def test_every_table_says_whether_its_judges_are_small(result, small):
    result["judges"]["small"] = small
    for text in (markdown(result), latex(result)):
        assert ("no other numbers compare" in text) == small


def test_estimates():
    rows = [{"x": value, "character": name} for value, name in ((1.0, "a"), (2.0, "a"), (None, "b"), (6.0, "b"))]
    got = estimate(rows, "x", resamples=500)
    assert (got["mean"], got["count"], got["undefined"]) == (3.0, 3, 1)
    assert (got["low"], got["high"]) == (1.5, 6.0)  # twice a, or twice b
    assert estimate(rows[:2], "x") == {"mean": 1.5, "low": None, "high": None, "count": 2, "undefined": 0}
    assert estimate([{"x": None, "character": "a"}], "x")["mean"] is None


def test_columns_are_the_papers_and_ours():
    assert columns(5) == ["CLIP-I", "CLIP-T", "VQA avg", "P1", "P2", "P3", "P4", "P5", "SWD", "leakage"]


def test_markdown(result):
    text = markdown(result)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 3 * 4 and all(line.count("|") == 9 for line in rows)
    assert rows[2].startswith("| A_1 & 50% | 10.00<br>[9.00, 11.00] | 20.00<br>") and rows[2].endswith("| – |")
    titles = [line for line in text.splitlines() if line.startswith("###")]
    assert titles == ["### All characters", "### In-domain characters", "### Out-of-domain characters"]
    for said in ("3 in-domain and 1 out-of-domain", "16 of each", "by compose references", "x 100", "90 % bootstrap",
                 "CLIP mini-clip (12345678)", "VQA mini_vqa (main; asked: Who & what?)", "Floor of SWD: 50.00",
                 "100 % of it is noise_"):  # fmt: skip
        assert said in text
    assert "- P1: `1girl, long_hair`" in text
    result["tables"]["all"]["a|b"] = result["tables"]["all"].pop("plain")
    assert r"| a\|b | " in markdown(result)


def test_latex_has_the_structure_of_booktabs(result):
    text = latex(result)
    opened = re.findall(r"\\(begin|end)\{(\w+)\}", text)
    assert opened == [("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("end", "table")] * 3
    for table in text.split(r"\begin{table}")[1:]:
        (spec,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", table)
        assert spec == "l" + "r" * 7
        inside = table.split(r"\toprule")[1].split(r"\bottomrule")[0]
        head, body = inside.split(r"\midrule")
        lines = [line for line in (head + body).splitlines() if line]
        assert len(lines) == 1 + 2 * 2 and all(line.endswith(r" \\") for line in lines)
        assert all(len(re.findall(r"(?<!\\)&", line)) == 7 for line in lines)
    assert r"A\_1 \& 50\% & 10.00 & 20.00 &" in text and "& -- \\\\" in text
    assert r"\scriptsize [9.00, 11.00]" in text
    assert r"VQA mini\_vqa (main; asked: Who \& what?)" in text and r"100 \% of it is noise\_" in text
    bare = re.sub(r"\\[\\&%$#_{}]|\\[a-z]+", "", re.sub(r"^%.*$", "", text, flags=re.MULTILINE))
    assert not re.search(r"[%$#_~^]", bare)
    depth = 0
    for brace in re.findall(r"[{}]", bare):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0


def test_latex_escapes():
    assert escaped("a_b & 5% $1 #2 {x}") == r"a\_b \& 5\% \$1 \#2 \{x\}"
    assert escaped("\\~^<>|") == (
        r"\textbackslash{}\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}"
    )


def test_csv_has_a_line_for_each_number(result):
    lines = long_form(result).splitlines()
    assert lines[0] == "domain,method,family,scale,column,mean,low,high,count,undefined,clip,vqa"
    assert len(lines) == 1 + 3 * 2 * 7
    assert lines[1].startswith("all,A_1 & 50%,A_1,0.5,CLIP-I,0.1,")
    assert "out_of_domain,plain,plain,,leakage,,,,0,8,mini-clip,mini_vqa" in lines


def colours(path):
    with Image.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(10**6)}


def test_plots_show_every_family_and_method(result, tmp_path):
    """One colour each; a second scale joins its family's line."""
    first, second = (31, 119, 180), (255, 127, 14)  # the first colours of matplotlib
    for plot, name in product((plot_frontier, plot_prompts), ("a.png", "b.png")):
        plot(result, tmp_path / name)
        assert {first, second} <= colours(tmp_path / name)
    result["methods"]["plain"] = {"family": "A_1", "scale": 1.0}
    plot_frontier(result, tmp_path / "a.png")
    assert first in colours(tmp_path / "a.png") and second not in colours(tmp_path / "a.png")
    for row in result["tables"]["all"].values():
        row["P1"] = row["P2"] = row["leakage"]
    plot_prompts(result, tmp_path / "b.png")  # groups of one picture: no bars, and no error
    assert first not in colours(tmp_path / "b.png")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png"}
