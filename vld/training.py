"""The training loop: one fine-tuning trajectory, evaluated on the way."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, Optimizer

from vld.data.batches import TrainingBatches
from vld.evaluation import EvaluationSet, Scores, predict, score
from vld.health import Health, measure
from vld.methods import ENSEMBLE, ERM, WEIGHT_AVERAGING, CheckpointEnsemble, WeightAverage
from vld.model import Classifier
from vld.seeds import BACKBONE, DROPOUT, derived_seed, torch_generator
from vld.settings import AveragingConfig, EnsembleConfig, OptimConfig


class TrainingFailed(Exception):  # noqa: N818  (an outcome of a run, which goes on record as such)
    """Training cannot go on; the message says at which step and what to change."""


@dataclass(frozen=True)
class Evaluation:
    """What is known after `step` updates.

    scores, logits: per method that has begun; logits are float32 [evaluation images, classes]. models: the networks of the
    methods that are one; they go on changing. train_loss: mean since the evaluation before, None at step 0. lr: the rate in
    force at this step. seconds: since training began, evaluations included; train_seconds without them.
    """

    step: int
    scores: dict[str, Scores]
    logits: dict[str, Tensor]
    models: dict[str, Classifier]
    health: Health
    train_loss: float | None
    lr: float
    seconds: float
    train_seconds: float


def train(
    model: Classifier,
    batches: TrainingBatches,
    images: EvaluationSet,
    optim: OptimConfig,
    *,
    eval_every: int,
    averaging: AveragingConfig,
    ensemble: EnsembleConfig,
    seed: int,
    on_step: Callable[[int], None] = lambda _: None,
) -> Iterator[Evaluation]:
    """Fine-tune `model` in place; yield an evaluation at steps 0, eval_every, 2 eval_every, … and the last.

    "At step s" means after s updates. Raises `TrainingFailed` when the loss is no longer finite.
    """
    optimizer = make_optimizer(model, optim)
    average = WeightAverage(model, averaging, optim.steps, eval_every)
    checkpoints = CheckpointEnsemble(ensemble, optim.steps, eval_every)
    model.train()
    losses: list[Tensor] = []
    clock = Clock()
    for step in range(optim.steps + 1):
        evaluated = is_evaluated(step, optim.steps, eval_every)
        if evaluated or checkpoints.has_member(step):
            if batches.device.type == "cuda":
                torch.cuda.synchronize(batches.device)
            clock.pause()
            models = {ERM: model}
            if evaluated and average.model is not None:
                models[WEIGHT_AVERAGING] = average.model
            predictions = dict(zip(models, predict(list(models.values()), images), strict=True))
            logits = {method: prediction.logits for method, prediction in predictions.items()}
            if checkpoints.has_member(step):
                checkpoints.add(logits[ERM])
            if evaluated:
                train_loss = mean_loss(losses, step)
                losses.clear()
                check_weights(model, step)
                if checkpoints.logits is not None:
                    logits[ENSEMBLE] = checkpoints.logits
                yield Evaluation(
                    step=step,
                    scores={method: score(values, images) for method, values in logits.items()},
                    logits=logits,
                    models=models,
                    health=measure(logits[ERM], predictions[ERM].squared_norms),
                    train_loss=train_loss,
                    lr=learning_rate(optim, step),
                    seconds=clock.seconds(),
                    train_seconds=clock.train_seconds,
                )
            clock.resume()
        if step == optim.steps:
            return
        set_learning_rate(optimizer, optim, step)
        inputs, labels = batches.batch(step)
        torch.manual_seed(derived_seed(seed, BACKBONE, step))  # what a backbone draws by itself (stochastic depth)
        loss = cross_entropy(model(inputs, torch_generator(seed, DROPOUT, step, batches.device)), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average.update(step + 1)
        losses.append(loss.detach())
        if batches.device.type == "cpu":  # free there; on a GPU the loss is looked at when it is evaluated
            check_finite(loss.item(), step + 1)
        on_step(step + 1)


class Clock:
    """Wall-clock time since it was made, in all and outside of evaluations."""

    def __init__(self) -> None:
        self.began = self.resumed = time.perf_counter()
        self.train_seconds = 0.0

    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def pause(self) -> None:
        self.train_seconds += time.perf_counter() - self.resumed

    def resume(self) -> None:
        self.resumed = time.perf_counter()


def is_evaluated(step: int, steps: int, eval_every: int) -> bool:
    return step % eval_every == 0 or step == steps


def learning_rate(optim: OptimConfig, step: int) -> float:
    """The rate of the update that follows step `step`: lr · gamma^(milestones reached)."""
    return optim.lr * optim.gamma ** sum(step >= milestone for milestone in optim.milestones)


def make_optimizer(model: Classifier, optim: OptimConfig) -> Optimizer:
    """Two groups, the backbone and the last layer. Weight decay acts on all parameters, as in DomainBed."""
    groups = [
        {"params": list(model.backbone.parameters()), "factor": 1.0},
        {"params": list(model.head.parameters()), "factor": optim.last_layer_lr_factor},
    ]
    if optim.name == "adam":
        return Adam(groups, lr=optim.lr, weight_decay=optim.weight_decay, betas=(optim.momentum, 0.999))
    return SGD(groups, lr=optim.lr, weight_decay=optim.weight_decay, momentum=optim.momentum)


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
        raise TrainingFailed(f"the weights are no longer finite at step {step}; a smaller optim.lr usually mends it")


def check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainingFailed(f"the training loss became {loss} at step {step}; a smaller optim.lr usually mends it")
