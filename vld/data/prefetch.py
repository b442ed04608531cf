"""Prepare what the device needs next in a thread, and copy it there in the background."""

import ctypes
import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

COPIED_AT_ONCE = 512
"""Rows."""

_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Prefetcher(Generic[T]):
    """`make(0)`, `make(1)`, … in turn, while a thread makes the next `depth` (0: no thread)."""

    def __init__(self, make: Callable[[int], T], depth: int) -> None:
        self._make, self._depth = make, depth
        self._thread = ThreadPoolExecutor(1) if depth else None
        self._made: dict[int, Future[T]] = {}

    def __call__(self, number: int) -> T:
        """`make(number)`, whatever was requested before. Raises what it raises."""
        if self._thread is None:
            return self._make(number)
        wanted = range(number, number + self._depth + 1)
        for other in [other for other in self._made if other not in wanted]:
            self._made.pop(other).cancel()
        for other in wanted:
            if other not in self._made:
                self._made[other] = self._thread.submit(self._make, other)
        return self._made.pop(number).result()

    def forget(self) -> None:
        """Wait for what is being made; from now on everything is made again."""
        for made in self._made.values():
            made.cancel()
        self._made.clear()
        if self._thread is not None:
            self._thread.submit(int).result()

    def close(self) -> None:
        """Release the thread and what it has made."""
        self._made.clear()
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class PendingCopy:
    """Tensors on their way to a device."""

    tensors: tuple[Tensor, ...]
    arrived: torch.cuda.Event | None

    def wait(self) -> tuple[Tensor, ...]:
        """For use on the device's current stream, which waits for them; the host does not."""
        if self.arrived is not None:
            stream = torch.cuda.current_stream(self.tensors[0].device)
            stream.wait_event(self.arrived)
            for tensor in self.tensors:  # their memory was another stream's
                tensor.record_stream(stream)
        return self.tensors


def copied(source: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """These rows of a memory map, on the device; never all of them in the host's own memory."""
    there = torch.empty((len(rows), *source.shape[1:]), dtype=source.dtype, device=device)
    for part, chosen in zip(torch.split(there, COPIED_AT_ONCE), torch.split(rows, COPIED_AT_ONCE), strict=True):
        read_ahead(source, chosen)
        part.copy_(source[chosen])
    return there


def read_ahead(source: Tensor, rows: Tensor) -> None:
    """Let the kernel read these rows of a memory map from disk at once, rather than page by page as they are used."""
    size = source.stride(0) * source.element_size()
    for row in rows.tolist():
        start = source.data_ptr() + row * size
        below = start % mmap.PAGESIZE
        _madvise(start - below, size + below, mmap.MADV_WILLNEED)  # advice: where it is not taken, nothing is lost


class DeviceCopier:
    """Copies tensors to a device while it computes. On a CPU they stay where they are."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def send(self, tensors: Sequence[Tensor]) -> PendingCopy:
        if self._stream is None:
            return PendingCopy(tuple(tensors), None)
        with torch.cuda.stream(self._stream):
            # Only from pinned memory does a copy not hold up its thread; it is kept until the copy is done.
            moved = tuple(tensor.pin_memory().to(self.device, non_blocking=True) for tensor in tensors)
            return PendingCopy(moved, self._stream.record_event())

    def gather(self, sources: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
        """The rows of each source, one after the other, in memory from which they can be sent at once."""
        shape = (sum(map(len, rows)), *sources[0].shape[1:])
        gathered = torch.empty(shape, dtype=sources[0].dtype, pin_memory=self._stream is not None)
        start = 0
        for source, chosen in zip(sources, rows, strict=True):
            read_ahead(source, chosen)
        for source, chosen in zip(sources, rows, strict=True):
            torch.index_select(source, 0, chosen, out=gathered[start : start + len(chosen)])
            start += len(chosen)
        return gathered
