"""Jobs in processes of their own, beside others on this machine: a command that is stopped lets each of them save its run first.

The launcher's library ends all processes as soon as one job ends by an error, a signal's included; so the command, which may
be the only one that the signal reached, passes it on and waits before it lets the launcher know.
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

SECONDS_TO_SAVE = 60.0
STOPPING = "stopping"


@contextmanager
def known_to_run(folder: Path, job: int) -> Iterator[None]:
    """Within, the job is one that `stop_jobs` stops and waits for. Raises `KeyboardInterrupt` where the command is stopping."""
    marker = folder / f"{job:06d}.running"
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(f"{os.getpid()}")
    try:
        if (folder / STOPPING).exists():  # looked at after the marker is there: either this job sees it, or is seen
            raise KeyboardInterrupt
        yield
    finally:
        marker.unlink(missing_ok=True)


def stop_jobs(folder: Path) -> None:
    """Have all running jobs save their runs and end, and wait for that; at once where this was asked for before."""
    if not folder.is_dir() or (folder / STOPPING).exists():
        return
    (folder / STOPPING).touch()
    told: set[Path] = set()
    until = time.monotonic() + SECONDS_TO_SAVE
    while (running := set(folder.glob("*.running"))) and time.monotonic() < until:
        for marker in running:
            with suppress(OSError, ValueError):  # it has ended, or has not written its number yet
                process = int(marker.read_text())
                if _was_killed(process):
                    marker.unlink()
                elif marker not in told:
                    os.kill(process, signal.SIGTERM)
                    told.add(marker)
        time.sleep(0.02)


def _was_killed(process: int) -> bool:
    """Whether one of this process's own has ended without taking its marker away."""
    try:
        return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # and the launcher knows it
        return True


@contextmanager
def saving_before_killed(stop: Callable[[], None]) -> Iterator[None]:
    """Within, joblib's launcher calls `stop` before it kills its jobs since one of them was killed, for want of memory, say.

    joblib has no other place for that: as soon as a process has died, it kills the others.
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


def worker_number() -> int:
    """Of a launcher's processes: LokyProcess-1, LokyProcess-2, …"""
    digits = re.search(r"\d+$", multiprocessing.current_process().name)
    return int(digits[0]) if digits else 0
