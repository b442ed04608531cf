"""A process that has imported what the commands import, and forks one for each of them: what it runs is the real script in a
process of its own, some five seconds sooner."""

import json
import os
import random
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

IMPORTED = (
    "timm",
    "hydra",
    "vld.analyse",
    "vld.benchmark.measure",
    "vld.combine_study",
    "vld.report.command",
    "vld.sweep",
)


class Prepared:
    """Runs scripts one at a time, as `subprocess.run` would."""

    def __init__(self, env: Mapping[str, str]) -> None:
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(
        self, script: Path, options: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float
    ) -> "subprocess.CompletedProcess[str]":
        arguments = [str(script), *options]
        assert self._process.stdin
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            request = {"argv": arguments, "cwd": str(cwd), "env": dict(env), "out": str(out), "err": str(err)}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            pid = self._answer(60)
            assert pid is not None, "the process that forks does not answer"
            if (returncode := self._answer(timeout)) is None:
                os.kill(pid, signal.SIGKILL)
                self._answer(60)
                raise subprocess.TimeoutExpired(arguments, timeout, out.read_bytes(), err.read_bytes())
            return subprocess.CompletedProcess(arguments, returncode, out.read_text(), err.read_text())

    def _answer(self, timeout: float) -> int | None:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        return int(self._process.stdout.readline()) if ready else None


@cache
def prepared_process() -> Prepared:
    """One for all tests of this process; it ends with it."""
    return Prepared(os.environ | {"OMP_NUM_THREADS": "1"})  # which libraries read when they are imported


def serve() -> None:
    """Fork for every request, and tell its process id, then its exit status."""
    for name in IMPORTED:
        __import__(name)
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            become(json.loads(line))
            return
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(request: Mapping[str, str]) -> None:
    """The process that the request describes."""
    import numpy as np

    for number, file, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], os.O_WRONLY | os.O_CREAT),
        (2, request["err"], os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(file, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    random.seed()  # each from entropy of its own, as in a fresh process
    np.random.seed()
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = list(request["argv"])
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    serve()
