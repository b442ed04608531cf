"""How threads wait is set before torch is there, for whoever has not decided that."""

import subprocess
import sys

import pytest
from run_command import REPOSITORY

from vld.machine import waiting
from vld.machine.waiting import ALONE, SHARED, cores_are_shared, running_processes, spin_briefly


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_variables_of_openmp_are_left_alone(name: str) -> None:
    environment = {name: "7"}
    spin_briefly(environment)
    assert environment == {name: "7"}


@pytest.mark.parametrize(
    ("running", "shared"),
    [
        ([1, 1, 1, 1, 1], False),  # this process alone
        ([3, 1, 1, 3, 1], False),  # something that came and went
        ([3, 3, 2, 3, 1], True),
    ],
)
def test_threads_spin_briefly_alone_not_beside_others(
    running: list[int], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(running)
    monkeypatch.setattr(waiting, "running_processes", lambda: next(looks))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    environment = {"PATH": "/bin"}
    spin_briefly(environment)
    assert environment == {"PATH": "/bin", "GOMP_SPINCOUNT": str(SHARED if shared else ALONE)}


def test_other_processes_cores_may_be_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "running_processes", lambda: 1 + 30)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(32)))
    assert not cores_are_shared()
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(40)))
    assert cores_are_shared()


def test_this_machine_says_what_runs() -> None:
    assert running_processes() >= 1


def test_every_command_sets_it_before_torch_is_imported() -> None:
    """Hydra's --help leaves the process with what a job would have had; joblib's and submitit's inherit it."""
    code = (
        "import os, sys, atexit\n"
        "from vld.commands.main import train\n"
        "atexit.register(lambda: print('spin', os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules))\n"
        "train()\n"
    )
    env = {"PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] in (f"spin {ALONE} False", f"spin {SHARED} False")
