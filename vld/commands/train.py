"""What `train.py` does before its first job: check what all jobs need and show what there is to do, the whole of a dry run.

`benchmark.py` checks the same.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vld.commands.preflight import Command
from vld.commands.status import show_unfinished, summary
from vld.config.errors import UserError
from vld.config.names import WEIGHT_REGULARISERS
from vld.config.settings import Config
from vld.machine.terminal import Terminal, size_text
from vld.model.published import weights_to_come
from vld.study.jobs import BASIC_LAUNCHER, JOBLIB_LAUNCHER, Job
from vld.study.planned import data_to_come, left_out_domains
from vld.study.progress import FINISHED, progress_of
from vld.tracking.variables import check_environment

if TYPE_CHECKING:
    from vld.runs.inputs import Inputs

PUBLISHED_IMAGE_SIZE = 224
"""Of which every published network can be built, in pixels."""


def check(command: Command) -> int | None:
    """Exit code 0 after a dry run, None if the jobs can start. Raises `UserError` for everything that they lack."""
    config = command.jobs[0].config
    if config.dry_run and _shown_without_data(command):
        return 0
    launcher = command.config.hydra.launcher._target_
    inputs = check_needed(command.jobs, here=not command.sweep or launcher in (BASIC_LAUNCHER, JOBLIB_LAUNCHER))
    if command.name == "train" and (config.dry_run or (command.sweep and config.study.name)):
        _show_plan(command, inputs)
    return 0 if config.dry_run else None


def check_needed(jobs: Sequence[Job], *, here: bool) -> "dict[str, Inputs]":
    """The images and weights of all jobs, by `inputs_key`. here: they run on this machine, whose device is checked as well.

    Raises `UserError` with a line for everything that is missing or wrong.
    """
    from vld.runs.inputs import check_inputs, inputs_key

    problems: dict[str, None] = {}
    checked: dict[str, Inputs] = {}
    with _noted(problems):
        for mode in {job.config.wandb.mode for job in jobs}:
            check_environment(mode)
    for key, config in {inputs_key(job.config): job.config for job in jobs}.items():
        with _noted(problems):
            checked[key] = check_inputs(config, here=here)
    if problems:
        raise UserError("\n".join(problems))
    return checked


@contextmanager
def _noted(problems: dict[str, None]) -> Iterator[None]:
    """Add the lines of a `UserError` to the problems instead of raising it."""
    try:
        yield
    except UserError as error:
        problems |= dict.fromkeys(str(error).splitlines())


def _shown_without_data(command: Command) -> bool:
    """Show the runs of a dry run whose images or weights are not there yet. False if all are, or the domains are not known."""
    configs = [job.config for job in command.jobs]
    backbones = {repr(config.backbone): config.backbone for config in configs}  # a study's hundreds of jobs share a few
    weights = dict.fromkeys(line for backbone in backbones.values() if (line := weights_to_come(backbone)))
    if not (to_come := [*data_to_come(configs), *weights]):
        return False
    try:
        progress = progress_of(command.runs)
    except UserError:  # the check of the inputs says what is missing
        return False
    _check_networks(configs)
    terminal = Terminal()
    show_unfinished(progress, terminal)
    terminal.show(summary(progress, command.title), *to_come)
    return True


def _check_networks(configs: Sequence[Config]) -> None:
    """Raises `UserError` for settings that do not suit the network, and for the user's weights if they do not.

    Published networks as they are need no check: building one takes longer than all else in a dry run.
    """

    def as_it_is(config: Config) -> bool:
        its = config.backbone
        changed = its.weights or its.stage_dropout or its.stochastic_depth or its.tuning == "linear"
        changed = changed or any(getattr(config, name) for name in WEIGHT_REGULARISERS)
        return not changed and its.published != "timm" and config.image_size == PUBLISHED_IMAGE_SIZE

    unsure = [config for config in configs if not as_it_is(config)]
    if not unsure:
        return
    from vld.runs.inputs import check_without_images, inputs_key

    def key(config: Config) -> str:  # the test domain only matters to weights of a run, which may have seen it
        return inputs_key(config if config.backbone.weights else replace(config, test_domain="all"))

    problems: dict[str, None] = {}
    for config in {key(config): config for config in unsure}.values():
        with _noted(problems):
            check_without_images(config, left_out_domains(config))
    if problems:
        raise UserError("\n".join(problems))


def _show_plan(command: Command, inputs: "dict[str, Inputs]") -> None:
    """Show how many runs there are, how many are finished, and the time and disk that the others take; in a dry run, each of
    these others. Raises `UserError` if the disk is too small."""
    from vld.runs.inputs import inputs_key
    from vld.runs.space import needed_disk

    terminal, jobs = Terminal(), command.jobs
    fingerprints = {repr(job.config.backbone): inputs[inputs_key(job.config)].weights_fingerprint for job in jobs}
    progress = progress_of(command.runs, fingerprints)
    if jobs[0].config.dry_run:
        show_unfinished(progress, terminal)
    to_do = [one for one in progress if one.state != FINISHED]
    at_once = min(at_a_time(command.config) if command.sweep else 1, len(to_do))
    files = {its.files.name: its.files for its in inputs.values()}
    runs = [(one.run.config, one.run.test_domain, files[one.run.config.dataset.name]) for one in to_do]
    kept, meanwhile = needed_disk(runs, jobs[0].config.output_dir, at_once=at_once)
    disk = f"{size_text(kept)} of disk ({size_text(meanwhile)} more meanwhile)"
    terminal.say(f"{summary(progress, command.title)}, {disk}")


def at_a_time(config: DictConfig) -> int:
    """How many jobs of a sweep run at once, at most."""
    launcher = config.hydra.launcher
    jobs = int(launcher.get("n_jobs") or launcher.get("array_parallelism") or 1)
    return jobs if jobs > 0 else len(os.sched_getaffinity(0))  # joblib's -1: as many as there are cores
