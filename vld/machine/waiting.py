"""How OpenMP's threads wait for each other, which decides how fast training is on cores that it shares.

By default GNU OpenMP's threads spin for milliseconds. Beside other busy processes each spins away the time in which the thread
it waits for could run: of 320 images/s alone, 36 were left beside one busy process (efficientnet_lite0 at 48 pixels on two
cores). A short spin loses nothing alone and leaves a third; none at all leaves half, and costs a third alone.
"""

import os
import re
import statistics
import time
from collections.abc import MutableMapping
from pathlib import Path

ALONE, SHARED = 10_000, 0
"""Turns of the waiting loop, some 30 ns each, before a thread sleeps: where enough cores are free, and where they are not."""
OPENMP = ("OMP_", "GOMP_", "KMP_")
LOOKS, SECONDS_BETWEEN_LOOKS = 5, 0.004


def spin_briefly(environment: MutableMapping[str, str]) -> None:
    """Set how long threads spin, for this process and those it starts; before torch is imported, which reads it.

    Does nothing if one of OpenMP's variables is set.
    """
    if not any(name.startswith(OPENMP) for name in environment):
        environment["GOMP_SPINCOUNT"] = str(SHARED if cores_are_shared() else ALONE)


def cores_are_shared() -> bool:
    """Whether other processes leave this one fewer cores than it may use, in most of a few looks."""
    free = (os.cpu_count() or 1) - len(os.sched_getaffinity(0))
    others = []
    for _ in range(LOOKS):
        others.append(running_processes() - 1)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return statistics.median(others) > free


def running_processes() -> int:
    """Of the whole machine, this one included; 1 if the system does not tell."""
    try:
        found = re.search(r"^procs_running (\d+)", Path("/proc/stat").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) if found else 1
