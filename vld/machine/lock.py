"""Only one process works in a directory: the one that holds its `running.lock`.

The holder renews it three times in `LEASE_SECONDS`. The lock is taken over at once if its process no longer exists on this
machine, and otherwise (its machine is down or suspended) if it has not been renewed for `LEASE_SECONDS`. A holder that comes back
after that notices within the same time.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import SoftFileLease, Timeout

from vld.config.errors import UserError

LOCK = "running.lock"
LEASE_SECONDS = 120.0
# Long enough to look twice: the second look takes over a lock that was left behind on this machine.
PATIENCE_SECONDS = 1.0


class RunningElsewhere(Exception):  # noqa: N818  (an outcome of a run)
    """Another process works in this directory."""


class LockLost(Exception):  # noqa: N818
    """This process no longer holds the directory: it was suspended for too long, or could not renew the lock."""


class RunLock:
    def __init__(self, lease: SoftFileLease) -> None:
        self._lease = lease

    def check(self) -> None:
        """Raises `LockLost` if a renewal has failed. Costs nothing."""
        if self._lease.compromise is not None:
            raise LockLost(self._lease.compromise.reason)

    def holds(self) -> bool:
        """Looks at the lock itself."""
        return self._lease.compromise is None and self._lease.is_lock_held_by_us


@contextmanager
def hold(directory: Path, *, wait: bool, announce: Callable[[str], None], hint: str = "") -> Iterator[RunLock]:
    """Hold the directory, which is created if necessary. If another process holds it, wait, or raise `RunningElsewhere`.

    hint: how to avoid waiting, for the message.
    """
    lease = SoftFileLease(directory / LOCK, lease_duration=LEASE_SECONDS)

    def acquire(poll_interval: float, timeout: float) -> None:
        while True:
            directory.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the process that has finished may remove the directory
                lease.acquire(timeout=timeout, poll_interval=poll_interval)
                return

    held = ""
    try:
        try:
            acquire(timeout=PATIENCE_SECONDS, poll_interval=0.1)
        except Timeout:
            owner = lease.owner
            who = f"process {owner.pid} on {owner.hostname.split('?')[0]}" if owner else "another process"
            held = f"{who} holds the lock"
            if wait:
                announce(f"{held}; waiting for it{hint}, or until it has not renewed it for {LEASE_SECONDS:.0f} s")
            elif _silent(directory / LOCK):
                announce(f"{held} but does not renew it; waiting up to {LEASE_SECONDS:.0f} s")
            else:
                raise
            acquire(timeout=-1 if wait else 1.1 * LEASE_SECONDS, poll_interval=0.5)
    except Timeout:
        raise RunningElsewhere(held) from None
    try:
        yield RunLock(lease)
    finally:
        lease.release()


@dataclass(frozen=True)
class StagingFolder:
    """A folder that only this process uses, in a directory that it holds."""

    path: Path
    lock: RunLock

    def move_out(self, made: Path, target: Path) -> None:
        """Move a result to its final place. Raises `LockLost` if another process has taken over."""
        if not self.lock.holds():
            raise LockLost("not renewed")
        made.rename(target)


@contextmanager
def staging_folder(directory: Path, *, announce: Callable[[str], None], another: str) -> Iterator[StagingFolder]:
    """Hold `directory`, waiting for it if necessary, to make something in it that is moved out once it is complete.

    Removes what a killed process has left in it and, at the end, the directory. If this process loses its lock, it shares no file
    with the next one. another: what that one does then, for the message. Raises `UserError`.
    """
    try:
        with hold(directory, wait=True, announce=announce) as lock:
            for left in directory.iterdir():
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
            path = Path(tempfile.mkdtemp(dir=directory))
            try:
                yield StagingFolder(path, lock)
            finally:
                shutil.rmtree(path, ignore_errors=True)
    except LockLost as lost:
        raise UserError(f"{directory}: another process {another} now ({lost}); run this again") from lost
    finally:
        with suppress(OSError):  # another process may be waiting in it
            directory.rmdir()


def _silent(lock: Path) -> bool:
    """Whether the lock looks as if nobody renewed it, by this machine's clock, which may not be the holder's."""
    try:
        return time.time() - lock.stat().st_mtime > LEASE_SECONDS
    except OSError:
        return False
