"""One process trains a run."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vld.machine import lock as module
from vld.machine.lock import LOCK, LockLost, RunningElsewhere, hold

# A process that holds a directory until it is told to tell whether it still does.
HOLD = """
import sys
from pathlib import Path
from vld.machine import lock
if len(sys.argv) > 2:
    lock.LEASE_SECONDS = float(sys.argv[2])
with lock.hold(Path(sys.argv[1]), wait=False, announce=print) as mine:
    print("held", flush=True)
    sys.stdin.readline()
    print("holds" if mine.holds() else "lost", flush=True)
"""


def nothing(_: str) -> None:
    pass


def holder(run_dir: Path, *lease: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir), *lease], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_run_is_held_by_one_process_and_free_again_after_it(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    with (
        pytest.raises(RunningElsewhere, match=rf"process {process.pid} on .* holds the lock"),
        hold(tmp_path / "run", wait=False, announce=nothing),
    ):
        pass
    process.communicate("\n")
    with hold(tmp_path / "run", wait=False, announce=nothing):
        assert (tmp_path / "run" / LOCK).exists()
    assert not (tmp_path / "run" / LOCK).exists()


def test_who_waits_gets_it_when_the_holder_is_done(tmp_path: Path) -> None:
    process = holder(tmp_path)
    said: list[str] = []

    def announce(line: str) -> None:
        said.append(line)
        print(file=process.stdin, flush=True)  # it has been holding until now, and is done

    with hold(tmp_path, wait=True, announce=announce):
        assert select.select([process.stdout], [], [], 0)[0]  # what it says last, before it lets go
    assert len(said) == 1
    assert f"process {process.pid}" in said[0]
    assert "waiting" in said[0]
    assert process.communicate()[0] == "holds\n"


def test_a_killed_holder_is_replaced_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.kill()
    process.wait()
    assert (tmp_path / LOCK).exists()
    with hold(tmp_path, wait=False, announce=nothing):
        pass


def test_a_holder_that_stands_still_is_replaced_and_finds_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.3)
    process = holder(tmp_path, "0.3")
    os.kill(process.pid, signal.SIGSTOP)
    with hold(tmp_path, wait=True, announce=nothing) as mine:
        os.kill(process.pid, signal.SIGCONT)
        assert process.communicate("\n")[0] == "lost\n"
        mine.check()
        assert (tmp_path / LOCK).exists()  # the one who lost it does not take it away
    assert not (tmp_path / LOCK).exists()


def test_a_lost_lock_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.3)
    with hold(tmp_path, wait=False, announce=nothing) as mine:
        assert mine.holds()
        (tmp_path / LOCK).unlink()
        assert not mine.holds()
        with pytest.raises(LockLost, match="marker-missing"):
            while True:
                mine.check()
                time.sleep(0.05)


def abandoned(run_dir: Path, seconds_ago: float) -> None:
    """The lock of a holder on another machine, which nobody renews."""
    with hold(run_dir, wait=False, announce=nothing):
        content = (run_dir / LOCK).read_text()
    host = socket.gethostname()
    assert host in content
    (run_dir / LOCK).write_text(content.replace(host, "node17"))
    then = time.time() - seconds_ago
    os.utime(run_dir / LOCK, (then, then))


@pytest.mark.parametrize("wait", [True, False])
def test_a_lock_left_by_another_machine_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    """Not before it has been seen unchanged for a whole lease, whatever its time."""
    monkeypatch.setattr(module, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    abandoned(tmp_path, 4 * 24 * 3600)
    said: list[str] = []
    began = time.monotonic()
    with hold(tmp_path, wait=wait, announce=said.append):
        assert time.monotonic() - began > 0.9  # at least; a busy machine takes longer
    assert "on node17" in said[0]


def test_a_lock_renewed_lately_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.LEASE_SECONDS == 120  # as the README says
    monkeypatch.setattr(module, "LEASE_SECONDS", 3600.0)
    abandoned(tmp_path, 5)
    with pytest.raises(RunningElsewhere, match="node17"), hold(tmp_path, wait=False, announce=nothing):
        pass
