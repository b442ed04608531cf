"""The training loop: one fine-tuning trajectory, evaluated on the way."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, AdamW, Optimizer

from vld.config.checked import accumulated
from vld.config.settings import Config, OptimConfig
from vld.data.batches import TrainingBatches
from vld.machine.seeds import BACKBONE, DROPOUT, WEIGHTS, derived_seed, torch_generator
from vld.model.classifier import Classifier
from vld.model.regularisers import weight_regulariser
from vld.training.collapse import Health, measure
from vld.training.evaluation import EvaluationSet, Prediction, Scores, predict, score, validation_loss
from vld.training.methods import ENSEMBLE, ERM, METHODS_ALONG, WEIGHT_AVERAGING, Method


class TrainingFailed(Exception):  # noqa: N818  (an outcome of a run, which goes on record as such)
    """Training cannot go on; the message says at which step and what to change."""


@dataclass(frozen=True)
class Evaluation:
    """What is known after `step` updates.

    scores, logits: per method that has begun; logits are float32 [evaluation images, classes]. models: the networks of the
    methods that are one; they go on changing. train_loss: mean since the evaluation before, None at step 0. val_loss: of the
    plain network (`validation_loss`). lr: the rate in force at this step. seconds: since training began, evaluations included;
    train_seconds without them.
    """

    step: int
    scores: dict[str, Scores]
    logits: dict[str, Tensor]
    models: dict[str, Classifier]
    health: Health
    train_loss: float | None
    val_loss: float
    lr: float
    seconds: float
    train_seconds: float


class Trajectory:
    """Everything that changes while a run trains, and so everything that a run needs to go on exactly.

    `step` updates have been made, and what is to be evaluated at `step` has not been. No generator is part of it: what is
    drawn depends on seed and step alone (`vld.machine.seeds`).
    """

    def __init__(self, model: Classifier, config: Config) -> None:
        self.model, self.config, self.step = model, config, 0
        self.optimizer = make_optimizer(model, config.optim)
        self.regulariser = weight_regulariser(model.backbone, config)
        """Its starting values are those of the network here, before a checkpoint is loaded."""
        self.methods = {name: METHODS_ALONG[name](model, config) for name in accumulated(config)}
        self.losses: list[Tensor] = []
        """Of the steps since the last evaluation."""
        self.clock = Clock()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values. Raises `TrainingFailed` where the weights are no longer finite."""
        check_weights(self.model, self.step)
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "methods": {name: method.state_dict() for name, method in self.methods.items()},
            "losses": torch.stack(self.losses) if self.losses else torch.zeros(0),
            "clock": self.clock.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(_for_device(state["optimizer"], self.model.head.weight.device))
        for name, method in self.methods.items():
            method.load_state_dict(_methods_of(state)[name])
        self.losses[:] = state["losses"].to(self.model.head.weight.device).unbind()
        self.clock.load_state_dict(state["clock"])


def _for_device(optimizer: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """An optimiser's state from whichever device, to go on with on this one: only a GPU has the fused step."""
    return optimizer | {"param_groups": [group | {"fused": _is_fused(device)} for group in optimizer["param_groups"]]}


def _is_fused(device: torch.device) -> bool:
    return device.type == "cuda"


def _methods_of(state: dict[str, Any]) -> dict[str, Any]:
    """What was saved of each method; checkpoints from before there was a table of methods have it under other names."""
    if "methods" in state:
        methods: dict[str, Any] = state["methods"]
        return methods
    return {ERM: {}, WEIGHT_AVERAGING: state["average"], ENSEMBLE: state["ensemble"]}


def train(
    trajectory: Trajectory,
    batches: TrainingBatches,
    images: EvaluationSet,
    *,
    on_step: Callable[[int], None] = lambda _: None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Evaluation]:
    """Fine-tune from where the trajectory is; yield an evaluation at steps 0, eval_every, 2 eval_every, … and the last.

    "At step s" means after s updates. on_step(s) is called after s updates, before the evaluation that may follow: there
    the trajectory can be saved. check() is called there and often in evaluations; what it raises leaves the trajectory as it
    was at the latest on_step. Raises `TrainingFailed` when the loss is no longer finite.
    """
    methods, steps, eval_every = trajectory.methods, trajectory.config.optim.steps, trajectory.config.eval_every
    trajectory.model.train()
    for step in range(trajectory.step, steps + 1):
        trajectory.step = step
        on_step(step)
        check()
        evaluated = is_evaluated(step, steps, eval_every)
        if evaluated or any(method.wants_logits(step) for method in methods.values()):
            if batches.device.type == "cuda":
                torch.cuda.synchronize(batches.device)
            train_seconds = trajectory.clock.train_seconds()
            with trajectory.clock.aside():
                if evaluated:
                    yield evaluate(trajectory, images, train_seconds, check)
                else:
                    add_logits(trajectory, predicted({ERM: methods[ERM]}, images, check))
        if step == steps:
            return
        loss = update(trajectory, *batches.batch(step), step)
        trajectory.losses.append(loss)
        for method in methods.values():
            method.after_step(step + 1)
        if batches.device.type == "cpu":  # free there; on a GPU the loss is looked at when it is evaluated
            check_finite(loss.item(), step + 1)


def evaluate(
    trajectory: Trajectory, images: EvaluationSet, train_seconds: float, check: Callable[[], None]
) -> Evaluation:
    """All methods at the trajectory's step."""
    step, methods = trajectory.step, trajectory.methods
    predictions = predicted(methods, images, check)
    train_loss = mean_loss(trajectory.losses, step)
    check_weights(trajectory.model, step)
    health, val_loss = measure(predictions[ERM], validation_loss(predictions[ERM].logits, images))
    for method in methods.values():
        method.evaluated(step, val_loss)
    # Of the methods that chose by that loss; what is changed above does not mind an interruption here.
    without = {name: method for name, method in methods.items() if name not in predictions}
    predictions |= predicted(without, images, check)
    trajectory.losses.clear()
    add_logits(trajectory, predictions)
    logits = {name: prediction.logits for name, prediction in predictions.items()}
    logits |= {name: its for name, method in methods.items() if (its := method.logits) is not None}
    return Evaluation(
        step=step,
        scores={name: score(values, images) for name, values in logits.items()},
        logits=logits,
        models={name: network for name, method in methods.items() if (network := method.model)},
        health=health,
        train_loss=train_loss,
        val_loss=val_loss,
        lr=learning_rate(trajectory.config.optim, step),
        seconds=trajectory.clock.seconds(),
        train_seconds=train_seconds,
    )


def predicted(methods: Mapping[str, Method], images: EvaluationSet, check: Callable[[], None]) -> dict[str, Prediction]:
    """What the networks of these methods say of the images, in one pass."""
    models = {name: method.model for name, method in methods.items() if method.model is not None}
    return dict(zip(models, predict(list(models.values()), images, check), strict=True)) if models else {}


def add_logits(trajectory: Trajectory, predictions: Mapping[str, Prediction]) -> None:
    """Give the trained network's to the methods that want them at this step."""
    for method in trajectory.methods.values():
        if method.wants_logits(trajectory.step):
            method.add(predictions[ERM].logits)


def logits_in_training(model: Classifier, trajectory: Trajectory, inputs: Tensor, step: int) -> Tensor:
    """What a network like the trajectory's says of a batch, float32 [B, classes], with all that acts on it at this step."""
    seed, regulariser = trajectory.config.seed, trajectory.regulariser
    if step < trajectory.config.warm_start:
        return model.logits_of_frozen_backbone(inputs)
    drawn = (
        (regulariser, regulariser.drawn(torch_generator(seed, WEIGHTS, step, inputs.device))) if regulariser else None
    )
    logits: Tensor = model(inputs, torch_generator(seed, DROPOUT, step, inputs.device), step, drawn)
    return logits


def update(trajectory: Trajectory, inputs: Tensor, labels: Tensor, step: int) -> Tensor:
    """One step of the optimiser on one batch; its loss, detached."""
    optimizer, config = trajectory.optimizer, trajectory.config
    set_learning_rate(optimizer, config.optim, step)
    # For what a backbone draws itself (`vld.model.dropout`).
    torch.manual_seed(derived_seed(config.seed, BACKBONE, step))
    optimizer.zero_grad()
    logits = logits_in_training(trajectory.model, trajectory, inputs, step)
    loss = cross_entropy(logits, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


class Clock:
    """Wall-clock seconds of a run, in all its attempts together; what is done aside is not training."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._aside = 0.0

    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def train_seconds(self) -> float:
        return self.seconds() - self._aside

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Evaluations, saving."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._aside += time.perf_counter() - began

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds(), "aside": self._aside}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._began = time.perf_counter() - state["seconds"]
        self._aside = state["aside"]


def is_evaluated(step: int, steps: int, eval_every: int) -> bool:
    return step % eval_every == 0 or step == steps


def learning_rate(optim: OptimConfig, step: int) -> float:
    """The rate of the update that follows step `step`: lr · gamma^(milestones reached), or half a cosine from lr after the
    warm-up to 0 at the last step; in the warm-up (step + 1) / warm_up of it."""
    rate = optim.lr * min(1.0, (step + 1) / max(optim.warm_up, 1))
    if optim.schedule == "cosine":
        done = max(step - optim.warm_up, 0) / (optim.steps - optim.warm_up)
        return rate * (1 + math.cos(math.pi * done)) / 2
    return rate * optim.gamma ** sum(step >= milestone for milestone in optim.milestones)


def make_optimizer(model: Classifier, optim: OptimConfig) -> Optimizer:
    """Two groups, the backbone and the last layer. Weight decay acts on all parameters, as in DomainBed."""
    groups = [
        {"params": list(model.backbone.parameters()), "factor": 1.0},
        {"params": list(model.head.parameters()), "factor": optim.last_layer_lr_factor},
    ]
    fused = _is_fused(model.head.weight.device)
    if optim.name in ("adam", "adamw"):
        algorithm = Adam if optim.name == "adam" else AdamW
        return algorithm(
            groups, lr=optim.lr, weight_decay=optim.weight_decay, betas=(optim.momentum, 0.999), fused=fused
        )
    return SGD(groups, lr=optim.lr, weight_decay=optim.weight_decay, momentum=optim.momentum, fused=fused)


def set_learning_rate(optimizer: Optimizer, optim: OptimConfig, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(optim, step) * group["factor"]


def mean_loss(losses: list[Tensor], step: int) -> float | None:
    """The mean of the losses of the steps that led to `step`."""
    if not losses:
        return None
    values = torch.stack(losses).tolist()
    for i, value in enumerate(values):
        check_finite(value, step - len(values) + i + 1)
    return math.fsum(values) / len(values)


def check_weights(model: Classifier, step: int) -> None:
    """The last update before an evaluation may have broken what its own loss, computed before, does not show."""
    norms = torch.stack(torch._foreach_norm([parameter.detach() for parameter in model.parameters()]))
    if not torch.isfinite(norms.sum()):
        raise TrainingFailed(f"the weights are no longer finite at step {step}; try a smaller optim.lr")


def check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainingFailed(f"the training loss became {loss} at step {step}; try a smaller optim.lr")
