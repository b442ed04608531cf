"""One process trains a run."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vld.runs import claim as module
from vld.runs.claim import LOCK, RunningElsewhere, claim

HOLD = """
import sys, time
from pathlib import Path
from vld.runs.claim import claim
with claim(Path(sys.argv[1]), wait=False, announce=print):
    print("held", flush=True)
    time.sleep(60)
"""


def nothing(_: str) -> None:
    pass


def holder(run_dir: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run_dir)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_run_is_held_by_one_process_and_free_again_after_it(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    try:
        with (
            pytest.raises(RunningElsewhere, match=rf"process {process.pid} on .* is training it"),
            claim(tmp_path / "run", wait=False, announce=nothing),
        ):
            pass
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    with claim(tmp_path / "run", wait=False, announce=nothing):
        assert (tmp_path / "run" / LOCK).exists()
    assert not (tmp_path / "run" / LOCK).exists()


def test_who_waits_gets_it_when_the_holder_is_done(tmp_path: Path) -> None:
    process = holder(tmp_path)
    said: list[str] = []
    threading.Timer(2.0, process.send_signal, (signal.SIGINT,)).start()
    began = time.monotonic()
    with claim(tmp_path, wait=True, announce=said.append):
        assert time.monotonic() - began > 1.5
    assert len(said) == 1
    assert f"process {process.pid}" in said[0]
    assert "waiting" in said[0]
    process.wait()


def test_a_killed_holder_is_replaced_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.kill()
    process.wait()
    assert (tmp_path / LOCK).exists()
    with claim(tmp_path, wait=False, announce=nothing):
        pass


def test_a_holder_that_stands_still_is_replaced_and_finds_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_SECONDS", 3.0)
    script = HOLD.replace(
        "from vld.runs.claim import claim", "from vld.runs import claim as m\nm.LEASE_SECONDS = 3.0\nclaim = m.claim"
    )
    script = script.replace("as _", "").replace("announce=print):", "announce=print) as mine:")
    script = script.replace(
        "time.sleep(60)", "\n    while not mine.lost: time.sleep(0.1)\n    print('lost', flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    os.kill(process.pid, signal.SIGSTOP)
    with claim(tmp_path, wait=True, announce=nothing) as mine:
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout.readline() == "lost\n"
        process.wait()
        mine.check()
        assert (tmp_path / LOCK).exists()  # the one who lost it does not take it away
    assert not (tmp_path / LOCK).exists()


def test_a_lost_claim_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.3)
    with claim(tmp_path, wait=False, announce=nothing) as mine:
        (tmp_path / LOCK).unlink()
        deadline = time.monotonic() + 10
        while not mine.lost and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(RunningElsewhere, match="taken over"):
            mine.check()
