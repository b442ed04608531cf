"""How far a study or a sweep is, for a person or a program."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from vld.config.command_settings import LOOKING, StatusConfig
from vld.config.options import check_values
from vld.machine.terminal import Terminal, counted, duration
from vld.report.summary import counts_table
from vld.study.jobs import Job, words_without
from vld.study.planned import PlannedRun, planned_runs, shared_runs
from vld.study.progress import FAILED, FINISHED, INTERRUPTED, RUNNING, STATES, Progress, progress_of, seconds_to_go

SECONDS_BETWEEN_LOOKS = 5.0
LISTED = 20
"""Runs of a state that are named; of the others it is said how many there are."""


def show_jobs(jobs: Sequence[Job], title: str, config: DictConfig) -> bool:
    """What `status.py` does in place of jobs: whether their runs are all finished. config: of the command, as composed."""
    check_values(StatusConfig, {"format": config.format})
    shared = shared_runs(jobs, words_without(LOOKING["status"], config))
    as_json = config.format == "json"
    return show_status(planned_runs(jobs), shared, name=title, watch=config.watch, as_json=as_json, terminal=Terminal())


def show_status(
    runs: Sequence[PlannedRun],
    shared: Mapping[str, Sequence[PlannedRun]],
    *,
    name: str,
    watch: bool,
    as_json: bool,
    terminal: Terminal,
) -> bool:
    """Show how far the runs are; with `watch` again and again until all are finished or nobody reads. True when they are."""
    while True:
        progress = progress_of(runs)
        others = {study: progress_of(its_runs) for study, its_runs in shared.items()}
        complete = all(one.state == FINISHED for one in progress)
        if as_json:
            terminal.say(json.dumps(as_dictionary(progress, others, name)))
        else:
            if watch:
                terminal.clear()
            show(progress, others, name, terminal)
        if complete or not watch or terminal.gone:
            return complete
        time.sleep(SECONDS_BETWEEN_LOOKS)


def show(progress: Sequence[Progress], others: Mapping[str, Sequence[Progress]], name: str, terminal: Terminal) -> None:
    rows: dict[tuple[str, ...], Counter[str]] = {}
    for one in progress:
        config = one.run.config
        rows.setdefault((config.dataset.name, f"{config.dropout:g}"), Counter())[one.state] += 1
    terminal.show(counts_table(("dataset", "dropout"), STATES, rows))
    for state in (RUNNING, INTERRUPTED, FAILED):
        of_this = [one for one in progress if one.state == state]
        for one in of_this[:LISTED]:
            terminal.say(f"{state}: {described(one)}")
        if len(of_this) > LISTED:
            terminal.say(f"{state}: {len(of_this) - LISTED} more")
    terminal.say(summary(progress, name))
    for study, its_progress in others.items():
        finished = sum(one.state == FINISHED for one in its_progress)
        terminal.say(f"its figure shows runs of {study} as well: {finished} of {len(its_progress)} finished")


def summary(progress: Sequence[Progress], name: str) -> str:
    """One line: how many runs there are, how many are finished, and how long the others would take."""
    finished = sum(one.state == FINISHED for one in progress)
    line = f"{name}: {counted(len(progress), 'run')}, {finished} finished, {len(progress) - finished} to do"
    if finished == len(progress):
        return line
    seconds = seconds_to_go(progress)
    if seconds is None:
        return f"{line}; no estimate yet: no comparable run has finished (benchmark.py measures)"
    return f"{line}, about {duration(seconds)} of computing"


def say_unfinished(progress: Sequence[Progress], terminal: Terminal) -> None:
    """Those runs that are not finished, a line each."""
    for one in progress:
        if one.state != FINISHED:
            terminal.say(f"{one.state}: {described(one)}")


def described(one: Progress) -> str:
    config = one.run.config
    recipe = f" {config.recipe.name}" if config.recipe.name else ""
    line = (
        f"{config.dataset.name}/{one.run.test_domain} {config.backbone.name}{recipe} dropout {config.dropout:g}"
        f" lr {config.optim.lr:g} wd {config.optim.weight_decay:g} seed {config.seed}"
    )
    if one.step is not None:
        line += f", step {one.step} of {config.optim.steps}"
    if one.seconds_left is not None:
        line += f", {duration(one.seconds_left)} left"
    if one.reason:
        line += f": {one.reason}"
    return f"{line} ({one.path})" if one.path else line


def as_dictionary(progress: Sequence[Progress], others: Mapping[str, Sequence[Progress]], name: str) -> dict[str, Any]:
    def by_state(some: Sequence[Progress]) -> dict[str, int]:
        return {state: sum(one.state == state for one in some) for state in STATES}

    return {
        "name": name,
        "complete": all(one.state == FINISHED for one in progress),
        "counts": by_state(progress),
        "seconds_to_go": seconds_to_go(progress),
        "shares": {study: by_state(its_progress) for study, its_progress in others.items()},
        "runs": [
            {
                "dataset": one.run.config.dataset.name,
                "test_domain": one.run.test_domain,
                "backbone": one.run.config.backbone.name,
                "dropout": one.run.config.dropout,
                "lr": one.run.config.optim.lr,
                "weight_decay": one.run.config.optim.weight_decay,
                "last_layer_lr_factor": one.run.config.optim.last_layer_lr_factor,
                "seed": one.run.config.seed,
                "state": one.state,
                "step": one.step,
                "steps": one.run.config.optim.steps,
                "seconds_left": one.seconds_left,
                "reason": one.reason,
                "directory": None if one.path is None else str(one.path),
                "overrides": list(one.run.overrides),
            }
            for one in progress
        ],
    }
