"""Random streams: every number drawn is a pure function of (seed, stream, step), so nothing need be saved to go on."""

import numpy as np
import torch

BATCHES, DROPOUT = range(2)


def numpy_generator(seed: int, stream: int, step: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stream, step))))


def torch_generator(seed: int, stream: int, step: int, device: torch.device) -> torch.Generator:
    derived = np.random.SeedSequence((seed, stream, step)).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(derived >> np.uint64(1)))
