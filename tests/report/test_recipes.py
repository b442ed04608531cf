"""The report of a study with recipes: what each comes to without and with very large dropout, against hand-made numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from composed import command_jobs, composed
from report_store import study_runs, write_run
from run_command import REPOSITORY, script

from vld.config.names import METHOD_NAMES
from vld.report import read_store
from vld.report.build import make_report
from vld.report.grid import Grid
from vld.report.recipes import RIVALS, at_chosen_pair
from vld.study.planned import planned_runs

NARROW = ("recipe=erm,mixout_08", "test_domain=0,1")
SEEDS = {0: 0.0, 1: 0.01, 2: -0.01}


def accuracies(settings: dict[str, Any], _: str, __: str) -> tuple[float, float]:
    """i.i.d. Mixout is better at the lower rate; o.o.d. it adds 2 points, dropout 3, both 4; seeds move all alike."""
    mixout, dropout = settings.get("mixout", 0) > 0, settings["dropout"] > 0
    iid = 0.7 + (0.02 if (settings["optim.lr"] == 3e-4) == mixout else 0)
    return iid, 0.5 + SEEDS[settings["seed"]] + (0.04 if mixout and dropout else 0.03 * dropout + 0.02 * mixout)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("outputs")
    for run in [*study_runs("rivals_pacs_cpu", *NARROW), *study_runs("rivals_pacs_cpu_rates", *NARROW)]:
        folder = write_run(output_dir, run, accuracies=accuracies, curves=False)
    result = json.loads((folder / "result.json").read_text())  # one of them on a busy machine
    (folder / "result.json").write_text(json.dumps(result | {"device": "CPU", "seconds": 90_000.0}))
    done = script("report.py", "study=rivals_pacs_cpu_rates", *NARROW, f"output_dir={output_dir}")
    assert done.returncode == 0, done.stderr
    [folder] = (output_dir / "report").iterdir()
    return folder


def test_each_recipe_is_compared_at_the_rate_that_iid_accuracy_chooses(report: Path) -> None:
    table = pd.read_csv(report / "tables/recipes_pacs.csv")
    erm = table[table.method == "erm"].set_index(["recipe", "dropout"])
    assert list(erm.index) == [("erm", 0.0), ("erm", 0.9), ("mixout_08", 0.0), ("mixout_08", 0.9)]
    assert list(erm.lr) == [1e-3, 1e-3, 3e-4, 3e-4]
    assert list(zip(erm.runs, erm.expected, strict=True)) == [(6, 6), (6, 6), (2, 6), (2, 6)]
    assert np.allclose(erm.ood, [50, 53, 52, 54])
    assert np.allclose(erm.gain, [np.nan, 3, np.nan, 2], equal_nan=True)
    assert np.allclose(erm.against_erm, [-3, np.nan, -1, 1], equal_nan=True)
    assert np.allclose(erm.gain_low.iloc[1], erm.gain.iloc[1])  # the seeds move both alike
    assert np.isnan(erm.gain_low.iloc[3])  # one seed at that rate
    assert np.allclose(erm.hours, 1500 / 3600)


def test_the_page_shows_recipes_by_their_names_in_one_table_and_one_figure(report: Path) -> None:
    text = (report / "tables/recipes_pacs.md").read_text()
    assert "| mixout_08 | ERM | 0.9 | 0.0003 | 2 of 6 | 72.0 † | 54.0 † | +2.0 | +1.0 | 0.42 |" in text
    assert "| erm | ERM | 0.9 | 0.001 | 6 | 72.0 ± 0.0 | 53.0 ± 0.6 | **+3.0 ± 0.0** | – | 0.42 |" in text
    assert "on CPU or NVIDIA H100." in text
    assert sorted(path.name for path in (report / "figures").glob("*.png")) == ["recipes.png"]
    [heading, *_] = (report / "tables/results_pacs.md").read_text().splitlines()
    assert heading.startswith("| method | dropout | recipe | runs |")
    page, differences = (report / "index.html").read_text(), pd.read_csv(report / "tables/differences.csv")
    # At the pairs of the recipes' table: of all six cells of both pairs, Mixout's would be another difference.
    ours, theirs = "at its chosen pairs: ERM with dropout 0.9", "ERM without dropout by"
    for said in (
        f"recipe erm {ours} beats {theirs} 3.0 ± 0.0 points o.o.d. (95 %, 3 seeds).",
        f"recipe mixout_08 {ours} is above {theirs} 2.0 points o.o.d. (one seed, no interval). Incomplete",
    ):
        assert sum(f"PACS, {said}" in sentence for sentence in differences.sentence) == 1
        assert said in page


def test_tables_are_at_the_chosen_rate_and_only_its_runs_are_to_do(report: Path) -> None:
    """Of the other rate there is one seed, from which it was chosen."""
    results = pd.read_csv(report / "tables/results_pacs.csv").set_index(["recipe", "method", "dropout"])
    recipes = pd.read_csv(report / "tables/recipes_pacs.csv").set_index(["recipe", "method", "dropout"])
    for name in ("ood", "iid", "runs", "expected"):
        assert np.allclose(results[name], recipes[name][results.index])
    assert "each recipe is at the chosen one alone" in (report / "tables/results_pacs.md").read_text()
    more = planned_runs(command_jobs("rivals_pacs_cpu_rates", *NARROW, "seed=0,1,2"))
    planned = [*study_runs("rivals_pacs_cpu", *NARROW), *more]
    missing = make_report(read_store(report.parents[1], planned)).missing
    assert set(missing.lr) == {3e-4}
    assert missing.settings.str.contains("recipe mixout_08").all()
    assert len(missing) == 8  # two seeds, domains and dropout rates


def test_before_a_seed_has_both_rates_the_runs_of_both_are_to_do(tmp_path: Path) -> None:
    runs = [run for study in ("rivals_pacs_cpu", "rivals_pacs_cpu_rates") for run in study_runs(study, *NARROW)]
    for run in runs:
        if run.config.optim.lr == 1e-3 and run.config.seed == 0:
            write_run(tmp_path, run, curves=False)
    missing = make_report(read_store(tmp_path, runs)).missing
    assert len(missing) > 8 and set(missing.lr) == {1e-3, 3e-4}


def test_the_row_that_is_the_rival_is_named(tmp_path: Path) -> None:
    runs = study_runs("rivals", "recipe=erm_plus_plus,paper", "seed=0")
    for run in runs:
        write_run(tmp_path, run, curves=False)
    note = make_report(read_store(tmp_path, runs)).tables["recipes_pacs"].note
    assert (
        "The rival itself is the row of its method: weight averaging that of erm_plus_plus; ERM of all others." in note
    )


@pytest.mark.parametrize("recipe", [path.stem for path in (REPOSITORY / "conf/recipe").glob("*.yaml")])
def test_the_rival_is_the_method_that_its_recipe_puts_forward(recipe: str) -> None:
    method = composed(f"recipe={recipe}").method.name
    assert RIVALS.get(recipe, METHOD_NAMES["erm"]) == METHOD_NAMES[method]


def test_one_recipe_alone_is_named(tmp_path: Path) -> None:
    """As it is where the others have not finished yet."""
    for run in study_runs("rivals_pacs_cpu", "recipe=mixout_08", "test_domain=0", "seed=0"):
        write_run(tmp_path, run, curves=False)
    done = script("report.py", "study=rivals_pacs_cpu", f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "report/rivals_pacs_cpu/tables/recipes_pacs.csv")
    assert set(table.recipe) == {"mixout_08"}


def test_of_several_pairs_one_is_chosen_over_what_all_have() -> None:
    nan = np.nan
    iid = np.array([[[0.5, 0.9], [0.6, nan]], [[0.5, 0.9], [0.5, nan]]])  # domains × pairs × repeats
    pairs, repeats = ((1e-3, 0.0), (3e-4, 0.0)), ((0, 0), (1, 0))
    one, pair = at_chosen_pair(Grid(("a", "b"), pairs, repeats, iid, iid / 2))
    assert pair == (3e-4, 0.0)
    assert np.array_equal(one.ood_acc, iid[:, 1:] / 2, equal_nan=True)
    iid[:, 1] = nan
    assert at_chosen_pair(Grid(("a", "b"), pairs, repeats, iid, iid))[1] == (1e-3, 0.0)
    tie = np.array([[[0.3], [0.1]], [[0.2], [0.2]], [[0.1], [0.3]]])
    assert at_chosen_pair(Grid(("a", "b", "c"), pairs, ((0, 0),), tie, tie))[1] == (1e-3, 0.0)


def test_what_lacks_a_test_domain_is_not_drawn(tmp_path: Path) -> None:
    """A study that has just begun: tables with dashes, but no empty figure."""
    runs = study_runs("rivals_pacs_cpu", *NARROW, "seed=0")
    plain = [run for run in runs if run.config.dropout == 0]
    for run in plain:
        if run.test_domain == "art_painting":
            write_run(tmp_path, run, curves=False)
    begun = make_report(read_store(tmp_path, runs))
    assert begun.tables["recipes_pacs"].rows
    assert not begun.figures
    for run in plain:
        if run.test_domain != "art_painting":
            write_run(tmp_path, run, curves=False)
    [figure] = make_report(read_store(tmp_path, runs)).figures
    assert set(figure.points.dropout) == {0.0}
