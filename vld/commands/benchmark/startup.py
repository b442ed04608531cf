"""Seconds from the command to a run's first step."""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from vld.machine.processes import own_python

TIMEOUT = 600


def seconds_to_first_step(options: Sequence[str]) -> tuple[float | None, float | None]:
    """Of `vld-train` with these options: with nothing compiled yet, then with what the first time left behind.

    Until one step has been made and looked at on a few images. The image store is there both times. None where it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = (_seconds(options, Path(folder), number) for number in range(2))
    return cold, warm


def _seconds(options: Sequence[str], folder: Path, number: int) -> float | None:
    own = ["optim.steps=1", "eval_every=1", "optim.milestones=[1]", "dataset.curve_images=1", "keep=[]"]
    own += ["wandb.mode=disabled", f"output_dir={folder / str(number)}"]
    command = [*own_python(), "-c", "from vld.commands.main import train; train()", *options, *own]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"), "PYTHONUNBUFFERED": "1"}
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        too_late = threading.Timer(TIMEOUT, process.kill)
        too_late.start()
        try:
            for line in process.stdout:
                if "step 1/1" in line:
                    return time.perf_counter() - began
            return None
        finally:
            too_late.cancel()
            process.kill()  # its evaluation in full is not needed
