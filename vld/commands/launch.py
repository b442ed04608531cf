"""Around the jobs of a command: every job is checked before the first starts, one table when all have ended."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from hydra import compose
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from vld.commands.side_by_side import saving_before_killed
from vld.config.command_settings import ReportConfig, StatusConfig
from vld.config.errors import FAILED, USER_ERROR, UserError, exit_with_user_error
from vld.config.names import COMBINATIONS
from vld.config.options import beyond, check_values
from vld.config.settings import Config
from vld.study.compose import describe_error, typed_config
from vld.study.jobs import (
    BASIC_LAUNCHER,
    JOBLIB_LAUNCHER,
    Job,
    axes_of,
    jobs_of,
    outcomes_dir,
    overrides_parser,
    values_of,
)
from vld.study.words import as_hydra_takes_them
from vld.tracking.environment import check_environment

if TYPE_CHECKING:
    from vld.machine.all_runs import Whole
    from vld.runs.inputs import Inputs
    from vld.study.planned import PlannedRun

TRAINING_COMMANDS = ("train", "benchmark")
# Of the commands that look at runs of train.py: their own options.
LOOKING = {
    name: tuple(one.name for one in beyond(schema, Config))
    for name, schema in (("status", StatusConfig), ("report", ReportConfig))
}


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """What a user must mend ends the command with code 2; anything else does not go unnoticed either."""
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException) as error:
        exit_with_user_error(describe_error(error))
    except Exception as error:
        print(f"before the first job: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(FAILED)


class JobsCallback(Callback):
    """Hydra turns what a callback raises into warnings, but for SystemExit."""

    started: ClassVar[tuple[Path, int, str] | None] = None
    """Of the sweep whose jobs have been launched: where they note their outcomes, how many they are, and the method to show."""

    again: ClassVar[list[str]] = []
    """The command, without the jobs' options."""

    whole: "ClassVar[Whole | None]" = None
    """Of the runs of this command, if it trains several."""

    waiting: ClassVar[ExitStack] = ExitStack()
    """What shows how far they are while their jobs are in other processes."""

    def __init__(self, outcomes: str) -> None:
        """outcomes: what `outcomes_dir` reads."""

    @exit_on_user_error()
    def on_run_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        if config.hydra.sweeper.params:
            raise UserError(f"study={config.hydra.runtime.choices.study}: its file must say hydra.mode: MULTIRUN")
        problems: dict[str, None] = {}
        jobs = []
        try:
            jobs = [Job(tuple(config.hydra.overrides.task), typed_config(config, Config))]
        except (UserError, OmegaConfBaseException) as error:
            problems |= dict.fromkeys(describe_error(error).splitlines())
        problems |= dry_run_problems(jobs, config_name)
        needed = check_jobs(jobs, problems, trains=config_name in TRAINING_COMMANDS, here=True, name="this command")
        if config_name == "train" and jobs[0].config.dry_run:
            say_what_is_to_do(jobs, needed, "this command")
        if config_name == "train":
            JobsCallback.whole = whole_of(jobs)

    @exit_on_user_error()
    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        problems: dict[str, None] = {}
        study = config.hydra.runtime.choices.get("study")
        if study and not config.study.name:
            raise UserError(f"study={study}: its file must say study.name")
        quote_axes(config)
        own = LOOKING.get(str(config_name), ())
        of_runs = config_name in LOOKING or config.study.name  # what is looked at or combined are runs of train.py
        jobs = list(jobs_of(axes_of(config, without=own), problems, "train" if of_runs else str(config_name)))
        trains = config_name in TRAINING_COMMANDS
        here = config.hydra.launcher._target_ in (BASIC_LAUNCHER, JOBLIB_LAUNCHER)
        if trains and (
            combining := [job for job in jobs if job.config.study.name and job.config.method.name in COMBINATIONS]
        ):
            method, study = combining[0].config.method.name, combining[0].config.study.name
            problems[f"method={method}: train.py trains a study's runs; combine.py study={study} combines them"] = None
        problems |= dry_run_problems(jobs, config_name)
        name = (jobs[0].config.study.name if jobs else None) or "this sweep"
        needed = check_jobs(jobs, problems, trains=trains, here=here, name=name)
        if config_name == "status":
            finish_status(jobs, name, config)
        if config_name == "report":
            finish_report(jobs, config)
        if config_name == "combine" and jobs[0].config.study.name:
            finish_combining(jobs)
        if config_name == "train" and (jobs[0].config.study.name or jobs[0].config.dry_run):
            say_what_is_to_do(jobs, needed, name, at_a_time(config))
        JobsCallback.started = outcomes_dir(config.hydra), len(jobs), config.method.name
        JobsCallback.again = command_of(config)
        if config_name == "train":
            in_this_process = config.hydra.launcher._target_ == BASIC_LAUNCHER
            JobsCallback.whole = whole_of(jobs, None if in_this_process else outcomes_dir(config.hydra))
            if not in_this_process:
                from vld.machine.terminal import Terminal

                if config.hydra.launcher._target_ == JOBLIB_LAUNCHER:
                    JobsCallback.waiting.enter_context(saving_before_killed(outcomes_dir(config.hydra)))
                JobsCallback.waiting.enter_context(Terminal(whole=JobsCallback.whole).waiting())

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:  # noqa: ARG002
        try:
            assert self.started
            code = summarise_sweep(*self.started)
            shutil.rmtree(self.started[0], ignore_errors=True)
        except Exception as error:
            print(f"the results of this sweep could not be put together: {error}", file=sys.stderr)
            code = FAILED
        if code:
            sys.exit(code)


def quote_axes(config: DictConfig) -> None:
    """Have a study's axes as they are written in its file, where Hydra would read text as a number."""
    axes = config.hydra.sweeper.params or {}
    with read_write(config.hydra):
        for name, values in axes.items():
            [word] = as_hydra_takes_them([f"{name}={values}"], Config)
            if word != f"{name}={values}":
                axes[name] = word.partition("=")[2]


def dry_run_problems(jobs: list[Job], config_name: str | None) -> dict[str, None]:
    """Only `train.py` has something to try: the other commands show, or take little."""
    if config_name in ("combine", "benchmark") and any(job.config.dry_run for job in jobs):
        return {"dry_run=true: train.py alone has it; status.py says what is finished": None}
    return {}


def whole_of(jobs: list[Job], folder: Path | None = None) -> "Whole | None":
    """All runs of these jobs, if they are several. folder: where jobs in other processes note what they do."""
    from vld.machine.all_runs import Whole
    from vld.study.planned import planned_runs

    runs = planned_runs(jobs)
    return Whole(len(runs), sum(run.config.optim.steps for run in runs), folder) if len(runs) > 1 else None


def at_a_time(config: DictConfig) -> int:
    """How many jobs of a sweep run at once, at most."""
    launcher = config.hydra.launcher
    jobs = int(launcher.get("n_jobs") or launcher.get("array_parallelism") or 1)
    return jobs if jobs > 0 else len(os.sched_getaffinity(0))  # joblib's -1: as many as there are cores


def command_of(config: DictConfig) -> list[str]:
    """The command that was given, with what is Hydra's and without what a job's options replace."""
    words = iter(sys.argv[1:])
    places = []
    for word in words:
        if word.split("=")[0] in ("--config-dir", "--config-path", "-cd", "-cp"):
            places += [word] if "=" in word else [word, next(words, "")]
    program = ["python", sys.argv[0]] if sys.argv[0].endswith(".py") else [sys.argv[0]]
    return [*program, *places, *config.hydra.overrides.hydra]


def check_jobs(
    jobs: list[Job], problems: dict[str, None], *, trains: bool, here: bool, name: str = "this sweep"
) -> "dict[str, Inputs]":
    """Exit with code 2 and one list of everything wrong in any of the jobs, before anything is made.

    trains: they need images, weights and, if they run `here`, the device, too: those inputs are returned,
    by `inputs_key`. A dry run of jobs (which together are called `name`) whose images are still to come ends here.
    """
    for job in jobs:
        if job.config.method.name in COMBINATIONS:
            from vld.study.member_axes import member_configs

            try:
                member_configs(job.config)
            except (UserError, OmegaConfBaseException) as error:
                problems |= dict.fromkeys(describe_error(error).splitlines())
    checked: dict[str, Inputs] = {}
    if trains and not problems and jobs[0].config.dry_run:
        count_without_data(jobs, name)
    if trains and not problems:
        from vld.runs.inputs import check_inputs, inputs_key

        try:
            for mode in {job.config.wandb.mode for job in jobs}:
                check_environment(mode)
        except UserError as error:
            problems[str(error)] = None
        for key, config in {inputs_key(job.config): job.config for job in jobs}.items():
            try:
                checked[key] = check_inputs(config, here=here)
            except UserError as error:
                problems |= dict.fromkeys(str(error).splitlines())
    if problems:
        exit_with_user_error("\n".join(problems))
    return checked


def count_without_data(jobs: list[Job], name: str) -> None:
    """Where images or weights are still to come, a dry run ends with the runs and how many are finished; it fetches nothing."""
    from vld.commands.status import described, summary
    from vld.machine.terminal import Terminal
    from vld.model.published import weights_to_come
    from vld.study.planned import data_to_come, planned_runs
    from vld.study.progress import FINISHED, progress_of

    backbones = {
        repr(job.config.backbone): job.config.backbone for job in jobs
    }  # a study's hundreds of jobs share a few
    weights = [line for backbone in backbones.values() if (line := weights_to_come(backbone))]
    if not (to_come := [*data_to_come(job.config for job in jobs), *dict.fromkeys(weights)]):
        return
    try:
        progress = progress_of(planned_runs(jobs))
    except UserError:  # its domains are not known before it is there: that it is not will be said
        return
    terminal = Terminal()
    for one in progress:
        if one.state != FINISHED:
            terminal.say(f"{one.state}: {described(one)}")
    for line in (summary(progress, name), *to_come):
        terminal.say(line)
    sys.exit(0)


def say_what_is_to_do(jobs: list[Job], inputs: "dict[str, Inputs]", name: str, jobs_at_a_time: int = 1) -> None:
    """One line before the first job: how many runs there are, how many are finished, how long the others take, and their disk.

    With `dry_run=true` those others first, one a line, and then that is all. Raises `UserError` where the disk has less.
    """
    from vld.commands.status import described, summary
    from vld.machine.terminal import Terminal, megabytes
    from vld.runs.identity import weights_fingerprint
    from vld.runs.inputs import inputs_key
    from vld.runs.space import check_disk, disk_of_runs
    from vld.study.planned import planned_runs
    from vld.study.progress import FINISHED, progress_of
    from vld.training.evaluation import evaluation_images

    terminal, config = Terminal(), jobs[0].config
    weights = {repr(job.config.backbone): inputs[inputs_key(job.config)].weights for job in jobs}
    fingerprints = {backbone: weights_fingerprint(its) for backbone, its in weights.items()}
    progress = progress_of(planned_runs(jobs), fingerprints)
    to_do = [one for one in progress if one.state != FINISHED]
    if config.dry_run:
        for one in to_do:
            terminal.say(f"{one.state}: {described(one)}")
    files = {its.files.name: its.files for its in inputs.values()}
    kept, meanwhile = disk_of_runs(
        (one.wanted.config, evaluation_images(of.sizes, one.wanted.test_domain), len(of.classes))
        for one in to_do
        for of in [files[one.wanted.config.dataset.name]]
    )
    meanwhile *= min(jobs_at_a_time, len(to_do))
    check_disk(kept, meanwhile, 0, next(iter(inputs.values())).existing_folder)
    terminal.say(f"{summary(progress, name)}, {megabytes(kept)} of disk ({megabytes(meanwhile)} more meanwhile)")
    if config.dry_run:
        sys.exit(0)


def finish_status(jobs: list[Job], name: str, config: DictConfig) -> NoReturn:
    """What `status.py` does, in place of its jobs."""
    from vld.commands.status import show_status
    from vld.machine.terminal import Terminal
    from vld.study.planned import planned_runs

    check_values(StatusConfig, {"format": config.format})
    arguments = {"name": name, "watch": config.watch, "as_json": config.format == "json"}
    complete = show_status(planned_runs(jobs), shared_runs(jobs, config, "status"), terminal=Terminal(), **arguments)
    sys.exit(0 if complete else FAILED)


def finish_report(jobs: list[Job], config: DictConfig) -> NoReturn:
    """What `report.py` does, in place of its jobs."""
    from vld.commands.report import report
    from vld.study.planned import planned_runs

    words = [word for word in config.hydra.overrides.task if word.split("=")[0] != "output_dir"]
    study, runs = config.study.name, None
    if study:
        runs = [*planned_runs(jobs), *(run for its in shared_runs(jobs, config, "report").values() for run in its)]
    how = {"selection": config.selection, "choose": config.choose, "run": config.run}
    report(jobs, runs, words, **how, output_dir=Path(jobs[0].config.output_dir))
    sys.exit(0)


def shared_runs(jobs: list[Job], config: DictConfig, config_name: str) -> "dict[str, list[PlannedRun]]":
    """The runs of other studies on the same datasets that a study's figure shows as well, narrowed by the same words."""
    from vld.study.planned import planned_runs

    problems: dict[str, None] = {}
    words = [word for word in config.hydra.overrides.task if word.split("=")[0] not in (*LOOKING[config_name], "study")]
    datasets = {job.config.dataset.name for job in jobs}
    shared = {
        study: [run for run in planned_runs(jobs_of(axes, problems)) if run.config.dataset.name in datasets]
        for study in jobs[0].config.study.shares
        if (axes := study_axes(study, words)) is not None
    }
    if problems:
        raise UserError("\n".join(problems))
    return shared


def study_axes(study: str, words: list[str]) -> list[str] | None:
    """The axes of another study, narrowed by the same words; None where it has no runs of theirs."""
    composed = compose("train", overrides=[f"study={study}"], return_hydra_config=True)
    quote_axes(composed)
    always = composed.hydra.sweeper.params or {}
    axes = {f"{key}": f"{value}" for key, value in always.items()}
    parser = overrides_parser()
    for word in words:
        name = word.split("=")[0]
        if name in axes:
            its_own = values_of(parser.parse_override(f"{name}={axes[name]}"))
            both = [value for value in values_of(parser.parse_override(word)) if value in its_own]
            if not both:
                return None
            axes[name] = ",".join(map(str, both))
    others = [word for word in words if word.split("=")[0] not in axes]
    return [*(f"{name}={values}" for name, values in axes.items()), f"study={study}", *others]


def finish_combining(jobs: list[Job]) -> NoReturn:
    """What `combine.py study=…` does, in place of its jobs."""
    from vld.commands.combine import combine_study
    from vld.machine.terminal import Terminal

    sys.exit(combine_study(jobs, Terminal()))


def summarise_sweep(outcomes: Path, jobs: int, chosen: str) -> int:
    """Show all jobs' results in one table, then what failed; return the exit code that says so."""
    from vld.machine.terminal import Terminal
    from vld.report.summary import SELECTION_NOTE, sweep_table
    from vld.runs.reading import read_json
    from vld.runs.results import read

    JobsCallback.waiting.close()
    terminal = Terminal()
    records = [read_json(path) for path in sorted(outcomes.glob("*.json"))]
    runs = [run for record in records for run in record["runs"]]
    finished = dict.fromkeys(run["directory"] for run in runs if not (run["failure"] or run["skipped"]))
    results = [read(Path(directory)) for directory in finished]
    if results:
        if any(result.members is None for result in results):
            terminal.say(SELECTION_NOTE)
        terminal.show(*sweep_table(results, chosen))
    for run in runs:
        if run["skipped"]:
            terminal.say(f"skipped: {run['directory']}: {run['skipped']}")
    if not_uploaded := sum(record["not_uploaded"] for record in records):
        command = next(record["publish"] for record in records if record["not_uploaded"])
        terminal.warn(f"W&B: {not_uploaded} run directories were not delivered; {command} delivers them")
    failed = False
    for record in records:
        failures = [f"{run['directory']}: {run['failure']}" for run in record["runs"] if run["failure"]]
        failures += [record["error"]] if record["error"] else []
        for line in failures:
            terminal.fail(line)
        if failures:
            failed = True
            terminal.say(f"  again, just that: {shlex.join([*JobsCallback.again, '-m', *record['overrides']])}")
    if len(records) < jobs:
        failed = True
        terminal.fail(
            f"{jobs - len(records)} of {jobs} jobs have said nothing of how they ended; status.py says how far they are"
        )
    if any(record["refused"] for record in records):
        return USER_ERROR
    return FAILED if failed else 0
