"""The command line: Hydra's composition, one-line errors, exit codes.

torch takes seconds to import, so whatever needs it is imported when a job starts: `--help` and a misspelt option
answer at once.
"""

import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vld.commands.launch import JobsCallback, summarise_sweep
from vld.commands.side_by_side import known_to_run, stop_jobs
from vld.config.command_settings import AnalyseConfig, PrepareConfig, PublishConfig, ReportConfig, StatusConfig
from vld.config.errors import FAILED, UserError, exit_with_user_error
from vld.config.names import COMBINATIONS
from vld.config.settings import Config, option_names
from vld.machine.processes import import_nothing_from_here
from vld.machine.signals import SIGNALS
from vld.machine.streams import make_streams_usable, place_caches
from vld.machine.waiting import spin_briefly
from vld.study.compose import describe_error, typed_config
from vld.study.jobs import BASIC_LAUNCHER, JOBLIB_LAUNCHER, outcomes_dir
from vld.study.words import as_hydra_takes_them, check_one_study, keep_text_of_presets
from vld.tracking.background import Publisher

if TYPE_CHECKING:
    from vld.machine.terminal import Terminal
    from vld.runs.once import Outcome


def train() -> None:
    """The command `vld-train` and `scripts/train.py`."""
    run_command(_train_job, "train")


def combine() -> None:
    """The command `vld-combine` and `scripts/combine.py`; its options are those of `vld-train`, and say which runs."""
    run_command(_combine_job, "combine")


def benchmark() -> None:
    """The command `vld-benchmark` and `scripts/benchmark.py`; its options are those of `vld-train`."""
    run_command(_benchmark_job, "benchmark")


def status() -> None:
    """The command `vld-status` and `scripts/status.py`; its options are those of `vld-train`, and say which runs."""
    _look_at_runs("status", StatusConfig)


def report() -> None:
    """The command `vld-report` and `scripts/report.py`; its options are those of `vld-train`, and narrow what is reported."""
    _look_at_runs("report", ReportConfig)


def _look_at_runs(config_name: str, schema: type) -> None:
    if not {"-m", "--multirun", "-h", "--help", "-c", "--cfg", "-i", "--info", "--version"} & set(sys.argv[1:]):
        sys.argv.append("-m")  # what is looked at may be a sweep, or a study, which always is
    run_command(_nothing, config_name, schema)


def prepare() -> None:
    """The command `vld-prepare` and `scripts/prepare.py`."""
    run_command(_prepare_job, "prepare", PrepareConfig)


def publish() -> None:
    """The command `vld-publish` and `scripts/publish.py`."""
    run_command(_publish_job, "publish", PublishConfig)


def analyse() -> None:
    """The command `vld-analyse` and `scripts/analyse.py`."""
    run_command(_analyse_job, "analyse", AnalyseConfig)


def conf_dir() -> Path:
    """The folder of presets: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return next(path for path in (package / "conf", package.parent / "conf") if path.is_dir())


def run_command(job: Callable[[DictConfig], None], config_name: str, schema: type = Config) -> None:
    """Run `job` under Hydra; what the user has to fix becomes a line on standard error and exit code 2."""
    make_streams_usable()
    for argument in sys.argv[1:]:
        if argument.lstrip("-").split("=")[0] in option_names(schema) and argument.startswith("-"):
            exit_with_user_error(
                f"{argument}: options are written without dashes, {argument.lstrip('-').split('=')[0]}=value"
            )
    if {"-m", "--multirun"} & set(sys.argv[1:]) and {"--cfg", "-c"} & set(sys.argv[1:]):
        exit_with_user_error("--cfg: shows the configuration of one job; leave -m and all values but one out")
    # argparse takes options in one block only; a user may well write -m at the end.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    output_dir = next((word.partition("=")[2] for word in sys.argv[1:] if word.startswith("output_dir=")), "outputs")
    place_caches(os.environ, Path(output_dir.strip("'\"")))
    spin_briefly(os.environ)
    import_nothing_from_here(os.environ)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    keep_text_of_presets()
    stop_on_signals()

    @wraps(job)
    def guarded(composed: DictConfig) -> None:
        os.chdir(HydraConfig.get().runtime.cwd)  # relative paths mean the command's folder, with hydra.job.chdir too
        try:
            job(composed)
        except UserError as error:  # before Hydra has its say about it
            exit_with_user_error(str(error))

    try:
        sys.argv[1:] = as_hydra_takes_them(sys.argv[1:], schema)
        check_one_study(sys.argv[1:])
        hydra.main(config_path=str(conf_dir()), config_name=config_name, version_base="1.3")(guarded)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        exit_with_user_error(describe_error(error, schema))
    except BrokenPipeError:  # the reader of --help, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # an output folder that Hydra cannot make
        exit_with_user_error(f"output_dir: {error.filename or 'a file'}: {error.strerror or error}")
    except Exception as error:
        if JobsCallback.started is None:
            raise
        exit_after_lost_job(JobsCallback.started, error)
    except (KeyboardInterrupt, Stopped) as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        with suppress(OSError):  # nobody may be there to read it
            print(f"stopped by {number.name}; the same command goes on, and does nothing twice", file=sys.stderr)
        sys.exit(128 + number)


def exit_after_lost_job(started: "tuple[Path, int, str]", error: Exception) -> NoReturn:
    """The launcher gave up, since the process of a job was killed, say: show what there is, and how to go on."""
    summarise_sweep(*started)
    reason = next(iter(str(error).strip().splitlines()), "")
    with suppress(OSError):
        print(
            f"the launcher stopped: {type(error).__name__}: {reason:.300}\njobs that it has given to a cluster go on;"
            " the same command goes on with what is not finished, and does nothing twice",
            file=sys.stderr,
        )
    sys.exit(FAILED)


class Stopped(BaseException):
    """Other signals, as KeyboardInterrupt is SIGINT."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number


def stop_on_signals() -> None:
    """Of those that are not ignored, as a hang-up is under nohup."""
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop)


def _stop(number: int, _: object) -> NoReturn:
    JobsCallback.waiting.close()
    if JobsCallback.started:
        stop_jobs(JobsCallback.started[0])
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(signal.Signals(number))


def _nothing(composed: DictConfig) -> None:
    """What `status.py` and `report.py` show is shown before jobs would start (`vld.commands.launch`)."""
    raise UserError(f"{composed.hydra.mode}: this command has no jobs; leave -m and hydra.mode out")


def _train_job(composed: DictConfig) -> None:
    """Train; where a combination is asked for, its members first."""

    def work(config: Config, terminal: "Terminal", publisher: Publisher) -> "list[Outcome]":
        if config.method.name in COMBINATIONS:
            from vld.study.combination import train_and_combine

            return train_and_combine(config, terminal, publisher)
        from vld.study.runner import run_all

        return run_all([config], terminal, publisher)

    _job(composed, work)


def _combine_job(composed: DictConfig) -> None:
    def work(config: Config, terminal: "Terminal", publisher: Publisher) -> "list[Outcome]":
        from vld.study.combination import combine_all

        if config.method.name not in COMBINATIONS:
            raise UserError(f"method={config.method.name}: combine.py makes one of {', '.join(COMBINATIONS)}")
        return combine_all(config, terminal, publisher, options=HydraConfig.get().overrides.task)

    _job(composed, work)


def _job(composed: DictConfig, work: "Callable[[Config, Terminal, Publisher], list[Outcome]]") -> None:
    """Do a job's work, show what came out of it, and turn that into an exit code, or a note to the sweep."""
    from vld.machine.all_runs import NOTES, Notes
    from vld.machine.atomic import write_json
    from vld.machine.terminal import Terminal

    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    beside_others = in_sweep and hydra_config.launcher._target_ != BASIC_LAUNCHER
    whole = JobsCallback.whole  # in other processes there is none: they note what they do
    notes = Notes(outcomes_dir(hydra_config) / f"{hydra_config.job.num:06d}{NOTES}") if beside_others else None
    terminal = Terminal(
        hydra_config.job.num if beside_others else None, notes or (whole.here if whole else None), whole
    )
    in_own_process = in_sweep and hydra_config.launcher._target_ == JOBLIB_LAUNCHER
    if in_own_process:
        stop_on_signals()
        if composed.device == "auto":
            from vld.machine.device import keep_to_one_gpu

            keep_to_one_gpu(_worker_number())
    known = known_to_run(outcomes_dir(hydra_config), hydra_config.job.num) if in_own_process else nullcontext()
    outcomes: list[Outcome] = []
    error: UserError | OSError | None = None
    publisher: Publisher | None = None
    try:
        config = typed_config(composed, Config)
        publisher = Publisher(config.wandb, config.output_dir, say=terminal.say, warn=terminal.warn)
        with known:
            outcomes = work(config, terminal, publisher)
        if not beside_others:  # else their tables would be mixed up: the one at the end has them all
            show_results(outcomes, config.method.name, terminal)
    except (UserError, OSError) as problem:
        error = problem
    except BaseException:  # Ctrl-C, say
        if publisher:
            publisher.abandon()
            publisher.summary()
        raise
    if publisher:
        with terminal.counting("delivering to W&B") as progress:
            publisher.finish(progress)
    if in_sweep:  # the other jobs go on; the callback at the end of the sweep exits
        record = {
            "runs": [{"directory": str(o.directory), "failure": o.failure, "skipped": o.skipped} for o in outcomes],
            "error": str(error) if error else None,
            "refused": isinstance(error, UserError),
            "not_uploaded": len(publisher.not_uploaded) if publisher else 0,
            "publish": publisher.command if publisher else "",
            "overrides": list(hydra_config.overrides.task),
        }
        try:
            write_json(outcomes_dir(hydra_config) / f"{hydra_config.job.num:06d}.json", record)
        except OSError as problem:  # the sweep says that a job is missing
            terminal.fail(f"job {hydra_config.job.num}: {problem}")
    elif isinstance(error, UserError):
        _remove_job_dir(Path(hydra_config.runtime.output_dir))
        exit_with_user_error(str(error))
    elif error:
        terminal.fail(str(error))
    if not in_sweep and (error or any(outcome.failure for outcome in outcomes)):
        sys.exit(FAILED)


def _worker_number() -> int:
    """Of a launcher's processes: LokyProcess-1, LokyProcess-2, …"""
    digits = re.search(r"\d+$", multiprocessing.current_process().name)
    return int(digits[0]) if digits else 0


def _remove_job_dir(job_dir: Path) -> None:
    """Take back the directory that Hydra made for a job which did nothing, if there is nothing of anybody's in it."""
    if [path.name for path in job_dir.iterdir()] == [".hydra"]:
        shutil.rmtree(job_dir / ".hydra")
        job_dir.rmdir()


def _benchmark_job(composed: DictConfig) -> None:
    from vld.commands.benchmark.measure import run_benchmark
    from vld.machine.terminal import Terminal

    run_benchmark(typed_config(composed, Config), HydraConfig.get().overrides.task, Terminal())


def _prepare_job(composed: DictConfig) -> None:
    from vld.commands.prepare import prepare
    from vld.machine.terminal import Terminal

    prepare(typed_config(composed, PrepareConfig), Terminal())


def _publish_job(composed: DictConfig) -> None:
    from vld.commands.publish import publish_all
    from vld.machine.terminal import Terminal

    if publish_all(typed_config(composed, PublishConfig), Terminal()):
        sys.exit(FAILED)


def _analyse_job(composed: DictConfig) -> None:
    from vld.commands.analyse import analyse_all
    from vld.machine.terminal import Terminal

    if analyse_all(typed_config(composed, AnalyseConfig), Terminal()):
        sys.exit(FAILED)


def show_results(outcomes: "list[Outcome]", method: str, terminal: "Terminal") -> None:
    """The table of one job, and where its runs are."""
    from vld.report.summary import SELECTION_NOTE, combination_tables, results_table
    from vld.runs.results import RunResult

    finished = {o.test_domain: RunResult(o.directory, o.result) for o in outcomes if o.result is not None}
    if not finished:
        return
    if method in COMBINATIONS:
        terminal.show(*combination_tables(method, finished))
    else:
        terminal.show(SELECTION_NOTE, results_table(finished, method))
    for test_domain, result in finished.items():
        terminal.say(f"{test_domain}: {result.directory}")
