"""A command's jobs, all composed and checked before the first of them starts; everything wrong is named together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vld.config.command_settings import LOOKING
from vld.config.errors import UserError
from vld.config.names import COMBINATIONS
from vld.config.settings import Config
from vld.study.jobs import Job, axes_of, jobs_of, words_of_jobs
from vld.study.member_axes import member_configs
from vld.study.planned import PlannedRun, planned_runs
from vld.study.typed_settings import SCHEMAS, describe_error, typed_config


@dataclass(frozen=True)
class Command:
    """A command, composed and checked."""

    name: str
    config: DictConfig
    """Of its one job, or of its sweep."""
    words: list[list[str]]
    """The overrides of each job."""
    jobs: Sequence[Job]
    """With the settings of each job; empty for commands that have other settings than a run."""
    program: Sequence[str]
    """The program, and the options that come before those of a job."""

    @property
    def sweep(self) -> bool:
        return bool(self.config.hydra.mode == RunMode.MULTIRUN)

    @cached_property
    def runs(self) -> list[PlannedRun]:
        """The runs of its jobs. Raises `UserError` if the domains are not known."""
        return planned_runs(self.jobs)

    @property
    def title(self) -> str:
        return (self.jobs[0].config.study.name or "this sweep") if self.sweep else "this command"


def schema_of(command: str) -> type:
    return SCHEMAS.get(f"{command}_schema", Config)


def prepared(name: str, config: DictConfig, program: Sequence[str]) -> Command:
    """The command with all its jobs. Raises `UserError` with a line for everything wrong with any of them."""
    sweep = config.hydra.mode == RunMode.MULTIRUN
    launcher: Any = OmegaConf.to_container(
        config.hydra.launcher, resolve=False
    )  # the preset's n_jobs would look for GPUs
    if launcher.get("n_jobs") == 0:
        raise UserError("hydra.launcher.n_jobs=0: must be at least 1, or -1 for as many as there are cores")
    if not issubclass(schema_of(name), Config):
        words = words_of_jobs(axes_of(config)) if sweep else [list(config.hydra.overrides.task)]
        return Command(name, config, words, [], program)
    problems: dict[str, None] = {}
    jobs = _sweep_jobs(name, config, problems) if sweep else [_single_job(config)]
    problems |= dict.fromkeys(_not_allowed(name, jobs, sweep=sweep))
    if problems:
        raise UserError("\n".join(problems))
    return Command(name, config, [list(job.overrides) for job in jobs], jobs, program)


def _single_job(config: DictConfig) -> Job:
    if config.hydra.sweeper.params:
        raise UserError(f"study={config.hydra.runtime.choices.study}: its file must set hydra.mode: MULTIRUN")
    return Job(tuple(config.hydra.overrides.task), typed_config(config, Config))


def _sweep_jobs(command: str, config: DictConfig, problems: dict[str, None]) -> list[Job]:
    """The valid jobs; what is wrong with others is added to `problems`."""
    study = config.hydra.runtime.choices.get("study")
    if study and not config.study.name:
        raise UserError(f"study={study}: its file must set study.name")
    # Commands that look at a study or combine it have the runs of train.py.
    preset = "train" if command in LOOKING or config.study.name else command
    jobs = list(jobs_of(axes_of(config, without=LOOKING.get(command, ())), problems, preset))
    if not jobs and not problems:
        raise UserError("this sweep has no jobs: one of its options has no value")
    return jobs


def _not_allowed(command: str, jobs: Sequence[Job], *, sweep: bool) -> Iterator[str]:
    """A line for everything that this command cannot do with these jobs."""
    if command == "benchmark" and sweep:
        yield "benchmark.py measures one setting at a time: give each option one value, and neither -m nor a study"
    if command in ("combine", "benchmark") and any(job.config.dry_run for job in jobs):
        yield "dry_run=true: only train.py has it; status.py shows what is finished"
    for config in (job.config for job in jobs):
        method, study = config.method.name, config.study.name if sweep else None
        if method in COMBINATIONS:
            if study and command == "train":
                yield f"method={method}: train.py trains a study's runs; combine.py study={study} combines them"
            try:
                member_configs(config)
            except (UserError, OmegaConfBaseException) as error:
                yield from describe_error(error).splitlines()
        elif command == "combine" and not study:
            yield f"method={method}: combine.py needs one of {', '.join(COMBINATIONS)}"
