"""How a table and what is in it are written: as text, Markdown and LaTeX."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vld.config.names import dataset_name
from vld.report.summary import Shown, shown_setting
from vld.runs.identity import CONTENT, varied_settings

SHORT_NAMES = {
    "backbone.name": "backbone",
    "backbone.weights_fingerprint": "weights",
    "dataset.fingerprint": "data",
    "optim.last_layer_lr_factor": "last layer lr ×",
    "optim.steps": "steps",
    "image_size": "px",
}
"""Of settings; those that a person would tell runs apart by."""
INCOMPLETE = "†"
NONE = "–"


def heading(name: str) -> str:
    """Of the table with that file name."""
    dataset = name.removeprefix("results_")
    return name.replace("_", " ").capitalize() if dataset == name else dataset_name(dataset)


def short_name(setting: str) -> str:
    return SHORT_NAMES.get(setting, setting.replace(".", " ").replace("_", " "))


def shown_value(setting: str, value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if setting in CONTENT:
        return f"{value:.8}"
    return shown_setting(value)


def shown_settings(settings: Mapping[str, object]) -> list[str]:
    return [f"{short_name(name)} {shown_value(name, value)}" for name, value in settings.items()]


def in_order(value: object) -> tuple[int, float, str]:
    """A key that sorts the values of any setting: numbers, then what is text or a list, then what is not there."""
    if value is None:
        return 2, 0.0, ""
    return (0, value, "") if isinstance(value, int | float) else (1, 0.0, f"{value}")


def telling(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of settings that tell all of these apart, each of which is needed."""
    chosen: list[str] = []

    def kinds(names: list[str]) -> int:
        return len({json.dumps([one.get(name) for name in names]) for one in settings})

    for name in sorted(varied_settings(settings), key=lambda name: (name not in SHORT_NAMES, -kinds([name]), name)):
        if kinds([*chosen, name]) > kinds(chosen):
            chosen.append(name)
    return chosen


def as_markdown(shown: Shown) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    rule = ["---" if i < shown.numbers else "---:" for i in range(len(shown.headings))]
    rows = [
        [f"**{cell}**" if (i, j) in shown.best else cell.replace("|", r"\|") for j, cell in enumerate(row)]
        for i, row in enumerate(shown.rows)
    ]
    headings = [heading.replace("|", r"\|") for heading in shown.headings]
    note = ["", shown.note] if shown.note else []
    return "\n".join([line(headings), line(rule), *map(line, rows), *note, ""])


def as_latex(shown: Shown) -> str:
    """A booktabs tabular, with its note below: needs `booktabs`."""
    rows = [
        [rf"\textbf{{{_latex(cell)}}}" if (i, j) in shown.best else _latex(cell) for j, cell in enumerate(row)]
        for i, row in enumerate(shown.rows)
    ]
    columns = "l" * shown.numbers + "r" * (len(shown.headings) - shown.numbers)
    lines = [" & ".join(row) + r" \\" for row in rows]
    heading = " & ".join(map(_latex, shown.headings)) + r" \\"
    note = ["", rf"{{\footnotesize {_latex(shown.note)}}}"] if shown.note else []
    whole = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", heading, r"\midrule", *lines, r"\bottomrule"]
    return "\n".join([*whole, r"\end{tabular}", *note, ""])


LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "†": r"\dag{}",
    "–": "--",
}


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
