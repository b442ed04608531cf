"""Several jobs at a time on one machine."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import train

from vld.device import keep_to_one_gpu

OPTIONS = [
    "-m",
    "dataset=glyphs",
    "test_domain=0,1,2",
    "backbone=resnet18",
    "backbone.weights=none",
    "image_size=16",
    "batch_size=2",
    "optim.steps=2",
    "eval_every=2",
    "keep=[]",
]


def results(output_dir: Path) -> dict[str, Any]:
    return {
        path.parent.name: json.loads(path.read_text())["results"] for path in (output_dir / "runs").rglob("result.json")
    }


def test_jobs_side_by_side_come_to_the_same(small_glyphs: Path, tmp_path: Path) -> None:
    """A failing one among them stops no other; each line says whose it is; one table ends it."""
    in_turn = train(*OPTIONS, f"data_dir={small_glyphs}", f"output_dir={tmp_path / 'a'}")
    assert in_turn.returncode == 0, in_turn.stderr
    # The first run's directory holds what is no run: its job is refused, the others are not.
    chalk = next((tmp_path / "a/runs/glyphs/chalk").iterdir()).name
    broken = tmp_path / "b/runs/glyphs/chalk" / chalk
    broken.mkdir(parents=True)
    (broken / "config.yaml").write_text("identity: {seed: 5}\n")
    launcher = ("hydra/launcher=parallel", "hydra.launcher.n_jobs=2")
    together = train(*OPTIONS, *launcher, f"data_dir={small_glyphs}", f"output_dir={tmp_path / 'b'}")
    assert together.returncode == 1, together.stdout + together.stderr
    expected = results(tmp_path / "a")
    assert len(expected) == 3
    assert results(tmp_path / "b") == {name: rows for name, rows in expected.items() if name != chalk}
    for job, domain in enumerate(("mosaic", "neon"), 1):
        assert re.search(rf"^\[{job}\] {domain}  step 2/2 ", together.stdout, re.MULTILINE)
    assert together.stdout.count("┏") == 1
    assert "failed: " in together.stdout
    assert chalk in together.stdout.split("┏")[1]


@pytest.mark.parametrize(
    ("visible", "number", "expected"),
    [(None, 1, "1"), (None, 5, "1"), ("4,6,7", 1, "6"), ("GPU-ab,GPU-cd", 2, "GPU-ab"), ("3", 1, "3")],
)
def test_a_process_keeps_to_one_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, number: int, expected: str
) -> None:
    """Of those that it may see; one that sees a single GPU keeps to that."""
    if visible is None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # noted, so that it is as before in the end
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(visible.split(",")) if visible else 4)
    keep_to_one_gpu(number)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_a_gpu_that_is_in_use_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's second job: CUDA does not look at the variable again."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    keep_to_one_gpu(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
