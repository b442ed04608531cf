"""The combinations of a study: of every set of its runs that differ only along the study's member axes."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from vld.commands.preflight import Command
from vld.commands.task import show_results
from vld.config.errors import FAILED, UserError
from vld.config.options import flat_settings
from vld.config.settings import Config
from vld.machine.terminal import Terminal, counted
from vld.report.labels import distinguishing
from vld.runs.once import Outcome
from vld.study.combination import combine_all
from vld.study.member_axes import shown_values
from vld.study.members import MissingMembers
from vld.study.planned import left_out_domains
from vld.study.runner import Datasets
from vld.tracking.background import Publisher


def combine_study(command: Command) -> int:
    """Make every combination of a study whose members are all finished. The exit code: 0 if those were all."""
    first, terminal = command.jobs[0].config, Terminal()
    if not first.study.combinations:
        raise UserError(f"study={first.study.name}: has no combinations")
    outcomes: list[Outcome] = []
    single: dict[str, None] = {}
    problems: dict[str, None] = {}
    missing = False
    datasets: Datasets = {}
    publisher = Publisher(first.wandb, first.output_dir, say=terminal.say, warn=terminal.warn)
    for label, config in _groups(command):
        if not config.method.members:
            single[f"{label}one run for each test domain: nothing to combine"] = None
            continue
        for test_domain, method in product(left_out_domains(config), first.study.combinations):
            config.test_domain, config.method.name = test_domain, method
            try:
                outcomes += combine_all(config, terminal, publisher, datasets=datasets)
            except UserError as error:
                problems |= dict.fromkeys(f"{label}{line}" for line in str(error).splitlines())
                missing |= isinstance(error, MissingMembers)
    show_results(outcomes, first.study.combinations[0], terminal, of_sweep=True)
    if made := sum(outcome.result is not None for outcome in outcomes):
        terminal.say(f"{counted(made, 'combination')} in {Path(first.output_dir) / 'combined'}")
    with terminal.counting("uploading to W&B") as progress:
        publisher.finish(progress)
    terminal.show(*single, *(f"not combined: {line}" for line in problems))
    if missing:
        terminal.say("to train what is missing, run train.py with the options of this command")
    failures = [f"{outcome.directory}: {outcome.failure}" for outcome in outcomes if outcome.failure]
    for line in failures:
        terminal.fail(line)
    return FAILED if problems or failures else 0


def _groups(command: Command) -> Iterator[tuple[str, Config]]:
    """Each set of members: what distinguishes it, to begin a line with, and settings that combine it.

    `method.members` is empty if the set has one run for each test domain.
    """
    axes = command.jobs[0].config.study.members
    groups: dict[str, list[Config]] = {}
    for job in command.jobs:
        others = {name: value for name, value in flat_settings(job.config).items() if name not in axes}
        groups.setdefault(repr(others), []).append(job.config)
    varied = distinguishing([flat_settings(configs[0]) for configs in groups.values()])
    for configs in groups.values():
        settings = [flat_settings(config) for config in configs]
        values = {name: dict.fromkeys(f"{its[name]}" for its in settings) for name in axes}
        if any(len(of_axis) > 1 for of_axis in values.values()):
            configs[0].method.members = [f"{name}={','.join(of_axis)}" for name, of_axis in values.items()]
        label = shown_values({name: settings[0][name] for name in varied})
        yield f"{label}: " if label else "", configs[0]
