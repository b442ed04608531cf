"""How far all runs of a command are together: every job logs the steps that it makes, and the command adds them up.

The jobs may be in this process or in others, which have a file each.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

STEP_LOG = ".steps"
"""Ending of the files."""
SECONDS_BETWEEN_LOOKS = 1.0
STEPS_BEFORE_FORECAST = 10
"""The forecast needs this many steps; it leaves the first ones out, which are slower."""


@dataclass
class RunSteps:
    """A run that a job has reached: the steps made by this command, and those made ever (all of them once it has ended)."""

    made: int = 0
    step: int = 0
    ended: bool = False


@dataclass
class StepLog:
    """The runs of one job, or of several in one process, by id. file: where another process can read them."""

    file: Path | None = None
    runs: dict[str, RunSteps] = field(default_factory=dict)
    _written: float = 0.0

    def at(self, run: str, step: int) -> None:
        """The run has made `step` steps."""
        its = self.runs.setdefault(run, RunSteps(step=step))
        its.made += max(0, step - its.step)
        its.step = max(step, its.step)
        self._write(SECONDS_BETWEEN_LOOKS)

    def ended(self, run: str, steps: int) -> None:
        """The run has no steps left to make: it finished now or earlier, failed, or is left to another process."""
        its = self.runs.setdefault(run, RunSteps())
        its.step, its.ended = steps, True
        self._write(0.0)

    def _write(self, seconds_between: float) -> None:
        if self.file and time.monotonic() - self._written >= seconds_between:
            self._written = time.monotonic()
            unfinished = self.file.with_suffix(".writing")
            with suppress(OSError):  # a full disk must not stop the training
                self.file.parent.mkdir(parents=True, exist_ok=True)
                unfinished.write_text(json.dumps({run: asdict(its) for run, its in self.runs.items()}))
                unfinished.replace(self.file)


@dataclass
class AllRuns:
    """All runs of a command: how many are done, and how long the others will take at the pace so far.

    count, steps: of all jobs together. folder: where those in other processes log their steps; None: all are in this one.
    clock: in seconds.
    """

    count: int
    steps: int
    folder: Path | None = None
    clock: Callable[[], float] = time.monotonic
    here: StepLog = field(default_factory=StepLog)
    _first: tuple[float, int] | None = None
    """When the pace began to count, and the steps that had been made then."""

    def now(self) -> tuple[int, int, float | None]:
        """Runs that are done, steps made in all of them, and the seconds left, None while they cannot be estimated."""
        runs = (self.here.runs | dict(self._logged())).values()
        made, step, done = sum(run.made for run in runs), sum(run.step for run in runs), sum(run.ended for run in runs)
        if self._first is None and made:
            self._first = self.clock(), made
        if self._first is None or made - self._first[1] < STEPS_BEFORE_FORECAST:
            return done, step, None
        since, before = self._first
        return done, step, (self.clock() - since) / (made - before) * max(0, self.steps - step)

    def _logged(self) -> Iterator[tuple[str, RunSteps]]:
        for path in self.folder.glob(f"*{STEP_LOG}") if self.folder else ():
            with suppress(OSError):
                yield from ((run, RunSteps(**its)) for run, its in json.loads(path.read_text()).items())


@contextmanager
def repeated(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` periodically in a thread, while this process waits for jobs in others."""
    stopping = threading.Event()

    def repeat() -> None:
        look()
        while not stopping.wait(SECONDS_BETWEEN_LOOKS):
            look()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(timeout=SECONDS_BETWEEN_LOOKS)  # a terminal may have been stopped (Ctrl-S)
