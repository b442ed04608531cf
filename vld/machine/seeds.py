"""Random streams: every number drawn is a pure function of (seed, stream, step), so that resuming needs no saved state."""

import numpy as np
import torch

BATCHES, DROPOUT, BACKBONE, WEIGHTS = range(4)
"""WEIGHTS: of what regularises them (`vld.model.regularisers`)."""


def numpy_generator(seed: int, stream: int, step: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stream, step))))


def torch_generator(seed: int, stream: int, step: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(derived_seed(seed, stream, step))


def derived_seed(seed: int, stream: int, step: int) -> int:
    derived = np.random.SeedSequence((seed, stream, step)).generate_state(1, np.uint64)[0]
    return int(derived >> np.uint64(1))
