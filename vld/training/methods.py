"""The methods along one run: ERM, the average of its weights, the ensemble of its checkpoints.

All are accumulated while a run trains, whichever was asked for. "The weights of step s" are those after s updates.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vld.config.names import METHODS
from vld.config.settings import AveragingConfig, EnsembleConfig
from vld.model.classifier import Classifier

ERM, WEIGHT_AVERAGING, ENSEMBLE = METHODS


def first_member(start: int, steps: int, eval_every: int) -> int:
    """The step of the first member: `start`, or in a run too short for it the first evaluation after step 0."""
    return start if start <= steps else min(eval_every, steps)


class WeightAverage:
    """θ̄ = mean of the weights of steps start, start + interval, …, as a network of its own, in float32.

    Buffers are part of it: frozen batch-norm statistics stay what they are, trained ones are averaged like the weights;
    counters are those of the latest member.
    """

    def __init__(self, trained: Classifier, settings: AveragingConfig, steps: int, eval_every: int) -> None:
        self.trained = trained
        self.start = first_member(settings.start, steps, eval_every)
        self.interval = settings.interval
        self.members = 0
        self.model: Classifier | None = None
        """The average, from the first member on."""
        self._averaged: list[tuple[Tensor, Tensor]] = []
        self._counters: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that the trained network has after `step` updates, if they are a member."""
        if step < self.start or (step - self.start) % self.interval:
            return
        self.members += 1
        if self.model is None:
            self._begin()
            return
        mean, latest = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(mean, latest, 1 / self.members)
        for kept, counter in self._counters:
            kept.copy_(counter)

    def _begin(self) -> Classifier:
        self.model = copy.deepcopy(self.trained)
        self.model.zero_grad()  # gradients were copied along
        # Both networks keep their tensors and change them in place: found once, not in every step.
        pairs = list(zip(_tensors(self.model), _tensors(self.trained), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        return self.model

    def state_dict(self) -> dict[str, Any]:
        return {"members": self.members, "model": self.model.state_dict() if self.model else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.members = state["members"]
        if state["model"] is not None:
            self._begin().load_state_dict(state["model"])


class CheckpointEnsemble:
    """Σ of the logits of the checkpoints at steps start, start + every, … and the last, in float32."""

    def __init__(self, settings: EnsembleConfig, steps: int, eval_every: int) -> None:
        self.start = first_member(settings.start, steps, eval_every)
        self.every = settings.every
        self.last = steps
        self.members = 0
        self.sum: Tensor | None = None

    def has_member(self, step: int) -> bool:
        return step >= self.start and ((step - self.start) % self.every == 0 or step == self.last)

    def add(self, logits: Tensor) -> None:
        """Take in the logits [n, classes] of a member."""
        self.members += 1
        self.sum = logits.clone() if self.sum is None else self.sum.add_(logits)

    @property
    def logits(self) -> Tensor | None:
        """The mean of the members' logits, None before the first."""
        return None if self.sum is None else self.sum / self.members

    def state_dict(self) -> dict[str, Any]:
        return {"members": self.members, "sum": self.sum}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.members = state["members"]
        self.sum = None if state["sum"] is None else state["sum"].to(device)


def _tensors(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())
