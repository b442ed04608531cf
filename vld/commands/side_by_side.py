"""Jobs side by side on this machine, in a process each: a command that is stopped lets each of them save its run first.

joblib ends all its processes as soon as one job raises, which a signal makes it do. So the command, which may be the only process
that the signal reached, passes the signal on and waits before joblib hears of it.
"""

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vld.machine.signals import stop_on_signals

SECONDS_TO_SAVE = 60.0
STOPPING = "stopping"


@contextmanager
def as_worker(folder: Path, job: int, device: str) -> Iterator[None]:
    """Within, this process of joblib's uses one GPU only, and `stop_jobs` has it save its run and waits for its end.

    Raises `KeyboardInterrupt` if the command is already stopping.
    """
    stop_on_signals()
    if device == "auto":
        from vld.machine.device import keep_to_one_gpu

        digits = re.search(r"\d+$", multiprocessing.current_process().name)  # LokyProcess-1, LokyProcess-2, …
        keep_to_one_gpu(int(digits[0]) if digits else 0)
    marker = folder / f"{job:06d}.running"
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(f"{os.getpid()}")
    try:
        if (folder / STOPPING).exists():  # checked once the marker is there: either this job sees it, or is seen
            raise KeyboardInterrupt
        yield
    finally:
        marker.unlink(missing_ok=True)


def stop_jobs(folder: Path) -> None:
    """Make all running jobs save their runs and end, and wait until they have. Does nothing the second time."""
    if not folder.is_dir() or (folder / STOPPING).exists():
        return
    (folder / STOPPING).touch()
    signalled: set[Path] = set()
    until = time.monotonic() + SECONDS_TO_SAVE
    while (running := set(folder.glob("*.running"))) and time.monotonic() < until:
        for marker in running:
            with suppress(OSError, ValueError):  # it has ended, or has not written its process id yet
                process = int(marker.read_text())
                if _was_killed(process):
                    marker.unlink()
                elif marker not in signalled:
                    os.kill(process, signal.SIGTERM)
                    signalled.add(marker)
        time.sleep(0.02)


def _was_killed(process: int) -> bool:
    """Whether a child process has ended without removing its marker."""
    try:
        return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # joblib has noticed already
        return True


@contextmanager
def saving_before_killed(stop: Callable[[], None]) -> Iterator[None]:
    """Within, joblib calls `stop` before it kills the other jobs because one was killed, for example for lack of memory.

    joblib has no hook for that, so its function that kills is replaced.
    """
    from joblib.externals.loky import process_executor  # type: ignore[import-untyped]

    kill = process_executor.kill_process_tree

    def save_and_kill(process: Any) -> None:
        stop()
        kill(process)

    process_executor.kill_process_tree = save_and_kill
    try:
        yield
    finally:
        process_executor.kill_process_tree = kill
