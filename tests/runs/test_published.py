"""The published results: what page and README say is what the runs beside them gave, and what their commands would train."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from composed import command_jobs
from run_command import DOCUMENTATION, PAGES, REPOSITORY

from vld.report.differences import difference
from vld.report.grid import CHOSEN, Grid
from vld.study.planned import PlannedRun, planned_runs

FOLDER = REPOSITORY / "outputs/published"
PAGE = (FOLDER / "README.md").read_text()
README = (REPOSITORY / "README.md").read_text()
REPORTS = ("pacs_cpu", "pacs_cpu_rates")
TABLES = {name: FOLDER / name / "tables" for name in REPORTS}
RUNS = {name: pd.read_csv(tables / "runs.csv") for name, tables in TABLES.items()}
TABLE = {name: pd.read_csv(tables / "results_pacs.csv") for name, tables in TABLES.items()}
MORE = FOLDER / "pacs_cpu_seeds"
RIVALS, LONGER = FOLDER / "rivals_pacs_cpu/tables", FOLDER / "mixout_pacs_cpu/tables"
Row = tuple[str, str, float]
"""Of a table of recipes: recipe, method, dropout rate."""
LABELS = {"erm": "ERM", "weight_averaging": "weight averaging", "ensemble": "ensemble"}


@cache
def runs_of_recipes(tables: Path) -> pd.DataFrame:
    """Of each row, at its learning rate."""
    runs, table = pd.read_csv(tables / "runs.csv"), pd.read_csv(tables / "recipes_pacs.csv")
    names = ["recipe", "method", "dropout"]
    return runs[runs.selection == "iid"].merge(table[[*names, "lr"]]).set_index(names).sort_index()


def grid(tables: Path, row: Row) -> Grid:
    its = runs_of_recipes(tables).loc[row]
    cells = [its.pivot(index="test_domain", columns="seed", values=f"{side}_acc") for side in ("iid", "ood")]
    repeats = tuple((seed, 0) for seed in cells[0].columns)
    return Grid(tuple(cells[0].index), CHOSEN, repeats, *(of.to_numpy()[:, None] for of in cells))


def between(tables: Path, a: Row, b: Row) -> tuple[float, float]:
    """The paired difference, o.o.d., and half its interval."""
    found = difference(grid(tables, a), grid(tables, b))
    assert found is not None and found["repeats"] == 3
    return found["ood"], (found["ood_high"] - found["ood_low"]) / 2


def trained_by(study: str, options: str) -> list[PlannedRun]:
    """The runs of a command on the page."""
    return planned_runs(command_jobs(study, *(word for word in options.split() if not word.startswith("hydra"))))


def of_method(report: str, name: str, rate: float) -> pd.Series:
    [row] = [row for _, row in TABLE[report].iterrows() if (row["name"], row.dropout) == (name, rate)]
    return row


def runs_of(report: str, method: str, rate: float) -> pd.DataFrame:
    runs = RUNS[report]
    return runs[(runs.method == method) & (runs.dropout == rate) & (runs.selection == "iid") & runs.members.isna()]


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("method", LABELS)
@pytest.mark.parametrize("report", REPORTS)
def test_the_table_follows_from_the_runs(report: str, method: str, rate: float) -> None:
    """Step by step: means over seeds, learning rates and domains; the error from the averages that each seed has."""
    mine = runs_of(report, method, rate)
    row = of_method(report, LABELS[method], rate)
    assert row.runs == row.expected == len(mine)
    for name in ("iid", "ood"):
        by_seed = [
            np.mean([np.mean(in_domain[f"{name}_acc"]) for _, in_domain in of_seed.groupby("test_domain")])
            for _, of_seed in mine.groupby("seed")
        ]
        assert row[name] == pytest.approx(100 * np.mean(by_seed))
        error = np.std(by_seed, ddof=1) / np.sqrt(len(by_seed)) if len(by_seed) > 1 else np.nan
        assert row[f"{name}_se"] == pytest.approx(100 * error, nan_ok=True)
    for domain, in_domain in mine.groupby("test_domain"):
        assert row[f"ood {domain}"] == pytest.approx(100 * in_domain.ood_acc.mean())


def test_the_learning_rate_is_the_one_of_better_iid_accuracy() -> None:
    """For every method, dropout rate and domain left out; and what the page says of the other one."""
    runs = RUNS["pacs_cpu_rates"]
    along = runs[(runs.selection == "iid") & runs.members.isna()]
    assert set(along.lr) == {1e-3, 5e-4}
    for _, of_one in along.groupby(["method", "dropout", "test_domain"]):
        assert of_one.loc[of_one.iid_acc.idxmax()].lr == 1e-3
    assert set(RUNS["pacs_cpu"].lr.dropna()) == {1e-3}
    [said] = re.findall(
        r"by less: ([\d.]+), where ERM has ([\d.]+), weight averaging ([\d.]+) and\s+the ensemble (\d+\.\d)", PAGE
    )
    lower = along[along.lr == 5e-4]
    of = [("erm", 0.9), *((method, 0.0) for method in LABELS)]
    means = [lower[(lower.method == method) & (lower.dropout == rate)].ood_acc.mean() for method, rate in of]
    assert list(said) == [f"{100 * mean:.1f}" for mean in means]
    assert means[0] > max(means[1:])


@pytest.mark.parametrize("report", REPORTS)
def test_the_page_has_the_table_and_the_sentences(report: str) -> None:
    assert (TABLES[report] / "results_pacs.md").read_text().strip() in PAGE
    differences = pd.read_csv(TABLES[report] / "differences.csv")
    headlines = differences[differences.headline].sentence.str.removeprefix("PACS: ")
    assert len(headlines) >= 3
    for sentence in headlines:
        assert f"- {sentence}\n" in PAGE


def test_the_readme_s_table_is_the_page_s() -> None:
    [header] = re.findall(r"^\| method \| (dropout .*) \|$", README, re.MULTILINE)
    rates = [float(name.removeprefix("dropout ")) for name in header.split(" | ")]
    names = list(dict.fromkeys(TABLE["pacs_cpu"]["name"]))
    for name in names:
        [cells] = re.findall(rf"^\| {name} \| (.*) \|$", README, re.MULTILINE)
        rows = [of_method("pacs_cpu", name, rate) for rate in rates]
        expected = [f"{row.ood:.1f}" + (f" ± {row.ood_se:.1f}" if np.isfinite(row.ood_se) else "") for row in rows]
        assert cells.split(" | ") == expected


def test_the_runs_are_those_of_the_commands() -> None:
    commands = re.findall(r"^    python scripts/(\w+)\.py study=pacs_cpu ?((?!.*recipe=).*)$", PAGE, re.MULTILINE)
    of_reports, of_more = commands[: 3 * len(REPORTS)], commands[3 * len(REPORTS) :]
    assert [name for name, _ in of_reports] == ["train", "combine", "report"] * len(REPORTS)
    assert [name for name, _ in of_more] == ["train", "report"]
    published = [*np.repeat(REPORTS, 3), *[MORE.name] * 2]
    for report, (_, options) in zip(published, commands, strict=True):
        wanted = {
            (run.test_domain, run.config.dropout, run.config.optim.lr, run.config.seed, run.config.optim.steps)
            for run in trained_by("pacs_cpu", options)
        }
        runs = pd.read_csv(FOLDER / report / "tables/runs.csv")
        there = runs[runs.members.isna()][["test_domain", "dropout", "lr", "seed", "steps"]]
        assert set(there.itertuples(index=False, name=None)) == wanted


def test_the_pair_with_more_seeds_follows_from_its_runs() -> None:
    """Means over domains of each seed, and their standard error; on the page as the report has them, with its sentences."""
    tables = MORE / "tables"
    runs, table = pd.read_csv(tables / "runs.csv"), pd.read_csv(tables / "results_pacs.csv")
    assert len(table) == 2 * len(LABELS)
    for row in table.itertuples():
        mine = runs[(runs.method == row.method) & (runs.dropout == row.dropout) & (runs.selection == "iid")]
        by_seed = 100 * mine.groupby("seed")[["iid_acc", "ood_acc"]].mean()
        assert row.runs == row.expected == len(mine) == 4 * len(by_seed)
        assert (row.iid, row.ood) == pytest.approx(tuple(by_seed.mean()))
        assert (row.iid_se, row.ood_se) == pytest.approx(tuple(by_seed.sem()))
    assert (tables / "results_pacs.md").read_text().strip() in PAGE
    differences = pd.read_csv(tables / "differences.csv")
    sentences = differences[differences.headline].sentence.str.removeprefix("PACS: ")
    assert len(sentences) == 3
    assert all(f"- {sentence}\n" in PAGE for sentence in sentences)
    found = differences[differences.headline]
    said = [f"{row.ood:.1f} ± {(row.ood_high - row.ood_low) / 2:.1f}" for row in found.itertuples()]
    assert list(found.ood_low > 0) == [False, True, True]
    assert f"with five seeds {said[0]}, which does not tell them apart ({said[1]} and {said[2]} against" in README
    assert set(runs.seed) == {0, 1, 2, 3, 4} and "above weight averaging and the ensemble without it" in PAGE


def test_what_is_said_of_the_rivals_across_rows_is_within_or_beyond_its_interval() -> None:
    runs = pd.read_csv(RIVALS / "runs.csv")
    table = pd.read_csv(RIVALS / "recipes_pacs.csv").set_index(["recipe", "method", "dropout"])
    plain = ("erm", "erm", 0.0)
    value, half = between(RIVALS, ("mixout_05", "erm", 0.0), plain)
    assert (
        abs(value) < half
        and f"cannot be told apart from plain fine-tuning without it\n  (+{value:.1f} ± {half:.1f})" in PAGE
    )
    beaten = [between(RIVALS, (*one, 0.0), ("erm", "erm", 0.9)) for one in (("erm", "swad"), ("erm", "ensemble"))]
    assert all(value > half for value, half in beaten)
    said = " and ".join(f"{value:.1f} ± {half:.1f}" for value, half in beaten)
    assert f"ensemble without dropout beat it by {said}" in PAGE
    rows = [(recipe, rate) for recipe, method, rate in table.index if method == "swad"]
    above = [between(RIVALS, (recipe, "swad", rate), (recipe, "weight_averaging", rate)) for recipe, rate in rows]
    assert f"in {sum(value > half for value, half in above)} of the {len(rows)} by more than its interval" in PAGE
    assert all(
        abs(value) < half for value, half in (between(RIVALS, (of, "swad", r), (of, "erm", r)) for of, r in rows)
    )
    known = runs[(runs.method == "swad") & (runs.selection == "last") & runs.converged.notna()]
    assert len(known) == 64 and f"in {57 + (known.converged == False).sum()} of the 128\n" in PAGE  # noqa: E712


def test_the_rivals_table_follows_from_their_runs() -> None:
    """Means over domains of means over seeds, at the learning rate of best i.i.d. accuracy on the seed that both have, and their
    differences; on the page as the report has it."""
    runs, table = pd.read_csv(RIVALS / "runs.csv"), pd.read_csv(RIVALS / "recipes_pacs.csv")
    place = ["recipe", "method", "dropout"]

    def averaged(some: pd.DataFrame) -> pd.DataFrame:
        of_each = some[some.selection == "iid"].groupby([*place, "lr", "test_domain"])
        return 100 * of_each[["iid_acc", "ood_acc"]].mean().groupby(level=[0, 1, 2, 3]).mean()

    chosen = averaged(runs).loc[averaged(runs[runs.seed == 0]).iid_acc.groupby(level=[0, 1, 2]).idxmax()]
    means = chosen.droplevel("lr")
    assert len(table) == len(means)
    for row in table.itertuples():
        its = (row.recipe, row.method, row.dropout)
        assert (*its, row.lr) in chosen.index
        assert row.runs == row.expected
        iid, ood = means.loc[its]
        assert (row.iid, row.ood) == pytest.approx((iid, ood))
        gain = ood - means.ood_acc[row.recipe, row.method, 0] if row.dropout else np.nan
        assert row.gain == pytest.approx(gain, nan_ok=True)
        plain = ("erm", "erm", 0.9)
        against = np.nan if plain == its else ood - means.ood_acc[plain]
        assert row.against_erm == pytest.approx(against, nan_ok=True)
    assert (RIVALS / "recipes_pacs.md").read_text().strip() in PAGE
    plain, highest = means.loc["erm", "erm"], means.ood_acc.idxmax()
    lost = -means.ood_acc.unstack().diff(axis=1)[0.9]
    assert (lost > 0).all()  # dropout 0.9 is ahead in no row
    assert lost.xs("erm", level=1).nlargest(2).index.tolist() == ["mixout_05", "mixout_08"]
    rows = table.set_index(place)
    beside = [
        f"{abs(row[name]):.1f} ± {(row[f'{name}_high'] - row[f'{name}_low']) / 2:.1f}"
        for name, row in [
            ("gain", rows.loc[recipe, "erm", 0.9]) for recipe in ("erm", "mixout_05", "mixout_08", "warm_start_100")
        ]
        + [("against_erm", rows.loc[recipe, "erm", 0]) for recipe in ("mixout_05", "mixout_08")]
    ]
    swad = means.ood_acc.xs("swad", level=1) - means.ood_acc.xs("weight_averaging", level=1)
    for said in (
        f"has {plain.ood_acc[0.9]:.1f} with it and {plain.ood_acc[0.0]:.1f} without",
        f"is {plain.iid_acc[0.0] - plain.iid_acc[0.9]:.1f} points lower here",
        f"which three seeds cannot tell apart (−{beside[0]})",
        f"loses {beside[1]} points (rate 0.5) and {beside[2]} (0.8), more than alone; after a warm start {beside[3]}, no more",
        f"it beats plain fine-tuning with dropout 0.9 by {beside[4]} points, but",
        f"Mixout 0.8 without dropout is below plain fine-tuning with dropout 0.9 by {beside[5]}.",
        f"by {swad.min():.1f} to {swad.max():.1f} points",
        f"{highest[0].replace('mixout_05', 'Mixout 0.5')} without dropout, {means.ood_acc[highest]:.1f}",
    ):
        assert said in PAGE
    assert highest[1:] == ("erm", 0.0)


def test_the_rivals_at_both_learning_rates_are_on_the_page() -> None:
    runs = pd.read_csv(RIVALS / "runs.csv")
    along = runs[(runs.selection == "iid") & (runs.method == "erm") & (runs.seed == 0)]
    both = 100 * along.pivot_table(["iid_acc", "ood_acc"], ["recipe", "dropout"], "lr", aggfunc="mean")
    for (recipe, rate), row in both.iterrows():
        cells = [f"{row[name, lr]:.1f}" for lr in (1e-3, 3e-4) for name in ("iid_acc", "ood_acc")]
        assert f"| {recipe} | {rate:g} | {' | '.join(cells)} |" in PAGE
    better = both.iid_acc[1e-3] > both.iid_acc[3e-4]
    assert {recipe for (recipe, _), higher in better.items() if not higher} == {"mixout_08"}
    assert (both.ood_acc[3e-4].unstack().diff(axis=1)[0.9] < 0).all()
    least = both.iid_acc[1e-3].idxmin()
    assert least == ("mixout_08", 0.9) and f"least of all ({both.iid_acc[1e-3][least]:.1f})" in PAGE


def test_the_rivals_are_the_runs_of_their_commands() -> None:
    commands = re.findall(r"^    python scripts/train\.py study=(rivals_pacs_cpu\S*) (.*)$", PAGE, re.MULTILINE)
    wanted = set()
    for study, options in commands:
        for run in trained_by(study, options):
            config = run.config
            wanted.add((run.test_domain, config.dropout, config.seed, config.optim.lr, config.recipe.name))
    there = pd.read_csv(RIVALS / "runs.csv")[["test_domain", "dropout", "seed", "lr", "recipe"]]
    assert set(there.itertuples(index=False, name=None)) == wanted


def test_mixout_after_2_000_steps_follows_from_its_runs() -> None:
    """Table, differences and what is said of them; the runs are those of the section's commands."""
    table = pd.read_csv(LONGER / "recipes_pacs.csv").set_index(["recipe", "method", "dropout"])
    assert len(table) == 2 * 2 * len(LABELS) and (LONGER / "recipes_pacs.md").read_text().strip() in PAGE
    for row, its in table.iterrows():
        mine = grid(LONGER, row)  # type: ignore[arg-type]
        assert its.runs == its.expected == 12
        assert (its.iid, its.ood) == pytest.approx((100 * mine.iid_acc.mean(), 100 * mine.ood_acc.mean()))
    train, report = re.findall(r"^    python scripts/\w+\.py study=pacs_cpu (.*recipe=.*)$", PAGE, re.MULTILINE)
    runs = pd.read_csv(LONGER / "runs.csv")
    names = ["test_domain", "recipe", "dropout", "lr", "seed", "steps"]
    there = set(runs[names].itertuples(index=False, name=None))
    for options, recipes in ((report, {"erm", "mixout_05"}), (train, {"mixout_05"})):
        configs = [(run.test_domain, run.config) for run in trained_by("pacs_cpu", options)]
        wanted = {(name, c.recipe.name, c.dropout, c.optim.lr, c.seed, c.optim.steps) for name, c in configs}
        assert {one for one in there if one[1] in recipes} == wanted
    mixout, both, dropout = ("mixout_05", "erm", 0.0), ("mixout_05", "erm", 0.9), ("erm", "erm", 0.9)
    level, gain, *lost, plain = (
        between(LONGER, *pair)
        for pair in (
            (mixout, dropout),
            (mixout, ("erm", "erm", 0.0)),
            (mixout, both),
            (dropout, both),
            (dropout, ("erm", "erm", 0.0)),
        )
    )
    assert abs(level[0]) < level[1] and gain[0] > gain[1] and all(value > half for value, half in lost)
    first, second, higher = (f"{value:.1f} ± {half:.1f}" for value, half in (*lost, gain))
    accuracy, its = (f"{table.ood[row]:.1f}" for row in (mixout, dropout))
    seeds = pd.read_csv(MORE / "tables/results_pacs.csv").set_index(["method", "dropout"])
    five = seeds.loc["erm", 0.0]
    for said in (
        f"Mixout 0.5 without dropout ({accuracy}) beats plain fine-tuning without it by {higher}, and cannot",
        f"fine-tuning with dropout 0.9 ({its}; {'+' if level[0] >= 0 else '−'}{abs(level[0]):.1f} ± {level[1]:.1f})",
        f"the network loses {first} points against Mixout alone and {second} against dropout alone",
        f"The plain pair differs by {plain[0]:.1f} ± {plain[1]:.1f} on these three seeds",
        f"without dropout these three are {table.ood['erm', 'erm', 0.0]:.1f}, all five {five.ood:.1f}",
    ):
        assert said in PAGE
    assert f"is level with it ({accuracy} and {its}), and both together are worse" in README


def test_ratios_are_the_benchmark_s() -> None:
    measured = json.loads((FOLDER / "benchmark.json").read_text())
    evaluation = measured["evaluation_images_per_second"]
    ratios = {
        "input pipeline, images/s on one core": measured["input_images_per_second_and_core"]["ratio"],
        "training, images/s of a full step": measured["conventional_step_to_full_step"],
        "a run of the paper, evaluations included": measured["paper_run_hours"]["ratio"],
        "evaluation, images/s of one network": evaluation["both networks in one pass"] / evaluation["conventional"],
    }
    for name, ratio in ratios.items():
        [shown] = re.findall(rf"^\| {name} \| ([\d.]+)", PAGE, re.MULTILINE)
        assert float(shown) == pytest.approx(ratio, abs=0.06 if ratio > 2 else 0.006)
    of_input, of_step, of_run, _ = (re.findall(rf"^\| {name} \| ([\d.]+)", PAGE, re.MULTILINE)[0] for name in ratios)
    assert (
        f"input on one core {of_input} times as fast, a training step {of_step} times, a whole run {of_run} times"
        in DOCUMENTATION
    )


def test_what_mixout_costs_is_the_benchmark_s() -> None:
    figures = json.loads((FOLDER / "benchmark_mixout.json").read_text())
    ratios = {}
    for name, its in figures.items():
        seconds = its["median_seconds"]
        ratios[name] = seconds["step with Mixout"] / seconds["bare step"]
        assert its["device"].endswith("1 thread(s)") and not its["compiled"]
        assert ratios[name] < 1.1  # what it may cost
    assert f"takes {ratios['efficientnet_lite0']:.2f} times as long as one without it" in PAGE
    assert f"24 images at 96 pixels) {ratios['resnet50']:.2f} times" in PAGE
    said = f"takes {ratios['efficientnet_lite0']:.2f} times as long (`efficientnet_lite0` with 48 images at\n48 pixels)"
    assert f"{said} and {ratios['resnet50']:.2f} times (ResNet50 with 24 at 96" in DOCUMENTATION


def test_the_gpu_s_figures_are_those_of_its_benchmark() -> None:
    figures = json.loads((FOLDER / "benchmark_h100.json").read_text())
    columns = [figures[name] for name in ("graphs", "compiled", "eager")]
    graphs, compiled = columns[:2]
    section = PAGE.partition("## On a GPU")[2]
    rows = {"full (": "full step", "the same on": "bare step", "full, images": "step from host memory"}
    rows |= {"with Mixout": "step with Mixout"}
    rows |= {"conventional (": "conventional step", "DomainBed's way (": "DomainBed-style step"}
    for words, step in rows.items():
        [line] = re.findall(rf"^\| {re.escape(words)}.*$", section, re.MULTILINE)
        rates = [its["images_per_second"].get(step) for its in columns]
        assert line.split(" | ", 1)[1] == " | ".join(f"{rate:,.0f}" if rate else "–" for rate in rates) + " |"
    ratios = [graphs[f"{step}_to_full_step"] for step in ("conventional_step", "DomainBed-style_step")]
    assert (
        f"{ratios[0]:.2f} times as fast as the conventional one and {ratios[1]:.2f} times as fast as DomainBed's"
        in section
    )
    rate = f"{graphs['images_per_second']['full step']:,.0f} images/s"
    assert (
        f"{rate}, {ratios[0]:.2f} times as many as the conventional pipeline and {ratios[1]:.2f} times" in DOCUMENTATION
    )
    assert f"Mixout takes {graphs['mixout_step_to_bare_step']:.2f} times as long as the bare" in section
    kernels, full, small = (
        [1e3 * seconds for seconds in (its["kernels_of_a_full_step"]["seconds"], its["median_seconds"]["full step"])]
        for its in (graphs, compiled, figures["small images"])
    )
    assert (
        f"{kernels[0]:.1f} of the {kernels[1]:.1f} ms; launched one by one they take {full[0]:.1f} of {full[1]:.1f}"
        in section
    )
    assert f"{small[0] / small[1]:.0%}".replace("%", " %") + " of the step" in section.replace("\n", " ")
    host = 1e3 * compiled["device_and_host_seconds"]["full step"]["host"]
    assert f"the host needs {host:.1f} ms to launch them" in section
    assert f"the host launches ResNet50's in {host:.0f} ms, which an H100 computes in {full[0]:.0f}" in DOCUMENTATION
    assert f"at 96 pixels trains {figures['small images']['images_per_second']['full step']:,.0f} images/s" in section
    assert (
        f"{graphs['evaluation_images_per_second']['both networks in one pass']:,.0f} images/s of a network" in section
    )
    assert f"takes {60 * graphs['paper_run_hours']['ours']:.1f} minutes with its evaluations" in section
    assert f"{sum(entry['hours'] for entry in graphs['forecast']) / 24:.1f} days of the GPU" in section
    assert f"The first compilation takes {figures['first compilation']['one core']:.0f} s" in section


def test_links_lead_somewhere_and_no_machine_is_named() -> None:
    found = 0
    for page in (FOLDER / "README.md", *PAGES):
        links = [
            link for link in re.findall(r'(?:\]\(|src=")([^")]+)', page.read_text()) if not link.startswith("http")
        ]
        assert not [link for link in links if not (page.parent / link.partition("#")[0]).exists()], page
        found += len(links)
    assert found > 15
    for report in (*REPORTS, "rivals_pacs_cpu"):
        page = (FOLDER / report / "index.html").read_text()
        links = [link for link in re.findall(r'href="([^"]+)"', page) if not link.startswith(("#", "data:"))]
        assert len(links) > (20 if report in REPORTS else 10)  # that of recipes has one figure
        assert not [link for link in links if not (FOLDER / report / link).exists()]
    texts = [path for path in FOLDER.rglob("*") if path.suffix in (".csv", ".md", ".html", ".json", ".tex")]
    assert not [path for path in texts if re.search(r"/(tmp|root|home|work)/", path.read_text())]
    assert sum(path.stat().st_size for path in Path(FOLDER).rglob("*") if path.is_file()) < 3e6
