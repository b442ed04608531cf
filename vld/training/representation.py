"""How rich a representation is, in numbers: functions of the penultimate features φ [n, d], the last layer and the labels."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vld.model.dropout import inverted_dropout

BINS = 15
PROBE_L2 = 1e-4
PROBE_ITERATIONS = 100
# So many rows at a time where an intermediate result is as large as the features.
ROWS_AT_ONCE = 8192


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the singular values of the centred features [n, d], normalised to sum 1: from 1 to min(n - 1, d).

    Roy & Vetterli 2007, erank(A) = exp(-Σ p ln p) with p = σ / Σ σ, of the singular values themselves (not their squares). They
    are the roots of the eigenvalues of the [d, d] Gram matrix, in float64; below 1e-6 of the largest, where the matrix has
    rounding errors alone, they count as 0. Where all features are equal there is no direction, and the rank is 0.
    """
    mean = features.mean(0, dtype=torch.float64)
    gram = mean.new_zeros(len(mean), len(mean))
    for rows in torch.split(features, ROWS_AT_ONCE):
        centred = rows.double() - mean
        gram += centred.T @ centred
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    # Features that are all equal have a Gram matrix of rounding errors alone.
    size = math.sqrt(len(features)) * float(features.abs().max())
    values = values[(values > 1e-6 * values.max()) & (values > 1e-12 * size)]
    if len(values) == 0:
        return 0.0
    shares = values / values.sum()
    return float((-shares * shares.log()).sum().exp())


def linear_probe(features: Tensor, labels: Tensor, classes: int) -> nn.Linear:
    """Multinomial logistic regression of the labels [n] on the features [n, d]: a float64 layer from features to logits.

    Minimises the mean cross-entropy plus PROBE_L2 / 2 · Σ w², of features with mean 0 and variance 1 (which the layer that comes
    back has absorbed), from zero, with PROBE_ITERATIONS of LBFGS on all images at once. Draws no random numbers.
    """
    inputs = features.double()
    mean, std = inputs.mean(0), inputs.std(0, correction=0)
    std = torch.where(std > 1e-6 * std.max(), std, 1.0)  # a unit that says nothing stays as quiet as it is
    inputs = (inputs - mean) / std
    weight = inputs.new_zeros(classes, inputs.shape[1], requires_grad=True)
    bias = inputs.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=PROBE_ITERATIONS,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(inputs, weight, bias), labels) + PROBE_L2 / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    probe: nn.Linear = nn.Linear(len(mean), classes, device="meta").to_empty(device=mean.device).double()
    with torch.no_grad():
        probe.weight.copy_(weight / std)
        probe.bias.copy_(bias - (weight / std) @ mean)
    return probe


@torch.no_grad()
def probe_logits(probe: nn.Linear, features: Tensor) -> Tensor:
    """float64 [n, classes]."""
    return torch.cat([probe(rows.double()) for rows in torch.split(features, ROWS_AT_ONCE)])


@torch.no_grad()
def masked_logits(features: Tensor, head: nn.Linear, rate: float, generator: torch.Generator) -> Tensor:
    """Logits [n, classes] without a random share `rate` of the units, the same for all images.

    The others are scaled by 1 / (1 - rate), as in inverted dropout. generator: a CPU's, so that masks are those of any device.
    """
    units = features.shape[1]
    kept = torch.ones(units)
    kept[torch.randperm(units, generator=generator)[: round(rate * units)]] = 0
    # Masking the weights of a unit is masking the unit, and takes no copy of the features.
    return F.linear(features, head.weight * kept.to(features.device) / (1 - rate), head.bias)


@torch.no_grad()
def mc_dropout(features: Tensor, head: nn.Linear, rate: float, passes: int, generator: torch.Generator) -> Tensor:
    """Log of the mean softmax over `passes` with dropout on the features, each image and pass with a mask of its own.

    float64 [n, classes]. Gal & Ghahramani 2016; the representation is computed once, since dropout acts behind it alone.
    """
    means = []
    for rows in torch.split(features, ROWS_AT_ONCE):
        each = (head(inverted_dropout(rows, rate, generator)).double().log_softmax(1) for _ in range(passes))
        means.append(functools.reduce(torch.logaddexp, each) - math.log(passes))
    return torch.cat(means)


def calibration_error(log_probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error of log-probabilities [n, classes]: Σ over bins of (images in it / n) · |accuracy - confidence|.

    Guo et al. 2017, with bins of equal width of the confidence, which is the largest probability; a bin has its upper edge.
    """
    confidence, predicted = log_probabilities.double().exp().max(1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)[1:-1]
    of_bin = torch.bucketize(confidence, edges)
    gap = (predicted == labels).double() - confidence
    sums = gap.new_zeros(bins).index_add_(0, of_bin, gap)
    return float(sums.abs().sum()) / len(labels)


def negative_log_likelihood(log_probabilities: Tensor, labels: Tensor) -> float:
    """Mean over images of -ln p(label), in nats."""
    return float(F.nll_loss(log_probabilities.double(), labels))
