"""The command line: Hydra's composition, checks before any job starts, one-line errors, exit codes."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vld.config import typed_config
from vld.errors import UserError
from vld.inputs import check_inputs
from vld.runner import Outcome, run_all
from vld.runs.directory import read_json
from vld.runs.results import COLUMNS, SETTING_COLUMNS, result_rows
from vld.terminal import Terminal

DONE, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def conf_dir() -> Path:
    """The folder of presets: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next(path for path in (package / "conf", package.parent / "conf") if path.is_dir())


def train() -> None:
    """The command `vld-train` and `scripts/train.py`."""
    run_command(_train_job, "train")


def run_command(job: Callable[[DictConfig], None], config_name: str) -> None:
    """Run `job` under Hydra; what the user must mend becomes one line on standard error and exit code 2."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that errors reach the lines below
    try:
        hydra.main(config_path=str(conf_dir()), config_name=config_name, version_base="1.3")(job)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        exit_with_user_error(error)
    except OSError as error:  # an output folder that Hydra cannot make
        exit_with_user_error(UserError(f"{error.filename or 'a file'}: {error.strerror or error}"))
    except KeyboardInterrupt:
        print("interrupted: unfinished runs start again with the same command", file=sys.stderr)
        sys.exit(INTERRUPTED)


def exit_with_user_error(error: Exception) -> None:
    print(describe_error(error), file=sys.stderr)
    sys.exit(USER_ERROR)


def describe_error(error: Exception) -> str:
    """What is wrong in one line; several lines only where several things are wrong."""
    return str(error)


def _train_job(composed: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    job_dir = Path(hydra_config.runtime.output_dir)
    terminal = Terminal()
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    try:
        outcomes = run_all(typed_config(composed), terminal)
    except UserError as error:
        if not in_sweep:
            shutil.rmtree(job_dir, ignore_errors=True)  # Hydra made it for this job, which left nothing
            raise
        print(error, file=sys.stderr)
        (job_dir / "outcomes.json").write_text(json.dumps({"refused": str(error)}))
        return
    show_results(outcomes, str(composed.method.name), terminal)
    record = [{"directory": str(o.directory), "test_domain": o.test_domain, "failure": o.failure} for o in outcomes]
    (job_dir / "outcomes.json").write_text(json.dumps({"runs": record}))
    if not in_sweep and any(outcome.result is None for outcome in outcomes):
        sys.exit(FAILED)


def show_results(outcomes: list[Outcome], method: str, terminal: Terminal) -> None:
    rows = [
        row | {"test_domain": outcome.test_domain, "collapse": outcome.result["health"]["collapse"]}
        for outcome in outcomes
        if outcome.result is not None
        for row in outcome.result["results"]
        if row["method"] == method and row["selection"] == "iid"
    ]
    if rows:
        terminal.results_table(f"{method}, each at its step of best i.i.d. accuracy", rows)
        for outcome in outcomes:
            if outcome.result is not None:
                terminal.say(f"{outcome.test_domain}: {outcome.directory}")


class SweepCallback(Callback):
    """Checks every job before the first one starts; shows one table when all have ended."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._check([config])

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        [jobs] = BasicSweeper.split_arguments(overrides, max_batch_size=None)
        self._check([compose(config.hydra.job.config_name, overrides=list(job)) for job in jobs])

    def _check(self, jobs: list[DictConfig]) -> None:
        """SystemExit, since Hydra turns a callback's exceptions into warnings."""
        problems: dict[str, None] = {}
        for job in jobs:
            try:
                check_inputs(typed_config(job))
            except (UserError, OmegaConfBaseException) as error:
                problems |= dict.fromkeys(describe_error(error).splitlines())
        if problems:
            exit_with_user_error(UserError("\n".join(problems)))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        import pandas as pd

        terminal = Terminal()
        records = [read_json(path) for path in sorted(Path(config.hydra.sweep.dir).glob("*/outcomes.json"))]
        runs = [run for record in records for run in record.get("runs", [])]
        failures = [f"{run['directory']}: {run['failure']}" for run in runs if run["failure"]]
        rows = [
            row
            for directory in dict.fromkeys(run["directory"] for run in runs if not run["failure"])
            for row in result_rows(read_json(Path(directory) / "result.json"))
            if row["method"] == config.method.name and row["selection"] == "iid"
        ]
        if rows:
            results = pd.DataFrame(rows, columns=COLUMNS)
            varied = [name for name in ("dataset", *SETTING_COLUMNS) if results[name].nunique(dropna=False) > 1]
            terminal.sweep_table("the whole sweep, each run at its step of best i.i.d. accuracy", results, varied)
        for line in failures:
            terminal.fail(line)
        if failures:
            sys.exit(FAILED)
        if any("refused" in record for record in records):
            sys.exit(USER_ERROR)
