"""The numbers of a benchmark as Markdown, LaTeX and CSV."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from retribooru.dataset_script.files import replacing

from .report import columns


def write_tables(result: Mapping, out: Path) -> None:
    """results.json, results.md, results.csv and results.tex."""
    texts = {
        "json": json.dumps(result, indent=2, ensure_ascii=False) + "\n",
        "md": markdown(result),
        "csv": long_form(result),
        "tex": latex(result),
    }
    for suffix, text in texts.items():
        with replacing(out / f"results.{suffix}") as partial:
            partial.write_text(text, encoding="utf-8")


def caption(result: Mapping) -> str:
    """Who judged, and how the numbers are to be read."""
    settings, judges = result["settings"], result["judges"]
    pictures = len(settings["prompts"]) * settings["seeds"] * settings["images_per_prompt"]
    questions = "; ".join(judges["questions"])
    small = " They are small and have read the mini edition alone: no other numbers compare." if judges["small"] else ""
    return (
        f"Pictures of {settings['in_domain']} in-domain and {settings['out_of_domain']} out-of-domain characters, "
        f"{pictures} of each, by {settings['task']} references. All values x 100, below them the "
        f"{100 * settings['level']:g} % bootstrap interval over characters. Judges: CLIP {judges['clip']} "
        f"({judges['clip_weights'][:8]}), VQA {judges['vqa']} ({judges['vqa_weights'][:8]}; asked: {questions})."
        f"{small} Floor of SWD: {100 * judges['floor']:.2f}, the mean CLIP-I of references of different characters. "
        "SWD and leakage are this project's, not the paper's."
    )


def markdown(result: Mapping) -> str:
    """A table for all characters and one for each domain."""
    names = columns(len(result["settings"]["prompts"]))
    lines = [caption(result), ""]
    for note in result["notes"]:
        lines += [note, ""]
    for domain, rows in result["tables"].items():
        lines += [f"### {_title(domain)}", "", _line(["", *names]), _line(["---", *["---:"] * len(names)])]
        for method, row in rows.items():
            cells = ["<br>".join(_texts(row[name], "–")) for name in names]
            lines.append(_line([method.replace("|", "\\|"), *cells]))
        lines.append("")
    lines += [f"- P{number}: `{prompt}`" for number, prompt in enumerate(result["settings"]["prompts"], 1)]
    return "\n".join(lines) + "\n"


def latex(result: Mapping) -> str:
    """The same tables, for booktabs: each method a line, its intervals below in small print."""
    names = columns(len(result["settings"]["prompts"]))
    lines = ["% needs \\usepackage{booktabs}"]
    for domain, rows in result["tables"].items():
        title = escaped(f"{_title(domain)}. {' '.join([caption(result), *result['notes']])}")
        lines += [r"\begin{table}", r"\centering", rf"\caption{{{title}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * len(names)}}}", r"\toprule"]
        lines += [_tex_line(["", *names]), r"\midrule"]
        for method, row in rows.items():
            means, intervals = zip(*([*_texts(row[name], "--"), ""][:2] for name in names))
            lines.append(_tex_line([method, *means]))
            if any(intervals):
                small = (rf"\scriptsize {escaped(text)}" if text else "" for text in intervals)
                lines.append(" & ".join(["", *small]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def long_form(result: Mapping) -> str:
    """CSV: a line for each domain, method and column, in full precision and not x 100."""
    numbers = ["mean", "low", "high", "count", "undefined"]
    fields = ["domain", "method", "family", "scale", "column", *numbers, "clip", "vqa"]
    judges = {name: result["judges"][name] for name in ("clip", "vqa")}
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for domain, rows in result["tables"].items():
        for method, row in rows.items():
            family = {key: result["methods"][method][key] for key in ("family", "scale")}
            for column, found in row.items():
                writer.writerow({"domain": domain, "method": method, **family, "column": column, **found, **judges})
    return text.getvalue()


def escaped(text: str) -> str:
    """A text as LaTeX shows it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)


def _texts(found: Mapping, undefined: str) -> list[str]:
    """The mean, and the interval where there is one, x 100."""
    if found["mean"] is None:
        return [undefined]
    interval = [] if found["low"] is None else [f"[{100 * found['low']:.2f}, {100 * found['high']:.2f}]"]
    return [f"{100 * found['mean']:.2f}", *interval]


def _title(domain: str) -> str:
    return f"{domain.replace('_', '-').capitalize()} characters"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _tex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"
