"""What a person sees while runs train, and the tables at the end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from vld.training import Evaluation


class RunProgress:
    """One run's bar; where the output is not a terminal, a plain line at every evaluation."""

    def __init__(self, console: Console, bar: Progress | None, label: str, steps: int, images_per_step: int) -> None:
        self.console, self.bar, self.label = console, bar, label
        self.steps, self.images_per_step = steps, images_per_step
        self.began = time.perf_counter()
        self.shown = ""
        self.task = bar.add_task(label, total=steps, shown="") if bar else None

    def stepped(self, step: int) -> None:
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=step)

    def evaluated(self, evaluation: Evaluation, method: str) -> None:
        scores = evaluation.scores[method]
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
    def training(self, label: str, steps: int, images_per_step: int) -> Iterator[RunProgress]:
        if not self.console.is_terminal:
            yield RunProgress(self.console, None, label, steps, images_per_step)
            return
        with Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        ) as bar:
            yield RunProgress(self.console, bar, label, steps, images_per_step)

    def results_table(self, title: str, rows: list[dict[str, Any]]) -> None:
        """A line per test domain and, with several, their average. rows: test_domain, iid_acc, ood_acc, step, collapse."""
        self.say(title)
        table = Table()
        for heading in ("test domain", "i.i.d. %", "o.o.d. %", "step"):
            table.add_column(heading, justify="left" if heading == "test domain" else "right")
        for row in rows:
            name = f"{row['test_domain']} (collapsed)" if row["collapse"] else row["test_domain"]
            table.add_row(name, percent(row["iid_acc"]), percent(row["ood_acc"]), str(row["step"]))
        if len(rows) > 1:
            table.add_section()
            means = [percent(sum(row[key] for row in rows) / len(rows)) for key in ("iid_acc", "ood_acc")]
            table.add_row("average", *means, "", style="bold")
        self.console.print(table)

    def sweep_table(self, title: str, results: pd.DataFrame, varied: list[str]) -> None:
        """A line per setting that the sweep varied: averages over test domains, then each domain's o.o.d. accuracy."""
        domains = sorted(results["test_domain"].unique())
        self.say(title)
        table = Table()
        for name in varied:
            table.add_column(name)
        for heading in ("i.i.d. %", "o.o.d. %", *(domains if len(domains) > 1 else ())):
            table.add_column(heading, justify="right")
        groups = results.groupby(varied, dropna=False) if varied else [((), results)]
        for values, group in groups:
            by_domain = group.groupby("test_domain")[["iid_acc", "ood_acc"]].mean()
            cells = [
                percent(by_domain.loc[domain, "ood_acc"]) if domain in by_domain.index else "–" for domain in domains
            ]
            complete = len(by_domain) == len(domains)  # an average over fewer domains is another quantity
            means = [percent(by_domain[key].mean()) if complete else "–" for key in ("iid_acc", "ood_acc")]
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
