"""The combinations of a study: of every set of its runs that differ along the study's member axes alone."""

from collections.abc import Sequence
from pathlib import Path

from vld.config.errors import UserError
from vld.config.options import flat_settings
from vld.config.settings import Config
from vld.machine.terminal import Terminal, counted
from vld.report.labels import distinguishing
from vld.report.summary import sweep_table
from vld.runs.once import Outcome
from vld.runs.results import RunResult
from vld.study.combination import combine_all
from vld.study.jobs import Job
from vld.study.member_axes import shown_values
from vld.study.members import MissingMembers
from vld.study.planned import left_out_domains
from vld.study.runner import Datasets
from vld.tracking.background import Publisher


def combine_study(jobs: Sequence[Job], terminal: Terminal) -> int:
    """Make every combination of a study whose members are all finished; the command's exit code: 0 when that was all."""
    study = jobs[0].config.study
    if not study.combinations:
        raise UserError(f"study={study.name}: has no combinations")
    groups: dict[str, tuple[Config, dict[str, dict[str, None]]]] = {}
    for job in jobs:
        settings = flat_settings(job.config)
        key = repr({name: value for name, value in settings.items() if name not in study.members})
        _, axes = groups.setdefault(key, (job.config, {name: {} for name in study.members}))
        for name in study.members:
            axes[name][f"{settings[name]}"] = None
    outcomes: list[Outcome] = []
    problems: dict[str, None] = {}
    alone: dict[str, None] = {}
    to_train = False
    datasets: Datasets = {}
    publisher = Publisher(jobs[0].config.wandb, jobs[0].config.output_dir, say=terminal.say, warn=terminal.warn)
    varied = distinguishing([flat_settings(config) for config, _ in groups.values()])
    for config, axes in groups.values():
        label = _label(varied, config)
        if all(len(values) == 1 for values in axes.values()):
            alone[f"{label}one run for each test domain: nothing to combine"] = None
            continue
        config.method.members = [f"{name}={','.join(values)}" for name, values in axes.items()]
        for test_domain in left_out_domains(config):
            for method in study.combinations:
                config.method.name, config.test_domain = method, test_domain
                try:
                    outcomes += combine_all(config, terminal, publisher, datasets=datasets)
                except UserError as error:
                    problems |= dict.fromkeys(f"{label}{line}" for line in str(error).splitlines())
                    to_train |= isinstance(error, MissingMembers)
    if results := [RunResult(outcome.directory, outcome.result) for outcome in outcomes if outcome.result]:
        terminal.show(*sweep_table(results, study.combinations[0]))
        terminal.say(f"{counted(len(results), 'combination')} in {Path(jobs[0].config.output_dir) / 'combined'}")
    with terminal.counting("uploading to W&B") as progress:
        publisher.finish(progress)
    for line in alone:
        terminal.say(line)
    for line in problems:
        terminal.say(f"not combined: {line}")
    if to_train:
        terminal.say("what is missing is trained by train.py with the options of this command")
    for outcome in outcomes:
        if outcome.failure:
            terminal.fail(f"{outcome.directory}: {outcome.failure}")
    return 1 if problems or any(outcome.failure for outcome in outcomes) else 0


def _label(varied: Sequence[str], config: Config) -> str:
    """What tells a group of members from the study's others, to begin a line with."""
    settings = flat_settings(config)
    return f"{shown_values({name: settings[name] for name in varied})}: " if varied else ""
