"""What is left of a training on a CPU beside other busy processes, by how its threads wait (`vld.machine.waiting`)."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vld.machine.waiting import ALONE, OPENMP

WAITS = {"as this command sets it": {}, "GNU OpenMP's default": {"GOMP_SPINCOUNT": "300000"},
         f"{ALONE:,} turns": {"GOMP_SPINCOUNT": f"{ALONE}"}, "no turn": {"GOMP_SPINCOUNT": "0"}}  # fmt: skip
STEPS = 40
TIMEOUT = 600


def images_per_second_beside(options: Sequence[str]) -> dict[str, dict[str, float | str]]:
    """Of `vld-train` with these options, {way of waiting: {number of busy processes: images/s, or why there is no figure}}."""
    table: dict[str, dict[str, float | str]] = {name: {} for name in WAITS}
    for number in range(len(os.sched_getaffinity(0)) + 1):
        with busy_processes(number):
            for name, variables in WAITS.items():
                table[name][str(number)] = _images_per_second(options, variables)
    return table


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """So many processes that compute and never wait."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _images_per_second(options: Sequence[str], variables: dict[str, str]) -> float | str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OPENMP)} | variables
    with tempfile.TemporaryDirectory() as folder:
        own = [f"optim.steps={STEPS}", f"eval_every={STEPS}", "optim.milestones=[1]", "keep=[]"]
        own += ["wandb.mode=disabled", f"output_dir={folder}"]
        command = [sys.executable, "-c", "from vld.commands.main import train; train()", *options, *own]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            return f"not done in {TIMEOUT} s"
        results = list(Path(folder).glob("runs/*/*/*/result.json"))
        if not results:
            return (done.stderr.strip().splitlines() or [f"ended with exit code {done.returncode}"])[0]
        return float(json.loads(results[0].read_text())["images_per_second"])
