"""The evaluations of a run so far: the rows of `metrics.jsonl`, and the scores from which steps are selected."""

import math
from typing import Any

from vld.config.names import ACCURACIES
from vld.training.evaluation import Count, Scores, select
from vld.training.loop import Evaluation


class Record:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.history: dict[str, list[tuple[int, Scores]]] = {}
        """Per method: its scores at every evaluation step since it began."""

    def add(self, evaluation: Evaluation) -> None:
        self.rows += metrics_rows(evaluation)
        for method, scores in evaluation.scores.items():
            self.history.setdefault(method, []).append((evaluation.step, scores))

    def selected_step(self, method: str, selection: str) -> int | None:
        """The step that the method's own scores select so far; None before the method begins, or without held-out images."""
        scored = self.history.get(method, [])
        return select(scored, selection) if scored and selection in scored[-1][1].selections else None

    def selected_rows(self) -> list[dict[str, Any]]:
        """Per method and selection: the selected step and its accuracies."""
        rows = []
        for method, scored in self.history.items():
            for selection in scored[-1][1].selections:
                step = select(scored, selection)
                scores = dict(scored)[step]
                rows.append({"method": method, "selection": selection, "step": step, **accuracies(scores)})
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        counts = {
            method: [
                (
                    step,
                    scores.test_domain,
                    [(*key, count.correct, count.images) for key, count in scores.counts.items()],
                )
                for step, scores in scored
            ]
            for method, scored in self.history.items()
        }
        return {"rows": self.rows, "counts": counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])
        self.history = {
            method: [
                (step, Scores(test_domain, {(domain, part): Count(hits, of) for domain, part, hits, of in counts}))
                for step, test_domain, counts in scored
            ]
            for method, scored in state["counts"].items()
        }


def metrics_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row per method; accuracies are fractions."""
    return [
        {
            "step": evaluation.step,
            "method": method,
            **accuracies(scores),
            "domain_acc": scores.domain_acc,
            "train_loss": evaluation.train_loss,
            "val_loss": finite_or_none(evaluation.val_loss),
            "lr": evaluation.lr,
            "feature_sq_norm": finite_or_none(evaluation.health.feature_sq_norm),
            "top_class_share": evaluation.health.top_class_share,
            "seconds": round(evaluation.seconds, 3),
            "train_seconds": round(evaluation.train_seconds, 3),
        }
        for method, scores in evaluation.scores.items()
    ]


def finite_or_none(value: float) -> float | None:
    """None for infinities, which JSON lacks: a network from scratch may overflow when evaluated before its first step."""
    return value if math.isfinite(value) else None


def accuracies(scores: Scores) -> dict[str, Any]:
    """Of several domains left out at once, each one's, too."""
    each = {"ood_by_domain": scores.ood_by_domain} if len(scores.left_out) > 1 else {}
    return {name: getattr(scores, name) for name in ACCURACIES} | each
