"""A table as people read it, in four formats."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:  # status.py shows a table, and does without pandas
    import pandas as pd

LATEX = str.maketrans({"±": r"$\pm$", "×": r"$\times$", "†": r"\dag{}", "–": "--"})
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
    def of(cls, columns: Iterable[tuple[str, Iterable[str]]], left: int, **rest: Any) -> "Table":
        """From columns, a heading and its cells each."""
        headings, cells = zip(*columns, strict=True)
        return cls(list(headings), [list(row) for row in zip(*cells, strict=True)], left, **rest)

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


def whole_rows(rows: Iterable[int], columns: int) -> frozenset[tuple[int, int]]:
    """Their cells."""
    return frozenset((row, column) for row in rows for column in range(columns))
