"""What only a GPU has: its own time beside the host's, and the kernels that take it."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch._C._autograd import DeviceType

ROUNDS, STEPS = 3, 10
DEAREST = 15


def device_and_host_seconds(
    parts: Mapping[str, Callable[[int], object]], rounds: int = ROUNDS, steps: int = STEPS
) -> dict[str, dict[str, float]]:
    """Of a call of each part, medians over `rounds` of `steps` calls: by the GPU's clock, and of the host until it has asked."""
    seconds: dict[str, dict[str, list[float]]] = {name: {"device": [], "host": []} for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            began = time.perf_counter()
            first.record()
            for step in range(steps):
                part(step)
            last.record()
            seconds[name]["host"].append((time.perf_counter() - began) / steps)
            torch.cuda.synchronize()
            seconds[name]["device"].append(first.elapsed_time(last) / 1e3 / steps)
    return {name: {clock: median(values) for clock, values in its.items()} for name, its in seconds.items()}


def kernels_of(step: Callable[[int], object]) -> dict[str, Any]:
    """Of one step: the GPU's seconds in all of them, less than the step's where it waits for the host; and the dearest."""
    with torch.profiler.profile() as profile:
        step(0)
        torch.cuda.synchronize()
    kernels = [event for event in profile.key_averages() if event.device_type == DeviceType.CUDA]
    kernels.sort(key=lambda kernel: -kernel.self_device_time_total)
    rows = [
        {"kernel": kernel.key[:120], "number": kernel.count, "seconds": kernel.self_device_time_total / 1e6}
        for kernel in kernels
    ]
    number, seconds = (sum(row[name] for row in rows) for name in ("number", "seconds"))
    return {"number": number, "seconds": seconds, "dearest": rows[:DEAREST]}
