"""`holdout=0`: all images of the training domains are trained on, and there is no i.i.d. accuracy."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from report_store import study_runs, write_run
from run_command import SMALLEST, script, tiny_weights, train
from tiny import CPU, make_dataset
from torch import nn

from vld.data.split import split_indices
from vld.report import read_store
from vld.report.build import make_report
from vld.runs.record import accuracies
from vld.runs.results import load_results
from vld.training.evaluation import evaluation_images, evaluation_set, score, select, validation_loss

OPTIONS = (*SMALLEST, "optim.steps=2", "eval_every=1")


def test_all_images_are_trained_on_and_the_left_out_domain_is_evaluated_as_ever() -> None:
    assert sorted(split_indices(20, 1, 3, 0)[0]) == list(range(20))
    whole, none = (evaluation_set(make_dataset(), "c", 0, CPU, holdout=share) for share in (0.2, 0.0))
    assert [len(one.labels) for one in (whole, none)] == [28, 20]
    assert evaluation_images({"a": 20, "b": 20, "c": 20}, "c", holdout=0) == len(none.images) == 20
    logits = torch.randn(28, 3, generator=torch.Generator().manual_seed(0))
    both, alone = score(logits, whole), score(logits[8:], none)
    assert accuracies(alone) == accuracies(both) | {"iid_acc": None}
    assert alone.domain_acc["a"] == {"in": None, "out": None}
    assert alone.domain_acc["c"] == both.domain_acc["c"]
    assert (both.selections, alone.selections) == (("iid", "last", "oracle_step"), ("last",))
    assert select([(0, alone), (3, alone)], "last") == 3
    assert math.isnan(validation_loss(logits[8:], none).item())


def test_the_validation_loss_is_of_the_training_domains_alone() -> None:
    """Also where two are left out."""
    images = evaluation_set(make_dataset(), "b+c", 0, CPU)
    logits = torch.randn(len(images.labels), 3, generator=torch.Generator().manual_seed(0))
    [of_a] = [slice(part.start, part.stop) for part in images.parts if part.domain == "a"]
    assert of_a.stop - of_a.start == 4
    expected = nn.functional.cross_entropy(logits[of_a], images.labels[of_a])
    assert torch.equal(validation_loss(logits, images), expected)


@pytest.fixture(scope="module")
def trained(small_glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """Two seeds without held-out images and one with; the first command's table."""
    folder = tmp_path_factory.mktemp("holdout")
    options = [*OPTIONS, tiny_weights(folder), f"data_dir={small_glyphs}", f"output_dir={folder}", "test_domain=chalk"]
    shown = [train(*options, *more) for more in (["holdout=0"], ["-m", "holdout=0", "seed=0,1"], [])]
    assert [one.returncode for one in shown] == [0, 0, 0], shown[-1].stderr
    return folder, options, shown[0].stdout


def test_i_i_d_accuracy_is_null_in_files_and_not_there_in_tables(trained: tuple[Path, list[str], str]) -> None:
    folder, _, shown = trained
    assert "i.i.d. –  o.o.d." in shown
    assert "selection last; with holdout=0" in shown
    results = load_results(folder, every_setting=True)
    assert results.run_id.nunique() == 3
    without = results[results.holdout == 0]
    assert set(without.selection) == {"last"}
    assert without.iid_acc.isna().all()
    assert without.ood_acc.notna().all()
    for directory in map(Path, without.directory.unique()):
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        assert {(row["iid_acc"], row["val_loss"], row["domain_acc"]["neon"]["out"]) for row in rows} == {(None,) * 3}
        assert json.loads((directory / "result.json").read_text())["results"][0]["iid_acc"] is None


@pytest.mark.slow
def test_they_make_soups_and_ensembles_and_reports(trained: tuple[Path, list[str], str]) -> None:
    folder, options, _ = trained
    members = ["holdout=0", 'method.members=["seed=0,1"]']
    for method in ("model_soup", "ensemble_of_runs", "connectivity"):
        shown = script("combine.py", *options, *members, f"method={method}")
        assert shown.returncode == 0, shown.stderr
        assert "–" in shown.stdout
    made = script("report.py", f"output_dir={folder}", "test_domain=chalk")
    assert made.returncode == 0, made.stderr
    assert "rows with holdout 0 have no i.i.d. accuracy" in " ".join((made.stdout + made.stderr).split())
    table = pd.read_csv(folder / "report/test_domain=chalk/tables/results_glyphs.csv")
    assert table.ood.notna().all()
    assert set(table.iid.isna()) == {True, False}
    last = script("report.py", f"output_dir={folder}", "holdout=0", "selection=last")
    assert last.returncode == 0, last.stderr


def test_a_report_of_such_runs_alone_is_at_their_last_steps(tmp_path: Path) -> None:
    for run in study_runs("figure2", "dataset=pacs", "seed=0", "optim.lr=1e-3", "optim.weight_decay=1e-4", "holdout=0"):
        path = write_run(tmp_path, run) / "result.json"
        content = json.loads(path.read_text())
        content["results"] = [row | {"iid_acc": None} for row in content["results"] if row["selection"] == "last"]
        path.write_text(json.dumps(content))
    report = make_report(read_store(tmp_path))
    assert report.facts[0] == "selection last: each run at its last step"
    assert report.tables["results_pacs"].note.startswith("Selection last")
    assert not [drawn for drawn in report.figures if "best i.i.d. accuracy" in drawn.caption]


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("keep=[erm-iid]", "keep=erm-iid: needs held-out images, of which holdout=0 leaves none; use erm-last"),
        ("keep=[erm-iid-logits]", "use erm-last-logits"),
        ("swad.enabled=true", "swad.enabled=true: needs held-out images"),
        ("method=greedy_soup", "method=greedy_soup: needs held-out images"),
        ("method=model_soup method.member_step=iid", "method.member_step=iid: needs held-out images"),
        ("holdout=0.1", "holdout=0.1: must be 0.2 or 0"),
    ],
)
def test_what_needs_held_out_images_is_refused(option: str, line: str) -> None:
    refused = train(*OPTIONS, "holdout=0", *option.split(), "data_dir=/no/such/folder")
    assert refused.returncode == 2
    assert line in refused.stderr


def test_a_report_by_i_i_d_accuracy_of_such_runs_is_refused_and_their_analysis(
    trained: tuple[Path, list[str], str],
) -> None:
    for narrowed in ("holdout=0", "seed=1"):  # which those alone have
        refused = script("report.py", f"output_dir={trained[0]}", narrowed, "selection=iid")
        assert refused.returncode == 2
        why = "needs held-out images, of which holdout=0 leaves none; use selection=last"
        assert f"selection=iid: {why}" in refused.stderr
    run_id = load_results(trained[0], every_setting=True).query("holdout == 0").run_id.iloc[0]
    refused = script("analyse.py", f"output_dir={trained[0]}", f"run={run_id}")
    assert refused.returncode == 2
    assert "holdout=0: trained on all images of its training domains" in refused.stderr
