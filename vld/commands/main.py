"""The command line: from words, which Hydra composes, to an exit code; errors in one line.

torch takes seconds to import, so whatever needs it is imported when a job starts: `--help` and a misspelt option
answer at once.
"""

import os
import shlex
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_hydra, create_automatic_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vld.commands.preflight import Command, prepared, ready
from vld.config.command_settings import LOOKING
from vld.config.errors import FAILED, USER_ERROR, UserError
from vld.config.settings import Config, option_names
from vld.machine.processes import import_nothing_from_here
from vld.machine.signals import Stopped, stop_on_signals
from vld.machine.streams import make_streams_usable, place_caches
from vld.machine.waiting import spin_briefly
from vld.study.compose import SCHEMAS, describe_error
from vld.study.words import as_hydra_takes_them, check_one_study, keep_text_of_presets


def conf_dir() -> Path:
    """The folder of presets: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return next(path for path in (package / "conf", package.parent / "conf") if path.is_dir())


def main(name: str, argv: Sequence[str]) -> int:
    """The command `name`, given as `argv`: its program, then words. The exit code; what the user has to fix becomes a line on
    standard error and code 2.

    Made for a process of its own: signals are heard from then on, and environment variables set.
    """
    make_streams_usable()
    try:
        return _run(name, argv)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        return _ended(describe_error(error, _schema(name)), USER_ERROR)
    except BrokenPipeError:  # the reader of --help, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # an output folder that Hydra cannot make
        return _ended(f"output_dir: {error.filename or 'a file'}: {error.strerror or error}", USER_ERROR)
    except SystemExit as end:  # Hydra's, after --help, and that of a run which has handed a signal on
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (KeyboardInterrupt, Stopped) as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        return _ended(f"stopped by {number.name}; the same command goes on, and does nothing twice", 128 + number)
    finally:
        GlobalHydra.instance().clear()


def _ended(line: str, code: int) -> int:
    with suppress(OSError):  # nobody may be there to read it
        print(line, file=sys.stderr)
    return code


def _schema(name: str) -> type:
    return SCHEMAS.get(f"{name}_schema", Config)


def _run(name: str, argv: Sequence[str]) -> int:
    parser = get_args_parser()
    given = _given(parser, name, argv[1:])
    version.setbase("1.3")
    if given.help or given.hydra_help or given.cfg or given.info or given.shell_completion or given.resolve:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
        try:
            _run_hydra(given, parser, main, str(conf_dir()), name)  # type: ignore[arg-type] # `main` is not called
        except ValueError as error:  # words that do not go together
            raise UserError(str(error)) from error
        return 0
    hydra = _hydra(given)
    config = _composed(hydra, given.config_name or name, given, sweeps=given.multirun or name in LOOKING)
    places = {"--config-dir": given.config_dir, "--config-path": given.config_path}
    again = [*_program(argv), *(word for place in places.items() if place[1] for word in place)]
    try:
        command = prepared(name, config, [*again, *config.hydra.overrides.hydra])
        code = _before_jobs(command, argv)
    except OSError as error:
        raise UserError(f"before the first job: {error}") from error
    if code is not None:
        return code
    from vld.commands.launch import run_here, run_sweep

    return (run_sweep if command.sweep else run_here)(command, hydra.config_loader)


def _given(parser: ArgumentParser, name: str, words: Sequence[str]) -> Namespace:
    """What the words say, after this process was made ready for it. Raises `UserError` for those that no command has."""
    schema = _schema(name)
    for word in words:
        if word.startswith("-") and (option := word.lstrip("-").split("=")[0]) in option_names(schema):
            raise UserError(f"{word}: options are written without dashes, {option}=value")
    given = parser.parse_intermixed_args(words)
    if given.multirun and given.cfg:
        raise UserError("--cfg: shows the configuration of one job; leave -m and all values but one out")
    if given.experimental_rerun:
        raise UserError("--experimental-rerun: write the options of the run")
    output_dir = next((word.partition("=")[2] for word in given.overrides if word.startswith("output_dir=")), "outputs")
    place_caches(os.environ, Path(output_dir.strip("'\"")))
    spin_briefly(os.environ)
    import_nothing_from_here(os.environ)
    keep_text_of_presets()
    stop_on_signals()
    given.overrides = as_hydra_takes_them(given.overrides, schema)
    check_one_study(given.overrides)
    return given


def _program(argv: Sequence[str]) -> list[str]:
    return ["python", argv[0]] if argv[0].endswith(".py") else [argv[0]]


def _hydra(given: Namespace) -> Hydra:
    """With the folders of presets. Raises `UserError` where that of --config-dir is none."""
    path = create_automatic_config_search_path(None, __name__, given.config_path or str(conf_dir()))
    if given.config_dir is not None:
        folder = Path(given.config_dir).absolute()
        if not folder.is_dir():
            raise UserError(f"--config-dir: no folder {folder}")
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    return Hydra.create_main_hydra2("main", path)


def _composed(hydra: Hydra, preset: str, given: Namespace, *, sweeps: bool) -> DictConfig:
    """What the command's one job is composed of, or its sweep where it is one: it `sweeps`, or its study does."""
    mode = hydra.get_mode(preset, given.overrides)  # None as well where it cannot be composed, which is said below
    if mode is None or (sweeps and mode is RunMode.RUN):
        mode = RunMode.MULTIRUN if sweeps else RunMode.RUN
        given.overrides.append(f"hydra.mode={mode.name}")
    return hydra.compose_config(preset, given.overrides, mode, with_log_configuration=True)


def _before_jobs(command: Command, argv: Sequence[str]) -> int | None:
    """The checks before a command's jobs; or what it does in their place, and the exit code."""
    jobs, config = command.jobs, command.config
    if command.name in ("train", "benchmark"):
        return None if ready(command) else 0
    if command.name == "status":
        from vld.commands.status import show_jobs

        return 0 if show_jobs(jobs, command.title, config) else FAILED
    if command.name == "report":
        from vld.commands.report import report_of

        words = [word for word in argv[1:] if word not in ("-m", "--multirun")]
        report_of(jobs, config, shlex.join([*_program(argv), *words]))
        return 0
    if command.name == "combine" and command.sweep and jobs[0].config.study.name:
        from vld.commands.combine import combine_study
        from vld.machine.terminal import Terminal

        return combine_study(jobs, Terminal())
    return None


def _entry(name: str) -> Callable[[], NoReturn]:
    """A command as `vld-NAME` and `scripts/NAME.py` call it."""
    return lambda: sys.exit(main(name, sys.argv))


train = _entry("train")
combine = _entry("combine")
benchmark = _entry("benchmark")
status = _entry("status")
report = _entry("report")
prepare = _entry("prepare")
publish = _entry("publish")
analyse = _entry("analyse")
