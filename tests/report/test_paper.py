"""Ours against the published numbers."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from report_store import study_runs, write_run

from vld.report import against_the_paper, read_results, series_of
from vld.report.paper import CLOUD_MEANS, RATES, not_compared, published_averages, readable_against_the_paper
from vld.study.typed_settings import with_values

# Protocol, section 5: o.o.d. accuracy at dropout 0, 0.5, 0.9, 0.95.
PROTOCOL = {
    "vlcs": (78.73, 79.57, 80.00, 79.86),
    "office_home": (70.81, 72.90, 73.44, 72.87),
    "pacs": (86.49, 87.52, 88.41, 88.53),
    "terra_incognita": (51.31, 53.12, 53.63, 52.31),
}


def test_the_published_numbers_are_the_protocol_s() -> None:
    assert {dataset: list(numbers) for dataset, numbers in PROTOCOL.items()} == {
        d: list(n) for d, n in CLOUD_MEANS.items()
    }
    assert RATES == (0.0, 0.5, 0.9, 0.95)


def write(output_dir: Path, *words: str, ood: float, spread: float) -> None:
    """Accuracies whose cloud has this mean, and reaches so far on either side of it."""
    for run in study_runs("figure2", "dataset=pacs", "dropout=0.9", *words):
        away = {1e-3: spread, 5e-4: -spread}[run.config.optim.lr]
        write_run(output_dir, run, accuracies=lambda *_, away=away: (0.9, round((ood + away) / 100, 6)))


@pytest.mark.parametrize(("ood", "spread", "within"), [(88.0, 1.0, True), (88.0, 0.3, False), (88.3, 0.07, True)])
def test_the_difference_and_whether_it_lies_within_our_cloud(
    ood: float, spread: float, within: bool, tmp_path: Path
) -> None:
    write(tmp_path, ood=ood, spread=spread)
    results = read_results(tmp_path)
    [row] = against_the_paper(series_of(results)).to_dict("records")
    assert row["paper"] == 88.41
    assert row["ours"] == pytest.approx(ood)
    assert row["difference"] == pytest.approx(ood - 88.41)
    assert (row["lowest"], row["highest"]) == pytest.approx((ood - spread, ood + spread))
    assert row["within"] is within  # the paper's number was read off to ± 0.05
    assert row["unlike"] == ""


def test_what_cannot_be_compared_has_no_row_and_a_line_says_so(tmp_path: Path) -> None:
    """Another backbone, image size, number of steps or dataset than the paper's."""
    write(tmp_path, "seed=0", ood=88.0, spread=1.0)
    write(tmp_path, "seed=0", "backbone=efficientnet_lite0", "optim.steps=400", ood=60.0, spread=1.0)
    write(tmp_path, "seed=0", "image_size=96", ood=60.0, spread=1.0)
    for run in study_runs("figure4", "seed=0", "optim.weight_decay=1e-4", "dropout=0.9"):
        write_run(tmp_path, run)
    series = series_of(read_results(tmp_path))
    assert len(against_the_paper(series)) == 1
    left_out = not_compared(series)
    assert left_out.startswith("Not compared with the paper's clouds: DomainNet; ")
    assert set(left_out.rstrip(".").split("; ")[1:]) == {"backbone efficientnet_lite0, steps 400", "px 96"}
    assert not_compared([one for one in series if one.grid.ood_acc.mean() == pytest.approx(0.88)]) == ""


def test_one_pair_makes_no_cloud_that_a_number_could_lie_in(tmp_path: Path) -> None:
    write(tmp_path, "optim.lr=1e-3", "optim.weight_decay=1e-4", ood=88.0, spread=0.0)
    table = against_the_paper(series_of(read_results(tmp_path)))
    assert table.within.tolist() == [None]
    shown = readable_against_the_paper(table)
    assert [shown.rows[0][shown.headings.index(name)] for name in ("our cloud", "within")] == ["–", "–"]


@pytest.mark.parametrize(
    ("words", "changes", "unlike"),
    [
        (["seed=0,1", "batch_size=8"], {}, "batch size 8, 2 seeds"),
        (["optim.lr=1e-3"], {}, "3 of 6 pairs"),
        (["optim.momentum=0", "optim.gamma=1"], {}, "optim momentum 0, optim gamma 1"),
        (["test_domain=0,1"], {}, "art_painting, cartoon left out of 4"),
        (["backbone.tuning=linear"], {}, "backbone tuning linear"),
        (["backbone.stage_dropout=[0.5]"], {}, "backbone stage dropout [0.5]"),
        ([], {"optim.lr": 0.3}, "other (lr, weight decay) pairs"),
    ],
)
def test_how_runs_differ_from_the_papers(
    words: list[str], changes: dict[str, object], unlike: str, tmp_path: Path
) -> None:
    for run in study_runs("figure2", "dataset=pacs", "dropout=0.9", *words):
        if changes and run.config.optim.lr == 5e-4:
            continue
        run = replace(run, config=with_values(run.config, changes))
        write_run(tmp_path, run, domains=["art_painting", "cartoon"] if "test_domain=0,1" in words else ())
    results = read_results(tmp_path)
    for selection, more in (("iid", ""), ("last", ", selection last")):
        [row] = against_the_paper(series_of(results, selection=selection)).to_dict("records")
        assert row["unlike"] == unlike + more


def test_other_rates_and_datasets_are_not_compared(tmp_path: Path) -> None:
    for run in study_runs("figure4", "seed=0", "optim.weight_decay=1e-4", "dropout=0.9"):
        write_run(tmp_path, run)
    results = read_results(tmp_path)
    assert against_the_paper(series_of(results)).empty
    assert published_averages(series_of(results)).empty  # of dropout 0 only


def test_published_averages_stand_beside_the_nearest_method(tmp_path: Path) -> None:
    for run in study_runs("figure2", "seed=0", "optim.weight_decay=1e-4", "dropout=0", "dataset=vlcs"):
        write_run(tmp_path, run)
    results = read_results(tmp_path)
    swad = results[results.method == "weight_averaging"].assign(method="swad")
    table = published_averages(series_of(pd.concat([results, swad])))
    assert list(zip(table.published, table.paper, strict=True)) == [("ERM", 77.5), ("SWAD", 79.1), ("SWAD", 79.1)]
    assert list(table["ours from"]) == ["ERM, dropout 0", "weight averaging, dropout 0", "SWAD, dropout 0"]
    assert (table.ours - table.paper).tolist() == pytest.approx(table.difference.tolist())


def test_an_average_of_ours_says_what_it_is_of(tmp_path: Path) -> None:
    """A regulariser that all runs have tells none of them apart."""
    for run in study_runs("figure2", "seed=0", "optim.weight_decay=1e-4", "dropout=0", "dataset=vlcs", "mixout=0.8"):
        write_run(tmp_path, run)
    names = published_averages(series_of(read_results(tmp_path)))["ours from"]
    assert list(names) == ["ERM, dropout 0, mixout 0.8", "weight averaging, dropout 0, mixout 0.8"]
