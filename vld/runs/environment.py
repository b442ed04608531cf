"""What the last digits of a run's numbers depend on, besides its settings: device, mode of computing, libraries."""

import datetime
import platform
import time
from importlib.metadata import version
from typing import Any

import torch

import vld
from vld.machine.device import describe


def environment_now(device: torch.device, deterministic: bool, compiled: bool) -> dict[str, Any]:
    """As `result.json` records it."""
    how = {"device": describe(device), "deterministic": deterministic, "compiled": compiled}
    return how | {"software": software_versions()}


def made_here(device: torch.device, began: float) -> dict[str, Any]:
    """How, when and in what time something was made. began: `time.perf_counter` at its beginning."""
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "device": describe(device),
        "threads": torch.get_num_threads(),
        "software": software_versions(),
        "finished": now(),
    }


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def software_versions() -> dict[str, str]:
    libraries = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {"vld": vld.__version__, "python": platform.python_version()} | {name: version(name) for name in libraries}
