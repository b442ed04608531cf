"""The numbers of a small run under the version of the protocol, to notice any change of them.

If a change of the numbers is wanted, raise `vld.PROTOCOL_VERSION` and write the file anew:
PYTHONPATH=tests python tests/training/test_golden.py
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import make_batches, make_evaluation_set, make_model, settings

from vld import PROTOCOL_VERSION
from vld.config.settings import AveragingConfig, EnsembleConfig
from vld.runs.record import metrics_rows
from vld.training.loop import Trajectory, train

GOLDEN = Path(__file__).parents[1] / "golden.jsonl"


def rows() -> list[dict[str, Any]]:
    config = settings(steps=30, eval_every=10, averaging=AveragingConfig(5), ensemble=EnsembleConfig(5, 5))
    evaluations = train(Trajectory(make_model(), config), make_batches(), make_evaluation_set())
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "train_seconds")}
        for evaluation in evaluations
        for row in metrics_rows(evaluation)
    ]


def numbers_in(file: Path) -> tuple[int, list[dict[str, Any]]]:
    """The version of the protocol that the file's first line names, and the numbers under it."""
    first, *rest = (json.loads(line) for line in file.read_text().splitlines())
    return first["protocol_version"], rest


def text_of(there: int, golden: list[dict[str, Any]], new: list[dict[str, Any]]) -> str:
    """What the file is to hold. Other numbers than those that are there need another version of the protocol."""
    if new != golden and there == PROTOCOL_VERSION:
        sys.exit(f"these are not the numbers of protocol version {there}: raise vld.PROTOCOL_VERSION first")
    return "".join(json.dumps(row) + "\n" for row in [{"protocol_version": PROTOCOL_VERSION}, *new])


def test_numbers_of_a_small_run() -> None:
    version, golden = numbers_in(GOLDEN)
    assert version == PROTOCOL_VERSION
    assert [(row["step"], row["method"]) for row in golden] == [
        (step, method)
        for step in (0, 10, 20, 30)
        for method in ("erm", "weight_averaging", "ensemble")
        if step or method == "erm"
    ]
    for row, expected in zip(rows(), golden, strict=True):
        assert row.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, float):  # other processors round otherwise
                assert row[key] == pytest.approx(value, rel=1e-3), (row["step"], row["method"], key)
            else:
                assert row[key] == value


def test_other_numbers_need_another_version() -> None:
    version, golden = numbers_in(GOLDEN)
    assert text_of(version, golden, golden) == GOLDEN.read_text()
    with pytest.raises(SystemExit, match=r"raise vld\.PROTOCOL_VERSION"):
        text_of(version, golden, golden[1:])
    first, *rest = text_of(version - 1, golden, golden[1:]).splitlines()
    assert json.loads(first) == {"protocol_version": PROTOCOL_VERSION}
    assert len(rest) == len(golden) - 1


if __name__ == "__main__":
    GOLDEN.write_text(text_of(*numbers_in(GOLDEN), rows()))
