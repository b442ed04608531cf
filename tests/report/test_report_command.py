"""`scripts/report.py` as a user meets it: files, terminal, errors, and the page in a browser."""

import json
import os
import re
import shutil
import signal
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from threading import Event
from urllib.parse import unquote

import pandas as pd
import pytest
from report_store import study_runs, write_combinations, write_run
from run_command import TINY_NETWORK, script, train

from vld.config.names import METHOD_COLORS, series_color
from vld.report.build import make_report
from vld.report.select import read_store
from vld.report.write import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SMALL = ("seed=0,1", "optim.weight_decay=1e-4", "dataset=pacs,vlcs")

A4 = 718
"""Pixels of a line on A4 paper, with margins of 1 cm."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small figure 2, with a failed run and a missing one."""
    output_dir = tmp_path_factory.mktemp("store")
    first, second, *runs = study_runs("figure2", *SMALL)
    for run in runs:
        write_run(output_dir, run)
    write_run(output_dir, first, failure="out of memory <b>&")
    write_combinations(output_dir, [run for run in runs if run.config.dropout == 0.9])
    assert second.config.dropout == 0
    return output_dir


@pytest.fixture(scope="module")
def reported(store: Path) -> "subprocess.CompletedProcess[str]":
    done = script("report.py", "study=figure2", *SMALL, f"output_dir={store}", env={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    return done


def folder(store: Path) -> Path:
    return next(path for path in (store / "report").iterdir() if path.name.startswith("figure2,seed=0,1"))


def test_it_writes_every_table_and_figure(store: Path, reported: "subprocess.CompletedProcess[str]") -> None:
    where = folder(store)
    assert where.name.startswith("figure2,seed=0,1")
    assert str(where / "index.html") in reported.stdout
    tables = {path.name for path in (where / "tables").iterdir()}
    for name in ("results_pacs", "results_vlcs", "against_the_paper", "published_averages"):
        assert {f"{name}.csv", f"{name}.md", f"{name}.tex"} <= tables
    assert {"runs.csv", "chosen_pairs.csv", "differences.csv", "missing.csv"} <= tables
    assert {path.name for path in (where / "figures").iterdir()} == {"figure2.png", "figure2.pdf", "figure2.csv"}
    assert (where / "figures/figure2.pdf").read_bytes().startswith(b"%PDF")
    missing = pd.read_csv(where / "tables/missing.csv")
    assert sorted(missing.state) == ["failed", "missing"]
    assert not list(where.glob(".*"))


@pytest.mark.usefixtures("reported")
def test_the_tables_follow_from_the_runs(store: Path) -> None:
    """By pandas alone: means over seeds, then over pairs, then over test domains; a row of the table for each condition."""
    tables = folder(store) / "tables"
    runs = pd.read_csv(tables / "runs.csv")
    along = runs[runs.members.isna() & (runs.selection == "iid")]
    within = ["dataset", "method", "dropout"]
    by_seeds = along.groupby([*within, "test_domain", "lr", "weight_decay"])[["iid_acc", "ood_acc"]].mean()
    by_pairs = by_seeds.groupby([*within, "test_domain"]).mean()
    expected = 100 * by_pairs.groupby(within).mean()
    found = pd.concat([pd.read_csv(tables / f"results_{name}.csv") for name in ("pacs", "vlcs")])
    found = found[found.method.isin(runs[runs.members.isna()].method)].set_index(within)
    assert len(found) == len(expected) == 12
    expected.columns = pd.Index(["iid", "ood"])
    pd.testing.assert_frame_equal(found[["iid", "ood"]].sort_index(), expected.sort_index())


def test_the_terminal_shows_tables_claims_gaps_and_where_it_all_is(
    reported: "subprocess.CompletedProcess[str]",
) -> None:
    said = reported.stdout
    assert "62 finished runs of pacs, vlcs · 16 combinations · 1 failed · 1 missing" in said
    assert re.search(r"warning: 3 of 16 rows are incomplete; 2 runs to do", said)
    assert re.search(r"│ ERM +│ 0 +│ 14 of 16 │ .*†", said)
    assert re.search(r"\nPACS: ERM with dropout 0.9 .* the ensemble without dropout .* points o.o.d.", said)
    assert "Selection iid" in said


def test_a_second_report_replaces_the_first(store: Path, reported: "subprocess.CompletedProcess[str]") -> None:
    del reported
    stale = folder(store) / "figures/stale.png"
    stale.touch()
    done = script("report.py", "study=figure2", *SMALL, f"output_dir={store}")
    assert done.returncode == 0, done.stderr
    assert not stale.exists()


# Of `vld-report`: killed when the folder of tables is no longer the old one and not yet the new one; or with its first files.
KILLED_BETWEEN_TWO_FOLDERS = """
import os, signal
from pathlib import Path
from vld.commands import main as cli
rename = Path.rename
def renamed(path, target):
    rename(path, target)
    if path.name == "tables":
        os.kill(os.getpid(), signal.SIGKILL)
Path.rename = renamed
cli.report()
"""
KILLED_AT_ITS_FIRST_FILES = """
import os, signal
from pathlib import Path
from vld.commands import main as cli
write_text = Path.write_text
def written(path, *arguments, **options):
    write_text(path, *arguments, **options)
    if path.suffix == ".md":
        os.kill(os.getpid(), signal.SIGKILL)
Path.write_text = written
cli.report()
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_writes_the_same(store: Path, tmp_path: Path) -> None:
    options = ("dataset=pacs", "dropout=0.9", f"output_dir={store}")
    where = store / "report/dataset=pacs,dropout=0.9"

    def written() -> dict[str, bytes]:
        """The folder's files; what the page says of when and by which script it was made aside."""
        files = {f"{path.relative_to(where)}": path.read_bytes() for path in where.rglob("*") if path.is_file()}
        page = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", files["index.html"].decode())
        return files | {"index.html": page.encode()}

    assert script("report.py", *options).returncode == 0
    undisturbed = written()
    for text in (KILLED_BETWEEN_TWO_FOLDERS, KILLED_AT_ITS_FIRST_FILES):
        (tmp_path / "killed.py").write_text(text)
        killed = script(str(tmp_path / "killed.py"), *options, fresh=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert any(path.is_file() for path in (store / "report").rglob("*"))
        assert not (where / "tables").exists()
        assert script("report.py", *options).returncode == 0
        assert written() == undisturbed
        shutil.rmtree(where)


def test_two_reports_in_one_folder_are_written_one_after_the_other(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vld.machine.lock.PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr("vld.report.write.save_figure", lambda _, path, __: path.touch())
    report = make_report(read_store(store))
    report = replace(report, figures=report.figures[:1])
    waits = Event()
    with ThreadPoolExecutor(1) as pool:

        def second(what: str) -> None:
            if "waiting" in what or what == "page":
                waits.set()

        def first(what: str) -> None:
            if what.startswith("drawing"):
                others.append(pool.submit(write_report, report, tmp_path, "second", second))
                assert waits.wait(60)

        others: list[Future[Path]] = []
        write_report(report, tmp_path, "first", first)
        assert others[0].result() == tmp_path / "index.html"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "index.html", "tables"]
    assert "second" in (tmp_path / "index.html").read_text()


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag
        for name, value in attrs:
            if name in ("src", "href") and value:
                self.links.append(value)
            if name == "id" and value:
                self.ids.add(value)


def test_the_page_is_self_contained_and_its_links_lead_somewhere(
    store: Path, reported: "subprocess.CompletedProcess[str]"
) -> None:
    del reported
    page = (folder(store) / "index.html").read_text()
    links = Links()
    links.feed(page)
    assert len(links.links) > 10
    for link in links.links:
        if link.startswith("data:"):
            continue
        assert "//" not in link
        assert link[1:] in links.ids if link.startswith("#") else (folder(store) / unquote(link)).is_file(), link
    assert (
        page.count(f'<span style="color: {series_color("erm", 0.9)}">●</span> ERM') == 2
    )  # one in each results table …
    assert page.count(f'<span style="color: {METHOD_COLORS["model_soup"]}">★</span> model soup') == 2  # … as in figures
    best = sum(path.read_text().count("**") // 2 for path in (folder(store) / "tables").glob("*.md"))
    assert page.count('class="number best"') == best > 0
    assert "out of memory &lt;b&gt;&amp;" in page  # what a run says is no markup
    assert "torch 2.15.0" in page
    assert "weight_decay" in page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_it_opens_in_a_browser_without_complaint(
    store: Path, reported: "subprocess.CompletedProcess[str]", tmp_path: Path
) -> None:
    del reported
    page = folder(store) / "index.html"
    assert complaints(page, tmp_path) == []
    picture = tmp_path / "page.png"
    assert picture.stat().st_size > 50_000
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace("</body>", "<script>nothing()</script></body>"))
    assert len(complaints(broken, tmp_path)) == 1  # what the test looks for is seen


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_it_prints_on_a_few_pages_that_nothing_sticks_out_of(
    store: Path, reported: "subprocess.CompletedProcess[str]", tmp_path: Path
) -> None:
    del reported
    assert CHROMIUM
    page, printed = (folder(store) / "index.html").read_text(), tmp_path / "page.pdf"
    options = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    sized = "<script>addEventListener('load', () => document.title = 'width ' + document.documentElement.scrollWidth)</script>"
    for text, wide in ((page, False), (page.replace("<td", f"<td style='min-width: {A4 // 4}px'"), True)):
        as_on_paper = tmp_path / "as_on_paper.html"
        as_on_paper.write_text(text.replace("@media print", "@media all").replace("</body>", f"{sized}</body>"))
        shown = subprocess.run(
            [*options, f"--window-size={A4},1000", "--virtual-time-budget=5000", "--dump-dom", as_on_paper.as_uri()],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        [width] = re.findall(r"<title>width (\d+)", shown.stdout)
        assert (int(width) > A4) == wide  # what the test looks for is seen
    where = (folder(store) / "index.html").as_uri()
    subprocess.run([*options, f"--print-to-pdf={printed}", where], capture_output=True, check=True)
    assert 1 < len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())) < 20


def complaints(page: Path, profile: Path) -> list[str]:
    """What a browser's console says about a page; a picture of it is taken."""
    assert CHROMIUM
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1300,3000")
    places = (f"--user-data-dir={profile / 'profile'}", f"--screenshot={profile / 'page.png'}", page.as_uri())
    done = subprocess.run([CHROMIUM, *options, *places], capture_output=True, text=True, check=True, env=os.environ)
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_it_is_narrowed_by_options(store: Path) -> None:
    done = script("report.py", "dataset=vlcs", "dropout=0.9", "test_domain=0,SUN09", f"output_dir={store}")
    assert done.returncode == 0, done.stderr
    where = store / "report" / "dataset=vlcs,dropout=0.9,test_domain=0,SUN09"
    table = pd.read_csv(where / "tables/results_vlcs.csv")
    assert not (where / "tables/results_pacs.csv").exists()
    assert set(table.dropout) == {0.9}
    assert set(table.runs) == set(table.expected)  # the domains that were not asked for are not missing
    assert len(pd.read_csv(where / "tables/missing.csv")) == 0
    assert table.ood.notna().all()
    assert set(table.method) == {"erm", "weight_averaging", "ensemble", "model_soup", "ensemble_of_runs"}
    shutil.rmtree(where)


def test_combinations_of_runs_that_were_not_asked_for_are_not_there(store: Path) -> None:
    done = script("report.py", "study=figure2", *SMALL, "dropout=0.9", "optim.lr=1e-3", f"output_dir={store}")
    assert done.returncode == 0, done.stderr
    [where] = [path for path in (store / "report").iterdir() if path.name.endswith("dropout=0.9,optim.lr=1e-3")]
    assert set(pd.read_csv(where / "tables/results_pacs.csv").method) == {"erm", "weight_averaging", "ensemble"}
    shutil.rmtree(where)


def test_damage_does_not_stop_a_report_and_is_named(tmp_path: Path) -> None:
    runs = study_runs("figure2", *SMALL, "dataset=pacs", "dropout=0")
    paths = [write_run(tmp_path, run) for run in runs]
    for path in paths:
        (path / "metrics.jsonl").write_text('{"method": "erm", "step"')
    no_number = json.loads((paths[0] / "result.json").read_text())
    no_number["results"][0]["iid_acc"] = None
    (paths[0] / "result.json").write_text(json.dumps(no_number))
    done = script("report.py", f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert str(paths[0] / "result.json") in done.stdout
    assert "metrics.jsonl" in done.stdout
    for path in paths:
        (path / "result.json").write_text("{")
    done = script("report.py", f"output_dir={tmp_path}")
    assert done.returncode == 2
    assert "16 damaged" in done.stderr


def test_odd_names_are_no_formulas_markup_or_paths(tmp_path: Path) -> None:
    runs = study_runs("figure2", "dataset=pacs", "dropout=0,0.9", "seed=0", "optim.lr=1e-3", "optim.weight_decay=1e-4")
    for run in runs:
        run.config.dataset.name = "my set#1 100%?"
        odd = replace(
            run, test_domain={"photo": "a$x_$", "sketch": "b|c", "cartoon": "<i>d"}.get(run.test_domain, "e & f")
        )
        write_run(tmp_path, odd, domains=["a$x_$", "b|c", "<i>d", "e & f"])
    done = script("report.py", f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report/index.html").read_text()
    assert "<i>d" not in page
    links = Links()
    links.feed(page)
    here = [link for link in links.links if not link.startswith(("data:", "#"))]
    assert here
    assert all((tmp_path / "report" / unquote(link)).is_file() for link in here)
    markdown = (tmp_path / "report/tables/results_my set#1 100%?.md").read_text().splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in markdown if line.startswith("|")}) == 1


def test_the_learning_curves_of_one_run(store: Path) -> None:
    result = next(store.glob("runs/pacs/*/*/result.json"))
    run = json.loads(result.read_text())["run_id"]
    done = script("report.py", "dataset=pacs", f"run={run}", f"output_dir={store}")
    assert done.returncode == 0, done.stderr
    where = store / "report" / f"dataset=pacs,run={run}"
    assert set(pd.read_csv(where / "figures/learning_curves.csv").run.str[-12:]) == {run}
    shutil.rmtree(where)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["selection=best"], "selection=best: must be one of iid, last, oracle_step"),
        (["dropout=0.123"], "has no finished runs with dropout=0.123"),
        (["run=abc"], "run=abc: no finished run has that id"),
        (["run=12e456789012"], "run=12e456789012: no finished run has that id"),
        (["device=cpu"], "device: does not distinguish runs"),
        (["dropuot=0"], "dropuot: no such option, did you mean dropout?"),
        (["study=figure5"], "has no finished runs of figure5"),
    ],
)
def test_what_cannot_be_reported_is_said_in_one_line(options: list[str], said: str, store: Path) -> None:
    before = sorted(store.rglob("*"))
    done = script("report.py", *options, f"output_dir={store}")
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(store.rglob("*")) == before


def test_real_runs_are_reported(small_glyphs: Path, tmp_path: Path) -> None:
    places = (f"data_dir={small_glyphs}", f"output_dir={tmp_path}")
    small = (
        *TINY_NETWORK,
        "image_size=16",
        "batch_size=1",
        "optim.steps=4",
        "eval_every=2",
    )
    runs = ("dataset=glyphs", "dropout=0,0.9", "seed=0,1", "optim.milestones=[1]", "keep=[erm-last-logits]")
    done = train("-m", *runs, *small, *places)
    assert done.returncode == 0, done.stderr
    done = script("report.py", f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/*/*/result.json")]
    mine = [
        row["ood_acc"]
        for result in results
        for row in result["results"]
        if result["settings"]["dropout"] == 0.9 and (row["method"], row["selection"]) == ("erm", "iid")
    ]
    assert len(mine) == 8
    table = pd.read_csv(tmp_path / "report/tables/results_glyphs.csv")
    row = table[(table.method == "erm") & (table.dropout == 0.9)].iloc[0]
    assert row.ood == pytest.approx(100 * sum(mine) / 8)
    assert (row.runs, row.expected, row.seeds) == (8, 8, "2 seeds")
    names = {path.stem for path in (tmp_path / "report/figures").glob("*.png")}
    assert names == {"methods", "dropout_rates", "dropout_curves", "averaging", "domains", "learning_curves"}
