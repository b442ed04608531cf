"""What a person sees while a command works."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from vld.training.loop import Evaluation


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
        self.steps, self.images_per_step = steps, images_per_step
        self.task = bar.add_task(label, total=steps, completed=first_step, shown="") if bar else None

    def stepped(self, step: int, evaluating: bool) -> None:
        if self.bar and self.task is not None:
            doing = f"{self.label} (evaluating)" if evaluating else self.label
            self.bar.update(self.task, completed=step, description=doing)

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
        if 0 < evaluation.step < self.steps:
            left = f"  {duration(evaluation.seconds / evaluation.step * (self.steps - evaluation.step))} left"
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
            task = bar.add_task(label, total=None, visible=False)  # until there is something to count
            yield lambda done, total: bar.update(task, completed=done, total=total, visible=bool(done or total))

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

    def show(self, *parts: RenderableType) -> None:
        """Tables, and lines between them."""
        for part in parts:
            if isinstance(part, str):
                self.say(part)
            else:
                self.console.print(part)

    def clear(self) -> None:
        """The screen, if it is one: in a log, what follows comes after what was there."""
        if self.console.is_terminal:
            self.console.clear()


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def counted(number: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
