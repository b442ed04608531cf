"""Running the real commands from tests."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from prepared import prepared_process

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = "test_resnet.r160_in1k"
TINY_NETWORK = ("backbone=timm", f"backbone.name={TINY}", "backbone.weights=none")
"""400,000 weights: a step on a few small images takes milliseconds."""


def tiny_weights(folder: Path) -> str:
    """The option that has it begin from a file: its batch-norm statistics are frozen then, and soups can be made of its runs."""
    path = folder / "weights.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(timm.create_model(TINY).state_dict(), path)
    return f"backbone.weights={path}"


def train(
    *options: str, cwd: Path = REPOSITORY, timeout: float = 300, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """`python scripts/train.py` with these options, on one thread."""
    return script("train.py", *options, cwd=cwd, timeout=timeout, env=env)


def script(
    name: str,
    *options: str,
    cwd: Path = REPOSITORY,
    timeout: float = 300,
    env: Mapping[str, str] | None = None,
    fresh: bool = False,
) -> "subprocess.CompletedProcess[str]":
    """A script of scripts/ with these options, on one thread. fresh: libraries are imported in `env`, which they read then."""
    path = REPOSITORY / "scripts" / name
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"} | (env or {})
    if not fresh:
        return prepared_process().run(path, options, cwd, env, timeout)
    command = [sys.executable, str(path), *options]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)
