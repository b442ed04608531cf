"""Stores with gaps, failures, damaged files and mixed contents: reported as such, and never averaged unseen."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from report_store import study_runs, write_combination, write_run, write_study

from vld.machine.lock import LOCK
from vld.report import cloud_points, clouds_figure, read_store, results_table, series_of
from vld.report.averages import readable_results
from vld.report.build import Report, make_report
from vld.report.labels import INCOMPLETE, in_order
from vld.report.series import expected_runs, missing_runs
from vld.report.summary import job_table, sweep_table
from vld.report.table import Table
from vld.runs.results import RunResult, read_all
from vld.study.planned import PlannedRun
from vld.study.typed_settings import with_values

NARROW = ("dataset=pacs", "dropout=0,0.9", "optim.weight_decay=1e-4")
OTHER = "99" * 32


def ood(run: PlannedRun) -> float:
    """Tells every test domain, dropout rate, lr and seed apart."""
    domain = {"art_painting": 0.1, "cartoon": 0.2, "photo": 0.3, "sketch": 0.4}[run.test_domain]
    return round(domain + run.config.dropout / 10 + run.config.optim.lr * 10 + run.config.seed / 1000, 6)


def write(output_dir: Path, run: PlannedRun, **how: object) -> Path:
    return write_run(output_dir, run, accuracies=lambda *_: (0.5, ood(run)), curves=False, **how)  # type: ignore[arg-type]


def numbers(report: Report, name: str) -> pd.DataFrame:
    table = report.tables[name].numbers
    assert table is not None
    return table


def test_missing_failed_and_interrupted_runs_are_listed_and_their_cells_marked(tmp_path: Path) -> None:
    runs = study_runs("figure2", *NARROW)
    assert len(runs) == 2 * 2 * 3 * 4

    def at(run: PlannedRun) -> tuple[str, float, float, int]:
        return run.test_domain, run.config.dropout, run.config.optim.lr, run.config.seed

    missing, failed = ("photo", 0.9, 5e-4, 2), ("photo", 0.9, 1e-3, 1)
    interrupted, running = ("sketch", 0.9, 1e-3, 0), ("sketch", 0.9, 1e-3, 1)
    for run in runs:
        if at(run) == missing:
            continue
        path = write(tmp_path, run, failure="out of memory" if at(run) == failed else None)
        if at(run) in (interrupted, running):
            (path / "result.json").unlink()
        if at(run) == running:
            (path / LOCK).touch()
    store = read_store(tmp_path)
    assert store.damaged == []
    of_study = read_store(tmp_path, runs)
    assert of_study.expected is not None
    for its, expected in ((of_study, of_study.expected), (store, expected_runs(store.results, store.unfinished))):
        lacking = missing_runs(its.results, its.unfinished, expected)
        found = {
            (row.test_domain, float(row.settings.split()[-1]), row.lr, row.seed): (row.state, row.reason)
            for row in lacking.itertuples()
        }
        assert found == {
            missing: ("missing", ""),
            failed: ("failed", "out of memory"),
            interrupted: ("interrupted", ""),
            running: ("running", ""),
        }
        series = [one for one in series_of(its.results, expected) if one.method == "erm"]
        whole, gaps = sorted(series, key=lambda one: one.dropout or 0)
        assert (whole.grid.runs, gaps.grid.runs) == (24, 20)
        shown = readable_results(results_table([whole, gaps]), "iid")
        assert shown.rows[1][2] == "20 of 24"
        column = shown.headings.index("o.o.d. %")
        assert INCOMPLETE not in shown.rows[0][column]
        assert INCOMPLETE in shown.rows[1][column]
        marked = {
            domain: INCOMPLETE in shown.rows[1][shown.headings.index(domain)]
            for domain in ("cartoon", "photo", "sketch")
        }
        assert marked == {"cartoon": False, "photo": True, "sketch": True}
        assert (1, column) not in shown.best  # what is incomplete is best of nothing …
        assert (0, column) not in shown.best  # … and the other is alone
        assert (1, shown.headings.index("cartoon")) in shown.best
    report = make_report(of_study)
    assert any("4 runs to do" in line for line in report.warnings)
    assert any(fact == "1 failed" for fact in report.facts)
    assert all("Incomplete" in line for line in report.sentences if "0.9" in line)


@pytest.mark.parametrize(("converged", "name"), [(True, "SWAD"), (False, "SWAD ‡")])
def test_a_swad_that_never_converged_is_marked(converged: bool, name: str, tmp_path: Path) -> None:
    """One of its runs is enough: in the table, in legends, and with a sentence on the mark below both."""
    for number, run in enumerate(study_runs("figure2", *NARROW, "seed=0")):
        path = write(tmp_path, run) / "result.json"
        content = json.loads(path.read_text())
        rows = [row for row in content["results"] if row["method"] == "weight_averaging"]
        content["results"] += [row | {"method": "swad", "converged": converged or number > 0} for row in rows]
        path.write_text(json.dumps(content))
    report = make_report(read_store(tmp_path))
    [domains] = [drawn for drawn in report.figures if drawn.name == "domains"]
    table = report.tables["results_pacs"]
    assert [row[:2] for row in table.rows if row[0].startswith("SWAD")] == [[name, "0"], ["SWAD", "0.9"]]
    assert f"{name}, dropout 0" in set(domains.points.series)
    for text in (table.note, domains.caption):
        assert ("‡ in some of its runs SWAD did not converge" in text) is not converged
    assert (r"SWAD \ddag{} & 0" in table.to_latex()) is not converged


def test_a_command_s_tables_average_over_swads_of_both_kinds(tmp_path: Path) -> None:
    row = {"selection": "iid", "step": 4, "iid_acc": 0.5, "method": "swad"}
    results = {
        domain: RunResult(
            tmp_path,
            {
                "run_id": domain,
                "settings": {"test_domain": domain},
                "results": [row | {"ood_acc": ood, "converged": ood > 0.5}],
            },
        )
        for domain, ood in (("a", 0.4), ("b", 0.8))
    }
    assert [cells[:4] for cells in job_table(results, "swad").rows] == [
        ["swad", "a (not converged)", "50.0", "40.0"],
        ["", "b", "50.0", "80.0"],
        ["", "average", "50.0", "60.0"],
    ]
    [table, _] = sweep_table(list(results.values()), "swad")
    assert isinstance(table, Table)
    assert table.rows == [["swad (in part not converged)", "50.0", "60.0", "40.0", "80.0"]]


def test_a_sweep_s_table_averages_over_the_domains_of_each_dataset(tmp_path: Path) -> None:
    for run in study_runs("figure2", "dataset=pacs,vlcs", *NARROW[1:], "optim.lr=1e-3", "seed=0"):
        write_run(tmp_path, run, curves=False)
    results, _ = read_all(tmp_path)
    [table, _] = sweep_table(results, "erm")
    assert isinstance(table, Table)
    assert len(table.rows) == 2 * 2 * 3  # datasets, rates, methods
    for row in table.rows:
        ood = [float(cell) for cell in row[-8:] if cell != "–"]
        assert float(row[-9]) == pytest.approx(sum(ood) / len(ood), abs=0.1)


def test_a_domain_without_runs_leaves_no_average(tmp_path: Path) -> None:
    for run in study_runs("figure2", *NARROW):
        if run.test_domain != "photo":
            write(tmp_path, run)
    store = read_store(tmp_path)
    series = series_of(store.results)
    table = results_table(series)
    assert table.ood.isna().all()
    assert table["ood photo"].isna().all()
    assert table["ood sketch"].notna().all()
    expected = expected_runs(store.results, store.unfinished)
    assert set(missing_runs(store.results, store.unfinished, expected).test_domain) == {"photo"}
    shown = readable_results(table, "iid")
    assert {row[shown.headings.index("o.o.d. %")] for row in shown.rows} == {"–"}


@pytest.mark.parametrize(
    ("content", "setting", "what"),
    [("fingerprint", "dataset.fingerprint", "data"), ("weights", "backbone.weights_fingerprint", "weights")],
)
def test_different_contents_are_in_rows_of_their_own(content: str, setting: str, what: str, tmp_path: Path) -> None:
    runs = [run for run in study_runs("figure2", *NARROW) if run.config.dropout == 0]
    for run in runs:
        write(tmp_path, run, **({content: OTHER} if run.config.seed == 2 else {}))
    store = read_store(tmp_path)
    series = [one for one in series_of(store.results) if one.method == "erm"]
    assert {one.settings["backbone.name"] for one in series} == {"resnet50"}
    by_content = {one.others[setting] == OTHER: one for one in series}
    assert len(series) == len(by_content) == 2
    for other, seeds in ((True, (2,)), (False, (0, 1))):
        mine = [ood(run) for run in runs if run.config.seed in seeds]
        assert by_content[other].grid.runs == len(mine)
        assert results_table([by_content[other]]).ood[0] == pytest.approx(100 * sum(mine) / len(mine))
    report = make_report(store)
    assert any(f"different {what}" in line and "99999999: 8 runs" in line for line in report.warnings)
    assert len(report.missing) == 24  # what each content lacks of the whole
    assert set(report.missing.reason) == {"finished with other data, weights or precision"}
    shown = report.tables["results_pacs"]
    assert "99999999" in {row[shown.headings.index(what)] for row in shown.rows}


def test_starts_from_a_probe_for_each_test_domain_are_one_row(tmp_path: Path) -> None:
    """Their weights differ by necessity; those from another kind of probe have another row."""
    for run in study_runs("figure2", *NARROW, "seed=0", "dropout=0.9"):
        path = write(tmp_path, run, weights=f"{run.test_domain:0<64}") / "result.json"
        start = "one rate" if run.config.optim.lr == 1e-3 else "another"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"start": start}))
    rows = [one for one in series_of(read_store(tmp_path).results) if one.method == "erm"]
    assert {(one.others["backbone.weights_fingerprint"], one.grid.runs) for one in rows} == {
        ("one rate", 4),
        ("another", 4),
    }
    # The probe of one domain was trained again and has other weights: neither of the runs from it is the other.
    write_again = replace(run, config=with_values(run.config, {"optim.lr": 1e-3}))
    path = write(tmp_path, write_again, weights=OTHER) / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"start": "one rate"}))
    rows = [one for one in series_of(read_store(tmp_path).results) if one.method == "erm"]
    apart = [f"{run.test_domain:0<64}", OTHER]
    assert {(one.others["backbone.weights_fingerprint"], one.grid.runs) for one in rows} == {
        *(("one rate", 3), ("another", 4)),
        *((weights, 1) for weights in apart),
    }


def test_precisions_are_not_mixed_either(tmp_path: Path) -> None:
    for run in study_runs("figure2", *NARROW, "seed=0"):
        write(tmp_path, run, precision="fp32" if run.test_domain == "photo" else "bf16")
    report = make_report(read_store(tmp_path))
    assert any("different precision" in line for line in report.warnings)
    assert numbers(report, "results_pacs").ood.isna().all()


def test_copies_of_runs_are_named_and_count_once(tmp_path: Path) -> None:
    write_study(tmp_path, "figure2", *NARROW, "seed=0")
    before = numbers(make_report(read_store(tmp_path)), "results_pacs")
    shutil.copytree(tmp_path / "runs/pacs/sketch", tmp_path / "runs/pacs/sketch_before")
    report = make_report(read_store(tmp_path))
    pd.testing.assert_frame_equal(numbers(report, "results_pacs"), before)
    assert sum(f"copies of runs in {tmp_path / 'runs/pacs/sketch'}, left out" in line for line in report.warnings) == 1


def test_damaged_files_are_named(tmp_path: Path) -> None:
    runs = write_study(tmp_path, "figure2", *NARROW, "seed=0")
    assert len(runs) == 16
    first, second, *_ = sorted(tmp_path.glob("runs/*/*/*/result.json"))
    first.write_text('{"run_id": "')
    (second.parent / "metrics.jsonl").write_text("")
    settings = json.loads(second.read_text())
    settings["settings"]["dropout"] = 0.123
    second.write_text(json.dumps(settings))
    store = read_store(tmp_path)
    assert len(store.damaged) == 2
    assert store.results.directory.nunique() == 14
    report = make_report(store)
    assert [line for line in report.warnings if str(first) in line]
    assert [line for line in report.warnings if str(second) in line]
    assert len(report.missing) == 2


def test_nothing_finished_is_a_table_of_nothing(tmp_path: Path) -> None:
    store = read_store(tmp_path)
    assert store.results.empty
    assert series_of(store.results) == []
    assert isinstance(store.unfinished, pd.DataFrame)


def test_combinations_over_a_setting_that_tells_runs_apart_have_no_value_of_it(tmp_path: Path) -> None:
    runs = [run for study in ("figure2", "figure6", "figure8") for run in study_runs(study, *NARROW, "seed=0")]
    for run in runs:
        write(tmp_path, run)
    members = [run for run in runs if run.config.dropout == 0 and run.config.backbone.name == "resnet50"]
    for domain in ("art_painting", "cartoon", "photo", "sketch"):
        here = [run for run in members if run.test_domain == domain]
        write_combination(tmp_path, "model_soup", here, ("optim.last_layer_lr_factor", "optim.lr"), 0.9, 0.8)
    report = make_report(read_store(tmp_path))
    table = numbers(report, "results_pacs")
    of_erm = table[(table.method == "erm") & (table["backbone.name"] == "resnet50")]
    assert of_erm["optim.last_layer_lr_factor"].tolist() == [1.0, 1.0, 10.0, 10.0]
    assert table[table.method == "model_soup"]["optim.last_layer_lr_factor"].isna().tolist() == [True]
    assert report.varied["optim.last_layer_lr_factor"] == ["1", "10"]
    [tricks] = [drawn for drawn in report.figures if drawn.name == "pretraining"]
    assert any("last layer lr × 10" in label for label in tricks.points.series)


def test_values_of_any_kind_have_an_order() -> None:
    values = [None, "b", 10, [0.1], 2.5, "a", []]
    assert sorted(values, key=in_order) == [2.5, 10, [0.1], [], "a", "b", None]


def test_other_settings_of_a_run_make_another_row(tmp_path: Path) -> None:
    runs = study_runs("figure2", *NARROW, "seed=0", "dropout=0")
    more = study_runs("figure6", *NARROW, "seed=0", "dropout=0")
    for run in [*runs, *more]:
        write(tmp_path, run)
    series = [one for one in series_of(read_store(tmp_path).results) if one.method == "erm"]
    assert [one.others for one in series] == [{"optim.last_layer_lr_factor": 1.0}, {"optim.last_layer_lr_factor": 10.0}]
    assert all(one.grid.complete for one in series)
    assert len({run.key for run in runs} & {run.key for run in more}) == 0


def test_a_cloud_of_a_domain_without_runs_is_refused_in_words(tmp_path: Path) -> None:
    for run in study_runs("figure2", *NARROW, "seed=0", "test_domain=0,1"):
        write(tmp_path, run)
    points = cloud_points(series_of(read_store(tmp_path).results))
    with pytest.raises(ValueError, match="a finished run with each test domain left out"):
        clouds_figure(points)
