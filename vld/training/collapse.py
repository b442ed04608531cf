"""Does so much dropout leave anything to learn from? Measured before training and at every evaluation.

With representation φ, last-layer weights w and dropout rate p, inverted dropout adds to each logit a noise of variance
p / (1 - p) · Σ w² φ². Where that is large the quickest way to a lower loss is to shrink φ until its units die.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vld.model.classifier import Classifier
from vld.training.evaluation import Prediction

# Standard deviation of the logits' dropout noise at the start. efficientnet_lite0 on PACS (sketch left out, 48 px, 400 steps,
# dropout 0.9): at 1.1 it learns, at 1.6 hardly, at 2.3 it shrinks its representation until one class is predicted.
TOO_NOISY = 1.5
QUIET = 0.25

# A representation whose mean squared norm is this fraction of what it was before training carries nothing.
VANISHED = 1e-3
# The largest share of images that a network which still tells classes apart gives to one class.
ONE_CLASS = 0.99


@torch.no_grad()
def dropout_noise(model: Classifier, images: Tensor) -> float:
    """Expected standard deviation of the logits' dropout noise, over images [B, 3, h, w] and classes, at the highest rate."""
    # Training mode, as the first step will have it; a copy, since that mode moves batch-norm statistics learnt from scratch.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for stage dropout and stochastic depth
        representation = copy.deepcopy(model).train().representation(images)
    rate = model.dropout.rate
    variance = rate / (1 - rate) * (representation.square() @ model.head.weight.square().T)
    return math.sqrt(variance.mean().item())


def noise_warning(model: Classifier, noise: float) -> str | None:
    """One line for a noise too high for learning, with the setting to change."""
    if noise <= TOO_NOISY:
        return None
    remedy = float(f"{model.feature_scale * QUIET / noise:.1g}")
    return (
        f"dropout={model.dropout.rate:g} adds noise of standard deviation {noise:.1f} to the logits"
        f" (above {TOO_NOISY:g} training tends to collapse); use backbone.feature_scale={remedy:g}"
    )


@dataclass(frozen=True)
class Health:
    """One evaluation: mean squared norm of the representation, and the largest share of images given to one class."""

    feature_sq_norm: float
    top_class_share: float

    def collapse(self, norm_before: float, may_be_one_class: bool = False) -> str | None:
        """Why the network has collapsed, or None. norm_before: `feature_sq_norm` before training."""
        if math.isnan(self.feature_sq_norm):
            return "the representation is not a number"
        if self.feature_sq_norm < VANISHED * norm_before:
            norm = self.feature_sq_norm
            return f"the representation vanished (mean squared norm {norm:.3g}, at first {norm_before:.4g})"
        if self.top_class_share > ONE_CLASS and not may_be_one_class:
            return f"{self.top_class_share:.1%} of the images are given to one class"
        return None


def measure(prediction: Prediction, loss: Tensor) -> tuple[Health, float]:
    """The health behind a prediction, and its `loss`, a number that may still be on the device: one transfer for all."""
    logits = prediction.logits
    shares = torch.bincount(logits.argmax(1), minlength=logits.shape[1]).max() / len(logits)
    norm, share, value = torch.stack([prediction.squared_norms.mean(), shares, loss]).tolist()
    return Health(norm, share), value


class CollapseWatch:
    """Follows a run's evaluations and names a collapse: when, why, and what to change.

    A network that gives all images to one class may just not have learned yet. It has collapsed if it told classes apart before,
    or if the dropout noise (`dropout_noise`) was too high from the start.
    """

    def __init__(self, model: Classifier, noise: float) -> None:
        self.model, self.noise = model, noise
        self.norm_before: float | None = None
        self.told_apart = False
        self.lasting: dict[str, object] | None = None
        """The collapse that the run is in, since the step at which it began."""

    def state_dict(self) -> dict[str, Any]:
        return {"norm_before": self.norm_before, "told_apart": self.told_apart, "lasting": self.lasting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.norm_before, self.lasting = state["norm_before"], state["lasting"]
        self.told_apart = state["told_apart"]

    def news(self, step: int, health: Health) -> str | None:
        """Take in one evaluation; return a line when the network has just collapsed or recovered."""
        if self.norm_before is None:  # before training; an untrained last layer often prefers one class
            # Before training from scratch there are no batch-norm statistics, and the norm means nothing.
            self.norm_before = health.feature_sq_norm if self.model.pretrained else 0.0
            return None
        may_be_one_class = not self.told_apart and self.noise <= TOO_NOISY
        self.told_apart |= health.top_class_share <= ONE_CLASS
        reason = health.collapse(self.norm_before, may_be_one_class)
        if reason is None:
            recovered, self.lasting = self.lasting, None
            return f"recovered at step {step}" if recovered else None
        if self.lasting is not None:
            return None
        remedy = "try a smaller optim.lr"
        if self.model.dropout.rate:
            scale = f"{self.model.feature_scale:g}"
            remedy = f"try a smaller backbone.feature_scale (now {scale}), a lower dropout or a smaller optim.lr"
        self.lasting = {"step": step, "reason": reason, "remedy": remedy}
        return f"collapsed at step {step}: {reason}; {remedy}"
