"""Around the jobs of a command: every job is checked before the first starts, one table when all have ended."""

import sys
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vld.cli import FAILED, OUTCOMES_FILE, SELECTION_NOTE, USER_ERROR, describe_error, exit_with_user_error
from vld.config import typed_config
from vld.errors import UserError


class JobsCallback(Callback):
    """Hydra turns what a callback raises into warnings, but for SystemExit."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        check_jobs([config])

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            check_jobs(compose_jobs(config))
        except (HydraException, OmegaConfBaseException) as error:
            exit_with_user_error(describe_error(error))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        summarise_sweep(Path(config.hydra.sweep.dir))


def compose_jobs(config: DictConfig) -> list[DictConfig]:
    """The configuration of every job of a sweep, as Hydra's sweeper will make them."""
    overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    [jobs] = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    return [compose(config.hydra.job.config_name, overrides=list(job)) for job in jobs]


def check_jobs(jobs: list[DictConfig]) -> None:
    """Exit with code 2 and one list of everything wrong in any of the jobs, before anything is made."""
    problems: dict[str, None] = {}
    configs = []
    for job in jobs:
        try:
            configs.append(typed_config(job))
        except (UserError, OmegaConfBaseException) as error:
            problems |= dict.fromkeys(describe_error(error).splitlines())
    if not problems:
        from vld.inputs import check_inputs  # needs torch: see vld.cli

        for config in configs:
            try:
                check_inputs(config)
            except UserError as error:
                problems |= dict.fromkeys(str(error).splitlines())
    if problems:
        exit_with_user_error("\n".join(problems))


def summarise_sweep(sweep_dir: Path) -> None:
    """Show all jobs' results in one table, then what failed; exit with 1 or 2 if anything did."""
    import pandas as pd

    from vld.runs.directory import read_json
    from vld.runs.results import COLUMNS, SETTING_COLUMNS, result_rows
    from vld.terminal import Terminal

    terminal = Terminal()
    jobs = [read_json(path) for path in sorted(sweep_dir.glob(f"*/{OUTCOMES_FILE}"))]
    runs = [run for job in jobs for run in job["runs"]]
    finished = dict.fromkeys(run["directory"] for run in runs if not run["failure"])
    rows = [row for directory in finished for row in result_rows(read_json(Path(directory) / "result.json"))]
    results = pd.DataFrame(rows, columns=COLUMNS).query("selection == 'iid'")
    if len(results):
        varied = [name for name in ("dataset", *SETTING_COLUMNS) if results[name].nunique(dropna=False) > 1]
        terminal.say(SELECTION_NOTE)
        terminal.sweep_table(results.sort_values(varied, kind="stable"), varied)
    failures = [f"{run['directory']}: {run['failure']}" for run in runs if run["failure"]]
    for line in failures:
        terminal.fail(line)
    if failures:
        sys.exit(FAILED)
    if any(job["refused"] for job in jobs):
        sys.exit(USER_ERROR)
