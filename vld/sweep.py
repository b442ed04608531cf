"""Around the jobs of a command: every job is checked before the first starts, one table when all have ended."""

import shutil
import sys
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vld.cli import FAILED, SELECTION_NOTE, USER_ERROR, describe_error, exit_with_user_error, outcomes_dir
from vld.config import typed_config
from vld.errors import UserError
from vld.settings import COMBINATIONS, Config


class JobsCallback(Callback):
    """Hydra turns what a callback raises into warnings, but for SystemExit."""

    def on_run_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        check_jobs([config], trains=config_name != "combine")

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        try:
            jobs = compose_jobs(config)
        except (HydraException, OmegaConfBaseException) as error:
            exit_with_user_error(describe_error(error))
        check_jobs(jobs, trains=config_name != "combine")
        self.jobs = len(jobs)
        shutil.rmtree(outcomes_dir(config), ignore_errors=True)  # of an earlier sweep with this hydra.sweep.dir

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        try:
            code = summarise_sweep(outcomes_dir(config), self.jobs, config.method.name)
        except Exception as error:
            print(f"the results of this sweep could not be put together: {error}", file=sys.stderr)
            code = FAILED
        if code:
            sys.exit(code)


def compose_jobs(config: DictConfig) -> list[DictConfig]:
    """The configuration of every job of a sweep, as Hydra's sweeper will make them."""
    always = OmegaConf.to_container(config.hydra.sweeper.params) if config.hydra.sweeper.params else {}
    assert isinstance(always, dict)
    words = [f"{key!s}={value}" for key, value in always.items()] + list(config.hydra.overrides.task)
    overrides = OverridesParser.create().parse_overrides(words)
    [jobs] = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    return [compose(config.hydra.job.config_name, overrides=list(job)) for job in jobs]


def check_jobs(jobs: list[DictConfig], *, trains: bool) -> None:
    """Exit with code 2 and one list of everything wrong in any of the jobs, before anything is made.

    trains: they need images, weights and a device, too.
    """
    problems: dict[str, None] = {}
    configs: list[Config] = []
    for job in jobs:
        try:
            config = typed_config(job)
            if config.method.name in COMBINATIONS:
                from vld.members import member_configs  # needs torch: see vld.cli

                member_configs(config)
        except (UserError, OmegaConfBaseException) as error:
            problems |= dict.fromkeys(describe_error(error).splitlines())
            continue
        configs.append(config)
    if trains and not problems:
        from vld.inputs import check_inputs, inputs_key

        for config in {inputs_key(config): config for config in configs}.values():
            try:
                check_inputs(config)
            except UserError as error:
                problems |= dict.fromkeys(str(error).splitlines())
    if problems:
        exit_with_user_error("\n".join(problems))


def summarise_sweep(outcomes: Path, jobs: int, chosen: str) -> int:
    """Show all jobs' results in one table, then what failed; return the exit code that says so."""
    from vld.runs.directory import read_json
    from vld.terminal import Terminal

    terminal = Terminal()
    records = [read_json(path) for path in sorted(outcomes.glob("*.json"))]
    runs = [run for record in records for run in record["runs"]]
    finished = dict.fromkeys(run["directory"] for run in runs if not (run["failure"] or run["skipped"]))
    results = [read_json(Path(directory) / "result.json") for directory in finished]
    if results:
        if any("members" not in result for result in results):
            terminal.say(SELECTION_NOTE)
        terminal.sweep_table(results, chosen)
    for run in runs:
        if run["skipped"]:
            terminal.say(f"skipped: {run['directory']}: {run['skipped']}")
    failures = [f"{run['directory']}: {run['failure']}" for run in runs if run["failure"]]
    failures += [record["error"] for record in records if record["error"]]
    if undelivered := sum(record["undelivered"] for record in records):
        command = next(record["publish"] for record in records if record["undelivered"])
        terminal.warn(f"W&B: {undelivered} run directories were not delivered; {command} delivers them")
    if len(records) < jobs:
        failures.append(f"{jobs - len(records)} of {jobs} jobs ended without a word")
    for line in failures:
        terminal.fail(line)
    if any(record["refused"] for record in records):
        return USER_ERROR
    return FAILED if failures else 0
