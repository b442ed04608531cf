"""Figure 2's table, clouds and choices, against plain loops over the run directories."""

import io
import itertools
import json
import math
import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_store import study_runs, write_combination, write_run, write_study
from rich.console import Console

from vld.report import chosen_pairs, cloud, cloud_points, read_results, results_table, series_of
from vld.report.averages import readable_results
from vld.report.grid import Grid, mean_and_error
from vld.report.series import Series
from vld.report.table import Table
from vld.runs import load_results
from vld.study.planned import PlannedRun

LRS, DECAYS, SEEDS = (1e-3, 5e-4), (1e-4, 5e-5, 1e-5), (0, 1, 2)
PAIRS = list(itertools.product(LRS, DECAYS))

Known = dict[tuple, tuple[float, float]]


@pytest.fixture(scope="module")
def known(figure2: tuple[Path, list[PlannedRun]]) -> Known:
    """(dataset, dropout, method, selection, test domain, lr, wd, seed) → (i.i.d., o.o.d.), from the files."""
    values: Known = {}
    for path in figure2[0].glob("runs/*/*/*/result.json"):
        result = json.loads(path.read_text())
        s = result["settings"]
        for row in result["results"]:
            key = (s["dataset.name"], s["dropout"], row["method"], row["selection"], s["test_domain"])
            values[*key, s["optim.lr"], s["optim.weight_decay"], s["seed"]] = row["iid_acc"], row["ood_acc"]
    assert len(values) == 288 * 9
    return values


@pytest.fixture(scope="module")
def series(figure2: tuple[Path, list[PlannedRun]]) -> list[Series]:
    return series_of(read_results(figure2[0]))


def domains_of(known: Known, dataset: str) -> list[str]:
    return sorted({key[4] for key in known if key[0] == dataset})


def test_every_series_is_there_and_complete(series: list[Series]) -> None:
    assert len(series) == 2 * 2 * 5
    assert all(one.grid.complete for one in series)
    assert {one.grid.ood_acc.shape for one in series if not one.combined} == {(4, 6, 3)}
    assert {one.grid.ood_acc.shape for one in series if one.combined} == {(4, 1, 1)}
    assert {one.label for one in series if one.dataset == "pacs" and one.dropout == 0} == {
        "ERM, dropout 0",
        "weight averaging, dropout 0",
        "ensemble, dropout 0",
        "model soup of 18, dropout 0",
        "ensemble of runs of 18, dropout 0",
    }


@pytest.mark.parametrize("selection", ["iid", "last", "oracle_step"])
def test_means_errors_and_choices_are_those_of_plain_loops(
    selection: str, figure2: tuple[Path, list[PlannedRun]], known: Known
) -> None:
    series = series_of(read_results(figure2[0]), selection=selection)
    assert len(series) == 20
    choices = chosen_pairs(series)
    compared = 0
    for one in series:
        row = results_table([one]).iloc[0]
        assert row.dataset == one.dataset
        if one.combined:
            continue
        domains = domains_of(known, one.dataset)

        def value(domain: str, pair: tuple[float, float], seed: int, what: int, one: Series = one) -> float:
            return 100 * known[one.dataset, one.dropout, one.method, selection, domain, *pair, seed][what]

        for what, name in enumerate(("iid", "ood")):
            by_seed = [statistics.mean(value(d, p, s, what) for d in domains for p in PAIRS) for s in SEEDS]
            assert row[name] == pytest.approx(statistics.mean(by_seed), abs=1e-9)
            assert row[f"{name}_se"] == pytest.approx(statistics.stdev(by_seed) / math.sqrt(3), abs=1e-9)
            picked = []
            for seed in SEEDS:
                best = {d: max(PAIRS, key=lambda p, d=d, seed=seed: value(d, p, seed, 0)) for d in domains}
                picked.append(statistics.mean(value(d, best[d], seed, what) for d in domains))
                for domain, pair in best.items():
                    [choice] = choices[
                        (choices.dataset == one.dataset)
                        & (choices.method == one.method)
                        & (choices.dropout == one.dropout)
                        & (choices.test_domain == domain)
                        & (choices.seed == seed)
                    ].to_dict("records")
                    assert (choice["lr"], choice["weight_decay"]) == pair
                    assert 100 * choice["ood_acc"] == pytest.approx(value(domain, pair, seed, 1))
                    compared += 1
            assert row[f"chosen_{name}"] == pytest.approx(statistics.mean(picked), abs=1e-9)
            assert row[f"chosen_{name}_se"] == pytest.approx(statistics.stdev(picked) / math.sqrt(3), abs=1e-9)
            for domain in domains:
                own = [statistics.mean(value(domain, p, s, what) for p in PAIRS) for s in SEEDS]
                assert row[f"{name} {domain}"] == pytest.approx(statistics.mean(own), abs=1e-9)
                assert row[f"{name}_se {domain}"] == pytest.approx(statistics.stdev(own) / math.sqrt(3), abs=1e-9)
        assert (row.runs, row.expected, row.pairs, row.seeds) == (72, 72, 6, "3 seeds")
    assert compared == 2 * 12 * 4 * 3


def test_clouds_are_every_way_of_picking_a_pair_for_each_domain(series: list[Series], known: Known) -> None:
    compared = 0
    for one in series:
        if one.combined:
            continue
        cells = defaultdict(list)
        for domain, pair in itertools.product(domains_of(known, one.dataset), PAIRS):
            of_seeds = [known[one.dataset, one.dropout, one.method, "iid", domain, *pair, seed] for seed in SEEDS]
            cells[domain].append(tuple(statistics.mean(values) for values in zip(*of_seeds, strict=True)))
        points = sorted(
            tuple(round(math.fsum(values) / 4, 10) for values in zip(*picked, strict=True))
            for picked in itertools.product(*cells.values())
        )
        ours = sorted(cloud(one.grid).round(10).itertuples(index=False, name=None))
        assert len(ours) == 1296
        np.testing.assert_allclose(ours, points, atol=1e-9)
        compared += 1
    assert compared == 12


def test_stars_and_triangles_are_the_combinations_averages(
    figure2: tuple[Path, list[PlannedRun]], series: list[Series]
) -> None:
    points = cloud_points(series)
    files = [json.loads(path.read_text()) for path in figure2[0].glob("combined/*/*/*/result.json")]
    compared = 0
    for dataset, dropout, method in itertools.product(("pacs", "vlcs"), (0, 0.9), ("model_soup", "ensemble_of_runs")):
        rows = [
            file["results"][0]
            for file in files
            if (file["settings"]["dataset.name"], file["settings"]["dropout"]) == (dataset, dropout)
            and file["identity"]["method"] == method
        ]
        assert len(rows) == 4
        [point] = points[(points.dataset == dataset) & (points.dropout == dropout) & (points.method == method)].to_dict(
            "records"
        )
        assert point["kind"] == "mean"
        assert point["iid"] == pytest.approx(100 * statistics.mean(row["iid_acc"] for row in rows))
        assert point["ood"] == pytest.approx(100 * statistics.mean(row["ood_acc"] for row in rows))
        compared += 1
    assert compared == 8


def test_a_domain_of_six_has_46656_points() -> None:
    random = np.random.default_rng(0)
    accuracy = random.random((6, 6, 3))
    pairs, repeats = tuple((float(i), 0.0) for i in range(6)), ((0, 0), (1, 0), (2, 0))
    points = cloud(Grid(tuple("abcdef"), pairs, repeats, accuracy, accuracy))
    assert len(points) == 6**6
    assert points.ood_acc.mean() == pytest.approx(accuracy.mean())
    assert points.ood_acc.max() == pytest.approx(accuracy.mean(2).max(1).mean())
    assert points.ood_acc.iloc[1] - points.ood_acc.iloc[0] == pytest.approx(
        (accuracy[5, 1] - accuracy[5, 0]).mean() / 6
    )


def test_a_tie_goes_to_the_larger_learning_rate() -> None:
    pairs = ((1e-3, 1e-4), (5e-4, 1e-4))
    iid, ood = np.array([[[0.5, 0.5], [0.5, 0.6]]]), np.array([[[0.1, 0.2], [0.3, 0.4]]])
    grid = Grid(("a",), pairs, ((0, 0), (1, 0)), iid, ood)
    assert grid.chosen.tolist() == [[0, 1]]
    assert grid.at_chosen(ood).tolist() == [[[0.1, 0.4]]]
    means = np.array([np.mean([0.3, 0.2, 0.1]), np.mean([0.1, 0.2, 0.3])])  # equal, but for rounding
    assert means[0] < means[1]
    assert replace(grid, validation_acc=means[None, :, None].repeat(2, 2)).chosen.tolist() == [[0, 0]]


def test_gaps_are_averaged_over_what_is_there_and_have_no_false_error() -> None:
    accuracy = np.array([[[0.1, 0.2, 0.3], [0.3, np.nan, 0.5]], [[0.5, 0.6, 0.7], [0.7, 0.8, 0.9]]])
    mean, error = mean_and_error(accuracy)
    assert mean == pytest.approx(100 * np.mean([(0.2 + 0.4) / 2, (0.6 + 0.8) / 2]))
    assert math.isnan(error)
    _, error = mean_and_error(accuracy[:, :, [0, 2]])
    assert error == pytest.approx(100 * statistics.stdev([0.4, 0.6]) / math.sqrt(2))
    accuracy[0] = np.nan
    mean, error = mean_and_error(accuracy)
    assert math.isnan(mean)
    assert math.isnan(error)


def test_the_oracle_s_accuracy_is_of_the_images_that_did_not_choose(tmp_path: Path) -> None:
    [run, *_] = study_runs("figure2", "dataset=pacs")
    path = write_run(tmp_path, run) / "result.json"
    result = json.loads(path.read_text())
    for row in result["results"]:
        row["ood_in_acc"] = 0.123
    path.write_text(json.dumps(result))
    results = read_results(tmp_path)
    assert {np.nanmax(one.grid.ood_acc) for one in series_of(results, selection="oracle_step")} == {0.123}
    assert 0.123 not in {np.nanmax(one.grid.ood_acc) for one in series_of(results)}


def test_seeds_and_splits_are_counted_apart(tmp_path: Path) -> None:
    for run in study_runs(
        "figure2", "dataset=pacs", "dropout=0", "split_seed=0,1", "optim.lr=1e-3", "optim.weight_decay=1e-4"
    ):
        write_run(tmp_path, run)
    series = series_of(read_results(tmp_path))
    assert {one.grid.ood_acc.shape for one in series} == {(4, 1, 6)}
    assert {one.seeds for one in series} == {"3 seeds on 2 splits"}


def test_combinations_of_as_many_but_other_runs_are_told_apart(tmp_path: Path) -> None:
    runs = write_study(tmp_path, "figure2", "dataset=pacs", "dropout=0")
    for domain in sorted({run.test_domain for run in runs}):
        here = [run for run in runs if run.test_domain == domain]
        one = [run for run in here if run.config.optim.weight_decay == 1e-4]
        other = [run for run in here if run.config.optim.lr == 1e-3 and run.config.seed < 2]
        write_combination(tmp_path, "model_soup", one, ("optim.lr", "seed"), 0.9, 0.8)
        write_combination(tmp_path, "model_soup", other, ("optim.weight_decay", "seed"), 0.9, 0.6)
    series = series_of(read_results(tmp_path))
    soups = [one for one in series if one.method == "model_soup"]
    assert sorted(one.name for one in soups) == [
        "model soup of 6 (optim.lr=0.0005,0.001 seed=0,1,2)",
        "model soup of 6 (optim.weight_decay=0.0001,1e-05,5e-05 seed=0,1)",
    ]
    means = cloud_points(soups)
    assert sorted(means.ood) == pytest.approx([60.0, 80.0])
    assert len(results_table(series)) == 5


@pytest.mark.parametrize("selection", ["iid", "last"])
def test_combinations_are_at_their_members_step_whatever_the_selection(selection: str, tmp_path: Path) -> None:
    """Also those of the same members at two steps, each in a row of its own."""
    runs = write_study(tmp_path, "figure2", "dataset=pacs", "dropout=0", "optim.lr=1e-3", "optim.weight_decay=1e-4")
    for domain in sorted({run.test_domain for run in runs}):
        here = [run for run in runs if run.test_domain == domain]
        for step, ood_acc in (("last", 0.6), ("iid", 0.7)):
            write_combination(tmp_path, "model_soup", here, ["seed"], 0.9, ood_acc, step)
    series = series_of(read_results(tmp_path), selection=selection)
    table = results_table(series)
    soups = table[table.method == "model_soup"]
    assert dict(zip(soups.name, soups.ood, strict=True)) == pytest.approx(
        {"model soup of 3": 60.0, "model soup of 3, step iid": 70.0}
    )
    assert soups.runs.tolist() == soups.expected.tolist() == [4, 4]
    assert {one.selection for one in series if one.name.endswith("step iid")} == {"iid"}
    assert sorted(cloud_points(series).query("method == 'model_soup'").ood) == pytest.approx([60.0, 70.0])


def test_the_best_is_chosen_among_runs_of_the_same_data(tmp_path: Path) -> None:
    for run in study_runs("figure2", "dataset=pacs", "seed=0", "optim.lr=1e-3", "optim.weight_decay=1e-4"):
        write_run(tmp_path, run, fingerprint="99" * 32 if run.config.dropout else None)
    table = results_table(series_of(read_results(tmp_path)))
    shown = readable_results(table, "iid")
    column = shown.headings.index("o.o.d. %")
    best = [content[:2] for row, content in enumerate(table["dataset.fingerprint"]) if (row, column) in shown.best]
    assert sorted(best) == ["99", "bb"]


def test_the_table_reads_the_same_in_every_format(series: list[Series]) -> None:
    pacs = [one for one in series if one.dataset == "pacs"]
    table = results_table(pacs)
    shown = readable_results(table, "iid")
    assert "Selection iid" in shown.note
    assert shown.headings[:7] == [
        "method",
        "dropout",
        "runs",
        "i.i.d. %",
        "o.o.d. %",
        "chosen i.i.d. %",
        "chosen o.o.d. %",
    ]
    assert shown.headings[7:] == ["art_painting", "cartoon", "photo", "sketch"]
    assert shown.rows[0][:3] == ["ERM", "0", "72"]
    assert shown.rows[0][4] == f"{table.ood[0]:.1f} ± {table.ood_se[0]:.1f}"
    best = [(row, 4) in shown.best for row in range(len(shown.rows))]
    assert best == [value == table.ood.max() for value in table.ood]
    assert sum(best) == 1

    markdown = [line.strip("| ").split(" | ") for line in shown.to_markdown().splitlines() if line.startswith("|")]
    assert markdown[0] == shown.headings
    assert [[cell.replace("**", "") for cell in row] for row in markdown[2:]] == shown.rows
    [bold_row] = [row for row in markdown[2:] if row[4].startswith("**")]
    assert bold_row[0] == table.name[table.ood.argmax()]
    assert pd.read_csv(io.StringIO(shown.to_csv())).ood.tolist() == table.ood.tolist()


@pytest.mark.parametrize("second", ["a_%", "dropout"])
def test_a_table_s_formats(second: str) -> None:
    """Nothing in a cell is markup, also where two columns have one heading."""
    numbers = pd.DataFrame({"x": [0.5, 0.25]})
    table = Table(["dropout", second], [["c|d & e", "1 ± 2 †"], ["", "–"]], 1, "50 %", frozenset({(0, 1)}), numbers)
    assert table.to_markdown().splitlines() == [
        f"| dropout | {second} |",
        "| --- | ---: |",
        r"| c\|d & e | **1 ± 2 †** |",
        "|  | – |",
        "",
        "50 %",
    ]
    heading = second.replace("_", r"\_").replace("%", r"\%")
    best = r"1 $\pm$ 2 \dag{}" if second == "dropout" else r"\textbf{1 $\pm$ 2 \dag{}}"
    assert table.to_latex().splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        rf"dropout & {heading} \\",
        r"\midrule",
        rf"c|d \& e & {best} \\",
        r" & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
        "",
        r"{\footnotesize 50 \%}",
    ]
    assert table.to_csv() == "x\n0.5\n0.25\n"
    Console(file=(written := io.StringIO()), width=60).print(table)
    assert "│ c|d & e │ 1 ± 2 † │" in written.getvalue()


def test_load_results_has_no_other_columns_than_promised(figure2: tuple[Path, list[PlannedRun]]) -> None:
    mine, plain = read_results(figure2[0]), load_results(figure2[0])
    assert len(mine) == len(plain) == 288 * 9 + 32
    common = [name for name in plain.columns if name != "members"]
    pd.testing.assert_frame_equal(mine[common].reset_index(drop=True), plain[common], check_dtype=False)
