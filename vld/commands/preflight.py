"""Before the first job of a command: all of them composed and checked, what is wrong in one list, and what there is to do."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vld.config.command_settings import LOOKING
from vld.config.errors import UserError
from vld.config.names import COMBINATIONS
from vld.config.settings import Config
from vld.study.compose import SCHEMAS, describe_error, typed_config
from vld.study.jobs import BASIC_LAUNCHER, JOBLIB_LAUNCHER, Job, axes_of, jobs_of, quote_axes, words_of_jobs
from vld.tracking.variables import check_environment

if TYPE_CHECKING:
    from vld.runs.inputs import Inputs
    from vld.study.planned import PlannedRun


@dataclass(frozen=True)
class Command:
    """A command as it was given, composed and checked."""

    name: str
    config: DictConfig
    """Of its one job, or of its sweep."""
    words: list[list[str]]
    """The overrides of each job."""
    jobs: Sequence[Job]
    """Their settings, where these are a run's."""
    again: Sequence[str]
    """The program, and the options before those of jobs."""

    @property
    def sweep(self) -> bool:
        return bool(self.config.hydra.mode == RunMode.MULTIRUN)

    @cached_property
    def runs(self) -> "list[PlannedRun]":
        """All that its jobs train or look at. Raises `UserError` where the domains are not known."""
        from vld.study.planned import planned_runs

        return planned_runs(self.jobs)

    @property
    def title(self) -> str:
        return (self.jobs[0].config.study.name or "this sweep") if self.sweep else "this command"


def prepared(name: str, config: DictConfig, again: Sequence[str]) -> Command:
    """With all its jobs. Raises `UserError` with a line for everything wrong with any of them."""
    sweep = config.hydra.mode == RunMode.MULTIRUN
    if not issubclass(SCHEMAS.get(f"{name}_schema", Config), Config):
        words = words_of_jobs(axes_of(config)) if sweep else [list(config.hydra.overrides.task)]
        return Command(name, config, words, [], again)
    jobs = (_sweep_jobs if sweep else _single_job)(name, config)
    return Command(name, config, [list(job.overrides) for job in jobs], jobs, again)


def _single_job(command: str, config: DictConfig) -> list[Job]:
    if config.hydra.sweeper.params:
        raise UserError(f"study={config.hydra.runtime.choices.study}: its file must say hydra.mode: MULTIRUN")
    return _allowed(command, [Job(tuple(config.hydra.overrides.task), typed_config(config, Config))], {})


def _sweep_jobs(command: str, config: DictConfig) -> list[Job]:
    study = config.hydra.runtime.choices.get("study")
    if study and not config.study.name:
        raise UserError(f"study={study}: its file must say study.name")
    quote_axes(config)
    # What is looked at or combined are runs of train.py.
    preset = "train" if command in LOOKING or config.study.name else command
    problems: dict[str, None] = {}
    jobs = list(jobs_of(axes_of(config, without=LOOKING.get(command, ())), problems, preset))
    if not jobs and not problems:
        raise UserError("this sweep has no jobs: one of its options has no value")
    if command in ("train", "benchmark"):
        combining = [job.config for job in jobs if job.config.study.name and job.config.method.name in COMBINATIONS]
        for one in combining[:1]:
            line = f"train.py trains a study's runs; combine.py study={one.study.name} combines them"
            problems[f"method={one.method.name}: {line}"] = None
    return _allowed(command, jobs, problems)


def _allowed(command: str, jobs: list[Job], problems: dict[str, None]) -> list[Job]:
    """The same jobs. Raises `UserError` with the problems, and with what this command cannot do of theirs."""
    # Only `train.py` has something to try: the other commands show, or take little.
    if command in ("combine", "benchmark") and any(job.config.dry_run for job in jobs):
        problems["dry_run=true: train.py alone has it; status.py says what is finished"] = None
    for config in [job.config for job in jobs if job.config.method.name in COMBINATIONS]:
        from vld.study.member_axes import member_configs

        try:
            member_configs(config)
        except (UserError, OmegaConfBaseException) as error:
            problems |= dict.fromkeys(describe_error(error).splitlines())
    if problems:
        raise UserError("\n".join(problems))
    return jobs


def ready(command: Command) -> bool:
    """Whether the jobs can start: what they need is there. Not after a dry run. Raises `UserError` for everything that is not."""
    jobs, dry_run = command.jobs, command.jobs[0].config.dry_run
    if dry_run and said_without_data(command):
        return False
    launcher = command.config.hydra.launcher._target_
    inputs = check_needed(jobs, here=not command.sweep or launcher in (BASIC_LAUNCHER, JOBLIB_LAUNCHER))
    if command.name == "train" and (dry_run or (command.sweep and jobs[0].config.study.name)):
        say_what_is_to_do(command, inputs)
    return not dry_run


def check_needed(jobs: Sequence[Job], *, here: bool) -> "dict[str, Inputs]":
    """The images and weights of all jobs and, where they run `here`, the device, by `inputs_key`.

    Raises `UserError` with a line for everything that is wrong with them or missing.
    """
    from vld.runs.inputs import check_inputs, inputs_key

    problems: dict[str, None] = {}
    checked: dict[str, Inputs] = {}
    with noted(problems):
        for mode in {job.config.wandb.mode for job in jobs}:
            check_environment(mode)
    for key, config in {inputs_key(job.config): job.config for job in jobs}.items():
        with noted(problems):
            checked[key] = check_inputs(config, here=here)
    if problems:
        raise UserError("\n".join(problems))
    return checked


@contextmanager
def noted(problems: dict[str, None]) -> Iterator[None]:
    """Add the lines of a `UserError` to the problems, in place of raising it."""
    try:
        yield
    except UserError as error:
        problems |= dict.fromkeys(str(error).splitlines())


def said_without_data(command: Command) -> bool:
    """Whether a dry run ends here, since images or weights are still to come: with the runs and how many are finished."""
    from vld.commands.status import say_unfinished, summary
    from vld.machine.terminal import Terminal
    from vld.model.published import weights_to_come
    from vld.study.planned import data_to_come
    from vld.study.progress import progress_of

    jobs = command.jobs
    # A study's hundreds of jobs share a few.
    backbones = {repr(job.config.backbone): job.config.backbone for job in jobs}
    weights = [line for backbone in backbones.values() if (line := weights_to_come(backbone))]
    if not (to_come := [*data_to_come(job.config for job in jobs), *dict.fromkeys(weights)]):
        return False
    try:
        progress = progress_of(command.runs)
    except UserError:  # its domains are not known before it is there: that it is not will be said
        return False
    check_networks(jobs)
    terminal = Terminal()
    say_unfinished(progress, terminal)
    for line in (summary(progress, command.title), *to_come):
        terminal.say(line)
    return True


def check_networks(jobs: Sequence[Job]) -> None:
    """Where images or weights are still to come: networks whose settings may not suit them, or whose weights are the user's. The
    others are right, and building one takes longer than all else in a dry run. Raises `UserError`."""
    unsure = [
        config
        for config in (job.config for job in jobs)
        if (of := config.backbone).weights or of.published == "timm" or of.stage_dropout or config.mixout
    ]
    if not unsure:
        return
    from vld.runs.inputs import check_without_images, inputs_key
    from vld.study.planned import left_out_domains

    def key(config: Config) -> str:  # only what a run's weights have seen depends on the domain
        return inputs_key(config if config.backbone.weights else replace(config, test_domain="all"))

    problems: dict[str, None] = {}
    for config in {key(config): config for config in unsure}.values():
        with noted(problems):
            check_without_images(config, left_out_domains(config))
    if problems:
        raise UserError("\n".join(problems))


def say_what_is_to_do(command: Command, inputs: "dict[str, Inputs]") -> None:
    """One line before the first job: how many runs there are, how many are finished, how long the others take, and their disk.

    With `dry_run=true` those others first, one a line, and then that is all. Raises `UserError` where the disk has less.
    """
    from vld.commands.status import say_unfinished, summary
    from vld.machine.terminal import Terminal, size_text
    from vld.runs.identity import weights_fingerprint
    from vld.runs.inputs import inputs_key
    from vld.runs.space import needed_disk
    from vld.study.progress import FINISHED, progress_of

    terminal, jobs = Terminal(), command.jobs
    weights = {repr(job.config.backbone): inputs[inputs_key(job.config)].weights for job in jobs}
    fingerprints = {backbone: weights_fingerprint(its) for backbone, its in weights.items()}
    progress = progress_of(command.runs, fingerprints)
    to_do = [one for one in progress if one.state != FINISHED]
    if jobs[0].config.dry_run:
        say_unfinished(progress, terminal)
    files = {its.files.name: its.files for its in inputs.values()}
    wanted = [(one.run.config, one.run.test_domain, files[one.run.config.dataset.name]) for one in to_do]
    at_once = min(at_a_time(command.config) if command.sweep else 1, len(to_do))
    kept, meanwhile = needed_disk(wanted, jobs[0].config.output_dir, at_once=at_once)
    terminal.say(
        f"{summary(progress, command.title)}, {size_text(kept)} of disk ({size_text(meanwhile)} more meanwhile)"
    )


def at_a_time(config: DictConfig) -> int:
    """How many jobs of a sweep run at once, at most."""
    launcher = config.hydra.launcher
    jobs = int(launcher.get("n_jobs") or launcher.get("array_parallelism") or 1)
    return jobs if jobs > 0 else len(os.sched_getaffinity(0))  # joblib's -1: as many as there are cores
