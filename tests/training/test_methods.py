"""The methods along a run, recomputed independently from every step's weights and logits."""

import copy
from typing import Any

import pytest
import torch
from tiny import make_batches, make_evaluation_set, make_model, settings
from torch import Tensor

from vld.config.settings import AveragingConfig, EnsembleConfig
from vld.model.classifier import Classifier
from vld.training.evaluation import predict, score
from vld.training.loop import Evaluation, Trajectory, train
from vld.training.methods import CheckpointEnsemble, WeightAverage, first_member

STEPS = 12
State = dict[str, Tensor]


def copied(model: Classifier) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def run_and_record(
    *, pretrained: bool, averaging: AveragingConfig, ensemble: EnsembleConfig, eval_every: int
) -> tuple[list[tuple[Evaluation, State | None]], dict[int, State]]:
    """A run's evaluations, each with the average's state at that time, and the weights after every step."""
    model = make_model(pretrained=pretrained)
    weights = {0: copied(model)}
    evaluations = []
    config = settings(steps=STEPS, eval_every=eval_every, averaging=averaging, ensemble=ensemble)
    for evaluation in train(
        Trajectory(model, config),
        make_batches(),
        make_evaluation_set(),
        on_step=lambda step: weights.update({step: copied(model)}),
    ):
        average = evaluation.models.get("weight_averaging")
        evaluations.append((evaluation, copied(average) if average else None))
    return evaluations, weights


def logits_of(state: State, *, pretrained: bool) -> Tensor:
    model = make_model(pretrained=pretrained)
    model.load_state_dict(state)
    return predict([model], make_evaluation_set())[0].logits


@pytest.mark.parametrize("pretrained", [True, False], ids=["frozen batch-norm", "trained batch-norm"])
@pytest.mark.parametrize(("start", "interval"), [(1, 1), (4, 1), (3, 4), (STEPS, 1)])
def test_weight_average_is_the_mean_of_its_members_weights(pretrained: bool, start: int, interval: int) -> None:
    evaluations, weights = run_and_record(
        pretrained=pretrained,
        averaging=AveragingConfig(start=start, interval=interval),
        ensemble=EnsembleConfig(),
        eval_every=2,
    )
    for evaluation, state in evaluations:
        members = [weights[step] for step in range(start, evaluation.step + 1, interval)]
        if not members:
            assert "weight_averaging" not in evaluation.scores
            assert state is None
            continue
        assert state is not None
        for name, value in state.items():
            if value.is_floating_point():
                expected = torch.stack([member[name].double() for member in members]).mean(0)
                torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(value, members[-1][name])
        logits = logits_of(state, pretrained=pretrained)
        torch.testing.assert_close(evaluation.logits["weight_averaging"], logits, rtol=1e-5, atol=1e-5)
        assert evaluation.scores["weight_averaging"] == score(logits, make_evaluation_set())


def test_frozen_batch_norm_statistics_stay_and_trained_ones_are_averaged() -> None:
    for pretrained in (True, False):
        evaluations, weights = run_and_record(
            pretrained=pretrained, averaging=AveragingConfig(start=1), ensemble=EnsembleConfig(), eval_every=STEPS
        )
        state = evaluations[-1][1]
        assert state is not None
        name = "backbone.1.running_mean"
        assert torch.equal(state[name], weights[0][name]) == pretrained
        assert torch.equal(state[name], weights[STEPS][name]) == pretrained


@pytest.mark.parametrize("pretrained", [True, False], ids=["frozen batch-norm", "trained batch-norm"])
@pytest.mark.parametrize(("start", "every", "eval_every"), [(1, 1, 2), (3, 4, 2), (5, 5, 4), (2, 100, 3)])
def test_ensemble_is_the_mean_of_its_members_logits(pretrained: bool, start: int, every: int, eval_every: int) -> None:
    evaluations, weights = run_and_record(
        pretrained=pretrained,
        averaging=AveragingConfig(),
        ensemble=EnsembleConfig(start=start, every=every),
        eval_every=eval_every,
    )
    member_steps = sorted({*range(start, STEPS + 1, every), STEPS})
    for evaluation, _ in evaluations:
        so_far = [step for step in member_steps if step <= evaluation.step]
        if not so_far:
            assert "ensemble" not in evaluation.scores
            continue
        members = torch.stack([logits_of(weights[step], pretrained=pretrained).double() for step in so_far])
        torch.testing.assert_close(evaluation.logits["ensemble"].double(), members.mean(0), rtol=1e-5, atol=1e-5)
        assert evaluation.scores["ensemble"] == score(members.mean(0), make_evaluation_set())


@pytest.mark.parametrize(("start", "expected"), [(300, 4), (STEPS + 1, 4), (STEPS, STEPS), (1, 1)])
def test_a_run_too_short_starts_at_the_first_evaluation(start: int, expected: int) -> None:
    assert first_member(start, settings(steps=STEPS)) == expected
    evaluations, _ = run_and_record(
        pretrained=True,
        averaging=AveragingConfig(start=start),
        ensemble=EnsembleConfig(start=start),
        eval_every=4,
    )
    for method in ("weight_averaging", "ensemble"):
        steps = [evaluation.step for evaluation, _ in evaluations if method in evaluation.scores]
        assert steps == [step for step in (0, 4, 8, STEPS) if step >= expected]


def test_averaging_equal_weights_gives_them_exactly() -> None:
    model = make_model()
    average = WeightAverage(model, settings(averaging=AveragingConfig(1, 1)))
    for step in range(1, 51):
        average.after_step(step)
    assert average.members == 50
    assert average.model is not None
    for name, value in average.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_average_is_a_copy_and_in_float32() -> None:
    model = make_model()
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    average = WeightAverage(model, settings(averaging=AveragingConfig(1, 1)))
    average.after_step(1)
    before = copy.deepcopy(average.model)
    assert before is not None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    assert average.model is not None
    for name, value in average.model.state_dict().items():
        assert torch.equal(value, before.state_dict()[name])
        assert value.dtype in (torch.float32, torch.int64)
    assert all(parameter.grad is None for parameter in average.model.parameters())


def test_ensemble_sums_in_float32_and_does_not_change_its_members() -> None:
    ensemble = CheckpointEnsemble(make_model(), settings())
    first = torch.tensor([[1.0, 2.0]])
    ensemble.add(first)
    ensemble.add(torch.tensor([[3.0, -1.0]]))
    assert torch.equal(first, torch.tensor([[1.0, 2.0]]))
    assert ensemble.logits is not None
    assert torch.equal(ensemble.logits, torch.tensor([[2.0, 0.5]]))
    assert ensemble.logits.dtype == torch.float32


def test_methods_leave_the_training_of_the_model_untouched() -> None:
    finals: list[Any] = []
    for averaging, ensemble, eval_every in (
        (AveragingConfig(start=1), EnsembleConfig(start=1, every=1), 1),
        (AveragingConfig(), EnsembleConfig(), STEPS),
    ):
        _, weights = run_and_record(pretrained=False, averaging=averaging, ensemble=ensemble, eval_every=eval_every)
        finals.append(weights[STEPS])
    for name, value in finals[0].items():
        assert torch.equal(value, finals[1][name]), name
