"""Running the real commands from tests."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
import timm
import torch
from hydra.core.global_hydra import GlobalHydra

from vld.commands.main import main
from vld.machine.signals import SIGNALS
from vld.tracking.background import Publisher
from vld.training import loop as training

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "vld").glob("*/README.md"))]
DOCUMENTATION = "\n".join(page.read_text() for page in PAGES)
"""README.md and the pages of the rooms."""
TINY = "test_resnet.r160_in1k"
TINY_NETWORK = ("backbone=timm", f"backbone.name={TINY}", "backbone.weights=none")
"""400,000 weights: a step on a few small images takes milliseconds."""
SMALLEST = ("dataset=glyphs", *TINY_NETWORK, "image_size=16", "batch_size=2")
"""With it, on the twelve images of each domain of `small_glyphs`."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def tiny_weights(folder: Path) -> str:
    """The option to start from a file: then batch-norm statistics are frozen, and the runs can be members of soups."""
    path = folder / "weights.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(timm.create_model(TINY).state_dict(), path)
    return f"backbone.weights={path}"


def train(*options: str, **how: Any) -> "subprocess.CompletedProcess[str]":
    """`script("train.py", …)`."""
    return script("train.py", *options, **how)


def script(
    name: str, *options: str, cwd: Path = REPOSITORY, env: Mapping[str, str] | None = None, fresh: bool = False
) -> "subprocess.CompletedProcess[str]":
    """Run a script of scripts/ with these options, on one thread, in this process, which saves its start.

    fresh: in a process of its own, for tests about processes: several at once, signals, what is imported and when.
    """
    command = [str(REPOSITORY / "scripts" / name), *options]
    environment = os.environ | ENVIRONMENT | (env or {})
    if fresh:
        command = [sys.executable, *command]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    with TemporaryFile() as out, TemporaryFile() as err:
        with _as_a_process(cwd, environment, out.fileno(), err.fileno()):
            code = _exit_code(name.removesuffix(".py"), command)
        texts = [file.seek(0) or file.read().decode() for file in (out, err)]
    return subprocess.CompletedProcess(command, code, *texts)


def changed_copy(folder: Path, *changes: tuple[str, str, str]) -> "Callable[..., subprocess.CompletedProcess[str]]":
    """`script`, in a process of its own, of a copy of the sources.

    changes: (file, what stands there once, what instead); (new file, "", its text).
    """
    sources = folder / "sources"
    for name in ("vld", "conf", "scripts"):
        shutil.copytree(REPOSITORY / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, before, after in changes:
        text = (sources / name).read_text() if before else ""
        assert not before or text.count(before) == 1, (name, before)
        (sources / name).write_text(text.replace(before, after) if before else after)

    def run(name: str, *options: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(sources / "scripts" / name), *options]
        environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(sources)}
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)

    return run


def start(
    name: str, *options: str, cwd: Path = REPOSITORY, env: Mapping[str, str] | None = None, **popen: Any
) -> "subprocess.Popen[str]":
    """Start a script, by its name or path, in the background; its `stdout` has the lines of both streams.

    Read it by `wait_for`, then by `communicate()`, without a time limit, which would lose what is in Python's buffer.
    """
    command = [sys.executable, str(REPOSITORY / "scripts" / name), *options]
    environment = os.environ | ENVIRONMENT | {"PYTHONUNBUFFERED": "1"} | (env or {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | popen
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, **pipes)


def wait_for(process: "subprocess.Popen[str]", text: str) -> None:
    """Wait until it prints a line with that text."""
    assert process.stdout
    printed = []
    for line in process.stdout:
        printed.append(line)
        if text in line:
            return
    raise AssertionError(f"ended without printing {text!r}: {''.join(printed)}")


def processes_of(session: int) -> list[str]:
    """The names of the programs of a session that have not ended. One that has, but nobody has asked how, is a zombie."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            name, _, fields = path.read_text().partition("(")[2].rpartition(")")
            state, _, _, its_session = fields.split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(name)
    return found


@contextmanager
def before_step(step: int, act: Callable[[], object]) -> Iterator[None]:
    """Within, call `act` before this step of every run that this process trains."""
    update = training.update

    def acting(trajectory: Any, *arguments: Any) -> torch.Tensor:
        if trajectory.step == step:
            act()
        return update(trajectory, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "update", acting)
        yield


def stopped_at(
    step: int, *options: str, by: signal.Signals = signal.SIGTERM, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """`train` in this process, which gets a signal before that step; it still makes the step."""
    with before_step(step, lambda: os.kill(os.getpid(), by)):
        return train(*options, env=env)


def _exit_code(name: str, argv: list[str]) -> int:
    """The exit code that the interpreter would give."""
    try:
        return main(name, argv)
    except BaseException:
        traceback.print_exc()
        return 1


@contextmanager
def _as_a_process(cwd: Path, env: Mapping[str, str], out: int, err: int) -> Iterator[None]:
    """Within, a command finds this process as it would find a new one: folder, environment, output, signals, memory."""
    before = dict(os.environ), Path.cwd(), sys.stdout, sys.stderr
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    deterministic = torch.are_deterministic_algorithms_enabled()
    log = logging.getLogger()
    log_before = log.level, [*log.handlers]  # Hydra's --info makes it print everything, to this command's output
    kept = os.dup(1), os.dup(2)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, encoding="utf-8", closefd=False) for number in (1, 2))
    hydra = GlobalHydra.instance().hydra  # a test may be composing something itself
    GlobalHydra.instance().clear()
    try:
        _set_environment(env)
        os.chdir(cwd)
        yield
    finally:
        Publisher.down_until = 0.0
        Publisher.announced.clear()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        environment, folder, sys.stdout, sys.stderr = before
        os.chdir(folder)
        _set_environment(environment)
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        torch.use_deterministic_algorithms(deterministic)
        log.setLevel(log_before[0])
        log.handlers = log_before[1]
        if hydra is not None:
            GlobalHydra.instance().initialize(hydra)


def _set_environment(env: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
