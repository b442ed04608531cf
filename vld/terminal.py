"""What a person sees while runs train, and the tables at the end."""

import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from vld.runs.identity import ADDED_LATER, varied_settings
from vld.training import Evaluation

SELECTION_NOTE = "each method at its own step of best i.i.d. accuracy (selection iid)"


@dataclass(frozen=True)
class Shown:
    """A table as text: cells by row."""

    headings: list[str]
    rows: list[list[str]]
    numbers: int
    """Columns from here on are numbers, right-aligned."""
    note: str = ""
    best: frozenset[tuple[int, int]] = frozenset()
    """Cells that are the best of their column: (row, column)."""


class RunProgress:
    """One run's bar; where the output is not a terminal, a plain line at every evaluation."""

    def __init__(
        self,
        console: Console,
        bar: Progress | None,
        label: str,
        method: str,
        steps: int,
        images_per_step: int,
        first_step: int,
    ) -> None:
        self.console, self.bar, self.label, self.method = console, bar, label, method
        self.steps, self.images_per_step, self.first_step = steps, images_per_step, first_step
        self.began = time.perf_counter()
        self.task = bar.add_task(label, total=steps, completed=first_step, shown="") if bar else None

    def stepped(self, step: int) -> None:
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=step)

    def evaluated(self, evaluation: Evaluation) -> None:
        scores = evaluation.scores[self.method] if self.method in evaluation.scores else evaluation.scores["erm"]
        loss = "" if evaluation.train_loss is None else f"loss {evaluation.train_loss:.3f}  "
        shown = f"{loss}i.i.d. {100 * scores.iid_acc:.1f}  o.o.d. {100 * scores.ood_acc:.1f}"
        if evaluation.train_seconds > 0 and evaluation.step:
            shown += f"  {evaluation.step * self.images_per_step / evaluation.train_seconds:.0f} images/s"
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=evaluation.step, shown=shown)
            return
        left = ""
        if self.first_step < evaluation.step < self.steps:
            since = evaluation.step - self.first_step
            seconds = (time.perf_counter() - self.began) / since * (self.steps - evaluation.step)
            left = f"  {duration(seconds)} left"
        self.console.print(f"{self.label}  step {evaluation.step}/{self.steps}  {shown}{left}", soft_wrap=True)


class Log(io.TextIOBase):
    """Standard output, which may go away or fill its disk: training is worth more than its log, and goes on in silence."""

    def __init__(self) -> None:
        self.stream = sys.stdout  # which rich replaces while it shows a bar

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            return self._silence(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            self._silence("")

    def _silence(self, text: str) -> int:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        return len(text)

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding


class Terminal:
    """Everything goes to standard output but what a user must mend, which goes to standard error."""

    def __init__(self, job: int | None = None) -> None:
        """job: the number of one that shares the terminal with others; it writes lines that say so, and no bars."""
        # A log or a pipe has no width: tables there are as wide as they need be. Names of domains are no markup.
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 250
        self.job = "" if job is None else f"[{job}] "
        plain = None if job is None else False
        self.console = Console(
            file=cast(IO[str], Log()), highlight=False, markup=False, width=width, force_terminal=plain
        )

    def say(self, line: str) -> None:
        self.console.print(f"{self.job}{line}", soft_wrap=True)

    def warn(self, line: str) -> None:
        self.console.print(f"{self.job}warning: {line}", style="yellow", soft_wrap=True)

    def fail(self, line: str) -> None:
        self.console.print(f"{self.job}failed: {line}", style="bold red", soft_wrap=True)

    @contextmanager
    def counting(self, label: str, *, in_bytes: bool = False) -> Iterator[Callable[[int, int], None]]:
        """A bar for (done, total) that vanishes when it is done."""
        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn() if in_bytes else MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        ) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @contextmanager
    def doing(self, label: str) -> Iterator[Callable[[str], None]]:
        """A line that says what is being done at the moment, and vanishes when it is done."""
        if not self.console.is_terminal:
            yield lambda _: None
            return
        with self.console.status(label) as status:
            yield lambda what: status.update(f"{label}: {what}")

    @contextmanager
    def training(
        self, label: str, method: str, steps: int, images_per_step: int, first_step: int
    ) -> Iterator[RunProgress]:
        if not self.console.is_terminal:
            yield RunProgress(self.console, None, f"{self.job}{label}", method, steps, images_per_step, first_step)
            return
        whole = Column(no_wrap=True)  # on a narrow terminal the bar gives way, not the figures
        with Progress(
            TextColumn("{task.description}", style="bold", markup=False, table_column=whole),
            BarColumn(bar_width=None),
            MofNCompleteColumn(table_column=whole),
            TextColumn("{task.fields[shown]}", markup=False, table_column=whole),
            TimeRemainingColumn(compact=True, table_column=whole),
            TextColumn("left", table_column=whole),
            console=self.console,
            expand=True,
        ) as bar:
            yield RunProgress(self.console, bar, label, method, steps, images_per_step, first_step)

    def results_table(self, rows: list[dict[str, Any]], chosen: str) -> None:
        """A line per method and test domain, and the average of several; the chosen method first and in bold.

        rows: method, test_domain, iid_acc, ood_acc, step, collapse.
        """
        methods = sorted(
            dict.fromkeys(row["method"] for row in rows), key=lambda method: method.split(" ")[0] != chosen
        )
        table = _table(("method", "test domain"), ("i.i.d. %", "o.o.d. %", "step"))
        for method in methods:
            style = "bold" if method.split(" ")[0] == chosen else ""
            mine = [row for row in rows if row["method"] == method]
            for i, row in enumerate(mine):
                name = f"{row['test_domain']} (collapsed)" if row["collapse"] else row["test_domain"]
                table.add_row("" if i else method, name, *_means([row]), str(row["step"]), style=style)
            if len(mine) > 1:
                table.add_row("", "average", *_means(mine), "", style=f"{style} italic")
            table.add_section()
        self.console.print(table)

    def combination_table(self, method: str, results: dict[str, dict[str, Any]]) -> None:
        """A combination beside the mean of its members, for each test domain and on average (`result.json` by domain)."""
        table = _table(("method", "test domain"), ("members", "i.i.d. %", "o.o.d. %"))
        rows = {
            "mean of the members": {d: (f"{len(r['members'])}", r["member_mean"]) for d, r in results.items()},
            method: {d: (members_used(r), r["results"][0]) for d, r in results.items()},
        }
        for name, by_domain in rows.items():
            style = "bold" if name == method else ""
            for i, (domain, (members, row)) in enumerate(by_domain.items()):
                table.add_row("" if i else name, domain, members, *_means([row]), style=style)
            if len(by_domain) > 1:
                means = _means([row for _, row in by_domain.values()])
                table.add_row("", "average", "", *means, style=f"{style} italic")
            table.add_section()
        [selection] = {row["selection"] for result in results.values() for row in result["results"]}
        self.say(f"{method} of the members' {'last steps' if selection == 'last' else 'steps of best i.i.d. accuracy'}")
        self.console.print(table)
        curves = [result["by_number_of_members"] for result in results.values() if "by_number_of_members" in result]
        if curves:
            self._number_of_members_table(curves)
        lines = [result["connectivity"] for result in results.values() if "connectivity" in result]
        if lines:
            self._connectivity_table(lines)

    def _number_of_members_table(self, curves: list[list[dict[str, Any]]]) -> None:
        """Accuracy against the number of members, averaged over random subsets and test domains."""
        table = _table((), ("members", "subsets", "i.i.d. %", "o.o.d. %"))
        most = min(map(len, curves))
        for k in sorted({k for k in (1, 2, 3, 4, 6, 9, 12, most) if k <= most}):
            points = [curve[k - 1] for curve in curves]
            table.add_row(f"{k}", f"{points[0]['subsets']}", *_means(points, "iid_acc_mean", "ood_acc_mean"))
        self.say("accuracy against the number of members, averaged over random subsets of each size")
        self.console.print(table)

    def _connectivity_table(self, lines: list[list[dict[str, Any]]]) -> None:
        """Accuracies along the line between two networks, averaged over test domains."""
        table = _table((), ("α", "weights: i.i.d. %", "o.o.d. %", "representations: i.i.d. %", "o.o.d. %"))
        cells: dict[float, list[str]] = {}
        for points in zip(*lines, strict=True):  # the weights' come first
            cells.setdefault(points[0]["alpha"], []).extend(_means(points))
        for alpha, row in cells.items():
            table.add_row(f"{alpha:g}", *row)
        self.say("α of the first member and 1 - α of the second: their weights, and their representations")
        self.console.print(table)

    def sweep_table(self, results: list[dict[str, Any]], chosen: str) -> None:
        """A line per setting that differs among results (`result.json`) and method, the chosen one first and in bold.

        It has the averages over the test domains, then the o.o.d. accuracy with each domain left out.
        """
        all_settings = [ADDED_LATER | result["settings"] for result in results]
        varied = varied_settings(all_settings)
        domains = sorted({settings["test_domain"] for settings in all_settings})
        cells: dict[tuple[str, ...], dict[str, dict[str, dict[str, Any]]]] = {}
        for result, settings in zip(results, all_settings, strict=True):
            values = tuple("–" if (value := settings.get(name)) is None else f"{value}" for name in varied)
            by_method, test_domain = cells.setdefault(values, {}), settings["test_domain"]
            if "members" in result:
                label, [row] = combination_label(result), result["results"]
                if test_domain in by_method.get(label, {}):  # of other members, which vary in the same settings
                    label = f"{label} ({shown_axes(result)})"
                by_method.setdefault(label, {})[test_domain] = row
                continue
            for row in result["results"]:
                if row["selection"] == "iid":
                    by_method.setdefault(shown_method(row), {})[test_domain] = row
        shown_domains = domains if len(domains) > 1 else []
        table = _table((*varied, "method"), ("i.i.d. %", "o.o.d. %", *shown_domains))
        for values, by_method in cells.items():
            for method in sorted(by_method, key=lambda method: method.split(" ")[0] != chosen):
                by_domain = by_method[method]
                complete = len(by_domain) == len(domains)  # an average over fewer domains is another quantity
                means = _means(list(by_domain.values())) if complete else ["–", "–"]
                each = [percent(by_domain[d]["ood_acc"]) if d in by_domain else "–" for d in shown_domains]
                style = "bold" if method.split(" ")[0] == chosen else ""
                table.add_row(*values, method, *means, *each, style=style)
        self.console.print(table)
        if shown_domains:
            self.say("averages over the test domains; under a domain's name: o.o.d. accuracy with that domain left out")

    def counts_table(
        self, headings: Sequence[str], states: Sequence[str], rows: Mapping[tuple[str, ...], Mapping[str, int]]
    ) -> None:
        """How many runs of each kind are in each state; sums below."""
        table = _table(headings, (*states, "all"))
        for kind, counts in rows.items():
            shown = [f"{counts.get(state, 0) or '–'}" for state in states]
            table.add_row(*kind, *shown, f"{sum(counts.values())}")
        if len(rows) > 1:
            sums = [sum(counts.get(state, 0) for counts in rows.values()) for state in states]
            table.add_section()
            table.add_row("all", *[""] * (len(headings) - 1), *[f"{n or '–'}" for n in sums], f"{sum(sums)}")
        self.console.print(table)

    def text_table(self, shown: Shown) -> None:
        """Cells as they are, the best in bold."""
        table = _table(shown.headings[: shown.numbers], shown.headings[shown.numbers :])
        table.columns[0].no_wrap = True
        for i, row in enumerate(shown.rows):
            table.add_row(*(Text(cell, "bold" if (i, j) in shown.best else "") for j, cell in enumerate(row)))
        self.console.print(table)

    def clear(self) -> None:
        """The screen, if it is one: in a log, what follows comes after what was there."""
        if self.console.is_terminal:
            self.console.clear()


def shown_method(row: Mapping[str, Any]) -> str:
    """A result's method, marked where it is of a part of the images only (`dataset.curve_images`)."""
    return f"{row['method']} (on a part)" if row.get("evaluated_on") == "curve" else str(row["method"])


def members_used(result: dict[str, Any]) -> str:
    """How many members a combination is made from; of a greedy soup, how many of how many."""
    members = len(result["members"])
    return f"{sum(taste['kept'] for taste in result['trace'])} of {members}" if "trace" in result else f"{members}"


def combination_label(result: dict[str, Any]) -> str:
    """What tells combinations apart in one table: method, number of members, and what is not the default."""
    how = result["identity"]
    step = "" if how["member_step"] == "last" else f", step {how['member_step']}"
    average = "" if how.get("average", "logits") == "logits" else f", {how['average']}"
    return f"{how['method']} of {len(how['members'])}{average}{step}"


def shown_axes(result: dict[str, Any]) -> str:
    """What varies among a combination's members, with its values; sorted, in whatever order the members were named, but for
    connectivity, where the first is at α = 1."""
    members = list(result["member_values"].values())
    listed: Callable[[Iterable[str]], list[str]] = list if "connectivity" in result else sorted
    axes = {name: listed(dict.fromkeys(f"{values[name]}" for values in members)) for name in sorted(members[0])}
    return " ".join(f"{name}={','.join(values)}" for name, values in axes.items())


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    """With headings of columns that are left-aligned, and of others after them."""
    table = Table()
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def _means(rows: Sequence[Mapping[str, Any]], *names: str) -> list[str]:
    """Of i.i.d. and o.o.d. accuracies, in percent."""
    return [percent(sum(row[name] for row in rows) / len(rows)) for name in names or ("iid_acc", "ood_acc")]


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
