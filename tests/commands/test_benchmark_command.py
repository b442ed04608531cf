"""The benchmark measures and writes what it says; its forecast is the protocol's arithmetic."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from run_command import SMALLEST, TINY_NETWORK, script
from torch.utils.data import DataLoader

from vld.commands.benchmark import measure, outside
from vld.commands.benchmark.conventional import DecodedFiles, Examples, pytorch_s_defaults, training_transform
from vld.commands.benchmark.figures import Figures
from vld.commands.benchmark.forecast import EXPERIMENTS, evaluation_sizes, forecast
from vld.commands.benchmark.outside import images_per_second_beside, seconds_to_first_step
from vld.config.errors import UserError
from vld.data.catalog import CONTENTS


@pytest.mark.slow
def test_what_is_left_beside_busy_processes(small_glyphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way to wait beside none, one, … as many busy processes as there are cores; what cannot be measured says why."""
    monkeypatch.setattr(outside, "WAITS", {"as this command sets it": {}, "no turn": {"GOMP_SPINCOUNT": "0"}})
    monkeypatch.setattr(outside, "STEPS", 4)
    options = [
        "dataset=glyphs",
        f"data_dir={small_glyphs}",
        *TINY_NETWORK,
        "image_size=16",
        "batch_size=2",
        "test_domain=0",
    ]
    table = images_per_second_beside(options)
    assert table.keys() == outside.WAITS.keys()
    assert all([*rates] == [f"{n}" for n in range(len(os.sched_getaffinity(0)) + 1)] for rates in table.values())
    assert all(isinstance(rate, float) and rate > 0 for rates in table.values() for rate in rates.values())
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set())
    [refused] = images_per_second_beside([*options, "dropout=1"])["no turn"].values()
    assert refused == "dropout=1.0: must be in [0, 1)"


def test_benchmark_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: dict[str, dict[str, float | str]] = {"as it is": {"0": 7.0, "1": "killed"}}  # measured in the test above
    monkeypatch.setattr(measure, "images_per_second_beside", lambda _: rates)
    options = ["dataset=glyphs", *TINY_NETWORK, "image_size=16", "batch_size=2", "optim.steps=3", "test_domain=0"]
    done = script("benchmark.py", *options, f"data_dir={tmp_path}", f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert report["images_per_step"] == 6
    assert report["steps"] == 3
    medians, rates = report["median_seconds"], report["images_per_second"]
    assert medians.keys() == {
        "full step",
        "bare step",
        "input",
        "weight average",
        "step with Mixout",
        "conventional step",
    }
    assert all(value > 0 for value in medians.values())
    assert all(rate == 6 / medians[name] for name, rate in rates.items())
    assert report["mixout_step_to_bare_step"] == medians["step with Mixout"] / medians["bare step"]
    assert report["full_step_to_ceiling"] == medians["bare step"] / medians["full step"]
    assert report["conventional_step_to_full_step"] == medians["conventional step"] / medians["full step"]
    shares = report["share_of_the_training_time"]
    assert shares["weight average"] == medians["weight average"] / medians["full step"]
    checkpoint = report["checkpoint"]
    assert shares["checkpoint"] == checkpoint["seconds"] / (checkpoint["seconds"] + 300)
    assert checkpoint["bytes"] > 3 * 4 * 350_000  # the tiny network's weights, average and momentum
    assert report["images_per_second_beside_busy_processes"] == {"as it is": {"0": 7.0, "1": "killed"}}
    assert "images/s by the number of busy processes beside it, as it is: 0: 7, 1: killed" in done.stdout
    copying = report["seconds_for_wandb"]
    assert len(copying) == 3
    assert all(value > 0 for value in copying.values())
    assert report["share_of_wandb"] == {n: v / (10_000 * medians["full step"]) for n, v in copying.items()}
    evaluation = report["evaluation_images_per_second"]
    hours = report["paper_run_hours"]
    images = 600 + 3 * 120  # one domain of glyphs and the held-out parts of the others
    ours = 10_000 * medians["full step"] + 35 * 2 * images / evaluation["both networks in one pass"]
    usual = 10_000 * medians["conventional step"] + 35 * 3 * images / evaluation["conventional"]
    assert hours["ours"] == pytest.approx(ours / 3600)
    assert hours["conventional"] == pytest.approx(usual / 3600)
    assert hours["ratio"] == pytest.approx(usual / ours)
    per_core = report["input_images_per_second_and_core"]
    assert min(per_core.values()) > 0
    assert all(seconds > 1 for seconds in report["seconds_to_first_step"].values())
    assert report["peak_memory_bytes"]["host"] > 2e8
    assert [entry["name"] for entry in report["forecast"]] == [e.name for e in EXPERIMENTS]
    assert "times the conventional" in done.stdout


def test_each_figure_is_written_at_once_and_what_cannot_run_says_why(tmp_path: Path) -> None:
    """As without wandb; and when it is stopped in a later part."""
    said: list[str] = []
    figures = Figures(tmp_path / "benchmark.json", said.append)

    def without_wandb() -> None:
        raise ModuleNotFoundError("No module named 'wandb'")

    def stopped() -> None:
        raise KeyboardInterrupt

    figures.add(steps=3)
    assert figures.attempt("seconds_for_wandb", without_wandb) is None
    with pytest.raises(KeyboardInterrupt):
        figures.attempt("checkpoint", stopped)
    reason = "not measured: No module named 'wandb'"
    assert json.loads(figures.path.read_text()) == {"steps": 3, "seconds_for_wandb": reason}
    assert said == [f"seconds_for_wandb: {reason}"]


@pytest.mark.parametrize("option", ["recipe=lp_ft", "optim.warm_up=500"])
def test_a_training_that_is_measured_has_neither_warm_start_nor_warm_up(option: str, small_glyphs: Path) -> None:
    options = [*SMALLEST[:-1], "batch_size=2", f"data_dir={small_glyphs}", "test_domain=0", option, "device=cpu"]
    assert seconds_to_first_step(options) > 0


def test_the_benchmark_of_a_recipe_is_of_steps_in_which_everything_trains(small_glyphs: Path, tmp_path: Path) -> None:
    """And of one setting: of several, the last would have written over the others' figures."""
    places = (f"data_dir={small_glyphs}", f"output_dir={tmp_path}")
    done = script("benchmark.py", "--cfg", "job", "dataset=glyphs", "recipe=erm_plus_plus", *places)
    assert "warm_start: 0\n" in done.stdout and "warm_up: 0\n" in done.stdout
    refused = script("benchmark.py", "-m", "dataset=glyphs", "dropout=0,0.9", *places)
    assert refused.returncode == 2
    assert "benchmark.py measures one setting at a time" in refused.stderr and not list(tmp_path.iterdir())


def test_why_a_training_did_not_start() -> None:
    with pytest.raises(UserError, match="must be in"):
        seconds_to_first_step(["dropout=1"])


def test_loaders_are_waited_for_by_what_they_have_decoded(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(path)
    files = DecodedFiles(Examples([path] * 4, [0] * 4), training_transform(4))
    loader = iter(DataLoader(files, 2, num_workers=1))  # has both batches made without being asked
    files.wait_for(4)
    assert files._decoded.value == 4
    assert len(list(loader)) == 2


@pytest.mark.parametrize(("images", "chunks", "counted"), [(1200, 2, 1024), (300, 1, 300)])
def test_images_that_fill_up_a_chunk_are_not_counted(
    images: int, chunks: int, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(measure, "predict", lambda *_, at_most: asked.append(at_most))
    monkeypatch.setattr(measure, "timed", lambda work, _: work() or 1.0)
    monkeypatch.setattr(measure, "IMAGES_AT_ONCE", {"cpu": 512})
    usual = SimpleNamespace(batch_size=64, waiting=1, wait_until_full=lambda: None, evaluate=lambda _: None)
    rate, _ = measure.evaluation_rates([None], SimpleNamespace(images=range(images)), usual, torch.device("cpu"))  # type: ignore[arg-type,list-item]
    assert (set(asked), rate) == ({chunks}, counted)


def test_forecast_has_the_protocol_s_sums() -> None:
    """3,216 runs, 40.8 million steps, about 4.75 billion training images; evaluations on the small datasets 1.2 billion."""
    runs = [experiment.runs * len(experiment.datasets) for experiment in EXPERIMENTS]
    assert sum(runs) == 3216
    assert sum(n * e.steps for n, e in zip(runs, EXPERIMENTS, strict=True)) == 40_800_000
    never, instantly = 1e30, lambda *_: 0
    trained = sum(entry.hours for entry in forecast(1.0, never, instantly)) * 3600
    assert trained == pytest.approx(4.75e9, rel=0.01)
    small = [entry for entry in forecast(never, 1.0, instantly) if entry.name != "figure4"]
    assert sum(entry.hours for entry in small) * 3600 == pytest.approx(1.2e9, rel=0.1)


def test_the_conventional_step_is_pytorch_s_default() -> None:
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # as `set_up` leaves it
    try:
        with pytorch_s_defaults():
            assert torch.backends.cudnn.enabled
            assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.enabled
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def test_forecast_of_disk() -> None:
    [figure5] = [entry for entry in forecast(1, 1, lambda images, classes: images * classes) if entry.name == "figure5"]
    held_out = sum(n // 5 for n in CONTENTS["vlcs"].domains.values())
    whole = sum(CONTENTS["vlcs"].domains.values()) / 4 + held_out * 3 / 4
    assert figure5.gigabytes == pytest.approx(288 * whole * 5 / 1e9, rel=1e-3)
    assert evaluation_sizes([100, 50], 15) == ((15 + 10) + (60 + 40) / 2, 75 + 15)
