"""Training batches: `batch_size` images of each training domain, drawn with replacement and augmented on the device."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vld.data.augment import AugmentParameters, augment_each, augment_together, draw_parameters
from vld.data.images import DomainImages
from vld.data.prefetch import DeviceCopier, PendingCopy, Prefetcher, copied
from vld.machine.device import MemoryBudget
from vld.machine.seeds import BATCHES, numpy_generator

STEPS_AHEAD = {"cpu": 0, "cuda": 3}
"""How many batches are drawn before they are needed, by type of device."""

STEPS_BEFORE_GROWTH = 20
"""After so many the memory that a step takes is known, and images may take what is left."""

PIXELS_AT_ONCE = 56_000
"""The images that one core augments together have this many: 24 of 48 x 48. They fit its caches."""
PIXELS_OF_ONE_CORE = 2**15
"""For smaller images torch splits no sum over cores (its grain size), so that one core per image gives the same bits."""


class TrainingBatches:
    """The batches of a run, a pure function of (seed, step): any step's batch can be drawn without the ones before it.

    domains: the training domains, with all their images; in_indices: for each, which of them training may draw. A batch is
    gathered from the memory map and copied to the device some steps before it is needed, or gathered there after `hold`. A CPU
    crops images straight from the memory map, by as many threads as torch has. resize_dtype: of the sums by which a GPU resizes
    images.
    """

    def __init__(
        self,
        domains: Sequence[DomainImages],
        in_indices: Sequence[NDArray[np.int64]],
        images_per_domain: int,
        image_size: int,
        device: torch.device,
        seed: int,
        *,
        resize_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.domains, self.in_indices = tuple(domains), tuple(in_indices)
        self.images_per_domain, self.image_size = images_per_domain, image_size
        self.device, self.seed = device, seed
        self.resize_dtype = resize_dtype
        self.augment: Callable[..., Tensor] = augment_together
        """On a GPU."""
        self.resident = device.type == "cpu"
        self._pixels = [domain.pixels for domain in domains]
        self._holds_what_is_drawn = False
        self._memory: MemoryBudget | None = None
        self._steps_until_growth = 0
        self._threads: ThreadPoolExecutor | None = None
        self._copier = DeviceCopier(device)
        self._drawn = Prefetcher(self._draw, STEPS_AHEAD[device.type])

    @property
    def images_per_step(self) -> int:
        return self.images_per_domain * len(self.domains)

    def hold(self) -> None:
        """Copy to the device, once, the pixels of what is drawn: each domain's *in* part."""
        held = [
            copied(domain.pixels, torch.from_numpy(indices), self.device)
            for domain, indices in zip(self.domains, self.in_indices, strict=True)
        ]
        self._drawn.forget()
        self._pixels, self.resident, self._holds_what_is_drawn = held, True, True

    def hold_if_it_fits(self, memory: MemoryBudget) -> None:
        """Now, or once a few steps have shown how much memory they leave."""
        first = self._memory is None
        drawn = zip(self.domains, self.in_indices, strict=True)
        size = sum(len(indices) * domain.pixels[0].numel() for domain, indices in drawn)
        side = max(max(domain.pixels.shape[1:3]) for domain in self.domains)
        if memory.on_device("training images", size, side, again=first):
            try:
                self.hold()
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                memory.say("training images: another process took the GPU memory for them; read as they are needed")
        elif first:
            self._memory, self._steps_until_growth = memory, STEPS_BEFORE_GROWTH

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images float32 [B, 3, s, s] in [0, 1] and labels int64 [B], on the device."""
        if self._memory and self._steps_until_growth:
            self._steps_until_growth -= 1
            if not self._steps_until_growth:
                self._memory.grow()
                self.hold_if_it_fits(self._memory)
        pixels, labels, stored_sizes, original_sizes, *parameters = self._drawn(step).wait()
        drawn = AugmentParameters(*parameters)
        rows = torch.split(pixels, self.images_per_domain) if self.resident else ()  # as many of each domain
        if self.device.type == "cpu":
            stored = [source[i] for source, chosen in zip(self._pixels, rows, strict=True) for i in chosen.tolist()]
            return self._augment_in_groups(stored, stored_sizes, original_sizes, drawn), labels
        if self.resident:
            pixels = torch.cat([source[chosen] for source, chosen in zip(self._pixels, rows, strict=True)])
        images = self.augment(pixels, stored_sizes, original_sizes, drawn, self.image_size, self.resize_dtype)
        return images, labels

    def _augment_in_groups(
        self, pixels: Sequence[Tensor], stored_sizes: Tensor, original_sizes: Tensor, drawn: AugmentParameters
    ) -> Tensor:
        """`augment_each` on groups that fit a core's caches; threads share the groups if an image is too small for two cores."""
        pixels_of_one, threads = self.image_size**2, torch.get_num_threads()
        at_once = max(1, PIXELS_AT_ONCE // pixels_of_one)
        groups = [slice(start, start + at_once) for start in range(0, len(pixels), at_once)]

        def augmented(group: slice) -> Tensor:
            sizes = stored_sizes[group], original_sizes[group]
            return augment_each(pixels[group], *sizes, drawn[group], self.image_size)

        if threads == 1 or pixels_of_one >= PIXELS_OF_ONE_CORE:
            return torch.cat([augmented(group) for group in groups])
        if self._threads is None:
            self._threads = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        return torch.cat(list(self._threads.map(augmented, groups)))

    def close(self) -> None:
        """Release the device's memory: the next run needs it."""
        self._drawn.close()
        if self._threads is not None:
            self._threads.shutdown()
        self._pixels = []

    def _draw(self, step: int) -> PendingCopy:
        """Everything that a batch is made from, on its way to the device."""
        random = numpy_generator(self.seed, BATCHES, step)
        places = [random.integers(len(indices), size=self.images_per_domain) for indices in self.in_indices]
        rows = [torch.from_numpy(indices[its]) for indices, its in zip(self.in_indices, places, strict=True)]
        parts = list(zip(self.domains, rows, strict=True))
        original_sizes = torch.cat([domain.original_sizes[index] for domain, index in parts])
        stored_sizes = torch.cat([domain.stored_sizes[index] for domain, index in parts])
        labels = torch.cat([domain.labels[index] for domain, index in parts])
        held = [torch.from_numpy(its) for its in places] if self._holds_what_is_drawn else rows
        pixels = torch.cat(held) if self.resident else self._copier.gather(self._pixels, rows)
        parameters = draw_parameters(original_sizes.numpy(), random)
        return self._copier.send((pixels, labels, stored_sizes, original_sizes, *parameters.tensors))
