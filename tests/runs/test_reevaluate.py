"""A learning curve on a fixed part of the images: selected by it, reported in full."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_command import REPOSITORY, TINY_NETWORK, train
from safetensors.torch import load_file

from vld.data.glyphs import draw_glyphs
from vld.runs.reevaluate import evaluate_in_full, kept_while_training

OPTIONS = [
    "dataset=glyphs",
    "test_domain=chalk",
    *TINY_NETWORK,
    "image_size=16",
    "batch_size=4",
    "dropout=0.5",
    "optim.steps=12",
    "eval_every=3",
    "averaging.start=3",
    "ensemble.start=3",
    "ensemble.every=3",
    "optim.lr=0.01",
    "keep=[erm-last-logits,erm-iid-logits,ensemble-last-logits,weight_averaging-iid]",
]
LIMIT = 5


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with two letters, twenty of each in a domain: 8 images in an out part, 32 in an in part."""
    data_dir = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as few:  # what an image holds depends on its own name alone
        few.setattr("vld.data.glyphs.CLASSES", ("A", "E"))
        few.setattr("vld.data.glyphs.IMAGES_PER_CLASS", 20)
        draw_glyphs(data_dir / "glyphs")
    return data_dir


@pytest.fixture(scope="module")
def runs(glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run directories of the same run, evaluated in full and on a subset."""
    directories = {}
    for name, more in (("full", []), ("part", [f"dataset.curve_images={LIMIT}"])):
        output_dir = tmp_path_factory.mktemp(name)
        done = train(*OPTIONS, *more, f"data_dir={glyphs}", f"output_dir={output_dir}")
        assert done.returncode == 0, done.stdout + done.stderr
        [directories[name]] = (output_dir / "runs/glyphs/chalk").iterdir()
    return directories


def result(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "result.json").read_text())


def metrics(run_dir: Path) -> dict[tuple[str, int], dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {(row["method"], row["step"]): row for row in rows}


ACCURACIES = ("iid_acc", "ood_acc", "ood_in_acc", "ood_out_acc")


def test_the_curve_counts_the_limited_images(runs: dict[str, Path]) -> None:
    for row in metrics(runs["part"]).values():
        assert (row["iid_acc"] * 3 * LIMIT) == pytest.approx(round(row["iid_acc"] * 3 * LIMIT))
        assert (row["ood_acc"] * 5 * LIMIT) == pytest.approx(round(row["ood_acc"] * 5 * LIMIT))


def test_selected_steps_have_the_accuracies_of_an_evaluation_in_full(runs: dict[str, Path]) -> None:
    """The step that the part's curve selects, with the numbers that the full curve has there."""
    full, part = metrics(runs["full"]), metrics(runs["part"])
    rows = result(runs["part"])["results"]
    assert len(rows) == 9
    assert any(part[key][name] != full[key][name] for key in full for name in ACCURACIES)  # else both would do
    for row in rows:
        method, step = row["method"], row["step"]
        if method == "ensemble":
            assert row["evaluated_on"] == "curve"
            expected = part[method, step]
        else:
            assert row["evaluated_on"] == "all"
            expected = full[method, step]
        assert {name: row[name] for name in ACCURACIES} == {name: expected[name] for name in ACCURACIES}
        if row["selection"] == "iid":
            curve = {s: r["iid_acc"] for (m, s), r in part.items() if m == method}
            assert step == min(s for s, acc in curve.items() if acc == max(curve.values()))
    assert all("evaluated_on" not in row for row in result(runs["full"])["results"])


def test_what_is_kept_is_what_was_asked_for(runs: dict[str, Path]) -> None:
    full, part = runs["full"], runs["part"]
    assert sorted(path.name for path in part.glob("*.safetensors")) == sorted(
        p.name for p in full.glob("*.safetensors")
    )
    one, other = (load_file(run / "erm-last-logits.safetensors") for run in (full, part))
    assert torch.equal(one["logits"], other["logits"])
    assert torch.equal(one["labels"], other["labels"])
    assert len(load_file(part / "ensemble-last-logits.safetensors")["logits"]) == (3 + 5) * LIMIT


def test_interrupted_while_it_is_evaluated_in_full_it_ends_the_same(
    runs: dict[str, Path], glyphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*OPTIONS, f"dataset.curve_images={LIMIT}", f"data_dir={glyphs}", f"output_dir={tmp_path}"]

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate_in_full(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("vld.runs.run.evaluate_in_full", interrupted)
        stopped = train(*options)
    assert stopped.returncode == 128 + signal.SIGTERM
    [run_dir] = (tmp_path / "runs/glyphs/chalk").iterdir()
    assert (run_dir / "checkpoint.pt").exists()
    assert not (run_dir / "result.json").exists()
    done = train(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming at step" in done.stdout
    assert result(run_dir)["results"] == result(runs["part"])["results"]


@pytest.mark.slow
def test_killed_when_all_is_evaluated_it_ends_the_same(runs: dict[str, Path], glyphs: Path, tmp_path: Path) -> None:
    """Just before the result is written: the weights to evaluate have to be there still."""
    options = [*OPTIONS, f"dataset.curve_images={LIMIT}", f"data_dir={glyphs}", f"output_dir={tmp_path}"]
    code = "import os\nfrom vld.commands import main as cli\nfrom vld.runs.directory import RunDirectory\n"
    code += "RunDirectory.finish = lambda *_: os._exit(9)\ncli.train()\n"
    killed = subprocess.run([sys.executable, "-c", code, *options], cwd=REPOSITORY, check=False)
    assert killed.returncode == 9
    done = train(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ensemble (subset)" in done.stdout
    assert "erm (subset)" not in done.stdout
    [run_dir] = (tmp_path / "runs/glyphs/chalk").iterdir()
    assert result(run_dir)["results"] == result(runs["part"])["results"]


def test_kept_meanwhile() -> None:
    meanwhile = kept_while_training(["erm-last", "erm-last-logits", "ensemble-iid-logits"])
    assert {f"{m}-{s}" for m in ("erm", "weight_averaging") for s in ("iid", "last", "oracle_step")} < set(meanwhile)
    assert "ensemble-iid-logits" in meanwhile
    assert "erm-last-logits" not in meanwhile  # of all images: written when they have been evaluated
    assert len(meanwhile) == len(set(meanwhile))
