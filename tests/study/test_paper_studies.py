"""Studies of the paper, small, from training to the figure in the report."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision
from run_command import TINY, TINY_NETWORK, script, tiny_weights, train

SMALL = ("image_size=32", "batch_size=1", "optim.steps=2", "eval_every=1", "optim.milestones=[1]", "dataset=glyphs")
ONE = ("seed=0", "test_domain=0,1")


@pytest.fixture
def places(small_glyphs: Path, tmp_path: Path) -> list[str]:
    return [f"data_dir={small_glyphs}", f"output_dir={tmp_path}"]


def tiny(folder: Path) -> list[str]:
    """What makes the tiny network, with weights of its own, of a study's."""
    return [
        "backbone.library=timm",
        *(f"backbone.{name}={TINY}" for name in ("name", "architecture")),
        tiny_weights(folder),
    ]


def test_figure_1_linear_connectivity(places: list[str], tmp_path: Path) -> None:
    options = ("study=figure1", *SMALL, *ONE, *tiny(tmp_path), *places)
    for done in (train(*options), script("combine.py", *options), script("report.py", *options)):
        assert done.returncode == 0, done.stderr + done.stdout
    [points] = [pd.read_csv(path) for path in (tmp_path / "report").rglob("figure1.csv")]
    assert len(points) == 2 * 11
    assert set(points.lines) == {2}
    results = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/*/*/result.json")]
    for alpha, tuning in ((0.0, "head"), (1.0, "full")):
        ends = [
            row["ood_acc"]
            for result in results
            for row in result["results"]
            if result["settings"].get("backbone.tuning", "full") == tuning
            and (row["method"], row["selection"]) == ("erm", "last")
        ]
        assert len(ends) == 2
        here = points[points.alpha == alpha]
        assert list(here.ood) == pytest.approx([100 * sum(ends) / 2] * 2)


@pytest.mark.slow
def test_figures_9_and_10_linear_fine_tuning(places: list[str], tmp_path: Path) -> None:
    # Linear fine-tuning is of three residual blocks of equal width, which the tiny network has not.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "resnet34.pth")
    network = [
        "backbone.name=resnet34",
        "backbone.architecture=resnet34",
        f"backbone.weights={tmp_path / 'resnet34.pth'}",
    ]
    narrow = (*SMALL, *ONE, "dropout=0.9", "optim.lr=1e-3", *network, *places)
    # The dataset is another than the paper's: glyphs replaces every study's.
    for study, decay in (("figure2", "1e-4"), ("figure9", "1e-2")):
        done = train(f"study={study}", *narrow, f"optim.weight_decay={decay}")
        assert done.returncode == 0, done.stderr + done.stdout
    done = script("status.py", "study=figure10", *narrow, "optim.weight_decay=1e-2")
    assert done.returncode == 0, done.stdout  # its runs are Figure 9's
    done = script("report.py", f"output_dir={tmp_path}", "test_domain=0,1")  # of incomplete runs there are no clouds
    assert done.returncode == 0, done.stderr
    [points] = [pd.read_csv(path) for path in (tmp_path / "report").rglob("tuning.csv")]
    assert set(points.series) == {"ERM, dropout 0.9, backbone tuning full", "ERM, dropout 0.9, backbone tuning linear"}
    done = script("report.py", "study=figure10", *narrow, "optim.weight_decay=1e-2")
    assert done.returncode == 0, done.stderr
    assert "selection last" in done.stdout
    linear = [
        row["ood_acc"]
        for path in tmp_path.glob("runs/*/*/*/result.json")
        for result in [json.loads(path.read_text())]
        for row in result["results"]
        if result["settings"].get("backbone.tuning") == "linear"
        and (row["method"], row["selection"]) == ("erm", "last")
    ]
    assert len(linear) == 2
    [table] = [pd.read_csv(path) for path in (tmp_path / "report").glob("figure10*/tables/results_glyphs.csv")]
    row = table[(table.method == "erm") & (table.selection == "last")].iloc[0]
    assert row.runs == 2
    assert row.ood == pytest.approx(100 * sum(linear) / 2)


@pytest.mark.parametrize(
    ("study", "other", "narrow", "expected"),
    [
        ("figure5", False, "optim.lr=5e-3", {"backbone.weights_fingerprint": "random", "optim.lr": 5e-3}),
        ("figure8", True, "optim.lr=1e-3", {"optim.last_layer_lr_factor": 10.0}),
    ],
)
def test_a_study_from_scratch_and_one_whose_backbone_varies_train(
    study: str, other: bool, narrow: str, expected: dict[str, object], places: list[str], tmp_path: Path
) -> None:
    """Of the other studies, whose settings study/test_study.py compares, one run of each that is made in another way."""
    small = [option for option in SMALL if option != "image_size=32"] + ["image_size=16", "optim.weight_decay=1e-4"]
    network = [*TINY_NETWORK[:2], tiny_weights(tmp_path)] if other else []
    done = train(f"study={study}", *small, "seed=0", "test_domain=0", "dropout=0.9", narrow, *network, *places)
    assert done.returncode == 0, done.stderr + done.stdout
    [path] = tmp_path.glob("runs/*/*/*/result.json")
    result = json.loads(path.read_text())
    assert result["study"] == study
    assert {name: result["settings"][name] for name in expected} == expected
