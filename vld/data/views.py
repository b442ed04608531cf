"""The images on which a run is evaluated, in chunks on the device."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vld.data.prefetch import DeviceCopier, Prefetcher

CHUNKS_AHEAD = {"cpu": 0, "cuda": 2}
"""How many chunks are gathered before they are needed, by type of device."""
LOADED_AT_ONCE = 512


class EvaluationViews:
    """Rows of the domains' evaluation images (uint8 [n, s, s, 3]), one after the other.

    With `resident` they are copied to the device once; else gathered from the memory map chunk by chunk.
    """

    def __init__(
        self,
        views: Sequence[Tensor],
        rows: Sequence[Tensor],
        device: torch.device,
        *,
        resident: bool = False,
    ) -> None:
        self._views, self._rows, self._copier = list(views), list(rows), DeviceCopier(device)
        self._ahead = CHUNKS_AHEAD[device.type]
        self._there: Tensor | None = None
        if resident:
            there = torch.empty((len(self), *views[0].shape[1:]), dtype=torch.uint8, device=device)
            for chunk, part in zip(self.chunks(LOADED_AT_ONCE), torch.split(there, LOADED_AT_ONCE), strict=True):
                part.copy_(chunk)
            self._there = there

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    def chunks(self, size: int) -> Iterator[Tensor]:
        """uint8 [at most size, s, s, 3], on the device."""
        if self._there is not None:
            yield from torch.split(self._there, size)
            return

        starts = range(0, len(self), size)
        pending = Prefetcher(lambda number: self._copier.send([self._gathered(number * size, size)]), self._ahead)
        for number in range(len(starts)):
            yield pending(number).wait()[0]

    def _gathered(self, start: int, size: int) -> Tensor:
        """Rows `start` to `start + size`, or to the last one."""
        sources, chosen = [], []
        for view, rows in zip(self._views, self._rows, strict=True):
            wanted = rows[max(0, start) : max(0, start + size)]
            if len(wanted):
                sources.append(view)
                chosen.append(wanted)
            start -= len(rows)
        return self._copier.gather(sources, chosen) if sources else self._views[0][:0]
