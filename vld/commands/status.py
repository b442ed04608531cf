"""The progress of a study or a sweep, for a person or for a program."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vld.commands.preflight import Command
from vld.config.command_settings import LOOKING, StatusConfig
from vld.config.errors import FAILED
from vld.config.options import check_values, flat_settings
from vld.machine.terminal import Terminal, counted, duration
from vld.report.labels import NONE, RECIPE, described, distinguishing
from vld.report.summary import counts_table
from vld.runs.identity import NOT_IDENTITY
from vld.runs.results import named_settings
from vld.study.jobs import words_without
from vld.study.planned import shared_runs
from vld.study.progress import FAILED as RUN_FAILED
from vld.study.progress import FINISHED, INTERRUPTED, RUNNING, STATES, Progress, progress_of, seconds_to_go

SECONDS_BETWEEN_LOOKS = 5.0
IN_A_LINE = ("dataset.name", "backbone.name", "dropout", "optim.lr", "optim.weight_decay", "seed")
LISTED = 20
"""Runs of a state that are named; the others are counted."""


def show_status(command: Command) -> int:
    """Show the progress of the runs; with `watch` repeatedly, until all are finished or nobody reads. 0 when all are finished."""
    config, terminal = command.config, Terminal()
    check_values(StatusConfig, {"format": config.format})
    shared = shared_runs(command.jobs, words_without(LOOKING["status"], config))
    while True:
        progress = progress_of(command.runs)
        others = {study: progress_of(its_runs) for study, its_runs in shared.items()}
        if config.format == "json":
            terminal.say(json.dumps(_as_dictionary(progress, others, command.title)))
        else:
            if config.watch:
                terminal.console.clear()
            _show(progress, others, command.title, terminal)
        complete = all(one.state == FINISHED for one in progress)
        if complete or not config.watch or terminal.log.gone:
            return 0 if complete else FAILED
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _show(
    progress: Sequence[Progress], others: Mapping[str, Sequence[Progress]], title: str, terminal: Terminal
) -> None:
    rows: dict[tuple[str, ...], Counter[str]] = {}
    with_recipes = any(one.run.config.recipe.name for one in progress)
    for one in progress:
        config = one.run.config
        recipe = [config.recipe.name or NONE] * with_recipes
        rows.setdefault((config.dataset.name, *recipe, f"{config.dropout:g}"), Counter())[one.state] += 1
    terminal.show(counts_table(("dataset", *[RECIPE] * with_recipes, "dropout"), STATES, rows))
    lines = list(_described(progress))
    for state in (RUNNING, INTERRUPTED, RUN_FAILED):
        in_it = [line for one, line in lines if one.state == state]
        terminal.show(*in_it[:LISTED])
        if len(in_it) > LISTED:
            terminal.say(f"{state}: {len(in_it) - LISTED} more")
    terminal.say(summary(progress, title))
    for study, its in others.items():
        terminal.say(f"its figure also shows runs of {study}: {_finished(its)} of {len(its)} finished")


def summary(progress: Sequence[Progress], title: str) -> str:
    """One line: how many runs there are, how many are finished, and how long the others will take."""
    finished = _finished(progress)
    line = f"{title}: {counted(len(progress), 'run')}, {finished} finished, {len(progress) - finished} to do"
    if finished == len(progress):
        return line
    seconds = seconds_to_go(progress)
    if seconds is None:
        return f"{line}; no estimate yet: no comparable run has finished (benchmark.py measures)"
    return f"{line}, about {duration(seconds)} of computing"


def show_unfinished(progress: Sequence[Progress], terminal: Terminal) -> None:
    """A line for each run that is not finished."""
    terminal.show(*(line for one, line in _described(progress) if one.state != FINISHED))


def _finished(progress: Sequence[Progress]) -> int:
    return sum(one.state == FINISHED for one in progress)


def _described(progress: Sequence[Progress]) -> Iterator[tuple[Progress, str]]:
    """Each run with a line about it, in which is what tells it from the others."""
    settings = [{RECIPE: one.run.config.recipe.name, **flat_settings(one.run.config)} for one in progress]
    more = [name for name in distinguishing(settings) if name not in (RECIPE, *IN_A_LINE, *NOT_IDENTITY)]
    for one, its in zip(progress, settings, strict=True):
        yield one, _line(one, described({name: its.get(name) for name in more}))


def _line(one: Progress, more: Sequence[str]) -> str:
    config = one.run.config
    recipe = f" {config.recipe.name}" if config.recipe.name else ""
    line = (
        f"{one.state}: {config.dataset.name}/{one.run.test_domain} {config.backbone.name}{recipe} dropout"
        f" {config.dropout:g} lr {config.optim.lr:g} wd {config.optim.weight_decay:g} seed {config.seed}"
    )
    line = ", ".join([line, *more])
    if one.step is not None:
        line += f", step {one.step} of {config.optim.steps}"
    if one.seconds_left is not None:
        line += f", {duration(one.seconds_left)} left"
    if one.reason:
        line += f": {one.reason}"
    return f"{line} ({one.path})" if one.path else line


def _as_dictionary(
    progress: Sequence[Progress], others: Mapping[str, Sequence[Progress]], title: str
) -> dict[str, Any]:
    def by_state(some: Sequence[Progress]) -> dict[str, int]:
        return {state: sum(one.state == state for one in some) for state in STATES}

    runs = [
        named_settings(flat_settings(one.run.config))
        | {name: getattr(one, name) for name in ("state", "step", "seconds_left", "reason")}
        | {"test_domain": one.run.test_domain, "overrides": one.run.overrides}
        | {"directory": None if one.path is None else str(one.path)}
        for one in progress
    ]
    return {
        "name": title,
        "complete": _finished(progress) == len(progress),
        "counts": by_state(progress),
        "seconds_to_go": seconds_to_go(progress),
        "shares": {study: by_state(its) for study, its in others.items()},
        "runs": runs,
    }
