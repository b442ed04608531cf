"""The training loop equals a plain one, and evaluates when and what it says."""

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (
    CPU,
    MEAN,
    RATE,
    SCALE,
    SEED,
    STD,
    make_backbone,
    make_batches,
    make_dataset,
    make_evaluation_set,
    make_model,
    settings,
)
from torch import Tensor, nn
from torch.nn import functional

from vld.config.settings import AveragingConfig, Config, EnsembleConfig, OptimConfig
from vld.data.split import split_indices
from vld.machine.device import MemoryBudget
from vld.machine.seeds import DROPOUT, torch_generator
from vld.machine.terminal import Terminal
from vld.model.classifier import Classifier
from vld.runs.run import Run, results_line, training_batches
from vld.training.evaluation import predict, score
from vld.training.loop import Evaluation, TrainingFailed, Trajectory, is_evaluated, learning_rate, make_optimizer, train


def start(model: Classifier, config: Config, **changes: Any) -> Iterator[Evaluation]:
    return train(Trajectory(model, config), make_batches(), make_evaluation_set(), **changes)


def run(model: Classifier, config: Config, **changes: Any) -> list[Evaluation]:
    return list(start(model, config, **changes))


def plain_loop(
    optim: OptimConfig, *, pretrained: bool = True, dropout: float = RATE
) -> tuple[dict[str, Tensor], list[float]]:
    """The same by PyTorch's own optimiser and schedule, without any of our modules: final weights and every loss."""
    backbone, head = make_backbone(), nn.Linear(24, 3)
    head.load_state_dict(make_model().head.state_dict())
    groups = [
        {"params": list(backbone.parameters())},
        {"params": list(head.parameters()), "lr": optim.lr * optim.last_layer_lr_factor},
    ]
    optimizer: torch.optim.Optimizer
    if optim.name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    else:
        algorithm = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
        optimizer = algorithm(groups, lr=optim.lr, betas=(optim.momentum, 0.999), weight_decay=optim.weight_decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, optim.milestones, optim.gamma)
    backbone.train(not pretrained)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    batches, losses = make_batches(), []
    for step in range(optim.steps):
        images, labels = batches.batch(step)
        features = backbone((images - mean) / std) * SCALE
        if dropout:
            generator = torch_generator(SEED, DROPOUT, step, CPU)
            mask = torch.empty_like(features).bernoulli_(1 - dropout, generator=generator)
            features = features * mask / (1 - dropout)
        loss = functional.cross_entropy(head(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    weights = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    return weights | {f"head.{name}": value for name, value in head.state_dict().items()}, losses


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"last_layer_lr_factor": 10.0, "lr": 0.01},
        {"momentum": 0.0, "weight_decay": 0.0},
        {"milestones": []},
        {"milestones": [0, 3, 3, 12, 40], "gamma": 0.5},
        {"name": "adam", "lr": 0.003},
        {"name": "adam", "lr": 0.003, "last_layer_lr_factor": 10.0},
        {"name": "adamw", "lr": 0.003, "weight_decay": 0.5},
    ],
    ids=str,
)
def test_equals_a_plain_loop(changes: dict[str, Any], pretrained: bool) -> None:
    config = settings(**changes, eval_every=1)
    reference, losses = plain_loop(config.optim, pretrained=pretrained)
    model = make_model(pretrained=pretrained)
    before = weights_of(model)
    evaluations = run(model, config)
    after = weights_of(model)
    assert after.keys() == reference.keys()
    for name, value in after.items():
        torch.testing.assert_close(value, reference[name], rtol=1e-4, atol=1e-6)
    for name, _ in model.named_parameters():
        assert float((after[name] - before[name]).abs().max()) > 1e-4
    assert [entry.train_loss for entry in evaluations[1:]] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.9])
def test_equals_a_plain_loop_at_other_dropout_rates(dropout: float) -> None:
    reference, _ = plain_loop(settings().optim, dropout=dropout)
    model = make_model(dropout=dropout)
    run(model, settings())
    for name, value in weights_of(model).items():
        torch.testing.assert_close(value, reference[name], rtol=1e-4, atol=1e-6)


def test_weight_decay_acts_on_all_parameters() -> None:
    """Of two runs, all parameters differ, the affine ones of batch norm and the head's bias too."""
    models = [make_model(dropout=0.0), make_model(dropout=0.0)]
    for model, decay in zip(models, (0.0, 0.5), strict=True):
        run(model, settings(weight_decay=decay, steps=1, milestones=[]))
    # One step: w - lr (g + decay w), with equal g, so the difference is lr · decay · w before.
    before = dict(make_model().named_parameters())
    for (name, plain), (_, decayed) in zip(*(model.named_parameters() for model in models), strict=True):
        torch.testing.assert_close(plain - decayed, 0.05 * 0.5 * before[name], rtol=1e-4, atol=1e-6)
    assert float(before["backbone.1.weight"].detach().abs().max()) > 0


def test_optimizer_holds_every_parameter_once() -> None:
    model = make_model()
    for name in ("sgd", "adam", "adamw"):
        optimizer = make_optimizer(model, settings(name=name, last_layer_lr_factor=10.0).optim)
        held = [id(value) for group in optimizer.param_groups for value in group["params"]]
        assert sorted(held) == sorted(id(value) for value in model.parameters())
        assert all(group["weight_decay"] == 0.01 for group in optimizer.param_groups)


def test_learning_rate_schedule() -> None:
    optim = settings(lr=1e-3, steps=10_000, milestones=[5_000]).optim
    assert [learning_rate(optim, step) for step in (0, 4_999)] == [1e-3, 1e-3]
    assert [learning_rate(optim, step) for step in (5_000, 9_999, 10_000)] == pytest.approx([1e-4] * 3, rel=1e-12)
    optim = settings(lr=1.0, milestones=[15, 25], gamma=0.5).optim
    assert [learning_rate(optim, step) for step in (14, 15, 24, 25, 99)] == [1, 0.5, 0.5, 0.25, 0.25]
    optim = settings(lr=1.0, milestones=[6], gamma=0.5, warm_up=4).optim
    assert [learning_rate(optim, step) for step in range(7)] == [0.25, 0.5, 0.75, 1, 1, 1, 0.5]


@pytest.mark.parametrize("warm_up", [0, 4])
def test_cosine_is_pytorch_s(warm_up: int) -> None:
    optim = settings(lr=0.1, steps=20, milestones=[5], schedule="cosine", warm_up=warm_up).optim
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20 - warm_up)
    for step in range(warm_up, 21):
        assert learning_rate(optim, step) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()
    assert [learning_rate(optim, step) for step in range(warm_up)] == pytest.approx([0.025, 0.05, 0.075, 0.1][:warm_up])


def test_evaluations_tell_the_rate_in_force() -> None:
    assert [entry.lr for entry in run(make_model(), settings(eval_every=1))] == pytest.approx(
        [0.05] * 5 + [0.005] * 4 + [0.0005] * 4, rel=1e-9
    )


@pytest.mark.parametrize(
    ("steps", "eval_every", "expected"),
    [
        (12, 4, [0, 4, 8, 12]),
        (12, 5, [0, 5, 10, 12]),
        (12, 1, list(range(13))),
        (12, 12, [0, 12]),
        (12, 300, [0, 12]),
        (1, 300, [0, 1]),
    ],
)
def test_evaluated_steps(steps: int, eval_every: int, expected: list[int]) -> None:
    assert [entry.step for entry in run(make_model(), settings(steps=steps, eval_every=eval_every))] == expected


def test_the_study_s_evaluated_steps() -> None:
    steps = [step for step in range(10_001) if is_evaluated(step, 10_000, 300)]
    assert steps == [*range(0, 9_901, 300), 10_000]
    assert len(steps) == 35


def test_members_off_the_grid_are_no_evaluations() -> None:
    """Nor do they change what is evaluated, or the weights: only when the combinations take a member in differs."""
    models = [make_model(), make_model()]
    settled = [
        run(models[0], settings(averaging=AveragingConfig(1, 1), ensemble=EnsembleConfig(1, 3))),
        run(models[1], settings(averaging=AveragingConfig(12, 1), ensemble=EnsembleConfig(12, 1))),
    ]
    for one, other in zip(*settled, strict=True):
        assert one.step == other.step
        assert torch.equal(one.logits["erm"], other.logits["erm"])
        assert one.train_loss == other.train_loss
    for name, value in weights_of(models[0]).items():
        assert torch.equal(value, models[1].state_dict()[name]), name


def test_evaluations_are_of_the_model_at_that_step() -> None:
    """Runs that end at each step predict what the long run predicted on its way there."""
    evaluations = {entry.step: entry for entry in run(make_model(), settings())}
    for step in (4, 8, 12):
        model = make_model()
        short = run(model, settings(steps=step, eval_every=300))
        assert torch.equal(short[-1].logits["erm"], evaluations[step].logits["erm"])
        prediction = predict([model], make_evaluation_set())[0]
        assert torch.equal(prediction.logits, evaluations[step].logits["erm"])
        assert evaluations[step].scores["erm"] == score(prediction.logits, make_evaluation_set())
        assert evaluations[step].health.feature_sq_norm == pytest.approx(float(prediction.squared_norms.mean()))
    assert torch.equal(evaluations[0].logits["erm"], predict([make_model()], make_evaluation_set())[0].logits)
    assert not torch.equal(evaluations[0].logits["erm"], evaluations[4].logits["erm"])


def test_logits_are_kept_as_they_were() -> None:
    """Later steps do not write into an evaluation that was handed out."""
    copies = []
    evaluations = []
    for entry in start(make_model(), settings()):
        copies.append(entry.logits["erm"].clone())
        evaluations.append(entry)
    assert all(torch.equal(entry.logits["erm"], copy) for entry, copy in zip(evaluations, copies, strict=True))


def test_train_loss_is_the_mean_since_the_last_evaluation() -> None:
    _, losses = plain_loop(settings().optim)
    evaluations = run(make_model(), settings(eval_every=5))
    assert evaluations[0].train_loss is None
    expected = [sum(losses[0:5]) / 5, sum(losses[5:10]) / 5, sum(losses[10:12]) / 2]
    assert [entry.train_loss for entry in evaluations[1:]] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("pretrained", [True, False])
def test_evaluating_does_not_change_training(pretrained: bool) -> None:
    """Every step or once: equal weights and running statistics, bit for bit; whatever is drawn in between."""
    often, seldom = make_model(pretrained=pretrained), make_model(pretrained=pretrained)
    for _ in start(often, settings(eval_every=1)):
        torch.rand(5)
    run(seldom, settings(eval_every=300))
    for name, value in weights_of(often).items():
        assert torch.equal(value, seldom.state_dict()[name]), name


def test_leaves_the_global_generators_alone() -> None:
    model = make_model()
    state, position = torch.random.get_rng_state(), np.random.get_state(legacy=False)["state"]["pos"]
    run(model, settings())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.random.get_state(legacy=False)["state"]["pos"] == position


def test_seed_changes_the_masks() -> None:
    models = [make_model(), make_model()]
    for model, seed in zip(models, (SEED, SEED + 1), strict=True):
        run(model, settings(eval_every=300, seed=seed))
    assert not torch.equal(models[0].head.weight, models[1].head.weight)


def test_on_step_counts_updates() -> None:
    seen: list[int] = []
    run(make_model(), settings(), on_step=seen.append)
    assert seen == list(range(13))


def test_time_without_evaluations_is_part_of_the_time() -> None:
    evaluations = run(make_model(), settings(eval_every=3))
    assert all(0 <= entry.train_seconds < entry.seconds for entry in evaluations)
    for earlier, later in pairwise(evaluations):
        assert earlier.seconds < later.seconds
        assert earlier.train_seconds < later.train_seconds


def test_the_time_left_is_said_at_the_whole_run_s_pace(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever attempt it is in: an evaluation's seconds are those of all."""
    *_, evaluation = run(make_model(), settings())
    with Terminal().training("c", steps=12, first_step=4) as progress:
        for step, seconds in ((0, 1.0), (4, 30.0), (8, 7200.0), (12, 9000.0)):
            progress.evaluated(step, results_line(replace(evaluation, step=step), "erm", images_per_step=8), seconds)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("images/s  ")[2] for line in lines] == ["", "1:00 left", "1:00:00 left", ""]


@pytest.mark.parametrize("eval_every", [1, 300])
@pytest.mark.parametrize("lr", [1e6, 1e18])
def test_loss_that_is_not_finite(lr: float, eval_every: int) -> None:
    """The step that is named is the one whose loss, in a plain loop too, is the first that is not finite."""
    config = settings(lr=lr, steps=60, milestones=[], eval_every=eval_every)
    _, losses = plain_loop(config.optim)
    first = next(step for step, loss in enumerate(losses, 1) if not math.isfinite(loss))
    seen: list[Evaluation] = []
    with pytest.raises(TrainingFailed, match=rf"at step {first};.*optim\.lr"):
        for entry in start(make_model(), config):
            seen.append(entry)
    assert [entry.step for entry in seen] == list(range(0, first, eval_every))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_learns(name: str) -> None:
    """The tint that tells the classes apart, on the images of a domain that is left out too."""
    config = settings(
        name=name, lr=0.05 if name == "sgd" else 0.01, steps=150, milestones=[100], weight_decay=1e-4, eval_every=150
    )
    evaluations = run(make_model(dropout=0.2), config)
    assert evaluations[0].scores["erm"].ood_acc < 0.7
    assert evaluations[-1].scores["erm"].ood_acc > 0.85
    assert evaluations[-1].scores["erm"].iid_acc > 0.7


def test_all_methods_are_evaluated_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one network before the average begins, then of two; a member of the ensemble between evaluations is one more."""
    networks: list[int] = []

    def counted(models: list[Classifier], *arguments: Any) -> Any:
        networks.append(len(models))
        return predict(models, *arguments)

    monkeypatch.setattr("vld.training.loop.predict", counted)
    every = {"steps": 8, "averaging": AveragingConfig(1)}
    run(make_model(), settings(**every, ensemble=EnsembleConfig(start=4, every=4)))
    assert networks == [1, 2, 2]
    networks.clear()
    run(make_model(), settings(**every, ensemble=EnsembleConfig(start=2, every=4)))
    assert networks == [1, 1, 2, 1, 2]


def test_a_run_trains_on_the_in_parts_of_its_training_domains() -> None:
    inputs = SimpleNamespace(device=CPU, precision="fp32")
    chosen = Config(image_size=8, batch_size=4, split_seed=1)
    of_run = Run(chosen, inputs, make_dataset(), "b")  # type: ignore[arg-type]
    with closing(training_batches(of_run, MemoryBudget(CPU, print))) as batches:
        assert [domain.name for domain in batches.domains] == ["a", "c"]
        for given, index in zip(batches.in_indices, (0, 2), strict=True):
            assert np.array_equal(given, split_indices(20, index, 1)[0])
