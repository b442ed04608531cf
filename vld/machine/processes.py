"""How processes of ours are started: they import nothing from the folder in which the command was, where a file of the user's may
have the name of a module (`queue.py`, `wandb.py`)."""

import os
import sys
from collections.abc import Collection, MutableMapping


def own_python() -> list[str]:
    """The beginning of a command that runs this Python."""
    return [sys.executable, "-P"]


def import_nothing_from_here(environment: MutableMapping[str, str]) -> None:
    """Of all Pythons that this process starts, those of libraries (joblib, submitit, torch) included."""
    environment["PYTHONSAFEPATH"] = "1"


def safe_environment(without: Collection[str]) -> dict[str, str]:
    """This process's environment as one that it starts gets it."""
    return {name: value for name, value in os.environ.items() if name not in without} | {"PYTHONSAFEPATH": "1"}
