"""The built wheel works away from the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_command import REPOSITORY

pytestmark = pytest.mark.slow


def test_the_wheel_runs_elsewhere(tmp_path: Path) -> None:
    """Its own package directory comes first on the path, so that nothing of the checkout is used."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, REPOSITORY],
        check=True,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("vld-*.whl")
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel],
        check=True,
        capture_output=True,
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def vld(command: str, *options: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, site / f"bin/vld-{command}", *options],
            cwd=elsewhere,
            env=os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    where = subprocess.run(
        [sys.executable, "-c", "import vld.commands.main; print(vld.commands.main.conf_dir())"],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()) == site / "vld/conf"
    done = vld(
        "train",
        "dataset=glyphs",
        "test_domain=0",
        "backbone=resnet18",
        "backbone.weights=none",
        "image_size=16",
        "batch_size=2",
        "optim.steps=1",
    )
    assert done.returncode == 0, done.stderr
    assert len(list((elsewhere / "outputs/runs/glyphs").rglob("result.json"))) == 1
    assert (elsewhere / "data/glyphs/print/A").is_dir()
    assert vld("train", "dataset=nothing").returncode == 2
    done = vld("report")
    assert done.returncode == 0, done.stderr
    assert "ERM" in (elsewhere / "outputs/report/index.html").read_text()
