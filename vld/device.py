"""The device a run computes on, and how."""

import ctypes
import os
from pathlib import Path

import torch

from vld.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def resolve_device(wanted: str) -> torch.device:
    """auto: the GPU if there is one. Raises `UserError` for a GPU that is not there."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device={wanted}: {torch.cuda.device_count()} CUDA device(s) found; device=cpu or device=auto works"
        )
    return device


def resolve_precision(wanted: str, device: torch.device) -> str:
    """auto: bf16 on a GPU (last layer, sums and averages in float32 all the same), fp32 on the CPU."""
    if wanted == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return wanted


def set_up(device: torch.device, deterministic: bool) -> None:
    """Process-wide switches, before the first tensor is computed."""
    if device.type == "cpu":
        _keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} thread(s)"


def _keep_freed_memory() -> None:
    """Let glibc reuse the large blocks of each step instead of giving them back to the kernel: half the system time."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    except (OSError, AttributeError):
        return  # not glibc


def available_memory() -> int:
    """Bytes that this process can allocate without swapping: the machine's, or what its control group has left."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return machine if limit == "max" else min(machine, int(limit) - used)
    except (OSError, ValueError):
        return machine
