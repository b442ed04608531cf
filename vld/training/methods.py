"""The methods along one run: ERM, the average of its weights, the ensemble of its checkpoints, SWAD.

All are accumulated while a run trains, whichever was asked for; but SWAD, which is on request. "The weights of step s" are
those after s updates.
A method is a class here, entered in `METHODS_ALONG`, and a row in `vld.config.names`.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vld.config.settings import Config
from vld.model.classifier import Classifier

ERM, WEIGHT_AVERAGING, SWAD, ENSEMBLE = "erm", "weight_averaging", "swad", "ensemble"


def first_member(start: int, config: Config) -> int:
    """The step of a method's first member: `start`, or in a run too short for it the first evaluation after step 0."""
    return start if start <= config.optim.steps else min(config.eval_every, config.optim.steps)


class Method:
    """What a method does while a run trains. As it stands here: ERM, the trained network itself."""

    def __init__(self, trained: Classifier, config: Config) -> None:  # noqa: ARG002
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

    def evaluated(self, step: int, val_loss: float) -> None:
        """The trained network has this validation loss at this step. Said again where an evaluation was interrupted."""

    def about(self) -> dict[str, Any]:
        """What the run's result says of the method itself, once it has ended."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict` was taken from."""


class WeightAverage(Method):
    """θ̄ = mean of the weights of steps start, start + interval, …, as a network of its own, in float32.

    Buffers are part of it: frozen batch-norm statistics stay what they are, trained ones are averaged like the weights;
    counters are those of the latest member.
    """

    def __init__(self, trained: Classifier, config: Config) -> None:
        self.trained = trained
        self.start = first_member(config.averaging.start, config)
        self.interval = config.averaging.interval
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
        self._counters = [pair for pair in pairs if not (pair[0].is_floating_point() or self.trained.frozen_batch_norm)]
        return self.model

    def state_dict(self) -> dict[str, Any]:
        return {"members": self.members, "model": self.model.state_dict() if self.model else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.members = state["members"]
        if state["model"] is not None:
            self._begin().load_state_dict(state["model"])


class CheckpointEnsemble(Method):
    """Σ of the logits of the checkpoints at steps start, start + every, … and the last, in float32."""

    def __init__(self, trained: Classifier, config: Config) -> None:
        self.model = None
        self.device = trained.head.weight.device
        self.start = first_member(config.ensemble.start, config)
        self.every, self.last = config.ensemble.every, config.optim.steps
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


@dataclass
class Segment:
    """The mean of the weights of the steps first … last, in float32, and the validation loss at the end."""

    mean: list[Tensor] = field(default_factory=list)
    members: int = 0
    first: int = 0
    last: int = 0
    loss: float = math.nan

    def take_in(self, mean: list[Tensor], members: int, first: int, last: int) -> None:
        if self.members == 0:
            self.mean, self.first = [tensor.clone() for tensor in mean], first
        else:
            torch._foreach_lerp_(self.mean, mean, members / (self.members + members))
        self.members += members
        self.last = last


class Swad(Method):
    """SWAD (Cha et al. 2021): the mean of the weights of every step between two evaluations that the validation loss chooses.

    A segment is the mean over the steps since the evaluation before; l its loss at the end. The average begins with the first
    segment whose l is the lowest of N_s from it on, and goes on while the lowest of the coming N_e is at most r × the mean of
    those N_s. Above it, segments wait until one is below; after N_e of them there will be none that counts. Where no segment is
    such a start, it is the last segment, as in the paper's code. There is a network at the last step only: the loss has chosen,
    and of any other step it would be another method. Buffers are part of it as of `WeightAverage`.
    """

    def __init__(self, trained: Classifier, config: Config) -> None:
        self.model: Classifier | None = None
        self.trained, self.settings, self.last_step = trained, config.swad, config.optim.steps
        self._latest = [tensor for tensor in _tensors(trained) if tensor.is_floating_point()]
        self.current, self.waiting = Segment(), Segment()
        self.candidates: list[Segment] = []
        """Before the average begins: from the one that may be its start on."""
        self.average: Segment | None = None
        self.threshold = math.nan
        self.above = 0
        """How many losses in a row; the average has ended with N_e of them."""

    @property
    def ended(self) -> bool:
        return self.above >= self.settings.end_evaluations

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if not self.ended:
            self.current.take_in(self._latest, 1, step, step)

    @torch.no_grad()
    def evaluated(self, step: int, val_loss: float) -> None:
        if self.current.members:
            segment, self.current = self.current, Segment()
            segment.loss = val_loss
            if self.average:
                self._go_on(segment)
            else:
                self._seek_start(segment)
        if step == self.last_step:
            self.model = copy.deepcopy(self.trained)
            self.model.zero_grad()  # gradients were copied along
            averaged = [tensor for tensor in _tensors(self.model) if tensor.is_floating_point()]
            torch._foreach_copy_(averaged, self.chosen.mean)

    def _seek_start(self, segment: Segment) -> None:
        if self.candidates and not segment.loss >= self.candidates[0].loss:
            self.candidates.clear()
        self.candidates.append(segment)
        if len(self.candidates) < self.settings.start_evaluations:
            return
        losses = [candidate.loss for candidate in self.candidates]
        self.threshold = self.settings.threshold * sum(losses) / len(losses)
        self.average, *others = self.candidates
        self.candidates = []
        for other in others:
            self._go_on(other)

    def _go_on(self, segment: Segment) -> None:
        if self.ended or self.average is None:
            return
        self.waiting.take_in(segment.mean, segment.members, segment.first, segment.last)
        if segment.loss <= self.threshold:
            self.above = 0
            self.average.take_in(self.waiting.mean, self.waiting.members, self.waiting.first, self.waiting.last)
        else:
            self.above += 1
        if self.above == 0 or self.ended:
            self.waiting = Segment()

    @property
    def chosen(self) -> Segment:
        return self.average or self.candidates[-1]

    def about(self) -> dict[str, Any]:
        converged = self.average is not None
        threshold = self.threshold if math.isfinite(self.threshold) else None
        chosen = self.chosen
        return {"converged": converged, "first_step": chosen.first, "last_step": chosen.last, "threshold": threshold}

    def state_dict(self) -> dict[str, Any]:
        segments = {"current": self.current, "waiting": self.waiting, "average": self.average}
        saved = {name: None if segment is None else vars(segment) for name, segment in segments.items()}
        candidates = [vars(segment) for segment in self.candidates]
        return {**saved, "candidates": candidates, "threshold": self.threshold, "above": self.above}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = self.trained.head.weight.device

        def segment(saved: Mapping[str, Any]) -> Segment:
            return Segment(**{**saved, "mean": [tensor.to(device) for tensor in saved["mean"]]})

        self.current, self.waiting = segment(state["current"]), segment(state["waiting"])
        self.average = None if state["average"] is None else segment(state["average"])
        self.candidates = [segment(saved) for saved in state["candidates"]]
        self.threshold, self.above = state["threshold"], state["above"]


METHODS_ALONG: dict[str, Callable[[Classifier, Config], Method]] = {
    ERM: Method,
    WEIGHT_AVERAGING: WeightAverage,
    SWAD: Swad,
    ENSEMBLE: CheckpointEnsemble,
}
"""Evaluated in this order; ERM, whose logits the others are given, is the first."""


def _tensors(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())
