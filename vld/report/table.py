"""A table as people read it, in four formats."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from vld.config.names import METHOD_MARKERS, series_color
from vld.report.labels import INCOMPLETE, NONE, footnotes, short_name, text

if TYPE_CHECKING:  # status.py shows a table, and does without pandas
    import pandas as pd

HEADINGS = {
    "name": "method",
    "iid": "i.i.d. %",
    "ood": "o.o.d. %",
    "chosen_iid": "chosen i.i.d. %",
    "chosen_ood": "chosen o.o.d. %",
    "gain": "against no dropout",
    "against_erm": "against plain ERM with it",
    "ood_acc": "o.o.d. %",
    "unlike": "unlike the paper",
}
LATEX = str.maketrans({"±": r"$\pm$", "×": r"$\times$", "†": r"\dag{}", "‡": r"\ddag{}", "–": "--"})
"""Characters that not every font has; pandas escapes the rest."""
WIDE, NARROW = 10_000, 8
"""Characters: no limit, and the least width of a column of text on a narrow terminal."""


@dataclass(frozen=True)
class Table:
    """Cells as text."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int
    """Columns before this one are text, left-aligned; the others numbers."""
    note: str = ""
    best: frozenset[tuple[int, int]] = frozenset()
    """Cells in bold, the best of their column: (row, column)."""
    numbers: "pd.DataFrame | None" = None
    """The unformatted table, for CSV."""
    looks: Sequence[tuple[str, str]] = ()
    """Colour and marker of each row's method, as in figures."""

    @classmethod
    def of(cls, frame: "pd.DataFrame", names: Sequence[str], left: int, note: str, **rest: Any) -> "Table":
        """Of these columns of a frame. The note ends with what the marks in its cells mean."""
        cells = [column_of(frame, name) for name in names]
        note += footnotes(cell for column in cells for cell in column)
        looks = []
        if "method" in frame:
            rates = frame.dropout.fillna(0)
            looks = [(series_color(m, r), METHOD_MARKERS[m]) for m, r in zip(frame.method, rates, strict=True)]
        rest = {"numbers": frame, "looks": looks, **rest}
        return cls(
            [heading_of(name) for name in names], [list(row) for row in zip(*cells, strict=True)], left, note, **rest
        )

    def to_rich(self, columns: int = WIDE) -> RichTable:
        """For a terminal of this width. A line separates groups of rows; only the first row of a group has a first cell.

        If the table does not fit, first the headings of numbers are wrapped, then text, down to a few characters. Numbers are
        never cut, even if the table then is too wide.
        """
        widths = [max(map(cell_len, cells)) for cells in zip(self.headings, *self.rows, strict=True)]
        if sum(widths) + 3 * len(widths) + 1 > columns:
            words = [max(heading.split(), key=cell_len, default="") for heading in self.headings]
            wrapped = [max(map(cell_len, cells)) for cells in zip(words, *self.rows, strict=True)]
            widths[self.left :] = wrapped[self.left :]
        least = [min(width, NARROW) if place < self.left else width for place, width in enumerate(widths)]
        needed, natural = (sum(some) + 3 * len(widths) + 1 for some in (least, widths))
        table = RichTable(width=min(natural, max(needed, columns)))
        for place, heading in enumerate(self.headings):
            if place < self.left:
                table.add_column(heading, no_wrap=place == 0 and natural <= columns, overflow="fold")
            else:
                table.add_column(heading, justify="right", width=widths[place])
        grouped = any(not row[0] for row in self.rows)
        for i, row in enumerate(self.rows):
            if grouped and row[0]:
                table.add_section()
            table.add_row(*(Text(cell, "bold" if (i, j) in self.best else "") for j, cell in enumerate(row)))
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.to_rich(options.max_width).__rich_console__(console, options)

    def to_csv(self) -> str:
        assert self.numbers is not None
        return self.numbers.to_csv(index=False)

    def to_markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cells) + " |"

        rule = ["---" if place < self.left else "---:" for place in range(len(self.headings))]
        rows = [[cell.replace("|", r"\|") for cell in row] for row in (self.headings, *self.rows)]
        for i, j in self.best:
            rows[i + 1][j] = f"**{rows[i + 1][j]}**"
        note = ["", self.note] if self.note else []
        return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:]), *note, ""])

    def to_latex(self) -> str:
        """A booktabs tabular, with its note below: needs `booktabs`."""
        import pandas as pd

        frame = pd.DataFrame(self.rows, columns=list(self.headings))
        style = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
        if frame.columns.is_unique:  # of others pandas styles nothing
            bold = [
                ["textbf:--rwrap" * ((i, j) in self.best) for j in range(frame.shape[1])] for i in range(len(frame))
            ]
            style = style.apply(lambda _: pd.DataFrame(bold, columns=frame.columns), axis=None)
        written = style.to_latex(hrules=True, column_format="l" * self.left + "r" * (len(self.headings) - self.left))
        if self.note:
            written += "\n{\\footnotesize " + re.sub(r"([&%$#_{}])", r"\\\1", self.note) + "}\n"
        return written.translate(LATEX)


def heading_of(name: str) -> str:
    """Of the column with this name; of `ood <domain>` the domain."""
    return name[4:] if name.startswith("ood ") else HEADINGS.get(name) or short_name(name)


def column_of(frame: "pd.DataFrame", name: str) -> list[str]:
    """The cells of a column, for people: averages with their standard error, differences with half their interval, runs with how
    many there should be."""
    error = name.replace(" ", "_se ", 1) if " " in name else f"{name}_se"
    if name == "runs" and "expected" in frame:
        return [f"{n}" if n == of else f"{n} of {of}" for n, of in zip(frame.runs, frame.expected, strict=True)]
    if error in frame:
        cells = zip(frame[name], frame[error], complete(frame, name), strict=True)
        return [_with_error(value, its, "" if whole else f" {INCOMPLETE}") for value, its, whole in cells]
    if f"{name}_low" in frame:
        halves = (frame[f"{name}_high"] - frame[f"{name}_low"]) / 2
        return [_with_error(value, half, sign="+") for value, half in zip(frame[name], halves, strict=True)]
    return [text(name, value) for value in frame[name]]


def complete(frame: "pd.DataFrame", name: str) -> "pd.Series[bool]":
    """Of the rows of this average, whether no run is missing; of `ood <domain>`, none of that domain's."""
    if " " not in name:
        return frame.runs == frame.expected
    domains = sum(f"{column}".startswith("runs ") for column in frame)
    return frame[name.replace("ood", "runs", 1)].eq(frame.expected // domains)


def _with_error(value: float, error: float, mark: str = "", sign: str = "") -> str:
    if not math.isfinite(value):
        return NONE
    return f"{value:{sign}.1f}" + (f" ± {error:.1f}" if math.isfinite(error) else "") + mark
