"""What a person sees while a command works."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, cast

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from vld.machine.all_runs import AllRuns, StepLog, repeated
from vld.machine.streams import make_streams_usable

CLEAR_LINE = "\r\x1b[K"
"""Before each line of jobs that share a terminal: a bar of the command is in the last line, and is drawn again below it."""


SECONDS_BETWEEN_LOOKS = 0.1
ALL = "all"


@dataclass
class RunProgress:
    """One run's bar; where the output is not a terminal, a plain line at every evaluation. note: is called with each step."""

    console: Console
    bar: Progress | None
    task: TaskID
    label: str
    steps: int
    note: Callable[[int], None]

    def stepped(self, step: int, evaluating: bool) -> None:
        self.note(step)
        if self.bar:
            doing = f"{self.label} (evaluating)" if evaluating else self.label
            self.bar.update(self.task, completed=step, description=doing)

    def evaluated(self, step: int, results: str, seconds: float) -> None:
        """results: of this evaluation, for a person. seconds: since the run began, in all its attempts together."""
        if self.bar:
            self.bar.update(self.task, completed=step, shown=results)
            return
        left = f"  {duration(seconds / step * (self.steps - step))} left" if 0 < step < self.steps else ""
        self.console.print(f"{self.label}  step {step}/{self.steps}  {results}{left}", soft_wrap=True)


class AllRunsBar:
    """The progress of all runs of a command: a bar, or a line after each run if the output is not a terminal."""

    def __init__(self, console: Console, all_runs: AllRuns) -> None:
        self.console, self.runs, self.reported, self.looked = console, all_runs, 0, 0.0

    def say(self) -> None:
        done, _, seconds = self.runs.now()
        if seconds is not None and self.reported < done < self.runs.count:
            line = f"{done} of {self.runs.count} runs done, about {duration(seconds)} left for all"
            self.console.print(line, soft_wrap=True)
        self.reported = done

    def update(self, bar: Progress | None) -> None:
        """Update the last row of the bar, at most every `SECONDS_BETWEEN_LOOKS`."""
        if time.monotonic() - self.looked < SECONDS_BETWEEN_LOOKS:
            return
        self.looked = time.monotonic()
        done, step, seconds = self.runs.now()
        if bar is None:
            return
        if not bar.tasks or bar.tasks[-1].description != ALL:
            bar.add_task(ALL, total=self.runs.steps, shown="", left="")
        left = "-:--" if seconds is None else duration(seconds)
        bar.update(bar.tasks[-1].id, completed=step, shown=f"{done} of {self.runs.count} runs done", left=left)

    def draw(self, bar: Progress) -> None:
        """Draw it over the last line of the terminal, to which jobs in other processes write as well."""
        self.update(bar)
        with self.console.capture() as captured:
            self.console.print(bar.get_renderable(), width=self.console.width - 1)
        self.console.file.write(CLEAR_LINE + captured.get().rstrip("\n"))
        self.console.file.flush()


class TimeLeft(TimeRemainingColumn):
    """At the pace of the last half minute, unless the task has a field for it."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["left"], style="progress.remaining") if "left" in task.fields else super().render(task)


class Log:
    """Standard output, which may be closed or on a full disk: training continues without it."""

    def __init__(self, before: str = "") -> None:
        """before: written before each piece."""
        self.gone = False  # whether nobody reads any more
        self.stream, self.before = sys.stdout, before  # rich replaces sys.stdout while it shows a bar

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        self._try(self.stream.write, self.before + text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, act: Callable[..., object], *arguments: str) -> None:
        try:
            act(*arguments)
        except OSError:
            self.gone = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


class Terminal:
    """Everything goes to standard output but what a user has to fix, which goes to standard error."""

    def __init__(self, job: int | None = None, steps: StepLog | None = None, all_runs: AllRuns | None = None) -> None:
        """job: its number if it shares the terminal with others: it then writes lines with that number, and no bars.

        steps: where those made here are written down. all_runs: of a command, if it has several and they run here.
        """
        make_streams_usable()  # a launcher's worker has streams of its own
        if os.environ.get("COLUMNS") == "0":  # of a terminal without a size; rich would print nothing
            del os.environ["COLUMNS"]
        # A log or a pipe has no width: tables there are as wide as they need be. Names of domains are no markup.
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 250
        self.job = "" if job is None else f"[{job}] "
        plain = None if job is None else False
        self.log = Log(before=CLEAR_LINE if job is not None and sys.stdout.isatty() else "")
        self.console = Console(
            file=cast(IO[str], self.log), highlight=False, markup=False, width=width, force_terminal=plain
        )
        self.steps = steps or StepLog()
        self.all_runs = AllRunsBar(self.console, all_runs) if all_runs else None

    def say(self, line: str) -> None:
        self.console.print(f"{self.job}{line}", soft_wrap=True)

    def warn(self, line: str) -> None:
        self.console.print(f"{self.job}warning: {line}", style="yellow", soft_wrap=True)

    def fail(self, line: str) -> None:
        self.console.print(f"{self.job}failed: {line}", style="bold red", soft_wrap=True)

    @contextmanager
    def counting(self, label: str, *, in_bytes: bool = False) -> Iterator[Callable[[int, int], None]]:
        """A bar for (done, total) that disappears at the end."""
        with self.counting_several(in_bytes=in_bytes) as row:
            yield row(label)

    @contextmanager
    def counting_several(self, *, in_bytes: bool) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
        """Several such bars, updated from any thread: one per label, shown while there is something left to count."""
        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn() if in_bytes else MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        ) as bars:

            def row(label: str) -> Callable[[int, int], None]:
                task = bars.add_task(label, total=None, visible=False)  # until there is something to count

                def count(done: int, total: int) -> None:
                    bars.update(task, completed=done, total=total, visible=bool(done or total) and done != total)

                return count

            yield row

    @contextmanager
    def doing(self, label: str) -> Iterator[Callable[[str], None]]:
        """A line with the current activity, which disappears at the end."""
        with self.console.status(label) as status:
            yield lambda what: status.update(f"{label}: {what}")

    @contextmanager
    def training(self, label: str, steps: int, first_step: int, run_id: str = "") -> Iterator[RunProgress]:
        bar = self._bar() if self.console.is_terminal else None

        def note(step: int) -> None:
            self.steps.at(run_id, step)
            if self.all_runs:
                self.all_runs.update(bar)

        label = f"{self.job}{label}"
        task = bar.add_task(label, total=steps, completed=first_step, shown="") if bar else TaskID(0)
        with bar or nullcontext():
            yield RunProgress(self.console, bar, task, label, steps, note)
            if bar and bar.tasks[-1].description == ALL:
                bar.remove_task(bar.tasks[-1].id)  # what stays on the screen is this run's

    def ended(self, run_id: str, steps: int) -> None:
        """A run of `steps` steps has ended."""
        self.steps.ended(run_id, steps)
        if self.all_runs and not self.console.is_terminal:
            self.all_runs.say()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Show the progress of jobs that run in other processes."""
        if not self.all_runs:
            yield
            return
        on_terminal = self.console.is_terminal
        with repeated(partial(self.all_runs.draw, self._bar()) if on_terminal else self.all_runs.say):
            yield
        if on_terminal:
            self.console.file.write(CLEAR_LINE)
            self.console.file.flush()

    def _bar(self) -> Progress:
        whole = Column(no_wrap=True)  # on a narrow terminal the bar gives way, not the figures
        return Progress(
            TextColumn("{task.description}", style="bold", markup=False, table_column=whole),
            BarColumn(bar_width=None),
            MofNCompleteColumn(table_column=whole),
            TextColumn("{task.fields[shown]}", markup=False, table_column=whole),
            TimeLeft(compact=True, table_column=whole),
            TextColumn("left", table_column=whole),
            console=self.console,
            expand=True,
        )

    def show(self, *parts: RenderableType) -> None:
        """Print tables, and lines between them."""
        for part in parts:
            if isinstance(part, str):
                self.say(part)
            else:
                self.console.print(part, crop=False)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def counted(number: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def size_text(size: int) -> str:
    """Of bytes."""
    if size >= 1e10:
        return f"{size / 1e9:,.1f} GB"
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
