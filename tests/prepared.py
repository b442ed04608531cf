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
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

IMPORTED = (
    "timm",
    "hydra",
    "vld.commands.analyse",
    "vld.commands.benchmark.measure",
    "vld.commands.combine",
    "vld.commands.report",
    "vld.commands.launch",
)


class Started:
    """A process that was forked: what tests use of a `subprocess.Popen`, and `wait_for`."""

    def __init__(self, server: "Prepared", pid: int, arguments: Sequence[str], out: Path, err: Path) -> None:
        self._server, self.pid, self._arguments = server, pid, arguments
        self._out, self._err = out.open("rb"), err.open("rb")

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self._server.exit_code(self.pid, 0)

    def wait(self, timeout: float) -> int:
        if (code := self._server.exit_code(self.pid, timeout)) is None:
            raise subprocess.TimeoutExpired(self._arguments, timeout)
        return code

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it says from here on, on stdout and on stderr, when it has ended."""
        self.wait(timeout)
        return self._out.read().decode(), self._err.read().decode()

    def wait_for(self, text: str, timeout: float = 120) -> None:
        """Until it has said a line with that text, after those that were read before."""
        deadline = time.monotonic() + timeout
        while True:
            ended = self.poll() is not None  # asked first: what is read then is all
            while line := self._line():
                if text in line:
                    return
            assert not ended, f"ended without saying {text!r}: {self._err.read().decode()}"
            assert time.monotonic() < deadline, f"has not said {text!r} for {timeout} s"
            time.sleep(0.01)

    def _line(self) -> str:
        begin = self._out.tell()
        line = self._out.readline()
        if line.endswith(b"\n"):
            return line.decode()
        self._out.seek(begin)  # the rest is still to be written
        return ""

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Prepared:
    """Runs scripts as `subprocess.run` would, or starts them in the background."""

    def __init__(self, env: Mapping[str, str]) -> None:
        command = [sys.executable, __file__]
        # Unbuffered: what was read of a pipe is not hidden from `select`.
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._exit_codes: dict[int, int] = {}

    def run(
        self, script: Path, options: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float
    ) -> "subprocess.CompletedProcess[str]":
        arguments = [str(script), *options]
        with tempfile.TemporaryDirectory() as folder:
            process = self.start(script, options, cwd, env, Path(folder))
            try:
                returncode = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(60)
                raise subprocess.TimeoutExpired(arguments, timeout, *process.communicate(60)) from None
            return subprocess.CompletedProcess(arguments, returncode, *process.communicate(60))

    def start(
        self,
        script: Path,
        options: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        folder: Path,
        own_session: bool = False,
    ) -> Started:
        """Start it in the background; what it says goes to files in `folder`."""
        arguments = [str(script), *options]
        out, err = folder / "out", folder / "err"
        for path in (out, err):
            path.write_bytes(b"")
        request = {"argv": arguments, "cwd": str(cwd), "env": dict(env), "out": str(out), "err": str(err)}
        line = json.dumps(request | {"own_session": own_session}).encode() + b"\n"
        assert self._process.stdin
        while line:
            line = line[self._process.stdin.write(line) :]
        while len(answer := self._answer(60)) == 2:  # others that have ended meanwhile
            self._exit_codes[answer[0]] = answer[1]
        assert answer, "the process that forks does not answer"
        [pid] = answer
        self._exit_codes.pop(pid, None)  # of an earlier process that had the same id
        return Started(self, pid, arguments, out, err)

    def exit_code(self, pid: int, timeout: float) -> int | None:
        """Of a process that has ended, or ends within so many seconds."""
        deadline = time.monotonic() + timeout
        while pid not in self._exit_codes:
            if not (ended := self._answer(max(0, deadline - time.monotonic()))):
                return None
            self._exit_codes[ended[0]] = ended[1]
        return self._exit_codes[pid]

    def _answer(self, timeout: float) -> list[int]:
        """The id of a process that was started; that of one that has ended, and its exit code; or nothing in time."""
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        return [int(word) for word in self._process.stdout.readline().split()] if ready else []


@cache
def prepared_process() -> Prepared:
    """One for all tests of this process; it ends with it."""
    return Prepared(os.environ | {"OMP_NUM_THREADS": "1"})  # which libraries read when they are imported


def serve() -> None:
    """Fork for every request and tell its process id, and that with the exit code of each that has ended."""
    for name in IMPORTED:
        __import__(name)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: set[int] = set()
    while True:
        ready, _, _ = select.select([sys.stdin, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            while running:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                running.remove(pid)
                print(pid, os.waitstatus_to_exitcode(status), flush=True)
        if sys.stdin in ready:  # one request, as the next one is made when this one is answered
            if not (line := sys.stdin.readline()):
                return
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(woken)
                os.close(wake)
                become(json.loads(line))
                return
            running.add(pid)
            print(pid, flush=True)


def become(request: Mapping[str, Any]) -> None:
    """The process that the request describes."""
    import numpy as np

    if request["own_session"]:
        os.setsid()
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
