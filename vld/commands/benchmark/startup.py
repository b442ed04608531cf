"""Seconds from the command to a run's first step."""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence

from vld.config.errors import UserError
from vld.machine.processes import own_python

TIMEOUT = 600


def seconds_to_first_step(options: Sequence[str]) -> float:
    """Of `vld-train` with these options, which finds the image store and what this process has compiled.

    Until one step has been made and looked at on a few images. Raises `UserError` with its last line where it failed.
    """
    own = ["optim.steps=1", "eval_every=1", "optim.milestones=[1]", "dataset.curve_images=1", "keep=[]"]
    began, line = time.perf_counter(), ""
    with tempfile.TemporaryDirectory() as folder:
        command = [*own_python(), "-c", "from vld.commands.main import train; train()", *options, *own]
        with subprocess.Popen(
            [*command, "wandb.mode=disabled", f"output_dir={folder}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        ) as process:
            too_late = threading.Timer(TIMEOUT, process.kill)
            too_late.start()
            try:
                for line in process.stdout or ():
                    if "step 1/1" in line:
                        return time.perf_counter() - began
            finally:
                too_late.cancel()
                process.kill()  # its evaluation in full is not needed
    raise UserError(line.strip() or f"not there in {TIMEOUT} s")
