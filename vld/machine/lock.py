"""One process works in a directory: whoever holds its `running.lock`.

The holder renews it three times in `LEASE_SECONDS`. One whose process is gone from this machine is replaced at once; one
that nobody has seen renewed for `LEASE_SECONDS`, since its machine is gone or stands still, as well. Should it come back, it
finds out within that time.
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
# Long enough for a second look, with which a lock left behind on this machine is taken over.
PATIENCE_SECONDS = 1.0


class RunningElsewhere(Exception):  # noqa: N818  (an outcome of a run)
    """Another process works in this directory."""


class LockLost(Exception):  # noqa: N818
    """This process no longer holds the directory: it stood still for too long, or the lock could not be renewed."""


class RunLock:
    def __init__(self, lease: SoftFileLease) -> None:
        self._lease = lease

    def check(self) -> None:
        """Raises `LockLost` if a renewal found that out. Costs nothing."""
        if self._lease.compromise is not None:
            raise LockLost(self._lease.compromise.reason)

    def holds(self) -> bool:
        """Looks at the lock itself."""
        return self._lease.compromise is None and self._lease.is_lock_held_by_us


@contextmanager
def hold(directory: Path, *, wait: bool, announce: Callable[[str], None], hint: str = "") -> Iterator[RunLock]:
    """Hold the directory, which is made if need be. Where another process does, wait for it, or raise `RunningElsewhere`.

    hint: how not to wait, for the line that says so.
    """
    lease = SoftFileLease(directory / LOCK, lease_duration=LEASE_SECONDS)

    def acquire(poll_interval: float, timeout: float = -1) -> None:
        while True:
            directory.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the one who is done may remove the directory
                lease.acquire(timeout=timeout, poll_interval=poll_interval)
                return

    try:
        acquire(timeout=PATIENCE_SECONDS, poll_interval=0.1)
    except Timeout:
        owner = lease.owner
        who = f"process {owner.pid} on {owner.hostname.split('?')[0]}" if owner else "another process"
        if wait:
            announce(
                f"{who} holds the lock; waiting for it{hint}, or until it has not renewed it for {LEASE_SECONDS:.0f} s"
            )
            acquire(poll_interval=0.5)
        elif _silent(directory / LOCK):
            announce(f"{who} holds the lock but does not renew it; waiting up to {LEASE_SECONDS:.0f} s")
            try:
                acquire(timeout=1.1 * LEASE_SECONDS, poll_interval=0.5)
            except Timeout:
                raise RunningElsewhere(f"{who} holds the lock") from None
        else:
            raise RunningElsewhere(f"{who} holds the lock") from None
    try:
        yield RunLock(lease)
    finally:
        lease.release()


@dataclass(frozen=True)
class StagingFolder:
    """A folder that is this process's alone, in a directory that it holds."""

    path: Path
    lock: RunLock

    def move_out(self, made: Path, target: Path) -> None:
        """Put what was made where it belongs. Raises `LockLost` where that is another process's to do by now."""
        if not self.lock.holds():
            raise LockLost("not renewed")
        made.rename(target)


@contextmanager
def staging_folder(directory: Path, *, announce: Callable[[str], None], another: str) -> Iterator[StagingFolder]:
    """Hold `directory`, wait for it if need be, and make something in it that is moved out when it is whole.

    What a process that was killed has left in it is removed, and in the end the directory is. Should this process lose its
    lock, it shares no file with the next one. another: what that one does then, for the line that says so. Raises `UserError`.
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
