"""The steps that stand for a run, evaluated in full, where its learning curve was evaluated on a subset of the images.

Of a curve on a fixed subset (protocol: DomainNet), the weights of the selected steps and the last are kept while the run trains
(`vld.runs.keep`) and evaluated on all images when it has. An ensemble of checkpoints has no weights: it stays with the subset.
"""

from collections.abc import Callable, Sequence
from typing import Any

from safetensors.torch import load_file

from vld.config.names import KEPT_WEIGHTS, WITH_WEIGHTS
from vld.model.classifier import Classifier
from vld.runs.directory import RunDirectory
from vld.runs.keep import LOGITS, kept_step, write_logits
from vld.runs.record import accuracies
from vld.training.evaluation import EvaluationSet, predict, score

ALL, SUBSET = "all", "curve"


def kept_while_training(keep: Sequence[str]) -> list[str]:
    """What a run keeps while it trains: the weights to evaluate, and of `keep` all but the logits that this then gives."""
    given = [f"{name}{LOGITS}" for name in KEPT_WEIGHTS]
    return list(dict.fromkeys([*KEPT_WEIGHTS, *(name for name in keep if name not in given)]))


def evaluate_in_full(
    rows: Sequence[dict[str, Any]],
    directory: RunDirectory,
    keep: Sequence[str],
    model: Classifier,
    images: EvaluationSet,
    check: Callable[[], None],
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """`rows` (a method, a selection and its step each) with the accuracies on all `images`; `evaluated_on` says which have them.

    Those rows get `domain_acc`, too. Writes the logits that `keep` asks for. A row whose weights are not there, since an attempt
    that was interrupted had chosen another step, keeps the subset's. Loads other weights into `model`.
    """
    steps = sorted({(row["method"], row["step"]) for row in rows if row["method"] in WITH_WEIGHTS})
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for number, (method, step) in enumerate(steps):
        progress(number, len(steps))
        standing = [row["selection"] for row in rows if (row["method"], row["step"]) == (method, step)]
        paths = [directory.path / f"{method}-{selection}.safetensors" for selection in standing]
        path = next((path for path in paths if kept_step(path) == step), None)
        if path is None:
            continue
        model.load_state_dict(load_file(path))
        prediction = predict([model], images, check)[0]
        scores = score(prediction.logits, images)
        found[method, step] = accuracies(scores) | {"domain_acc": scores.domain_acc}
        for selection in standing:
            if (name := f"{method}-{selection}{LOGITS}") in keep:
                write_logits(directory, name, prediction.logits, step, images)
    return [
        row
        | found.get((row["method"], row["step"]), {})
        | {"evaluated_on": ALL if (row["method"], row["step"]) in found else SUBSET}
        for row in rows
    ]
