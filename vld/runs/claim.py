"""One process trains a run: whoever holds its `running.lock`.

The holder renews it; one whose process is gone from this machine is replaced at once, one that nobody has seen renewed for
`LEASE_SECONDS` (its machine is gone) as well. Should a holder come back after that, its next step finds out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

LOCK = "running.lock"
LEASE_SECONDS = 120.0
# Long enough for a second look, with which a lock left behind on this machine is taken over.
PATIENCE_SECONDS = 1.0


class RunningElsewhere(Exception):  # noqa: N818  (an outcome of a run)
    """Another process trains this run."""


class Claim:
    def __init__(self, lease: SoftFileLease) -> None:
        self._lease = lease

    @property
    def lost(self) -> bool:
        return self._lease.compromise is not None

    def check(self) -> None:
        """Raises `RunningElsewhere` where another process has taken over, this one having stood still for too long."""
        if self.lost:
            raise RunningElsewhere("another process has taken over, since this one did not move for two minutes")


@contextmanager
def claim(run_dir: Path, *, wait: bool, announce: Callable[[str], None]) -> Iterator[Claim]:
    """Hold the run. Where another process does, wait for it, or raise `RunningElsewhere`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    lease = SoftFileLease(run_dir / LOCK, lease_duration=LEASE_SECONDS)
    try:
        lease.acquire(timeout=PATIENCE_SECONDS, poll_interval=0.1)
    except Timeout:
        owner = lease.owner
        who = f"process {owner.pid} on {owner.hostname.split('?')[0]}" if owner else "another process"
        if not wait:
            raise RunningElsewhere(f"{who} is training it") from None
        announce(
            f"{who} is training it; waiting for that (if_running=skip does not), or until it has not been heard of for"
            f" {LEASE_SECONDS:.0f} s"
        )
        lease.acquire(poll_interval=0.5)
    try:
        yield Claim(lease)
    finally:
        lease.release()
