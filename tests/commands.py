"""Running the real commands from tests."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from prepared import prepared_process

REPOSITORY = Path(__file__).resolve().parent.parent


def train(
    *options: str, cwd: Path = REPOSITORY, timeout: float = 300, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """`python scripts/train.py` with these options, on one thread."""
    return script("train.py", *options, cwd=cwd, timeout=timeout, env=env)


def script(
    name: str, *options: str, cwd: Path = REPOSITORY, timeout: float = 300, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """A script of scripts/ with these options, on one thread."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"} | (env or {})
    return prepared_process().run(REPOSITORY / "scripts" / name, options, cwd, env, timeout)
