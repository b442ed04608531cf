"""The jobs of a command, once checked: run here or by Hydra's launcher; at the end one table, what failed, and the exit code."""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, run_job
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vld.commands.preflight import Command
from vld.commands.side_by_side import saving_before_killed, stop_jobs
from vld.commands.task import Ended, Task, show_results
from vld.config.errors import FAILED, USER_ERROR, UserError, first_line
from vld.machine.all_runs import AllRuns
from vld.machine.signals import stop_on_signals
from vld.machine.terminal import Terminal
from vld.study.jobs import BASIC_LAUNCHER, JOBLIB_LAUNCHER
from vld.study.planned import planned_runs

if TYPE_CHECKING:
    from vld.study.progress import Progress


def _all_runs(command: Command, folder: Path | None = None) -> AllRuns | None:
    """All runs of `train.py`, if there are several. folder: where jobs in other processes note their progress."""
    if command.name != "train" or len(command.runs) < 2:
        return None
    return AllRuns(len(command.runs), sum(run.config.optim.steps for run in command.runs), folder)


def run_here(command: Command, loader: ConfigLoader) -> int:
    """Run the one job of a command in this process. Returns the exit code. Raises `UserError` if the job was refused."""
    config = command.config
    returned = run_job(
        task_function=Task(command.name, all_runs=_all_runs(command)),
        config=config,
        job_dir_key="hydra.run.dir",
        job_subdir_key=None,
        hydra_context=HydraContext(loader, Callbacks(config)),
    )
    ended: Ended = returned.return_value
    if ended.code == USER_ERROR:
        _remove_job_dir(Path(config.hydra.runtime.output_dir), config.hydra.output_subdir)
        raise UserError(ended.error)
    if ended.error:
        Terminal().fail(ended.error)
    return ended.code


def _remove_job_dir(job_dir: Path, of_hydra: str | None) -> None:
    """Remove the directory that Hydra made for a job that did nothing, unless it holds anything else."""
    if of_hydra and [path.name for path in job_dir.iterdir()] == [of_hydra]:
        shutil.rmtree(job_dir / of_hydra)
        job_dir.rmdir()


def run_sweep(command: Command, loader: ConfigLoader) -> int:
    """Run all jobs of a command by its launcher, and show how they ended. Returns the exit code."""
    config, launcher_name = command.config, command.config.hydra.launcher._target_
    sweep_dir, folder = Path.cwd() / str(config.hydra.sweep.dir), None
    if launcher_name != BASIC_LAUNCHER:  # jobs run in other processes
        # Another command may have the same hydra.sweep.dir, and another machine the same process ids.
        folder = sweep_dir / f"running-{os.uname().nodename}-{os.getpid()}-{time.time_ns()}"
    all_runs = _all_runs(command, folder)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(loader, Callbacks(config)),
        task_function=Task(command.name, folder, None if folder else all_runs),
        config=config,
    )
    sweep_dir.mkdir(parents=True, exist_ok=True)
    if config.hydra.output_subdir:  # a command that keeps records of its jobs
        OmegaConf.save(config, sweep_dir / "multirun.yaml")
    ended: list[Ended] = []
    try:
        with _waiting(launcher_name, folder, all_runs):
            for batch in BasicSweeper.split_overrides_to_chunks(command.words, config.hydra.sweeper.max_batch_size):
                ended += map(_ended, launcher.launch(batch, initial_job_idx=len(ended)))
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:  # for example, the process of a job was killed
        _show_end(command, [*ended, *_lost(command, len(ended))])
        on_cluster = "" if launcher_name == JOBLIB_LAUNCHER else "jobs already submitted to a cluster continue; "
        with suppress(OSError):  # nobody may be reading
            print(
                f"the launcher stopped: {type(error).__name__}: {first_line(error):.300}\n"
                f"{on_cluster}run the same command again to start what is missing",
                file=sys.stderr,
            )
        return FAILED
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    return _show_end(command, ended)


@contextmanager
def _waiting(launcher: str, folder: Path | None, all_runs: AllRuns | None) -> Iterator[None]:
    """Within, the progress of jobs in other processes is shown, and those of joblib save their runs when stopped."""
    if folder is None:
        yield
        return

    def stop() -> None:
        showing.close()
        stop_jobs(folder)

    with ExitStack() as showing, saving_before_killed(stop) if launcher == JOBLIB_LAUNCHER else nullcontext():
        stop_on_signals(stop)
        showing.enter_context(Terminal(all_runs=all_runs).waiting())
        yield


def _ended(returned: JobReturn) -> Ended:
    try:
        ended: Ended = returned.return_value
    except Exception as error:  # no job of ours should raise one
        return Ended(error=f"{type(error).__name__}: {first_line(error)}", code=FAILED)
    return ended


def _lost(command: Command, returned: int) -> list[Ended]:
    """How the jobs ended that the launcher lost, by their run directories. returned: how many it has returned."""
    if command.name != "train":
        return [Ended(lost=True) for _ in command.words[returned:]]
    from vld.runs.once import Outcome
    from vld.runs.results import read
    from vld.study.progress import FAILED as RUN_FAILED
    from vld.study.progress import FINISHED, progress_of

    runs: dict[tuple[str, ...], list[Progress]] = {job.overrides: [] for job in command.jobs[returned:]}
    for one in progress_of(planned_runs(command.jobs[returned:])):
        runs[one.run.overrides].append(one)

    def outcome(one: "Progress", path: Path) -> Outcome:
        result = read(path).content if one.state == FINISHED else None
        return Outcome(one.run.test_domain, path, result, failure=one.reason)

    return [
        Ended(
            [outcome(one, one.path) for one in of_job if one.path],
            lost=any(one.state not in (FINISHED, RUN_FAILED) for one in of_job),
        )
        for of_job in (runs[job.overrides] for job in command.jobs[returned:])
    ]


def _show_end(command: Command, ended: Sequence[Ended]) -> int:
    """Show the results of all jobs in one table, then what failed. Returns the exit code."""
    terminal = Terminal()
    outcomes = [outcome for one in ended for outcome in one.outcomes]
    if outcomes:
        show_results(outcomes, command.config.method.name, terminal, of_sweep=True)
    terminal.show(*(f"skipped: {outcome.directory}: {outcome.skipped}" for outcome in outcomes if outcome.skipped))
    if not_uploaded := sum(one.not_uploaded for one in ended):
        publish = next(one.publish for one in ended if one.not_uploaded)
        terminal.warn(f"W&B: {not_uploaded} run directories were not uploaded; to upload them: {publish}")
    for words, one in zip(command.words, ended, strict=True):
        for line in one.failures:
            terminal.fail(line)
        if one.failures:
            terminal.say(f"  to run just this job again: {shlex.join([*command.program, '-m', *words])}")
    if lost := sum(one.lost for one in ended):
        terminal.fail(f"{lost} of {len(ended)} jobs ended without a result; status.py shows their progress")
    codes = {one.code for one in ended}
    return USER_ERROR if USER_ERROR in codes else max(codes)
