"""DomainBed's split of a domain into its *in* part (80 %) and its held-out *out* part (20 %)."""

import hashlib

import numpy as np
from numpy.typing import NDArray

HOLDOUT = 0.2


def split_indices(
    n: int, domain_index: int, split_seed: int, holdout: float = HOLDOUT
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (in_indices, out_indices) of a domain with `n` images, in DomainBed's shuffled order.

    DomainBed's `misc.seed_hash(trial_seed, domain_index)` seeds a Mersenne Twister that shuffles `range(n)`; the
    first `int(holdout * n)` are the held-out part. Same result as DomainBed's own `split_dataset` (arXiv 2007.01434).
    """
    seed = int(hashlib.md5(str((split_seed, domain_index)).encode("utf-8")).hexdigest(), 16) % 2**31
    shuffled = np.arange(n, dtype=np.int64)
    np.random.RandomState(seed).shuffle(shuffled)
    held_out = held_out_count(n, holdout)
    return shuffled[held_out:], shuffled[:held_out]


def held_out_count(n: int, holdout: float = HOLDOUT) -> int:
    """How many of a domain's `n` images are its *out* part."""
    return int(n * holdout)
