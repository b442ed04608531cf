"""What is left of a training on a CPU beside other busy processes, by how its threads wait (`vld.machine.waiting`)."""

import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vld.machine.processes import own_python
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
    command = [*own_python(), "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _images_per_second(options: Sequence[str], variables: dict[str, str]) -> float | str:
    """As the command says it at its last step; its evaluation in full is not waited for."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OPENMP)} | variables
    with tempfile.TemporaryDirectory() as folder:
        own = [
            f"optim.steps={STEPS}",
            f"eval_every={STEPS}",
            "optim.milestones=[1]",
            "dataset.curve_images=1",
            "keep=[]",
        ]
        own += ["wandb.mode=disabled", f"output_dir={folder}"]
        command = [*own_python(), "-c", "from vld.commands.main import train; train()", *options, *own]
        with subprocess.Popen(
            command,
            env=environment | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            too_late = threading.Timer(TIMEOUT, process.kill)
            too_late.start()
            line = ""
            try:
                for line in process.stdout or ():
                    if found := re.search(rf" step {STEPS}/{STEPS} .* (\d+) images/s", line):
                        return float(found[1])
            finally:
                too_late.cancel()
                process.kill()
        return line.strip() or f"not done in {TIMEOUT} s"
