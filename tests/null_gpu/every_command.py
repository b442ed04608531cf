"""Every command from its options to its exit code on a GPU that computes nothing; `test_null_gpu.py` runs this there."""

import json
from pathlib import Path

import pytest
import torch
from run_command import SMALLEST, script, stopped_at, tiny_weights, train

STEPS = ("optim.steps=6", "optim.milestones=[4]", "eval_every=2")
SEEDS = 'method.members=["seed=0,1"]'


@pytest.fixture(scope="module")
def options(small_glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("outputs")
    places = [f"data_dir={small_glyphs}", f"output_dir={folder}", tiny_weights(folder)]
    eager = ["device=cuda", "compile=false", "wandb.mode=disabled", "test_domain=0"]
    return [option for option in SMALLEST if not option.startswith("backbone.weights")] + [*eager, *STEPS, *places]


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["deterministic=true", "seed=2"],
        ["swad.enabled=true", "mixout=0.9", "precision=fp32"],
        ["compile=auto", "mixout=0.9", "warm_start=2", "seed=3"],
    ],
)
def test_a_run_is_interrupted_and_resumed(more: list[str], options: list[str]) -> None:
    stopped = stopped_at(3, *options, *more)
    assert stopped.returncode == 143, stopped.stderr
    resumed = train(*options, *more)
    assert resumed.returncode == 0, resumed.stderr
    assert "step 0/6" not in resumed.stdout
    assert "step 6/6" in resumed.stdout
    assert "which is slower" not in stopped.stdout + resumed.stdout  # nothing failed to compile or to be recorded


@pytest.mark.parametrize("method", ["model_soup", "greedy_soup", "ensemble_of_runs", "connectivity"])
def test_runs_are_combined(method: str, options: list[str]) -> None:
    kept = "keep=[erm-last,erm-last-logits,erm-iid,erm-iid-logits]"
    assert train(*options, kept, "-m", "seed=0,1", "dropout=0.5").returncode == 0
    done = script("combine.py", *options, kept, "dropout=0.5", SEEDS, f"method={method}")
    assert done.returncode == 0, done.stderr


def test_a_run_is_analysed(options: list[str]) -> None:
    assert train(*options).returncode == 0
    [output_dir] = [option for option in options if option.startswith("output_dir=")]
    [data_dir] = [option for option in options if option.startswith("data_dir=")]
    done = script("analyse.py", output_dir, data_dir, "device=cuda", "wandb.mode=disabled")
    assert done.returncode == 0, done.stderr


def test_the_benchmark_measures_everything(options: list[str], tmp_path: Path) -> None:
    done = script("benchmark.py", *options, f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "benchmark.json").read_text())
    assert [name for name, its in figures.items() if isinstance(its, str) and its.startswith("not measured")] == []
    assert figures["device"] == torch.cuda.get_device_name() == "null GPU"
    assert figures["images_in_gpu_memory"]
    parts = {"full step", "bare step", "step with Mixout", "step from host memory", "input", "weight average"}
    assert figures["device_and_host_seconds"].keys() == parts | {"optimiser"}
    assert figures["median_seconds"].keys() == parts | {"conventional step", "DomainBed-style step"}
