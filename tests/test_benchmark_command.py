"""The benchmark measures and writes what it says."""

import json
import subprocess
import sys
from pathlib import Path

from commands import REPOSITORY


def test_benchmark_writes_its_figures(tmp_path: Path) -> None:
    options = (
        "dataset=glyphs backbone=resnet18 backbone.weights=none image_size=16 batch_size=2 optim.steps=4 test_domain=0"
    )
    done = subprocess.run(
        [
            *(sys.executable, REPOSITORY / "scripts/benchmark.py", *options.split()),
            *(f"data_dir={tmp_path}", f"output_dir={tmp_path}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert report["images_per_step"] == 6
    medians, shares = report["median_seconds"], report["share_of_the_training_time"]
    assert all(value > 0 for value in medians.values())
    assert shares["weight average"] == medians["weight average"] / medians["training step"]
    assert shares["checkpoint"] == medians["checkpoint"] / (medians["checkpoint"] + 300)
    assert report["checkpoint_bytes"] > 3 * 4 * 11_000_000  # resnet18's weights, average and momentum
    reading = report["seconds_to_read_finished_runs"]
    assert reading["load_results"] > reading["json alone"] > 0
    copying = report["seconds_for_wandb"]
    assert len(copying) == 3
    assert all(value > 0 for value in copying.values())
    assert report["share_of_wandb"] == {n: v / (10_000 * medians["training step"]) for n, v in copying.items()}
    assert "of the training time" in done.stdout
