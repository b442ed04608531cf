"""Evaluates the selected steps on all images if the learning curve was evaluated on a subset of them (protocol: DomainNet).

The weights of the selected steps and of the last one are kept while the run trains (`vld.runs.keep`) and evaluated at its end.
An ensemble of checkpoints has no weights: its numbers are those of the subset.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vld.config.names import KEPT_WEIGHTS, WITH_WEIGHTS
from vld.runs.directory import RunDirectory
from vld.runs.keep import LOGITS, kept_step, write_logits
from vld.runs.record import accuracies
from vld.training.evaluation import EvaluationLabels, score

ALL, SUBSET = "all", "curve"


def kept_while_training(keep: Sequence[str]) -> list[str]:
    """What a run keeps while it trains: the weights to evaluate, and the entries of `keep` except their logits."""
    given = [f"{name}{LOGITS}" for name in KEPT_WEIGHTS]
    return list(dict.fromkeys([*KEPT_WEIGHTS, *(name for name in keep if name not in given)]))


def evaluate_in_full(
    rows: Sequence[dict[str, Any]],
    directory: RunDirectory,
    keep: Sequence[str],
    labels: EvaluationLabels,
    predict: Callable[[Path], Tensor],
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """`rows` (a method, a selection and its step each) with the accuracies on all images; `evaluated_on` says which have them.

    Those rows also get `domain_acc`. Writes the logits that `keep` lists. A row whose weights are missing, since an interrupted
    attempt had selected another step, keeps the subset's accuracies. predict: the logits of all images (`labels`) from a file of
    weights.
    """
    steps = sorted({(row["method"], row["step"]) for row in rows if row["method"] in WITH_WEIGHTS})
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for number, (method, step) in enumerate(steps):
        progress(number, len(steps))
        names = [f"{method}-{row['selection']}" for row in rows if (row["method"], row["step"]) == (method, step)]
        paths = [directory.path / f"{name}.safetensors" for name in names]
        path = next((path for path in paths if kept_step(path) == step), None)
        if path is None:
            continue
        logits = predict(path)
        scores = score(logits, labels)
        found[method, step] = {**accuracies(scores), "domain_acc": scores.domain_acc, "evaluated_on": ALL}
        for name in names:
            if f"{name}{LOGITS}" in keep:
                write_logits(directory, f"{name}{LOGITS}", logits, step, labels)
    return [row | found.get((row["method"], row["step"]), {"evaluated_on": SUBSET}) for row in rows]
