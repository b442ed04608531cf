"""The jobs of a command, once checked: here, or given to Hydra's launcher, with one table of what they came to in the end."""

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
from vld.commands.task import Ended, Task
from vld.config.errors import FAILED, USER_ERROR, UserError, first_line
from vld.machine.all_runs import Whole
from vld.machine.signals import stop_on_signals
from vld.machine.terminal import Terminal
from vld.study.jobs import BASIC_LAUNCHER, JOBLIB_LAUNCHER

if TYPE_CHECKING:
    from vld.study.progress import Progress


def _whole(command: Command, folder: Path | None = None) -> Whole | None:
    """All runs of `train.py`, if they are several. folder: where jobs in other processes note what they do."""
    if command.name != "train":
        return None
    runs = command.runs
    return Whole(len(runs), sum(run.config.optim.steps for run in runs), folder) if len(runs) > 1 else None


def run_here(command: Command, loader: ConfigLoader) -> int:
    """The one job of a command, in this process. Raises `UserError` where it was refused."""
    config = command.config
    returned = run_job(
        task_function=Task(command.name, whole=_whole(command)),
        config=config,
        job_dir_key="hydra.run.dir",
        job_subdir_key=None,
        hydra_context=HydraContext(loader, Callbacks(config)),
    )
    ended: Ended = returned.return_value
    if ended.refused:
        _remove_job_dir(Path(config.hydra.runtime.output_dir), config.hydra.output_subdir)
        raise UserError(ended.error)
    if ended.error:
        Terminal().fail(ended.error)
    return ended.code


def _remove_job_dir(job_dir: Path, of_hydra: str | None) -> None:
    """Take back the directory that Hydra made for a job which did nothing, if there is nothing of anybody's in it."""
    if of_hydra and [path.name for path in job_dir.iterdir()] == [of_hydra]:
        shutil.rmtree(job_dir / of_hydra)
        job_dir.rmdir()


def run_sweep(command: Command, loader: ConfigLoader) -> int:
    """All jobs of a command by the launcher that was chosen; then the table, what failed and how to go on; the exit code."""
    config = command.config
    sweep_dir = Path.cwd() / str(config.hydra.sweep.dir)
    in_others = config.hydra.launcher._target_ != BASIC_LAUNCHER
    # Its own, although another command may have the same hydra.sweep.dir, and another machine the same processes.
    folder = sweep_dir / f"running-{os.uname().nodename}-{os.getpid()}-{time.time_ns()}" if in_others else None
    whole = _whole(command, folder)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(loader, Callbacks(config)),
        task_function=Task(command.name, folder, None if in_others else whole),
        config=config,
    )
    sweep_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, sweep_dir / "multirun.yaml")
    ended: list[Ended] = []
    try:
        with _waiting(config.hydra.launcher._target_, folder, whole):
            for batch in BasicSweeper.split_overrides_to_chunks(command.words, config.hydra.sweeper.max_batch_size):
                ended += map(_ended, launcher.launch(batch, initial_job_idx=len(ended)))
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:  # the process of a job was killed, say
        show_end(command, ended)
        with suppress(OSError):  # nobody may be there to read it
            print(
                f"the launcher stopped: {type(error).__name__}: {first_line(error):.300}\n"
                "jobs that it has given to a cluster go on; the same command goes on with what is not finished, and does"
                " nothing twice",
                file=sys.stderr,
            )
        return FAILED
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    return show_end(command, ended)


@contextmanager
def _waiting(launcher: str, folder: Path | None, whole: Whole | None) -> Iterator[None]:
    """Within, it is shown how far jobs in other processes are, and joblib's save their runs if stopped. folder: their notes."""
    if folder is None:
        yield
        return

    def stop() -> None:
        showing.close()
        stop_jobs(folder)

    with ExitStack() as showing, saving_before_killed(stop) if launcher == JOBLIB_LAUNCHER else nullcontext():
        stop_on_signals(stop)
        showing.enter_context(Terminal(whole=whole).waiting())
        yield


def _ended(returned: JobReturn) -> Ended:
    try:
        ended: Ended = returned.return_value
    except Exception as error:  # which no job of ours should raise
        return Ended(error=f"{type(error).__name__}: {first_line(error)}")
    return ended


def show_end(command: Command, ended: Sequence[Ended]) -> int:
    """Show all jobs' results in one table, then what failed; the exit code that says so.

    ended: of the first jobs; the launcher has lost the others, and run directories tell how far these are.
    """
    from vld.study.progress import FAILED as RUN_FAILED
    from vld.study.progress import FINISHED

    terminal = Terminal()
    lost = _lost(command, len(ended))
    _show_results(command, ended, lost, terminal)
    if not_uploaded := sum(one.not_uploaded for one in ended):
        publish = next(one.publish for one in ended if one.not_uploaded)
        terminal.warn(f"W&B: {not_uploaded} run directories were not uploaded; to upload them: {publish}")
    failures = [(words, one.failures) for words, one in zip(command.words, ended, strict=False)]
    failures += [(list(run.run.overrides), [f"{run.path}: {run.reason}"]) for run in lost if run.state == RUN_FAILED]
    for words, lines in failures:
        for line in lines:
            terminal.fail(line)
        if lines:
            terminal.say(f"  again, just that: {shlex.join([*command.again, '-m', *words])}")
    unfinished = {run.run.overrides for run in lost if run.state not in (FINISHED, RUN_FAILED)}
    if without := len(unfinished) if lost else len(command.words) - len(ended):
        terminal.fail(f"{without} of {len(command.words)} jobs ended without a result; status.py says how far they are")
    return USER_ERROR if any(one.refused for one in ended) else max([0, *(one.code for one in ended)])


def _lost(command: Command, ended: int) -> "list[Progress]":
    """How far the runs are of the jobs that the launcher has lost."""
    if command.name != "train" or ended == len(command.jobs):
        return []
    from vld.study.planned import planned_runs
    from vld.study.progress import progress_of

    return progress_of(planned_runs(command.jobs[ended:]))


def _show_results(command: Command, ended: Sequence[Ended], lost: "Sequence[Progress]", terminal: Terminal) -> None:
    from vld.report.summary import selection_note, sweep_table
    from vld.runs.results import RunResult, read
    from vld.study.progress import FINISHED

    outcomes = [outcome for one in ended for outcome in one.outcomes]
    results = {o.directory: RunResult(o.directory, o.result) for o in outcomes if o.result is not None}
    results |= {run.path: read(run.path) for run in lost if run.path and run.state == FINISHED}
    if results:
        if note := selection_note(results.values()):
            terminal.say(note)
        terminal.show(*sweep_table(list(results.values()), command.config.method.name))
    for outcome in outcomes:
        if outcome.skipped:
            terminal.say(f"skipped: {outcome.directory}: {outcome.skipped}")
