"""The numbers of a small run, to notice any change of them.

If a change of the numbers is wanted, raise `vld.PROTOCOL_VERSION` and write the file anew: python tests/test_golden.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import SEED, make_batches, make_evaluation_set, make_model, settings

from vld.runs.record import metrics_rows
from vld.settings import AveragingConfig, EnsembleConfig
from vld.training import Trajectory, train

GOLDEN = Path(__file__).parent / "golden.jsonl"


def rows() -> list[dict[str, Any]]:
    trajectory = Trajectory(
        make_model(),
        settings(steps=30),
        eval_every=10,
        averaging=AveragingConfig(start=5),
        ensemble=EnsembleConfig(start=5, every=5),
    )
    evaluations = train(trajectory, make_batches(), make_evaluation_set(), seed=SEED)
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "train_seconds")}
        for evaluation in evaluations
        for row in metrics_rows(evaluation)
    ]


def test_numbers_of_a_small_run() -> None:
    golden = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
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


if __name__ == "__main__":
    GOLDEN.write_text("".join(json.dumps(row) + "\n" for row in rows()))
