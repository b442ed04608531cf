"""Several domains left out at once, and the choice of hyper-parameters by leave-one-domain-out validation that this allows."""

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_store import study_runs, write_run
from run_command import SMALLEST, script, tiny_weights, train

from vld.commands.task import show_results
from vld.config.errors import UserError
from vld.config.settings import Config
from vld.data.domains import left_out, resolve_test_domains
from vld.data.split import held_out_count
from vld.machine.terminal import Terminal
from vld.report import read_store, series_of
from vld.report.build import make_report
from vld.report.select import narrowed
from vld.report.summary import sweep_table
from vld.report.table import Table
from vld.runs.once import Outcome
from vld.runs.results import read_all
from vld.study.jobs import Job
from vld.tracking.content import wandb_runs

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("sketch+photo", ["photo+sketch"]),
        ("3+photo+3", ["photo+sketch"]),
        (["0", "2+0", "photo+art_painting"], ["art_painting", "art_painting+photo"]),
        ("0+1+2", ["art_painting+cartoon+photo"]),
        ("2+2", ["photo"]),
        ("pairs", ["+".join(two) for two in combinations(DOMAINS, 2)]),
    ],
)
def test_which_domains_are_left_out(wanted: Any, names: list[str]) -> None:
    assert list(resolve_test_domains(wanted, DOMAINS)) == names


@pytest.mark.parametrize(
    ("wanted", "domains"),
    [("0+1+2+3", DOMAINS), ("photo+", DOMAINS), ("photo+moon", DOMAINS), ("0+4", DOMAINS), ("pairs", ("a", "b"))],
)
def test_what_leaves_nothing_to_train_on_or_is_not_there_is_refused(wanted: str, domains: tuple[str, ...]) -> None:
    with pytest.raises(
        UserError, match=r"^test_domain=.*: must be all or one of .*, pairs, or some of them joined by \+$"
    ):
        resolve_test_domains(wanted, domains)


def test_a_domain_may_have_a_plus_in_its_name() -> None:
    names = ("a+b", "a", "b", "c")
    assert resolve_test_domains("a+b", names) == ("a+b",)
    assert left_out("a+b", names) == ("a+b",)
    assert left_out("a+c", names) == ("a", "c")
    names = ("a+b", "c", "d+e")
    pairs = {"a+b+c": ("a+b", "c"), "a+b+d+e": ("a+b", "d+e"), "c+d+e": ("c", "d+e")}
    assert resolve_test_domains("pairs", names) == tuple(pairs)
    for name, two in pairs.items():
        assert (resolve_test_domains(name, names), left_out(name, names)) == ((name,), two)
    assert resolve_test_domains("2+a+b", names) == ("a+b+d+e",)


SMALL = (
    *(*SMALLEST, "optim.steps=4", "optim.milestones=[]", "eval_every=2"),
    *("averaging.start=2", "ensemble.start=2", "wandb.mode=disabled"),
)  # fmt: skip


def test_a_run_trains_on_the_others_and_tells_each_accuracy(small_glyphs: Path, tmp_path: Path) -> None:
    folders = (f"data_dir={small_glyphs}", f"output_dir={tmp_path}")
    done = train(*SMALL, *folders, "test_domain=[neon+chalk,print]", tiny_weights(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "4 steps of 2 x 2 images" in done.stdout
    told = {
        run.config["test_domain"]: run.config.get("left_out")
        for path in tmp_path.glob("runs/*/*/*")
        for run in wandb_runs(path)
    }
    assert told == {"chalk+neon": ["chalk", "neon"], "print": None}
    [path] = tmp_path.glob("runs/glyphs/chalk+neon/*/result.json")
    rows = [json.loads(line) for line in path.with_name("metrics.jsonl").read_text().splitlines()]
    held_out = held_out_count(12)
    for result in json.loads(path.read_text())["results"]:
        [row] = [one for one in rows if (one["method"], one["step"]) == (result["method"], result["step"])]
        accuracy = row["domain_acc"]
        whole = {
            domain: (held_out * accuracy[domain]["out"] + (12 - held_out) * accuracy[domain]["in"]) / 12
            for domain in ("chalk", "neon")
        }
        assert result["ood_by_domain"] == pytest.approx(whole)
        assert result["ood_acc"] == row["ood_acc"] == pytest.approx(statistics.fmean(whole.values()))
        assert result["iid_acc"] == pytest.approx((accuracy["mosaic"]["out"] + accuracy["print"]["out"]) / 2)
        assert accuracy["mosaic"]["in"] is accuracy["print"]["in"] is None
    [alone] = tmp_path.glob("runs/glyphs/print/*/result.json")
    assert all("ood_by_domain" not in row for row in json.loads(alone.read_text())["results"])

    analysed = script("analyse.py", *folders, f"run={path.parent.name}", "wandb.mode=disabled")
    assert analysed.returncode == 0, analysed.stderr
    assert "chalk+neon: analysed" in analysed.stdout
    reported = script("report.py", f"output_dir={tmp_path}", "choose=leave_one_out")
    assert reported.returncode == 0, reported.stderr
    assert "lack runs that leave two domains out" in reported.stdout
    assert "chalk+neon" not in reported.stdout  # it is no fifth domain to average over
    assert "1 that leave out several domains, in no average" in reported.stdout
    alone = script("report.py", f"output_dir={tmp_path}", "test_domain=chalk+neon")
    assert (alone.returncode, alone.stderr.count("\n")) == (2, 1)
    assert "those that leave out several domains at once only serve choose=leave_one_out" in alone.stderr


def test_each_accuracy_is_of_all_images_where_the_curve_is_of_a_subset(small_glyphs: Path, tmp_path: Path) -> None:
    options = [*SMALL, f"data_dir={small_glyphs}", f"output_dir={tmp_path}", "test_domain=neon+chalk"]
    assert train(*options, "dataset.curve_images=1", tiny_weights(tmp_path)).returncode == 0
    [path] = tmp_path.glob("runs/glyphs/chalk+neon/*/result.json")
    rows = [row for row in json.loads(path.read_text())["results"] if row["evaluated_on"] == "all"]
    assert rows
    for row in rows:
        out = held_out_count(12)
        whole = {
            d: (out * row["domain_acc"][d]["out"] + (12 - out) * row["domain_acc"][d]["in"]) / 12
            for d in row["ood_by_domain"]
        }
        assert row["ood_by_domain"] == pytest.approx(whole)
        assert row["ood_acc"] == pytest.approx(statistics.fmean(whole.values()))


def write_runs(output_dir: Path, accuracy: Callable[[], float], *narrow: str, without: str = "") -> None:
    """Those of the study, with these accuracies; of one test domain none."""
    for run in study_runs("leave_one_out", *narrow):
        if run.test_domain == without:
            continue
        path = write_run(output_dir, run, curves=False) / "result.json"
        content = json.loads(path.read_text())
        for row in content["results"]:
            row |= {"ood_acc": accuracy(), "iid_acc": accuracy()}
            if "+" in run.test_domain:
                row["ood_by_domain"] = {domain: accuracy() for domain in run.test_domain.split("+")}
        path.write_text(json.dumps(content))


def test_pairs_are_chosen_by_the_accuracy_on_other_domains_left_out_as_well(tmp_path: Path) -> None:
    """Against loops over the files, with accuracies at random."""
    write_runs(tmp_path, np.random.default_rng(0).random, "dropout=0.9", "seed=0,1", "optim.lr=1e-3,5e-4")

    def accuracies(folder: str, lr: float, seed: int) -> dict[str, Any]:
        for path in tmp_path.glob(f"runs/pacs/{folder}/*/result.json"):
            content = json.loads(path.read_text())
            if (content["settings"]["optim.lr"], content["settings"]["seed"]) == (lr, seed):
                return next(row for row in content["results"] if (row["method"], row["selection"]) == ("erm", "iid"))
        raise AssertionError(folder, lr, seed)

    expected = {}
    for domain in DOMAINS:
        for seed in (0, 1):
            validation = {
                lr: statistics.fmean(
                    accuracies("+".join(sorted((domain, other))), lr, seed)["ood_by_domain"][other]
                    for other in DOMAINS
                    if other != domain
                )
                for lr in (1e-3, 5e-4)
            }
            lr = max(validation, key=lambda its: validation[its])
            expected[domain, seed] = lr, accuracies(domain, lr, seed)["ood_acc"]

    store = read_store(tmp_path)
    assert {one.grid.test_domains for one in series_of(store.results)} == {DOMAINS}
    reports = {choose: make_report(store, choose=choose) for choose in ("iid", "leave_one_out")}
    found = {}
    for choose, report in reports.items():
        assert report.missing.empty
        rows = report.data["chosen_pairs"]
        rows = rows[rows.method == "erm"]
        found[choose] = {(r.test_domain, r.seed): (r.lr, r.ood_acc) for r in rows.itertuples()}
    assert found["leave_one_out"] == expected
    by_validation = reports["leave_one_out"].data["chosen_pairs"].query("method == 'erm'")
    assert by_validation.validation_acc.between(0, 1).all()  # written beside it
    assert "validation_acc" not in reports["iid"].data["chosen_pairs"]
    assert found["iid"] != expected
    table = reports["leave_one_out"].tables["results_pacs"]
    chosen = table.numbers.set_index("method").chosen_ood["erm"]
    assert chosen == pytest.approx(100 * statistics.fmean(ood for _, ood in expected.values()))
    assert "leave-one-domain-out validation" in table.note
    assert "best i.i.d. accuracy, for each test domain" in reports["iid"].tables["results_pacs"].note


def test_a_pair_is_chosen_by_all_other_domains_and_by_runs_that_leave_two_out(tmp_path: Path) -> None:
    """However few test domains the report is narrowed to, and whatever else there is."""
    write_runs(tmp_path, np.random.default_rng(1).random, "dropout=0.9", "seed=0")

    def choices(*test_domains: str) -> dict[str, float]:
        store = read_store(tmp_path)
        if test_domains:
            store = narrowed(store, [Job((), Config(test_domain=[*test_domains]))], ["test_domain"])
        report = make_report(store, choose="leave_one_out")
        assert not any("lack runs" in line for line in report.warnings)
        rows = report.data["chosen_pairs"]
        return dict(rows[rows.method == "erm"].set_index("test_domain").lr)

    expected = choices()
    assert choices("sketch", "photo", "pairs") == {domain: expected[domain] for domain in ("photo", "sketch")}
    for run in study_runs("leave_one_out", "dropout=0.9", "seed=0", "test_domain=all"):
        three = replace(run, test_domain="+".join(domain for domain in DOMAINS if domain != run.test_domain))
        path = write_run(tmp_path, three, curves=False) / "result.json"
        content = json.loads(path.read_text())
        for row in content["results"]:
            row["ood_by_domain"] = dict.fromkeys(three.test_domain.split("+"), float(run.config.optim.lr == 1e-3))
        path.write_text(json.dumps(content))
    assert choices() == expected
    for path in tmp_path.glob("runs/pacs/*photo*/*/result.json"):
        path.unlink()
    report = make_report(
        narrowed(read_store(tmp_path), [Job((), Config(test_domain=["sketch", "pairs"]))], ["test_domain"]),
        choose="leave_one_out",
    )
    assert report.data["chosen_pairs"].empty  # not by the two others that are left


@pytest.mark.parametrize(("option", "left"), [(1, {"cartoon"}), ("all", {*DOMAINS}), ("0+1", {"art_painting+cartoon"})])
def test_a_report_s_test_domain_is_what_a_run_s_is(option: Any, left: set[str], tmp_path: Path) -> None:
    write_runs(tmp_path, lambda: 0.5, "dropout=0", "seed=0", "optim.lr=1e-3")
    store = narrowed(read_store(tmp_path), [Job((), Config(test_domain=option))], ["test_domain"])
    assert set(store.results.test_domain) == left


def test_nothing_is_chosen_where_a_run_that_leaves_two_domains_out_is_missing(tmp_path: Path) -> None:
    write_runs(tmp_path, lambda: 0.5, "dropout=0.9", "seed=0", without="cartoon+photo")
    report = make_report(read_store(tmp_path), choose="leave_one_out")
    chosen = report.data["chosen_pairs"]
    assert set(chosen.test_domain) == {"art_painting", "sketch"}
    assert sum("lack runs that leave two domains out" in line for line in report.warnings) == 1


def test_the_learning_curves_of_a_run_that_leaves_two_out_are_drawn(tmp_path: Path) -> None:
    runs = study_runs("leave_one_out", "dropout=0", "seed=0", "optim.lr=1e-3")
    paths = [write_run(tmp_path, run) for run in runs if run.test_domain in ("photo", "photo+sketch")]
    for path in paths:
        report = make_report(read_store(tmp_path), run=path.name)
        [curves] = [drawn for drawn in report.figures if drawn.name == "learning_curves"]
        assert path.name in curves.points.run.iloc[0]


def test_tables_of_commands_average_over_runs_that_leave_as_many_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_runs(tmp_path, np.random.default_rng(0).random, "dropout=0.9", "seed=0", "optim.lr=1e-3")
    results, _ = read_all(tmp_path)
    [table, _] = sweep_table(results, "erm")
    assert isinstance(table, Table)
    place = {heading: table.headings.index(heading) for heading in ("method", "o.o.d. %")}
    found = [row[place["o.o.d. %"]] for row in table.rows if row[place["method"]] == "erm"]
    rows = {result.settings["test_domain"]: result.headline[0] for result in results}
    for several, shown in zip((False, True), found, strict=True):
        ood = [row["ood_acc"] for domain, row in rows.items() if ("+" in domain) == several]
        assert shown == f"{100 * statistics.fmean(ood):.1f}"
    outcomes = [Outcome(one.settings["test_domain"], one.directory, one.content) for one in results]
    show_results(outcomes, "erm", Terminal())
    averages = [line.split("│")[4].strip() for line in capsys.readouterr().out.splitlines() if "│ average" in line]
    assert [averages[0], averages[3]] == found
