"""The methods along one run: ERM, the average of its weights, the ensemble of its checkpoints.

All are accumulated while a run trains, whichever was asked for. "The weights of step s" are those after s updates.
"""

import copy

import torch
from torch import Tensor, nn

from vld.model import Classifier
from vld.settings import METHODS, AveragingConfig, EnsembleConfig

ERM, WEIGHT_AVERAGING, ENSEMBLE = METHODS


def first_member(start: int, steps: int, eval_every: int) -> int:
    """The step of the first member: `start`, or in a run too short for it the first evaluation after step 0."""
    return start if start <= steps else min(eval_every, steps)


class WeightAverage:
    """θ̄ = mean of the weights of steps start, start + interval, …, as a network of its own, in float32.

    Buffers are part of it: frozen batch-norm statistics stay what they are, trained ones are averaged like the weights;
    counters are those of the latest member.
    """

    def __init__(self, settings: AveragingConfig, steps: int, eval_every: int) -> None:
        self.start = first_member(settings.start, steps, eval_every)
        self.interval = settings.interval
        self.members = 0
        self.model: Classifier | None = None

    @torch.no_grad()
    def update(self, model: Classifier, step: int) -> None:
        """Take in the weights of `step`, if it is a member."""
        if step < self.start or (step - self.start) % self.interval:
            return
        self.members += 1
        if self.model is None:
            self.model = copy.deepcopy(model).requires_grad_(False)
            return
        mean, latest = _tensors(self.model), _tensors(model)
        averaged = [(a, b) for a, b in zip(mean, latest, strict=True) if a.is_floating_point()]
        counters = [(a, b) for a, b in zip(mean, latest, strict=True) if not a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in averaged], [b for _, b in averaged], 1 / self.members)
        for kept, counter in counters:
            kept.copy_(counter)


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


def _tensors(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())
