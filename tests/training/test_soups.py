"""Soups and ensembles on plain tensors, against other ways to the same numbers; which runs may be members."""

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vld.config.errors import UserError
from vld.config.settings import BackboneConfig, Config, DatasetConfig, MethodConfig
from vld.study.member_axes import member_axes, member_configs
from vld.study.typed_settings import with_values
from vld.training.evaluation import Count, Scores
from vld.training.soups import Soup, by_number_of_members, ensemble_of_runs, greedy_soup, outputs, uniform_soup


def random_weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(4, 3, generator=generator),
        "bias": torch.randn(3, generator=generator) * 1e-3,
        "steps": torch.tensor(7),
    }


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_a_soup_is_the_mean_whatever_the_order(seeds: list[int]) -> None:
    members = [random_weights(seed) for seed in seeds]
    soup = uniform_soup(members)
    for name in ("weight", "bias"):
        expected = torch.stack([weights[name].double() for weights in members]).mean(0)
        assert soup[name].dtype == torch.float32
        torch.testing.assert_close(soup[name].double(), expected, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(soup[name], uniform_soup(members[::-1])[name], rtol=2e-7, atol=0)
    assert soup["steps"].dtype == torch.int64
    assert soup["steps"] == 7


@pytest.mark.parametrize("copies", [1, 2, 3, 18])
def test_a_soup_of_one_member_is_the_member_bit_for_bit(copies: int) -> None:
    weights = random_weights(0)
    soup = uniform_soup([weights] * copies)
    assert all(torch.equal(soup[name], weights[name]) for name in weights)


def test_a_candidate_leaves_the_soup_as_it_is() -> None:
    soup = Soup().with_member(random_weights(0))
    before = soup.mean()
    soup.with_member(random_weights(1))
    assert soup.members == 1
    assert all(torch.equal(soup.mean()[name], before[name]) for name in before)


def scores(correct: int) -> Scores:
    counts = {("a", "out"): Count(correct, 100), ("b", "in"): Count(50, 80), ("b", "out"): Count(10, 20)}
    return Scores("b", counts)


def taste_by_sum(weights: Mapping[str, Tensor]) -> Scores:
    """An accuracy that depends on the soup: the closer its one weight is to 0, the better."""
    return scores(max(0, 100 - round(abs(weights["w"].item()))))


@given(st.lists(st.tuples(st.integers(-60, 60), st.floats(0, 1)), min_size=1, max_size=12))
def test_greedy_soup_against_a_plain_loop(members: list[tuple[int, float]]) -> None:
    weights = {f"run{i:02d}": float(value) for i, (value, _) in enumerate(members)}
    accuracies = {f"run{i:02d}": accuracy for i, (_, accuracy) in enumerate(members)}
    trace = greedy_soup(list(accuracies.items()), lambda run: {"w": torch.tensor([weights[run]])}, taste_by_sum)

    order = sorted(accuracies, key=lambda run: (-accuracies[run], run))
    kept: list[str] = []
    best = -1
    for run in order:
        mean = sum(weights[one] for one in [*kept, run]) / (len(kept) + 1)
        correct = max(0, 100 - round(abs(torch.tensor(mean, dtype=torch.float64).float().item())))
        if correct >= best:
            kept.append(run)
            best = correct
    assert [taste.run_id for taste in trace] == order
    assert [taste.run_id for taste in trace if taste.kept] == kept
    heights = [taste.scores.iid for taste in trace if taste.kept]
    assert heights == sorted(heights)
    assert all(taste.scores.iid < max(heights) for taste in trace if not taste.kept)


def test_greedy_keeps_a_member_that_changes_nothing() -> None:
    trace = greedy_soup([("a", 0.9), ("b", 0.8)], lambda _: {"w": torch.zeros(1)}, lambda _: scores(80))
    assert [taste.kept for taste in trace] == [True, True]


@pytest.mark.parametrize(("accept", "kept"), [("mean", [True, False]), ("pooled", [True, True])])
def test_greedy_by_the_mean_over_domains_or_by_pooled_images(accept: str, kept: list[bool]) -> None:
    """The second member gains 5 of 100 images in one domain, and loses 1 of 10 in another."""

    def evaluate(weights: Mapping[str, Tensor]) -> Scores:
        second = int(weights["w"].item() > 0)
        held_out = {("a", "out"): Count(80 + 5 * second, 100), ("b", "out"): Count(5 - second, 10)}
        return Scores("c", held_out | {("c", "in"): Count(5, 8), ("c", "out"): Count(1, 2)})

    weights = {"first": 0.0, "second": 1.0}
    trace = greedy_soup(
        [("first", 0.9), ("second", 0.8)], lambda run: {"w": torch.tensor([weights[run]])}, evaluate, accept
    )
    assert [taste.kept for taste in trace] == kept


def test_ensemble_is_the_mean_of_logits_or_of_probabilities() -> None:
    logits = [torch.randn(50, 7, generator=torch.Generator().manual_seed(seed)) * 3 for seed in range(5)]
    torch.testing.assert_close(ensemble_of_runs([outputs(one, "logits") for one in logits]), sum(logits) / 5)  # type: ignore[arg-type]
    probabilities = ensemble_of_runs([outputs(one, "softmax") for one in logits])
    exact = sum(one.double().exp() / one.double().exp().sum(1, keepdim=True) for one in logits) / 5
    torch.testing.assert_close(probabilities.double(), exact, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]
    torch.testing.assert_close(probabilities.sum(1), torch.ones(50))


@given(st.integers(1, 7), st.integers(1, 8))
def test_accuracy_against_the_number_of_members(members: int, permutations: int) -> None:
    given = [torch.full((2, 3), float(2**i), dtype=torch.float16) for i in range(members)]
    results = by_number_of_members(given, lambda total: int(total[0, 0]), permutations, seed=0)
    for k, totals in enumerate(results, 1):
        assert {total.bit_count() for total in totals} == {k}  # subsets of k different members
        assert len(set(totals)) == len(totals)
    assert sorted(results[0]) == [2**i for i in range(members)]
    assert results[-1] == [2**members - 1]
    for totals in results[:-1]:
        taken = [sum(total >> i & 1 for total in totals) for i in range(members)]
        assert min(taken) >= 1
        assert permutations > 1 or max(taken) == min(taken)


def test_many_circles_reach_every_subset() -> None:
    given = [torch.full((1, 1), float(2**i)) for i in range(5)]
    results = by_number_of_members(given, lambda total: int(total), permutations=100, seed=0)
    assert [len(totals) for totals in results] == [math.comb(5, k) for k in range(1, 6)]


def config(*members: str, method: str = "model_soup", weights: str | None = None) -> Config:
    return Config(
        dataset=DatasetConfig(name="pacs", folder="PACS"),
        backbone=BackboneConfig(name="resnet18", architecture="resnet18", weights=weights),
        method=MethodConfig(name=method, members=list(members)),
    )


def test_members_are_the_product_of_the_axes() -> None:
    members = member_configs(config("optim.lr=1e-3,5e-4", "seed=0,1,2", "optim.milestones=[5]"))
    assert [values for values, _ in members] == [
        {"optim.lr": lr, "seed": seed, "optim.milestones": [5]} for lr in (1e-3, 5e-4) for seed in (0, 1, 2)
    ]
    for values, member in members:
        assert (member.optim.lr, member.seed, member.optim.milestones) == tuple(values.values())
        assert member.method.name == "erm"
        assert member.dropout == 0.9
    assert len(member_configs(config("seed=range(4)"))) == 4


REFUSED = {
    "split_seed=0,1": "split_seed cannot vary among members: one member would be evaluated on images that another was trained on",
    "head_seed=0,1": "head_seed cannot vary among members: .* start from the same weights",
    "backbone.name=a,b": "backbone.name cannot vary among members: members share one network architecture",
    "backbone.feature_scale=1,2": "backbone.feature_scale cannot vary",
    "backbone=resnet18,resnet50": "backbone cannot vary among members: members share one network architecture",
    "optim=sgd,adam": "a preset cannot vary among members; its settings can",
    "dataset.name=pacs,vlcs": "dataset.name cannot vary among members: .* the same images",
    "test_domain=0,1": "test_domain cannot vary",
    "image_size=96,128": "image_size cannot vary among members: a soup is evaluated at one size",
    "precision=fp32,bf16": "precision cannot vary",
    "keep=[],[erm-last]": "keep does not change a run",
    "device=cpu,cuda": "device does not change a run",
    "sed=0,1": "sed: no such option, did you mean seed",
    "seed": "not understood",
    "seed=0,0": "seed=0 is given twice",
    "seed=-1,0": "seed=-1: must be a whole number from 0",
    "seed=a": "seed=a: ",
    "optim.lr=0": "optim.lr=0.0: must be a number above 0",
}


@pytest.mark.parametrize("axis", REFUSED)
def test_axes_that_cannot_be_are_refused(axis: str) -> None:
    with pytest.raises(UserError, match=REFUSED[axis]):
        member_configs(config(axis))


def test_an_axis_there_twice_none_at_all_and_members_from_random_values_are_refused() -> None:
    with pytest.raises(UserError, match="seed is given twice"):
        member_axes(config("seed=0", "seed=1"))
    with pytest.raises(UserError, match="needs members"):
        member_axes(config())
    with pytest.raises(UserError, match="each run draws its own"):
        member_axes(config("seed=0,1", weights="none"))
    assert member_axes(config("seed=0,1", weights="none", method="ensemble_of_runs")) == {"seed": [0, 1]}


def test_an_ensemble_may_have_different_heads_and_image_sizes() -> None:
    for axis in ("head_seed=0,1", "image_size=96,128"):
        assert len(member_configs(config(axis, method="ensemble_of_runs"))) == 2
    for axis, name in (("split_seed=0,1", "split_seed"), ("backbone.name=a,b", "backbone.name")):
        with pytest.raises(UserError, match=f"{name} cannot vary"):
            member_configs(config(axis, method="ensemble_of_runs"))


def test_settings_are_changed_with_their_types() -> None:
    changed = with_values(config("seed=0"), {"optim.lr": "5e-4", "optim.steps": 7, "keep": ["erm-iid"]})
    assert (changed.optim.lr, changed.optim.steps, changed.keep) == (5e-4, 7, ["erm-iid"])
    for name, value, said in (
        ("optim.steps", "many", "Integer"),
        ("optim.step", 1, "no such option"),
        ("dropout", 1, r"\[0, 1\)"),
    ):
        with pytest.raises(UserError, match=said):
            with_values(config("seed=0"), {name: value})
