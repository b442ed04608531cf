"""A custom method, added to a copy of the sources as the README says: every line that it takes is here."""

import json
from pathlib import Path

import pandas as pd
import pytest
from run_command import TINY_NETWORK, changed_copy
from wandb_server import read_offline

# (file, what stands there, what the method puts before it)
ADDED = (
    (
        "vld/config/names.py",
        '    Method("ensemble", ',
        '    Method("moving_average", "moving average", "#F0E442", "v", has_weights=True),\n',
    ),
    (
        "vld/training/methods.py",
        "METHODS_ALONG: dict",
        """class MovingAverage(WeightAverage):
    def after_step(self, step: int) -> None:
        self.members = min(self.members, 3)  # the latest counts a quarter
        super().after_step(step)


""",
    ),
    ("vld/training/methods.py", "    ENSEMBLE: Check", '    "moving_average": MovingAverage,\n'),
)


@pytest.mark.slow
def test_a_method_of_one_s_own(tmp_path: Path, small_glyphs: Path) -> None:
    """It is trained, selected, evaluated in full, kept, put first in the table, delivered and reported like the others."""
    run = changed_copy(tmp_path, *((name, before, added + before) for name, before, added in ADDED))
    done = run(
        "train.py",
        f"output_dir={tmp_path}",
        *f"dataset=glyphs data_dir={small_glyphs} test_domain=chalk".split(),
        *TINY_NETWORK,
        *("image_size=16", "batch_size=2", "optim.steps=6", "eval_every=3", "dataset.curve_images=1"),
        *("method=moving_average", "keep=[moving_average-iid,moving_average-last-logits]", "wandb.mode=offline"),
    )
    assert done.returncode == 0, done.stderr
    [first, *_] = [line for line in done.stdout.splitlines() if "chalk" in line and "│" in line]
    [directory] = (tmp_path / "runs/glyphs/chalk").iterdir()
    result = json.loads((directory / "result.json").read_text())
    mine = [row for row in result["results"] if row["method"] == "moving_average"]
    assert [row["selection"] for row in mine] == ["iid", "last", "oracle_step"]
    assert {row["evaluated_on"] for row in mine} == {"all"}
    assert f"{100 * mine[0]['ood_acc']:.1f}" in first
    assert {"moving_average-iid.safetensors", "moving_average-last-logits.safetensors"} <= {
        path.name for path in directory.iterdir()
    }
    assert [one for one in read_offline(tmp_path) if one["run_id"] == f"{directory.name}-moving_average"]

    assert run("report.py", f"output_dir={tmp_path}").returncode == 0
    table = pd.read_csv(tmp_path / "report/tables/results_glyphs.csv")
    [row] = table[table["name"] == "moving average"].to_dict("records")
    assert row["ood chalk"] == 100 * mine[0]["ood_acc"]
