"""A run's directory `<output_dir>/runs/<dataset>/<test_domain>/<run_id>/`: the truth about the run."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from vld.errors import UserError
from vld.evaluation import Scores, select
from vld.runs.atomic import write_atomically, write_json, write_text
from vld.settings import SELECTIONS
from vld.training import Evaluation


@dataclass(frozen=True)
class RunDirectory:
    path: Path

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def failure_file(self) -> Path:
        return self.path / "failure.json"

    def result(self) -> dict[str, Any] | None:
        """What `result.json` says, None where the run is not finished. Raises `UserError` where it is damaged."""
        return read_json(self.result_file) if self.result_file.exists() else None

    def start(self, identity: dict[str, Any], other_settings: dict[str, Any]) -> None:
        """Make the directory, with the settings that make the run's identity and, separately, those that do not.

        What an attempt that was not finished left there is removed: it is not this attempt's.
        """
        for left in [*self.path.glob("*.safetensors"), *self.path.glob(".*"), self.path / "metrics.jsonl"]:
            left.unlink(missing_ok=True)
        write_text(
            self.path / "config.yaml",
            yaml.safe_dump({"identity": identity, "other": other_settings}, sort_keys=True, allow_unicode=True),
        )
        self.failure_file.unlink(missing_ok=True)

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def write_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        write_atomically(self.path / f"{name}.safetensors", lambda temporary: save_file(plain, temporary))

    def finish(self, result: dict[str, Any]) -> None:
        """The last thing written: its presence means that the run is finished."""
        write_json(self.result_file, result)

    def fail(self, failure: dict[str, Any]) -> None:
        write_json(self.failure_file, failure)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); move its directory away and run again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged (not a JSON object); move its directory away and run again")
    return value


def metrics_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row per method; accuracies are fractions."""
    return [
        {
            "step": evaluation.step,
            "method": method,
            **accuracies(scores),
            "domain_acc": scores.domain_acc,
            "train_loss": evaluation.train_loss,
            "lr": evaluation.lr,
            "feature_sq_norm": finite_or_none(evaluation.health.feature_sq_norm),
            "top_class_share": evaluation.health.top_class_share,
            "seconds": round(evaluation.seconds, 3),
        }
        for method, scores in evaluation.scores.items()
    ]


def finite_or_none(value: float) -> float | None:
    """JSON has no infinities: a network from scratch, evaluated before its first step, may well overflow."""
    return value if math.isfinite(value) else None


def accuracies(scores: Scores) -> dict[str, float]:
    return {name: getattr(scores, name) for name in ("iid_acc", "ood_acc", "ood_in_acc", "ood_out_acc")}


def selected_rows(history: dict[str, list[tuple[int, Scores]]]) -> list[dict[str, Any]]:
    """Per method and selection: the step chosen by the method's own scores, and its accuracies."""
    rows = []
    for method, scored in history.items():
        for selection in SELECTIONS:
            step = select(scored, selection)
            rows.append({"method": method, "selection": selection, "step": step, **accuracies(dict(scored)[step])})
    return rows
