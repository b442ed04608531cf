"""How a table and what is in it are written: as text, Markdown and LaTeX."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vld.colors import DATASET_NAMES
from vld.runs.identity import CONTENT

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


@dataclass(frozen=True)
class Shown:
    """A table as text: cells by row, and which of them are best in their column."""

    headings: list[str]
    rows: list[list[str]]
    bold: list[list[bool]]
    numbers: int
    """Columns from here on are numbers, right-aligned."""
    note: str = ""


def heading(name: str) -> str:
    """Of the table with that file name."""
    dataset = name.removeprefix("results_")
    return DATASET_NAMES.get(dataset, dataset.replace("_", " ") if dataset == name else dataset)


def short_name(setting: str) -> str:
    return SHORT_NAMES.get(setting, setting.replace(".", " ").replace("_", " "))


def shown_value(setting: str, value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if setting in CONTENT:
        return f"{value:.8}"
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def as_markdown(shown: Shown) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    rule = ["---" if i < shown.numbers else "---:" for i in range(len(shown.headings))]
    rows = [
        [f"**{cell}**" if best else cell.replace("|", r"\|") for cell, best in zip(row, bold, strict=True)]
        for row, bold in zip(shown.rows, shown.bold, strict=True)
    ]
    headings = [heading.replace("|", r"\|") for heading in shown.headings]
    note = ["", shown.note] if shown.note else []
    return "\n".join([line(headings), line(rule), *map(line, rows), *note, ""])


def as_latex(shown: Shown) -> str:
    """A booktabs tabular, with its note below: needs `booktabs`."""
    rows = [
        [rf"\textbf{{{_latex(cell)}}}" if best else _latex(cell) for cell, best in zip(row, bold, strict=True)]
        for row, bold in zip(shown.rows, shown.bold, strict=True)
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
