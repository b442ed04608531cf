"""Options that narrow a report: what they leave, of stores with several datasets, and with combinations."""

from pathlib import Path

import pandas as pd
import pytest
from composed import jobs
from report_store import study_runs, write_combinations, write_run

from vld.config.errors import UserError
from vld.report import read_store
from vld.report.build import make_report
from vld.report.select import Store, narrowed


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """PACS and VLCS, with soups and ensembles; of VLCS a run that failed."""
    output_dir = tmp_path_factory.mktemp("store")
    failed, *runs = study_runs("figure2", "seed=0", "optim.weight_decay=1e-4", "dropout=0,0.9", "dataset=vlcs,pacs")
    for run in runs:
        write_run(output_dir, run, curves=False)
    write_run(output_dir, failed, failure="out of memory")
    write_combinations(output_dir, [run for run in runs if run.config.dropout == 0.9])
    return read_store(output_dir)


def domains(results: pd.DataFrame) -> dict[str, list[str]]:
    return {str(dataset): sorted(some.test_domain.unique()) for dataset, some in results.groupby("dataset")}


PACS, VLCS = ["art_painting", "cartoon", "photo", "sketch"], ["Caltech101", "LabelMe", "SUN09", "VOC2007"]


@pytest.mark.parametrize(
    ("option", "left"),
    [
        ("test_domain=all", {"pacs": PACS, "vlcs": VLCS}),
        ("test_domain=0", {"pacs": ["art_painting"], "vlcs": ["Caltech101"]}),
        ("test_domain=[sketch,SUN09]", {"pacs": ["sketch"], "vlcs": ["SUN09"]}),
        ("test_domain=SUN09,1", {"pacs": ["cartoon"], "vlcs": ["LabelMe", "SUN09"]}),
        ("test_domain=VOC2007", {"vlcs": ["VOC2007"]}),
    ],
)
def test_a_test_domain_is_each_dataset_s_own(option: str, left: dict[str, list[str]], store: Store) -> None:
    found = narrowed(store, jobs(option), ["test_domain"])
    assert domains(found.results) == left
    assert set(found.results.method) == {"erm", "weight_averaging", "ensemble", "model_soup", "ensemble_of_runs"}
    runs = found.results[found.results.combined.isna()]
    assert {dataset: sorted(some.domains.iloc[0]) for dataset, some in runs.groupby("dataset")} == left
    assert len(found.unfinished) == ("Caltech101" in left.get("vlcs", []))


def test_what_is_no_domain_of_any_dataset_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match="test_domain=moon: must be all or one of"):
        narrowed(store, jobs("test_domain=moon"), ["test_domain"])
    with pytest.raises(UserError, match="test_domain=photo: must be all or one of Caltech101"):
        narrowed(store, jobs("dataset=vlcs", "test_domain=photo"), ["test_domain", "dataset"])


def test_combinations_alone_are_shown_beside_erm(store: Store) -> None:
    found = narrowed(store, jobs("method=model_soup"), ["method"])
    assert set(found.results.method) == {"erm", "model_soup"}
    report = make_report(found)
    table = report.tables["results_pacs"].numbers
    assert table is not None
    assert set(table.method) == {"erm", "model_soup"}
    assert report.warnings[0] == "method=model_soup: shown beside ERM, which the combinations are made from"
    assert set(narrowed(store, jobs("method=ensemble"), ["method"]).results.method) == {"ensemble"}
    both = narrowed(store, jobs("method=model_soup,ensemble"), ["method"])
    assert set(both.results.method) == {"ensemble", "model_soup"}
    assert both.notes == ()
    assert narrowed(store, jobs("method=greedy_soup"), ["method"]).results.empty


def test_a_store_without_unfinished_runs_is_narrowed_too(tmp_path: Path) -> None:
    for run in study_runs("figure2", "seed=0", "optim.weight_decay=1e-4", "dropout=0", "dataset=vlcs", "test_domain=0"):
        write_run(tmp_path, run, curves=False)
    found = narrowed(
        read_store(tmp_path), jobs("optim.lr=1e-3", "optim.milestones=[5000]"), ["optim.lr", "optim.milestones"]
    )
    assert found.results.lr.unique().tolist() == [1e-3]
    assert found.unfinished.empty
    wanted = study_runs("figure2", "seed=0", "optim.weight_decay=1e-4", "dropout=0", "dataset=vlcs", "test_domain=0")
    assert make_report(read_store(tmp_path, wanted)).missing.empty


def test_what_every_machine_decides_for_itself_does_not_narrow(store: Store) -> None:
    assert len(narrowed(store, jobs("precision=auto"), ["precision"]).results) == len(store.results)
    assert narrowed(store, jobs("precision=fp32"), ["precision"]).results.empty
    assert len(narrowed(store, jobs("precision=bf16"), ["precision"]).results) == len(store.results)
