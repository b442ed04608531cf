"""The split is DomainBed's, index for index."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vld.data.split import split_indices


def seed_hash(*args: object) -> int:
    """DomainBed's `misc.seed_hash`."""
    args_str = str(args)
    return int(hashlib.md5(args_str.encode("utf-8")).hexdigest(), 16) % (2**31)


def split_dataset(dataset: Sequence[object], n: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """DomainBed's `misc.split_dataset`, the keys of its two halves."""
    keys = list(range(len(dataset)))
    np.random.RandomState(seed).shuffle(keys)
    return keys[:n], keys[n:]


@given(
    n=st.one_of(st.integers(0, 10), st.integers(0, 700)),
    domain_index=st.integers(0, 9),
    seed=st.one_of(st.integers(0, 5), st.integers(0, 2**40)),
)
@example(n=0, domain_index=0, seed=0)
@example(n=4, domain_index=1, seed=0)
@example(n=5, domain_index=2, seed=0)
@example(n=2**13 + 1, domain_index=3, seed=2)
def test_equals_domainbed(n: int, domain_index: int, seed: int) -> None:
    expected_out, expected_in = split_dataset([None] * n, int(n * 0.2), seed_hash(seed, domain_index))
    in_indices, out_indices = split_indices(n, domain_index, seed)
    assert out_indices.tolist() == expected_out
    assert in_indices.tolist() == expected_in
    assert in_indices.dtype == out_indices.dtype == np.int64


@given(n=st.integers(0, 300), domain_index=st.integers(0, 6), seed=st.integers(0, 99), holdout=st.floats(0, 1))
def test_is_a_partition(n: int, domain_index: int, seed: int, holdout: float) -> None:
    in_indices, out_indices = split_indices(n, domain_index, seed, holdout)
    assert sorted([*in_indices.tolist(), *out_indices.tolist()]) == list(range(n))
    assert len(out_indices) == int(n * holdout)


@pytest.mark.parametrize(
    ("domain_index", "seed", "out", "kept"),
    [
        (0, 0, [3, 10], [2, 0, 1, 4, 5, 9, 8, 6, 7]),
        (3, 1, [9, 1], [4, 5, 8, 6, 10, 7, 3, 2, 0]),
    ],
)
def test_pinned(domain_index: int, seed: int, out: list[int], kept: list[int]) -> None:
    in_indices, out_indices = split_indices(11, domain_index, seed)
    assert out_indices.tolist() == out
    assert in_indices.tolist() == kept


def test_depends_on_domain_and_seed() -> None:
    splits = {tuple(split_indices(100, domain, seed)[1].tolist()) for domain in range(4) for seed in range(4)}
    assert len(splits) == 16
