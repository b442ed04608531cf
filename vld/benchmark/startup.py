"""Seconds from the command to a run's first step."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from vld.errors import UserError

TIMEOUT = 600


def seconds_to_first_step(options: Sequence[str]) -> tuple[float, float]:
    """Of `vld-train` with these options: with nothing compiled yet, then with what the first time left behind.

    Until one step has been made and looked at on a few images. The image store is there both times.
    """
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = (_seconds(options, Path(folder), number) for number in range(2))
    return cold, warm


def _seconds(options: Sequence[str], folder: Path, number: int) -> float:
    own = ["optim.steps=1", "eval_every=1", "optim.milestones=[1]", "dataset.curve_images=1", "keep=[]"]
    own += ["wandb.mode=disabled", f"output_dir={folder / str(number)}"]
    command = [sys.executable, "-c", "from vld.cli import train; train()", *options, *own]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"), "PYTHONUNBUFFERED": "1"}
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "step 1/1" in line:
                seconds = time.perf_counter() - began
                process.kill()  # its evaluation in full is not needed
                return seconds
            if time.perf_counter() - began > TIMEOUT:
                process.kill()
        raise UserError(f"a run of one step did not come to its first: {''.join(said[-3:]).strip()}")
