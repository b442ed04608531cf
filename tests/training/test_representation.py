"""The quantities of an analysis against independent computations: known spectra, plain loops, every mask there is."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vld.training.representation import (
    calibration_error,
    effective_rank,
    linear_probe,
    masked_logits,
    mc_dropout,
    negative_log_likelihood,
    probe_logits,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def orthonormal(n: int, k: int, seed: int) -> Tensor:
    """[n, k]; with mean 0 in each column."""
    columns = random(n, k, seed=seed)
    return torch.linalg.qr(columns - columns.mean(0))[0]


def with_spectrum(values: list[float], n: int = 60, d: int = 24) -> Tensor:
    """Centred features [n, d] that have these singular values and no others."""
    rotation = torch.linalg.qr(random(d, d, seed=2))[0][: len(values)]
    return orthonormal(n, len(values), 1) @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ rotation


@pytest.mark.parametrize("k", [1, 2, 7, 24])
def test_k_equal_singular_values_have_effective_rank_k(k: int) -> None:
    assert effective_rank(with_spectrum([3.0] * k)) == pytest.approx(k, rel=1e-6)


def test_a_geometric_spectrum_has_the_rank_of_the_closed_form() -> None:
    """p_i = (1 - q) q^i / (1 - q^k): the entropy is -ln((1 - q) / (1 - q^k)) - ln(q) · Σ i p_i."""
    q, k = 0.5, 12
    mean = q / (1 - q) - k * q**k / (1 - q**k)
    entropy = -math.log((1 - q) / (1 - q**k)) - math.log(q) * mean
    assert effective_rank(with_spectrum([q**i for i in range(k)])) == pytest.approx(math.exp(entropy), rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(200, 16), (9, 40)])
def test_it_is_that_of_the_singular_values_that_torch_finds(n: int, d: int) -> None:
    features = (random(n, d) * torch.linspace(0.1, 4, d) + 5).float()
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    shares = values[values > 1e-6 * values[0]] / values.sum()
    entropy = -sum(p * math.log(p) for p in shares.tolist())
    assert effective_rank(features) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_neither_scale_nor_rotation_nor_shift_changes_it() -> None:
    features = random(50, 8) * torch.linspace(0.5, 3, 8)
    rotation = torch.linalg.qr(random(8, 8, seed=3))[0]
    rank = effective_rank(features)
    assert 1 < rank < 8
    for changed in (1e-4 * features, features @ rotation, features + 100 * random(8, seed=4)):
        assert effective_rank(changed) == pytest.approx(rank, rel=1e-6)


def test_features_without_direction_have_rank_0_and_a_large_mean_is_none() -> None:
    assert effective_rank(torch.full((20, 5), 0.1)) == 0
    line = 1000 + random(20, 1) @ random(1, 5, seed=1)
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)


def test_more_rows_than_fit_at_once_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    features, head = random(50, 6).float(), nn.Linear(6, 3)
    whole, masked = effective_rank(features), mc_dropout(features, head, 0.0, 2, generator())
    monkeypatch.setattr("vld.training.representation.ROWS_AT_ONCE", 7)
    assert effective_rank(features) == pytest.approx(whole, rel=1e-9)
    torch.testing.assert_close(mc_dropout(features, head, 0.0, 2, generator()), masked)


def labels_of(n: int, classes: int) -> Tensor:
    return torch.randint(classes, (n,), generator=generator(9))


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_the_calibration_error_is_that_of_a_plain_loop(bins: int) -> None:
    log_probabilities, labels = (2 * random(300, 4)).log_softmax(1), labels_of(300, 4)
    members: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(log_probabilities.exp().tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        members.setdefault(math.ceil(confidence * bins), []).append((confidence, row.index(confidence) == label))
    error = 0.0
    for images in members.values():
        accuracy = sum(right for _, right in images) / len(images)
        error += len(images) / 300 * abs(accuracy - sum(c for c, _ in images) / len(images))
    assert calibration_error(log_probabilities, labels, bins) == pytest.approx(error, abs=1e-12)


def test_calibrated_predictions_have_no_calibration_error_and_certain_wrong_ones_all_of_it() -> None:
    probabilities = (2 * random(40_000, 3)).softmax(1)
    labels = torch.multinomial(probabilities, 1, generator=generator(1))[:, 0]
    assert calibration_error(probabilities.log(), labels) < 0.01
    overconfident = (3 * probabilities.log()).log_softmax(1)
    assert calibration_error(overconfident, labels) > 0.1
    certain = torch.tensor([[0.0, -math.inf]]).repeat(10, 1)
    assert calibration_error(certain, torch.ones(10, dtype=torch.long)) == 1
    assert calibration_error(certain, torch.zeros(10, dtype=torch.long)) == 0


def test_the_negative_log_likelihood_is_that_of_a_plain_loop() -> None:
    log_probabilities, labels = random(50, 4).log_softmax(1), labels_of(50, 4)
    rows = log_probabilities.exp().tolist()
    losses = [-math.log(row[label]) for row, label in zip(rows, labels.tolist(), strict=True)]
    assert negative_log_likelihood(log_probabilities, labels) == pytest.approx(sum(losses) / 50)
    assert negative_log_likelihood(torch.full((5, 4), 0.25).log(), labels[:5]) == pytest.approx(math.log(4))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()


def test_a_probe_finds_what_is_linear_and_nothing_in_noise() -> None:
    labels = labels_of(600, 3)
    features = (random(600, 10) * 100 + 50).float()
    features[:, :3] += 2000 * F.one_hot(labels, 3)
    features[:, 4] = 7  # says nothing
    probe = linear_probe(features[:400], labels[:400], 3)
    assert accuracy(probe_logits(probe, features[400:]), labels[400:]) == 1.0
    again = linear_probe(features[:400], labels[:400], 3)
    assert torch.equal(probe.weight, again.weight)

    noise = random(2000, 10, seed=5).float()
    of_noise = labels_of(2000, 3)
    probe = linear_probe(noise[:1000], of_noise[:1000], 3)
    assert accuracy(probe_logits(probe, noise[1000:]), of_noise[1000:]) == pytest.approx(1 / 3, abs=0.06)


def test_a_probe_is_where_its_objective_has_no_slope() -> None:
    """Of mean cross-entropy + 1e-4 / 2 · Σ w² on standardised features, worked out here without autograd."""
    features, labels = random(80, 4).float() * 3 + 1, labels_of(80, 3)
    probe = linear_probe(features, labels, 3)
    mean, std = features.double().mean(0), features.double().std(0, correction=0)
    weight = probe.weight.detach() * std
    inputs = (features.double() - mean) / std
    residual = probe_logits(probe, features).softmax(1) - F.one_hot(labels, 3)
    slope = residual.T @ inputs / 80 + 1e-4 * weight
    assert slope.abs().max() < 1e-5
    assert residual.mean(0).abs().max() < 1e-5


@pytest.mark.parametrize("rate", [0.5, 0.75, 0.9])
def test_a_mask_takes_the_same_units_of_all_images_and_scales_the_others(rate: float) -> None:
    features, head = random(30, 20).float(), nn.Linear(20, 4)
    logits = masked_logits(features, head, rate, generator(3))
    dropped = torch.randperm(20, generator=generator(3))[: round(20 * rate)].tolist()
    for image, shown in zip(features.tolist(), logits.tolist(), strict=True):
        for c, logit in enumerate(shown):
            kept = [u for u in range(20) if u not in dropped]
            total = sum(head.weight[c, u].item() * image[u] / (1 - rate) for u in kept)
            assert logit == pytest.approx(total + head.bias[c].item(), abs=1e-4)


def test_masks_are_drawn_anew_from_one_generator() -> None:
    features, head, masks = random(5, 40).float(), nn.Linear(40, 4), generator()
    first, second = (masked_logits(features, head, 0.5, masks) for _ in range(2))
    assert not torch.equal(first, second)
    torch.testing.assert_close(masked_logits(features, head, 0.0, masks), head(features).detach())


def test_mc_dropout_at_rate_0_is_the_network_itself() -> None:
    features, head = random(6, 5).float(), nn.Linear(5, 3)
    plain = head(features).double().log_softmax(1)
    torch.testing.assert_close(mc_dropout(features, head, 0.0, 20, generator()), plain.detach())


def test_mc_dropout_tends_to_the_mean_over_every_mask_there_is() -> None:
    features, head, rate = random(3, 4).float(), nn.Linear(4, 3), 0.75
    with torch.no_grad():
        head.weight *= 3
        expected = torch.zeros(3, 3)
        for mask in itertools.product((0, 1), repeat=4):
            weight = math.prod(1 - rate if kept else rate for kept in mask)
            expected += weight * head(features * torch.tensor(mask) / (1 - rate)).softmax(1)
    assert (expected - head(features).softmax(1)).abs().max() > 0.05  # dropout matters here
    found = mc_dropout(features, head, rate, 20_000, generator()).exp()
    torch.testing.assert_close(found, expected.double(), atol=0.015, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(3, dtype=torch.float64))
