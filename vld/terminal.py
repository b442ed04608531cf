"""What a person sees while runs train, and the tables at the end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from vld.training import Evaluation


class RunProgress:
    """One run's bar; where the output is not a terminal, a plain line at every evaluation."""

    def __init__(
        self, console: Console, bar: Progress | None, label: str, method: str, steps: int, images_per_step: int
    ) -> None:
        self.console, self.bar, self.label, self.method = console, bar, label, method
        self.steps, self.images_per_step = steps, images_per_step
        self.began = time.perf_counter()
        self.shown = ""
        self.task = bar.add_task(label, total=steps, shown="") if bar else None

    def stepped(self, step: int) -> None:
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=step)

    def evaluated(self, evaluation: Evaluation) -> None:
        scores = evaluation.scores[self.method] if self.method in evaluation.scores else evaluation.scores["erm"]
        loss = "" if evaluation.train_loss is None else f"loss {evaluation.train_loss:.3f}  "
        self.shown = f"{loss}i.i.d. {100 * scores.iid_acc:.1f}  o.o.d. {100 * scores.ood_acc:.1f}"
        if evaluation.train_seconds > 0 and evaluation.step:
            self.shown += f"  {evaluation.step * self.images_per_step / evaluation.train_seconds:.0f} images/s"
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=evaluation.step, shown=self.shown)
            return
        left = ""
        if evaluation.step and evaluation.step < self.steps:
            seconds = (time.perf_counter() - self.began) / evaluation.step * (self.steps - evaluation.step)
            left = f"  {duration(seconds)} left"
        self.console.print(f"{self.label}  step {evaluation.step}/{self.steps}  {self.shown}{left}", soft_wrap=True)


class Terminal:
    """Everything goes to standard output but what a user must mend, which goes to standard error."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)

    def say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, markup=False)

    def warn(self, line: str) -> None:
        self.console.print(f"warning: {line}", style="yellow", soft_wrap=True, markup=False)

    def fail(self, line: str) -> None:
        self.console.print(f"failed: {line}", style="bold red", soft_wrap=True, markup=False)

    @contextmanager
    def counting(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for (done, total) that vanishes when it is done."""
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        ) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @contextmanager
    def training(self, label: str, method: str, steps: int, images_per_step: int) -> Iterator[RunProgress]:
        if not self.console.is_terminal:
            yield RunProgress(self.console, None, label, method, steps, images_per_step)
            return
        whole = Column(no_wrap=True)  # on a narrow terminal the bar gives way, not the figures
        with Progress(
            TextColumn("[bold]{task.description}", table_column=whole),
            BarColumn(bar_width=None),
            MofNCompleteColumn(table_column=whole),
            TextColumn("{task.fields[shown]}", table_column=whole),
            TimeRemainingColumn(compact=True, table_column=whole),
            TextColumn("left", table_column=whole),
            console=self.console,
            expand=True,
        ) as bar:
            yield RunProgress(self.console, bar, label, method, steps, images_per_step)

    def results_table(self, rows: list[dict[str, Any]], chosen: str) -> None:
        """A line per method and test domain, and the average of several; the chosen method first and in bold.

        rows: method, test_domain, iid_acc, ood_acc, step, collapse.
        """
        methods = sorted(dict.fromkeys(row["method"] for row in rows), key=lambda method: method != chosen)
        table = Table()
        for heading in ("method", "test domain", "i.i.d. %", "o.o.d. %", "step"):
            table.add_column(heading, justify="left" if heading in ("method", "test domain") else "right")
        for method in methods:
            style = "bold" if method == chosen else ""
            mine = [row for row in rows if row["method"] == method]
            for i, row in enumerate(mine):
                name = f"{row['test_domain']} (collapsed)" if row["collapse"] else row["test_domain"]
                shown = (percent(row["iid_acc"]), percent(row["ood_acc"]), str(row["step"]))
                table.add_row("" if i else method, name, *shown, style=style)
            if len(mine) > 1:
                means = [percent(sum(row[key] for row in mine) / len(mine)) for key in ("iid_acc", "ood_acc")]
                table.add_row("", "average", *means, "", style=f"{style} italic")
            table.add_section()
        self.console.print(table)

    def sweep_table(self, results: pd.DataFrame, varied: list[str]) -> None:
        """A line per method and setting that the sweep varied: averages over test domains, then each domain's o.o.d."""
        domains = sorted(results["test_domain"].unique())
        groups = [*varied, "method"]
        table = Table()
        for name in groups:
            table.add_column(name)
        for heading in ("i.i.d. %", "o.o.d. %", *(domains if len(domains) > 1 else ())):
            table.add_column(heading, justify="right")
        for values, group in results.groupby(groups, dropna=False, sort=False):
            by_domain = group.groupby("test_domain")[["iid_acc", "ood_acc"]].mean()
            complete = len(by_domain) == len(domains)  # an average over fewer domains is another quantity
            means = [percent(by_domain[key].mean()) if complete else "–" for key in ("iid_acc", "ood_acc")]
            cells = [percent(by_domain.loc[d, "ood_acc"]) if d in by_domain.index else "–" for d in domains]
            table.add_row(*(f"{value}" for value in values), *means, *(cells if len(domains) > 1 else ()))
        self.console.print(table)
        if len(domains) > 1:
            self.say("averages over the test domains; under a domain's name: o.o.d. accuracy with that domain left out")


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
