"""One job of a command, in whatever process it runs: what it does with its settings, and how it ended."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vld.commands.preflight import schema_of
from vld.commands.side_by_side import as_worker
from vld.config.errors import FAILED, USER_ERROR, UserError
from vld.config.names import COMBINATIONS
from vld.config.settings import Config
from vld.machine.all_runs import STEP_LOG, AllRuns, StepLog
from vld.machine.streams import place_caches
from vld.machine.terminal import Terminal
from vld.study.jobs import JOBLIB_LAUNCHER
from vld.study.typed_settings import typed_config
from vld.tracking.background import Publisher

if TYPE_CHECKING:
    from vld.runs.once import Outcome


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    outcomes: "Sequence[Outcome]" = ()
    error: str | None = None
    """What stopped it before all its runs had ended."""
    code: int = 0
    """What the command exits with if this is its only job."""
    not_uploaded: int = 0
    """Run directories that were not uploaded to W&B, and the command that uploads them."""
    publish: str = ""
    lost: bool = False
    """The launcher stopped before the job had a result."""

    @property
    def failures(self) -> list[str]:
        """A line each."""
        of_runs = [f"{outcome.directory}: {outcome.failure}" for outcome in self.outcomes if outcome.failure]
        return [*of_runs, self.error] if self.error else of_runs


@dataclass(frozen=True)
class Task:
    """A command's work on one job, called by Hydra in this process or another.

    folder: where a job in another process than the command's notes its progress. all_runs: all runs of the command, if it has
    several and they run in this process.
    """

    command: str
    folder: Path | None = None
    all_runs: AllRuns | None = None

    def __call__(self, composed: DictConfig) -> Ended:
        os.chdir(HydraConfig.get().runtime.cwd)  # relative paths mean the command's folder, with hydra.job.chdir too
        try:
            config: Any = typed_config(composed, schema_of(self.command))
            if self.command in ("train", "combine"):
                # A scheduler's job may lack the command's environment.
                place_caches(os.environ, Path(config.output_dir))
                return self._runs(config)
            return Ended(code=FAILED if self._work_without_runs(config) else 0)
        except UserError as error:  # else Hydra would print it
            return Ended(error=str(error), code=USER_ERROR)

    def _work_without_runs(self, config: Any) -> int:
        """Returns how much of it failed."""
        terminal = Terminal()
        if self.command == "publish":
            from vld.commands.publish import publish_all

            return publish_all(config, terminal)
        if self.command == "analyse":
            from vld.commands.analyse import analyse_all

            return analyse_all(config, terminal)
        if self.command == "prepare":
            from vld.commands.prepare import prepare

            prepare(config, terminal)
        else:
            from vld.commands.benchmark.measure import run_benchmark

            run_benchmark(config, HydraConfig.get().overrides.task, terminal)
        return 0

    def _runs(self, config: Config) -> Ended:
        """Make the runs or combinations of this job, and show their table unless one table of all jobs follows."""
        number: int | None = None
        worker: AbstractContextManager[None] = nullcontext()
        steps = self.all_runs.here if self.all_runs else None
        if self.folder:
            number = HydraConfig.get().job.num
            steps = StepLog(self.folder / f"{number:06d}{STEP_LOG}")
            if HydraConfig.get().launcher._target_ == JOBLIB_LAUNCHER:
                worker = as_worker(self.folder, number, config.device)
        terminal = Terminal(number, steps, self.all_runs)
        publisher = Publisher(config.wandb, config.output_dir, say=terminal.say, warn=terminal.warn)
        outcomes: Sequence[Outcome] = ()
        error: UserError | OSError | None = None
        try:
            with worker:
                outcomes = self._made(config, terminal, publisher)
            if not self.folder:
                show_results(outcomes, config.method.name, terminal)
        except (UserError, OSError) as problem:
            error = problem
        except BaseException:  # Ctrl-C, for example
            publisher.abandon()
            raise
        with terminal.counting("uploading to W&B") as progress:
            publisher.finish(progress)
        failed = error is not None or any(outcome.failure for outcome in outcomes)
        return Ended(
            outcomes,
            error=str(error) if error else None,
            code=USER_ERROR if isinstance(error, UserError) else FAILED if failed else 0,
            not_uploaded=len(publisher.not_uploaded),
            publish=publisher.command,
        )

    def _made(self, config: Config, terminal: Terminal, publisher: Publisher) -> "Sequence[Outcome]":
        """Train, combine, or train the members of a combination and combine them."""
        from vld.study.combination import combine_all, train_and_combine
        from vld.study.runner import run_all

        if self.command == "combine":
            return combine_all(config, terminal, publisher, options=HydraConfig.get().overrides.task)
        if config.method.name in COMBINATIONS:
            return train_and_combine(config, terminal, publisher)
        return run_all([config], terminal, publisher)


def show_results(outcomes: "Sequence[Outcome]", method: str, terminal: Terminal, *, of_sweep: bool = False) -> None:
    """The table of one job, with the directories of its runs; or that of all jobs."""
    from vld.report.summary import combination_tables, job_table, selection_note, sweep_table
    from vld.runs.results import RunResult

    # Jobs of a sweep may share runs.
    results = {o.directory: RunResult(o.directory, o.result) for o in outcomes if o.result is not None}
    if not results:
        return
    if note := selection_note(results.values()):
        terminal.say(note)
    if of_sweep:
        terminal.show(*sweep_table(list(results.values()), method))
        return
    combined = method in COMBINATIONS
    for number in sorted({result.left_out for result in results.values()}):  # never averaged together
        by_domain = {r.settings["test_domain"]: r for r in results.values() if r.left_out == number}
        terminal.show(*combination_tables(method, by_domain) if combined else [job_table(by_domain, method)])
    for result in results.values():
        terminal.say(f"{result.settings['test_domain']}: {result.directory}")
