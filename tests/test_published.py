"""The published results: what page and README say is what the runs beside them gave, and what their commands would train."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import REPOSITORY
from hydra import initialize_config_dir

from vld.jobs import jobs_of
from vld.study import wanted_runs
from vld.sweep import study_axes

FOLDER = REPOSITORY / "outputs/published"
PAGE = (FOLDER / "README.md").read_text()
README = (REPOSITORY / "README.md").read_text()
TABLES = FOLDER / "pacs_cpu/tables"
RUNS = pd.read_csv(TABLES / "runs.csv")
TABLE = pd.read_csv(TABLES / "results_pacs.csv")
LABELS = {"erm": "ERM", "weight_averaging": "weight averaging", "ensemble": "ensemble"}


def of_method(name: str, rate: float) -> pd.Series:
    [row] = [row for _, row in TABLE.iterrows() if (row["name"], row.dropout) == (name, rate)]
    return row


@pytest.mark.parametrize("rate", sorted(set(RUNS.dropout)))
@pytest.mark.parametrize("method", LABELS)
def test_the_table_follows_from_the_runs(method: str, rate: float) -> None:
    """Step by step: means over seeds, learning rates and domains; the error from the averages that each seed has."""
    mine = RUNS[(RUNS.method == method) & (RUNS.dropout == rate) & (RUNS.selection == "iid") & RUNS.members.isna()]
    row = of_method(LABELS[method], rate)
    assert row.runs == row.expected == len(mine)
    for name in ("iid", "ood"):
        by_seed = [
            np.mean([np.mean(in_domain[f"{name}_acc"]) for _, in_domain in of_seed.groupby("test_domain")])
            for _, of_seed in mine.groupby("seed")
        ]
        assert row[name] == pytest.approx(100 * np.mean(by_seed))
        assert row[f"{name}_se"] == pytest.approx(100 * np.std(by_seed, ddof=1) / np.sqrt(len(by_seed)))
    for domain, in_domain in mine.groupby("test_domain"):
        assert row[f"ood {domain}"] == pytest.approx(100 * in_domain.ood_acc.mean())


def test_the_page_has_the_table_and_the_sentences() -> None:
    assert (TABLES / "results_pacs.md").read_text().strip() in PAGE
    differences = pd.read_csv(TABLES / "differences.csv")
    headlines = differences[differences.headline].sentence.str.removeprefix("PACS: ")
    assert len(headlines) >= 3
    for sentence in headlines:
        assert f"- {sentence}\n" in PAGE


def test_the_readme_s_table_is_the_page_s() -> None:
    [header] = re.findall(r"^\| method \| (dropout .*) \|$", README, re.MULTILINE)
    rates = [float(name.removeprefix("dropout ")) for name in header.split(" | ")]
    names = list(dict.fromkeys(TABLE["name"]))
    for name in names:
        [cells] = re.findall(rf"^\| {name} \| (.*) \|$", README, re.MULTILINE)
        rows = [of_method(name, rate) for rate in rates]
        expected = [f"{row.ood:.1f}" + (f" ± {row.ood_se:.1f}" if np.isfinite(row.ood_se) else "") for row in rows]
        assert cells.split(" | ") == expected


def test_the_runs_are_those_of_the_commands() -> None:
    commands = re.findall(r"^    python scripts/(\w+)\.py study=pacs_cpu ?(.*)$", PAGE, re.MULTILINE)
    assert [name for name, _ in commands] == ["train", "combine", "report"]
    for _, options in commands:
        axes = [word for word in options.split() if not word.startswith("hydra")]
        with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
            problems: dict[str, None] = {}
            jobs = list(jobs_of([*study_axes("pacs_cpu", []), *axes], problems))
            assert not problems
            wanted = {
                (run.test_domain, run.config.dropout, run.config.optim.lr, run.config.seed, run.config.optim.steps)
                for run in wanted_runs(jobs)
            }
        there = RUNS[RUNS.members.isna()][["test_domain", "dropout", "lr", "seed", "steps"]]
        assert set(there.itertuples(index=False, name=None)) == wanted


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
        in README
    )


def test_links_lead_somewhere_and_no_machine_is_named() -> None:
    for text, base in ((PAGE, FOLDER), (README, REPOSITORY)):
        links = [link for link in re.findall(r'(?:\]\(|src=")([^)"]+)', text) if not link.startswith("http")]
        assert links
        assert not [link for link in links if not (base / link).exists()]
    texts = [path for path in FOLDER.rglob("*") if path.suffix in (".csv", ".md", ".html", ".json", ".tex")]
    assert not [path for path in texts if re.search(r"/(tmp|root|home|work)/", path.read_text())]
    assert sum(path.stat().st_size for path in Path(FOLDER).rglob("*") if path.is_file()) < 3e6
