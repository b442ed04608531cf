"""Trainings in processes of their own: how long the first step takes, and what is left of one beside other busy processes."""

import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from vld.config.errors import UserError
from vld.machine.processes import own_python
from vld.machine.waiting import ALONE, OPENMP

WAITS = {"as this command sets it": {}, "GNU OpenMP's default": {"GOMP_SPINCOUNT": "300000"},
         f"{ALONE:,} turns": {"GOMP_SPINCOUNT": f"{ALONE}"}, "no turn": {"GOMP_SPINCOUNT": "0"}}  # fmt: skip
"""How threads wait (`vld.machine.waiting`)."""
STEPS = 40
TIMEOUT = 600


def seconds_to_first_step(options: Sequence[str]) -> float:
    """Of `vld-train` with these options, which finds the image store and what this process has compiled.

    Until one step has been made and evaluated on a few images. Raises `UserError` with its last line where it failed.
    """
    began = time.perf_counter()
    _last_step(options, 1, os.environ)
    return time.perf_counter() - began


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
    """Processes that compute and never wait."""
    others = [subprocess.Popen([*own_python(), "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _images_per_second(options: Sequence[str], variables: Mapping[str, str]) -> float | str:
    others = {name: value for name, value in os.environ.items() if not name.startswith(OPENMP)}
    try:
        return float(_last_step(options, STEPS, {**others, **variables})[1])
    except UserError as error:
        return str(error)


def _last_step(options: Sequence[str], steps: int, environment: Mapping[str, str]) -> re.Match[str]:
    """What `vld-train` says of its last step, with images/s after more than one; its evaluation in full is not waited for."""
    line = ""
    with tempfile.TemporaryDirectory() as folder:
        own = [
            f"optim.steps={steps}",
            f"eval_every={steps}",
            "optim.milestones=[1]",
            "optim.warm_up=0",
            "warm_start=0",
            "dataset.curve_images=1",
            "keep=[]",
        ]
        own += ["wandb.mode=disabled", f"output_dir={folder}"]
        with subprocess.Popen(
            [*own_python(), "-c", "from vld.commands.main import train; train()", *options, *own],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment, "PYTHONUNBUFFERED": "1"},
        ) as process:
            too_late = threading.Timer(TIMEOUT, process.kill)
            too_late.start()
            try:
                for line in process.stdout or ():
                    if found := re.search(rf" step {steps}/{steps}\b(?:.* (\d+) images/s)?", line):
                        return found
            finally:
                too_late.cancel()
                process.kill()
    raise UserError(line.strip() or f"not done in {TIMEOUT} s")
