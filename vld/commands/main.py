"""The command line: words, composed by Hydra, become an exit code; what the user has to fix becomes a line.

torch takes seconds to import, so whatever needs it is imported once a job starts: `--help` and a misspelt option answer
immediately.
"""

import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_hydra, create_automatic_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vld.commands.preflight import Command, prepared, schema_of
from vld.config.command_settings import LOOKING
from vld.config.errors import USER_ERROR, UserError
from vld.config.settings import option_names
from vld.machine.processes import import_nothing_from_here
from vld.machine.signals import Stopped, end_on_signals, stop_on_signals
from vld.machine.streams import make_streams_usable, place_caches
from vld.machine.waiting import spin_briefly
from vld.study.jobs import overrides_parser
from vld.study.typed_settings import describe_error
from vld.study.words import check_presets, keep_text_of_presets, quoted_for_hydra


def conf_dir() -> Path:
    """The folder of presets: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return next(path for path in (package / "conf", package.parent / "conf") if path.is_dir())


def main(name: str, argv: Sequence[str]) -> int:
    """Run the command `name`. argv: the program, then its words. Returns the exit code.

    Needs a process of its own: it installs signal handlers and sets environment variables.
    """
    make_streams_usable()
    try:
        return _run(name, argv)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        return _ended(describe_error(error, schema_of(name)), USER_ERROR)
    except BrokenPipeError:  # the reader of --help, for example `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a folder that cannot be created, for example
        return _ended(f"{error.filename or 'a file'}: {error.strerror or error}", USER_ERROR)
    except SystemExit as end:  # Hydra's after --help, or a run's once it has passed a signal on
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (KeyboardInterrupt, Stopped) as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        return _ended(f"interrupted ({number.name}); run the same command again to resume", 128 + number)
    finally:
        GlobalHydra.instance().clear()


def _ended(line: str, code: int) -> int:
    with suppress(OSError):  # nobody may be reading
        print(line, file=sys.stderr)
    return code


def _run(name: str, argv: Sequence[str]) -> int:
    parser = get_args_parser()
    given = _parsed(parser, name, argv[1:])
    _set_up_process(given.overrides)
    version.setbase("1.3")
    if given.help or given.hydra_help or given.cfg or given.info or given.shell_completion or given.resolve:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
        try:
            _run_hydra(given, parser, main, str(conf_dir()), name)  # type: ignore[arg-type] # `main` is not called
        except ValueError as error:  # flags that exclude each other
            raise UserError(str(error)) from error
        return 0
    hydra = _hydra(given)
    config = _composed(hydra, given.config_name or name, given, sweeps=given.multirun or name in LOOKING)
    program = ["python", argv[0]] if argv[0].endswith(".py") else [argv[0]]
    for option, place in (("--config-dir", given.config_dir), ("--config-path", given.config_path)):
        program += [option, place] if place else []
    command = prepared(name, config, [*program, *config.hydra.overrides.hydra])
    if (code := _without_jobs(command)) is not None:
        return code
    from vld.commands.launch import run_here, run_sweep

    return (run_sweep if command.sweep else run_here)(command, hydra.config_loader)


def _parsed(parser: ArgumentParser, name: str, words: Sequence[str]) -> Namespace:
    """Raises `UserError` for words that the command does not take."""
    schema = schema_of(name)
    for word in words:
        if word.startswith("-") and (option := word.lstrip("-").split("=")[0]) in option_names(schema):
            raise UserError(f"{word}: options are written without dashes, {option}=value")
    given = parser.parse_intermixed_args(words)
    if given.multirun and given.cfg:
        raise UserError("--cfg: shows the configuration of one job; leave out -m, and give each option one value")
    if given.experimental_rerun:
        raise UserError("--experimental-rerun: not supported; write the options of the run")
    given.overrides = quoted_for_hydra(given.overrides, schema)
    check_presets(given.overrides, schema)
    return given


def _set_up_process(overrides: Sequence[str]) -> None:
    """What has to be done before torch is imported, before a preset is read, and before anything that takes long."""
    output_dir = next((word.partition("=")[2] for word in overrides if word.startswith("output_dir=")), "outputs")
    place_caches(os.environ, Path(output_dir.strip("'\"")))
    spin_briefly(os.environ)
    import_nothing_from_here(os.environ)
    keep_text_of_presets()
    stop_on_signals()


def _hydra(given: Namespace) -> Hydra:
    """Hydra with the folders of presets. Raises `UserError` if --config-dir is not a folder."""
    path = create_automatic_config_search_path(None, __name__, given.config_path or str(conf_dir()))
    if given.config_dir is not None:
        folder = Path(given.config_dir).absolute()
        if not folder.is_dir():
            raise UserError(f"--config-dir: no folder {folder}")
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    return Hydra.create_main_hydra2("main", path)


def _composed(hydra: Hydra, preset: str, given: Namespace, *, sweeps: bool) -> DictConfig:
    """The configuration of the command's one job, or of its sweep: where it `sweeps`, or its study does."""
    config = hydra.compose_config(
        preset, given.overrides, RunMode.MULTIRUN, with_log_configuration=True, validate_sweep_overrides=False
    )
    config.hydra.mode = mode = RunMode.MULTIRUN if sweeps else config.hydra.mode or RunMode.RUN
    parsed = overrides_parser().parse_overrides(given.overrides)
    ConfigLoaderImpl.validate_sweep_overrides_legal(parsed, mode, from_shell=True)
    return config


def _without_jobs(command: Command) -> int | None:
    """The exit code of a command that runs no jobs: it only looks, combines a study, or is a dry run. None for others."""
    if command.name == "status":
        from vld.commands.status import show_status

        return show_status(command)
    if command.name == "report":
        from vld.commands.report import make_and_show

        return make_and_show(command)
    if command.name == "combine" and command.sweep and command.jobs[0].config.study.name:
        from vld.commands.combine import combine_study

        return combine_study(command)
    if command.name in ("train", "benchmark"):
        from vld.commands.train import check

        return check(command)
    return None


def _entry(name: str) -> Callable[[], NoReturn]:
    """A command as `vld-NAME` and `scripts/NAME.py` call it."""

    def run() -> NoReturn:
        code = main(name, sys.argv)
        end_on_signals(code)
        sys.exit(code)

    return run


train = _entry("train")
combine = _entry("combine")
benchmark = _entry("benchmark")
status = _entry("status")
report = _entry("report")
prepare = _entry("prepare")
publish = _entry("publish")
analyse = _entry("analyse")
