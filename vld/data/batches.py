"""Training batches: so many images of each training domain, drawn with replacement, augmented on the device."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vld.data.augment import augment, draw_parameters
from vld.data.images import DomainImages
from vld.seeds import BATCHES, numpy_generator


@dataclass(frozen=True)
class TrainingBatches:
    """The batches of a run, a pure function of (seed, step): any step's batch can be drawn without the ones before it.

    domains: the training domains, with all their images; in_indices: for each, which of them training may draw.
    """

    domains: tuple[DomainImages, ...]
    in_indices: tuple[NDArray[np.int64], ...]
    images_per_domain: int
    image_size: int
    device: torch.device
    seed: int

    @property
    def images_per_step(self) -> int:
        return self.images_per_domain * len(self.domains)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images float32 [B, 3, s, s] in [0, 1] and labels int64 [B], on the device."""
        random = numpy_generator(self.seed, BATCHES, step)
        drawn = [
            torch.from_numpy(indices[random.integers(len(indices), size=self.images_per_domain)])
            for indices in self.in_indices
        ]
        parts = list(zip(self.domains, drawn, strict=True))
        original_sizes = torch.cat([domain.original_sizes[index] for domain, index in parts])
        stored_sizes = torch.cat([domain.stored_sizes[index] for domain, index in parts])
        labels = torch.cat([domain.labels[index] for domain, index in parts])
        pixels = torch.cat([domain.pixels[index.to(domain.pixels.device)] for domain, index in parts])
        parameters = draw_parameters(original_sizes.numpy(), random)
        images = augment(
            pixels.to(self.device),
            stored_sizes.to(self.device, non_blocking=True),
            original_sizes.to(self.device, non_blocking=True),
            parameters.to(self.device),
            self.image_size,
        )
        return images, labels.to(self.device, non_blocking=True)
