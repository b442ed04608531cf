"""Combinations of finished runs, on plain tensors: model soups and the ensemble of runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vld.training.evaluation import Scores

Weights = Mapping[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Soup:
    """θ̄ = (1/M) Σ θ_m, summed in float64, so that the members' order does not show in float32."""

    members: int = 0
    total: Weights = field(default_factory=dict)
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)

    def with_member(self, weights: Weights) -> "Soup":
        total = {name: self.total.get(name, 0) + value.double() for name, value in weights.items()}
        return Soup(self.members + 1, total, {name: value.dtype for name, value in weights.items()})

    def mean(self) -> dict[str, Tensor]:
        return {name: (value / self.members).to(self.dtypes[name]) for name, value in self.total.items()}


def uniform_soup(members: Iterable[Weights]) -> dict[str, Tensor]:
    """The mean of all members' weights (DiWA's uniform soup)."""
    return reduce(Soup.with_member, members, Soup()).mean()


@dataclass(frozen=True)
class Candidate:
    """One candidate of a greedy soup: the soup with this member, and whether it stayed in."""

    run_id: str
    scores: Scores
    kept: bool


def greedy_soup(
    members: Sequence[tuple[str, float]],
    load: Callable[[str], Weights],
    evaluate: Callable[[Weights], Scores],
    accept: str = "mean",
) -> list[Candidate]:
    """Take members in descending i.i.d. accuracy; keep one when the soup's accuracy does not fall with it (≥, as DiWA): i.i.d.
    accuracy, the mean over domains, or (accept: pooled) that of all *out* images together, as DiWA.

    members: (run id, i.i.d. accuracy). The soup is that of the members kept; its scores are those of the last one kept.
    """
    soup, trace = Soup(), list[Candidate]()
    best: Scores | None = None
    for run_id, _ in sorted(members, key=lambda member: (-member[1], member[0])):
        larger = soup.with_member(load(run_id))
        scores = evaluate(larger.mean())
        kept = best is None or (scores.pooled >= best.pooled if accept == "pooled" else scores.iid >= best.iid)
        if kept:
            soup, best = larger, scores
        trace.append(Candidate(run_id, scores, kept))
    return trace


def outputs(logits: Tensor, average: str) -> Tensor:
    """What an ensemble averages of a member's logits [n, classes]: themselves, or their softmax."""
    return logits.float().softmax(1) if average == "softmax" else logits


def ensemble_of_runs(members: Iterable[Tensor]) -> Tensor:
    """The mean of the members' outputs [n, classes], in float32, of float16 ones too."""
    total, count = torch.zeros(()), 0
    for count, output in enumerate(members, 1):  # noqa: B007
        total = total + output.float()
    return total / count


def by_number_of_members(
    members: Sequence[Tensor], evaluate: Callable[[Tensor], T], permutations: int, seed: int
) -> list[list[T]]:
    """What ensembles of 1, 2, … members come to, from the sum of their outputs: a list of distinct subsets for each number.

    The subsets are neighbours in random cyclic permutations of all members: every member alone, every one equally often in its
    subsets of each size, and all of them together, once.
    """
    random = np.random.default_rng(seed)
    results: list[list[T]] = [[] for _ in members]
    seen: set[frozenset[int]] = set()
    for _ in range(permutations):
        permutation = random.permutation(len(members)).tolist()
        for first in range(len(members)):
            total = torch.zeros(())
            order = permutation[first:] + permutation[:first]
            for k, index in enumerate(order):
                total = total + members[index].float()
                subset = frozenset(order[: k + 1])
                if subset not in seen:
                    seen.add(subset)
                    results[k].append(evaluate(total))
    return results
