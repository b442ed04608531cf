"""One job of a command, in whatever process it runs: what Hydra composed, done; and what came of it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vld.commands.side_by_side import known_to_run, worker_number
from vld.config.errors import FAILED, USER_ERROR, UserError
from vld.config.names import COMBINATIONS
from vld.config.settings import Config
from vld.machine.all_runs import NOTES, Notes, Whole
from vld.machine.signals import stop_on_signals
from vld.machine.terminal import Terminal
from vld.study.compose import SCHEMAS, typed_config
from vld.study.jobs import JOBLIB_LAUNCHER
from vld.tracking.background import Publisher

if TYPE_CHECKING:
    from vld.runs.once import Outcome


@dataclass(frozen=True)
class Ended:
    """What a job came to. error: what ended it before its runs had all ended; refused: that is the user's to fix."""

    outcomes: "Sequence[Outcome]" = ()
    error: str | None = None
    refused: bool = False
    failed: bool = False
    """Of a job without runs."""
    not_uploaded: int = 0
    """Run directories that were not uploaded to W&B, and the command that uploads them."""
    publish: str = ""

    @property
    def failures(self) -> list[str]:
        """A line each."""
        of_runs = [f"{outcome.directory}: {outcome.failure}" for outcome in self.outcomes if outcome.failure]
        return [*of_runs, self.error] if self.error else of_runs

    @property
    def code(self) -> int:
        """The exit code that says so."""
        if self.refused:
            return USER_ERROR
        return FAILED if self.failed or self.failures else 0


@dataclass(frozen=True)
class Task:
    """A command's work on one job, for Hydra to call, here or in other processes.

    folder: of a job in another process than the command's, which others run beside: where it notes how far it is. whole: all
    runs of the command, where it has several and they run here.
    """

    command: str
    folder: Path | None = None
    whole: Whole | None = None

    def __call__(self, composed: DictConfig) -> Ended:
        os.chdir(HydraConfig.get().runtime.cwd)  # relative paths mean the command's folder, with hydra.job.chdir too
        try:
            return self._runs(composed) if self.command in ("train", "combine") else self._without_runs(composed)
        except UserError as error:  # before Hydra has its say about it
            return Ended(error=str(error), refused=True)

    def _without_runs(self, composed: DictConfig) -> Ended:
        config: Any = typed_config(composed, SCHEMAS.get(f"{self.command}_schema", Config))
        failed: object = None
        if self.command == "benchmark":
            from vld.commands.benchmark.measure import run_benchmark

            run_benchmark(config, HydraConfig.get().overrides.task, Terminal())
        elif self.command == "prepare":
            from vld.commands.prepare import prepare

            prepare(config, Terminal())
        elif self.command == "publish":
            from vld.commands.publish import publish_all

            failed = publish_all(config, Terminal())
        else:
            from vld.commands.analyse import analyse_all

            failed = analyse_all(config, Terminal())
        return Ended(failed=bool(failed))

    def _runs(self, composed: DictConfig) -> Ended:
        """The runs or combinations of this job, and the table of them, unless there is one of all jobs alone."""
        number = HydraConfig.get().job.num if self.folder else None
        notes = Notes(self.folder / f"{number:06d}{NOTES}") if self.folder else self.whole.here if self.whole else None
        terminal = Terminal(number, notes, self.whole)
        config = typed_config(composed, Config)
        publisher = Publisher(config.wandb, config.output_dir, say=terminal.say, warn=terminal.warn)
        outcomes: Sequence[Outcome] = ()
        error: UserError | OSError | None = None
        try:
            with self._stoppable(config.device):
                outcomes = (_combined if self.command == "combine" else _trained)(config, terminal, publisher)
            if not self.folder:
                _show_results(outcomes, config.method.name, terminal)
        except (UserError, OSError) as problem:
            error = problem
        except BaseException:  # Ctrl-C, say
            publisher.abandon()
            raise
        with terminal.counting("uploading to W&B") as progress:
            publisher.finish(progress)
        return Ended(
            outcomes,
            error=str(error) if error else None,
            refused=isinstance(error, UserError),
            not_uploaded=len(publisher.not_uploaded),
            publish=publisher.command,
        )

    @contextmanager
    def _stoppable(self, device: str) -> Iterator[None]:
        """Within, a job in a process of joblib's keeps to one GPU, and the command can have it save its run and end."""
        if not self.folder or HydraConfig.get().launcher._target_ != JOBLIB_LAUNCHER:
            yield
            return
        stop_on_signals()
        if device == "auto":
            from vld.machine.device import keep_to_one_gpu

            keep_to_one_gpu(worker_number())
        with known_to_run(self.folder, HydraConfig.get().job.num):
            yield


def _trained(config: Config, terminal: Terminal, publisher: Publisher) -> "Sequence[Outcome]":
    """Train; where a combination is asked for, its members first."""
    if config.method.name in COMBINATIONS:
        from vld.study.combination import train_and_combine

        return train_and_combine(config, terminal, publisher)
    from vld.study.runner import run_all

    return run_all([config], terminal, publisher)


def _combined(config: Config, terminal: Terminal, publisher: Publisher) -> "Sequence[Outcome]":
    from vld.study.combination import combine_all

    if config.method.name not in COMBINATIONS:
        raise UserError(f"method={config.method.name}: combine.py makes one of {', '.join(COMBINATIONS)}")
    return combine_all(config, terminal, publisher, options=HydraConfig.get().overrides.task)


def _show_results(outcomes: "Sequence[Outcome]", method: str, terminal: Terminal) -> None:
    """The table of one job, and where its runs are."""
    from vld.report.summary import combination_tables, results_table, selection_note
    from vld.runs.results import RunResult

    finished = {o.test_domain: RunResult(o.directory, o.result) for o in outcomes if o.result is not None}
    if not finished:
        return
    if method in COMBINATIONS:
        terminal.show(*combination_tables(method, finished))
    else:
        terminal.show(selection_note(finished.values()), results_table(finished, method))
    for test_domain, result in finished.items():
        terminal.say(f"{test_domain}: {result.directory}")
