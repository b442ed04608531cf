"""Starting processes that import nothing from the current folder, where a file of the user may have the name of a module
(`queue.py`, `wandb.py`)."""

import os
import sys
from collections.abc import Collection, MutableMapping


def own_python() -> list[str]:
    """The beginning of a command that runs this Python."""
    return [sys.executable, "-P"]


def import_nothing_from_here(environment: MutableMapping[str, str]) -> None:
    """For all Pythons that this process starts, including those that libraries start (joblib, submitit, torch)."""
    environment["PYTHONSAFEPATH"] = "1"


def safe_environment(without: Collection[str]) -> dict[str, str]:
    """The environment for a process that this one starts."""
    return {name: value for name, value in os.environ.items() if name not in without} | {"PYTHONSAFEPATH": "1"}
