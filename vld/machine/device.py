"""The device a run computes on, and how."""

import ctypes
import math
import os
from collections.abc import Callable

import torch

from vld.config.errors import UserError

SHARE_FOR_IMAGES = 0.4
"""Of the GPU memory that is free when a run begins, for its evaluation and training images together."""
SHARE_OF_WHAT_IS_LEFT = 0.8
"""Of what is still free after some steps. The rest is for averages of the weights, and for other processes."""

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


def keep_to_one_gpu(number: int) -> None:
    """Make GPU `number` (modulo their count) the only one that this process sees. Call it before CUDA is in use."""
    count = torch.cuda.device_count()
    if count > 1 and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [f"{index}" for index in range(count)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number % count]


def resolve_precision(wanted: str, device: torch.device) -> str:
    """auto: bf16 on a GPU (last layer, sums and averages in float32 all the same), fp32 on the CPU."""
    if wanted == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return wanted


def set_up(device: torch.device, deterministic: bool) -> None:
    """Process-wide switches, to be set before the first tensor is computed."""
    if device.type == "cpu":
        _keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = not deterministic  # tries its algorithms once for each size of input
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


class MemoryBudget:
    """Decides which images are held in the device's memory, and says so. A CPU reads the memory map itself."""

    def __init__(self, device: torch.device, say: Callable[[str], None]) -> None:
        self.device, self.say = device, say
        self.budget = 0
        if device.type != "cpu":
            # What earlier runs of this process have left is free, except what recorded steps keep (`vld.training.compiled`).
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.budget = int(SHARE_FOR_IMAGES * torch.cuda.mem_get_info(device)[0])

    def grow(self) -> None:
        """To what training leaves: by now torch has reserved as much as steps and an evaluation take. What it gave back when a
        step was recorded, the next evaluation takes again."""
        if self.device.type != "cpu":
            again = torch.cuda.max_memory_reserved(self.device) - torch.cuda.memory_reserved(self.device)
            left = torch.cuda.mem_get_info(self.device)[0] - again
            self.budget = int(SHARE_OF_WHAT_IS_LEFT * max(0, left))

    def on_device(self, what: str, size: int, side: int | None = None, *, again: bool = False) -> bool:
        """Whether `size` bytes of images are to be held there.

        side: in pixels, of images that dataset.store_size makes smaller. again: whether this is asked again after `grow`.
        """
        if self.device.type == "cpu":
            return False
        fits = size <= self.budget
        fitting = 0 if side is None else int(side * math.sqrt(max(0, self.budget) / max(1, size)))
        smaller = f"; with dataset.store_size={fitting} they would fit" if fitting else ""
        why = f"GPU memory has {self.budget / 1e9:.1f} GB left for them{smaller}"
        if again:
            why = "until a few steps have shown how much GPU memory they leave"
        where = "in GPU memory" if fits else f"read as they are needed ({why})"
        self.say(f"{size / 1e9:.1f} GB of {what}: {where}")
        self.budget -= size if fits else 0
        return fits
