"""The quantities of a finished run's network: rank of the features, a fresh probe, masks, dropout left on, calibration."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vld.data.domains import left_out
from vld.data.images import Dataset
from vld.data.split import split_indices
from vld.data.views import EvaluationViews
from vld.model.classifier import Classifier
from vld.runs.quantities import MASKED, QUANTITIES, SIDES
from vld.training.evaluation import EvaluationLabels, EvaluationSet, representations, score
from vld.training.representation import (
    BINS,
    PROBE_ITERATIONS,
    PROBE_L2,
    calibration_error,
    effective_rank,
    linear_probe,
    masked_logits,
    mc_dropout,
    negative_log_likelihood,
    probe_logits,
)

SEED = 0
"""Of masks and of dropout."""
MASKS = 10
"""For each share of masked units."""
PASSES = 20
"""With dropout left on."""
PROBE_IMAGES = 20_000
"""At most, for training the probe: an equal share of each training domain."""
CONSTANTS = {
    "seed": SEED,
    "masked_rates": list(MASKED),
    "masks": MASKS,
    "bins": BINS,
    "passes": PASSES,
    "probe_l2": PROBE_L2,
    "probe_iterations": PROBE_ITERATIONS,
    "probe_images_at_most": PROBE_IMAGES,
}
Pair = tuple[float, float]
"""i.i.d. and o.o.d."""


def analysis_of(
    model: Classifier,
    dataset: Dataset,
    evaluation: EvaluationSet,
    split_seed: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """The quantities of a network that is evaluated on these images of the dataset, and the constants behind them.

    i.i.d. values are unweighted means over the training domains' *out* parts, o.o.d. values
    are over the whole left-out domain; the effective rank is of all those images together. Raises `FloatingPointError` for a
    representation that is not finite.
    """
    test_domain, device = evaluation.test_domain, evaluation.labels.device
    views, labels = _probe_images(dataset, test_domain, split_seed, device)
    total = len(evaluation.images) + len(views)
    features = _features(model, evaluation.images, lambda done: progress(done, total))
    to_learn = _features(model, views, lambda done: progress(len(features) + done, total))
    if not (features.isfinite().all() and to_learn.isfinite().all()):
        raise FloatingPointError("the representation is not a number")
    outside = torch.ones(len(features), dtype=torch.bool, device=device)
    for rows in evaluation.held_out:
        outside[rows] = False
    probe = linear_probe(to_learn, labels, len(dataset.classes))
    quantities = _quantities(model, features, evaluation) | {
        "effective_rank": (effective_rank(features[~outside]), effective_rank(features[outside])),
        "probe_acc": _accuracies(probe_logits(probe, features), evaluation),
    }
    return {
        **{side: {name: quantities[name][i] for name in QUANTITIES} for i, side in enumerate(SIDES)},
        "features": features.shape[1],
        "images": {"iid": int((~outside).sum()), "ood": int(outside.sum()), "probe": len(views)},
        "constants": CONSTANTS,
    }


def _quantities(model: Classifier, features: Tensor, evaluation: EvaluationLabels) -> dict[str, Pair]:
    """Those of the network's own last layer."""
    with torch.no_grad():
        logits = model.head(features)
    found = {"acc": _accuracies(logits, evaluation)}
    masks = torch.Generator().manual_seed(SEED)
    for rate, name in MASKED.items():
        accuracies = [_accuracies(masked_logits(features, model.head, rate, masks), evaluation) for _ in range(MASKS)]
        iid, ood = zip(*accuracies, strict=True)
        found[name] = statistics.fmean(iid), statistics.fmean(ood)
    generator = torch.Generator(features.device).manual_seed(SEED)
    passes = mc_dropout(features, model.head, model.dropout.rate, PASSES, generator)
    found["mc_acc"] = _accuracies(passes, evaluation)
    for prefix, log_probabilities in (("", logits.double().log_softmax(1)), ("mc_", passes)):
        found[f"{prefix}ece"] = _over_domains(calibration_error, log_probabilities, evaluation)
        found[f"{prefix}nll"] = _over_domains(negative_log_likelihood, log_probabilities, evaluation)
    return found


def _probe_images(
    dataset: Dataset, test_domain: str, split_seed: int, device: torch.device
) -> tuple[EvaluationViews, Tensor]:
    """Evaluation views of the *in* part of the training domains, and their classes, int64 [n].

    At most an equal share of `PROBE_IMAGES` of each domain: a fixed random choice, since the split has shuffled them.
    """
    outside = left_out(test_domain, dataset.sizes)
    share = PROBE_IMAGES // (len(dataset.domains) - len(outside))
    chosen = {
        i: torch.from_numpy(split_indices(len(domain.labels), i, split_seed)[0][:share])
        for i, domain in enumerate(dataset.domains)
        if domain.name not in outside
    }
    views = EvaluationViews([dataset.domains[i].evaluation for i in chosen], list(chosen.values()), device)
    return views, torch.cat([dataset.domains[i].labels[rows] for i, rows in chosen.items()]).to(device)


def _features(model: Classifier, views: EvaluationViews, progress: Callable[[int], None]) -> Tensor:
    """The penultimate representation of all images, float32 [n, d], before dropout."""
    features: list[Tensor] = []
    done = 0
    for [chunk] in representations([model], views):
        features.append(chunk)
        done += len(chunk)
        progress(done)
    return torch.cat(features)


def _accuracies(logits: Tensor, evaluation: EvaluationLabels) -> Pair:
    scores = score(logits, evaluation)
    return float(scores.iid), scores.ood_acc


def _over_domains(
    quantity: Callable[[Tensor, Tensor], float], log_probabilities: Tensor, evaluation: EvaluationLabels
) -> Pair:
    """An average over images, of each domain alike."""
    rows: dict[str, slice] = {}
    for part in evaluation.parts:  # both parts of a left-out domain, one after the other
        rows[part.domain] = slice(rows[part.domain].start if part.domain in rows else part.start, part.stop)
    values = {domain: quantity(log_probabilities[its], evaluation.labels[its]) for domain, its in rows.items()}
    ood = [values.pop(domain) for domain in left_out(evaluation.test_domain, [*values])]
    return statistics.fmean(values.values()), statistics.fmean(ood)
