"""Combinations of finished runs, on plain tensors: model soups and the ensemble of runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vld.evaluation import Scores

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
class Taste:
    """One candidate of a greedy soup: the soup with it, and whether it stayed in."""

    run_id: str
    scores: Scores
    kept: bool


def greedy_soup(
    members: Sequence[tuple[str, float]], load: Callable[[str], Weights], evaluate: Callable[[Weights], Scores]
) -> list[Taste]:
    """Take members in descending i.i.d. accuracy; keep one when the soup's i.i.d. accuracy does not fall with it (≥, as DiWA).

    members: (run id, i.i.d. accuracy). The soup is that of the members kept; its scores are those of the last one kept.
    """
    soup, trace = Soup(), list[Taste]()
    best: Scores | None = None
    for run_id, _ in sorted(members, key=lambda member: (-member[1], member[0])):
        candidate = soup.with_member(load(run_id))
        scores = evaluate(candidate.mean())
        kept = best is None or scores.iid >= best.iid
        if kept:
            soup, best = candidate, scores
        trace.append(Taste(run_id, scores, kept))
    return trace


def outputs(logits: Tensor, average: str) -> Tensor:
    """What an ensemble averages of a member's logits [n, classes]: themselves, or their softmax."""
    return logits.softmax(1) if average == "softmax" else logits


def ensemble_of_runs(members: Sequence[Tensor]) -> Tensor:
    """The mean of the members' outputs [n, classes], in float32."""
    return torch.stack(list(members)).mean(0)


def by_number_of_members(
    members: Sequence[Tensor], evaluate: Callable[[Tensor], T], orders: int, seed: int
) -> list[list[T]]:
    """What ensembles of 1, 2, … members come to, each of `orders` random subsets: those that begin a random order of all."""
    random = np.random.default_rng(seed)
    results: list[list[T]] = [[] for _ in members]
    for _ in range(orders):
        total = torch.zeros(())
        for k, index in enumerate(random.permutation(len(members))):
            total = total + members[index]
            results[k].append(evaluate(total))
    return results
