"""The methods along one run: ERM, the average of its weights, the ensemble of its checkpoints.

All are accumulated while a run trains, whichever was asked for. "The weights of step s" are those after s updates.
A method is a class here, entered in `METHODS_ALONG`, and a row in `vld.config.names`.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vld.config.settings import AveragingConfig, EnsembleConfig
from vld.model.classifier import Classifier

ERM, WEIGHT_AVERAGING, ENSEMBLE = "erm", "weight_averaging", "ensemble"


@dataclass(frozen=True)
class Schedule:
    """When a method takes in members: in a run of so many steps, evaluated every so many, with these settings."""

    steps: int
    eval_every: int
    averaging: AveragingConfig
    ensemble: EnsembleConfig

    def first(self, start: int) -> int:
        """The step of the first member: `start`, or in a run too short for it the first evaluation after step 0."""
        return first_member(start, self.steps, self.eval_every)


def first_member(start: int, steps: int, eval_every: int) -> int:
    return start if start <= steps else min(eval_every, steps)


class Method:
    """What a method does while a run trains. As it stands here: ERM, the trained network itself."""

    def __init__(self, trained: Classifier, schedule: Schedule) -> None:  # noqa: ARG002
        self.model: Classifier | None = trained
        """The network that predicts, None before there is one, or for a method that is none."""

    @property
    def logits(self) -> Tensor | None:
        """Of a method that is no network: its own, float32 [evaluation images, classes], None before there are any."""
        return None

    def after_step(self, step: int) -> None:
        """The trained network has the weights of this step now."""

    def wants_logits(self, step: int) -> bool:  # noqa: ARG002
        """Whether `add` is to be given the logits of the trained network at this step."""
        return False

    def add(self, logits: Tensor) -> None:
        """Take in the trained network's logits, float32 [evaluation images, classes]."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict` was taken from."""


class WeightAverage(Method):
    """θ̄ = mean of the weights of steps start, start + interval, …, as a network of its own, in float32.

    Buffers are part of it: frozen batch-norm statistics stay what they are, trained ones are averaged like the weights;
    counters are those of the latest member.
    """

    def __init__(self, trained: Classifier, schedule: Schedule) -> None:
        self.trained = trained
        self.start = schedule.first(schedule.averaging.start)
        self.interval = schedule.averaging.interval
        self.members = 0
        self.model: Classifier | None = None
        """The average, from the first member on."""
        self._averaged: list[tuple[Tensor, Tensor]] = []
        self._counters: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if step < self.start or (step - self.start) % self.interval:
            return
        self.members += 1
        if self.model is None:
            self._begin()
            return
        mean, latest = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(mean, latest, 1 / self.members)
        if self._counters:
            kept, counters = zip(*self._counters, strict=True)
            torch._foreach_copy_(kept, counters)

    def _begin(self) -> Classifier:
        self.model = copy.deepcopy(self.trained)
        self.model.zero_grad()  # gradients were copied along
        # Both networks keep their tensors and change them in place: found once, not in every step.
        pairs = list(zip(_tensors(self.model), _tensors(self.trained), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        # Where batch norm is frozen they never change: fifty copies a step for nothing.
        self._counters = [pair for pair in pairs if not (pair[0].is_floating_point() or self.trained.pretrained)]
        return self.model

    def state_dict(self) -> dict[str, Any]:
        return {"members": self.members, "model": self.model.state_dict() if self.model else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.members = state["members"]
        if state["model"] is not None:
            self._begin().load_state_dict(state["model"])


class CheckpointEnsemble(Method):
    """Σ of the logits of the checkpoints at steps start, start + every, … and the last, in float32."""

    def __init__(self, trained: Classifier, schedule: Schedule) -> None:
        self.model = None
        self.device = trained.head.weight.device
        self.start = schedule.first(schedule.ensemble.start)
        self.every, self.last = schedule.ensemble.every, schedule.steps
        self.members = 0
        self.sum: Tensor | None = None

    def wants_logits(self, step: int) -> bool:
        return step >= self.start and ((step - self.start) % self.every == 0 or step == self.last)

    def add(self, logits: Tensor) -> None:
        self.members += 1
        self.sum = logits.clone() if self.sum is None else self.sum.add_(logits)

    @property
    def logits(self) -> Tensor | None:
        """The mean of the members' logits."""
        return None if self.sum is None else self.sum / self.members

    def state_dict(self) -> dict[str, Any]:
        return {"members": self.members, "sum": self.sum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.members = state["members"]
        self.sum = None if state["sum"] is None else state["sum"].to(self.device)


METHODS_ALONG: dict[str, Callable[[Classifier, Schedule], Method]] = {
    ERM: Method,
    WEIGHT_AVERAGING: WeightAverage,
    ENSEMBLE: CheckpointEnsemble,
}
"""Evaluated in this order; ERM, whose logits the others are given, is the first."""


def _tensors(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())
