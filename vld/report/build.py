"""What a report says: tables, figures with their points, sentences and warnings."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vld.config.errors import UserError
from vld.config.names import dataset_name
from vld.report.averages import SELECTION_NOTES, chosen_pairs, results_table, runs_table, shown_table
from vld.report.differences import differences_table
from vld.report.figures import learning_curves_figure
from vld.report.grid import expected_runs, missing_runs
from vld.report.kinds import Drawn, drawn_figures
from vld.report.paper import against_the_paper, published_averages, shown_against_the_paper, shown_averages
from vld.report.points import learning_curves
from vld.report.results_store import Store
from vld.report.richness import richness_figures, richness_points, richness_table
from vld.report.series import Series, large_rate, series_of
from vld.report.summary import Shown, counted
from vld.report.table import in_order, shown_value
from vld.runs.identity import CONTENT, differing, varied_settings


@dataclass(frozen=True)
class Report:
    """What a report says, ready to be shown."""

    title: str
    facts: list[str]
    """How many runs, of what."""
    warnings: list[str]
    sentences: list[str]
    """What the differences say; of those the headlines: very large dropout against what goes without."""
    headlines: list[str]
    tables: dict[str, tuple[pd.DataFrame, Shown]]
    """By name: the numbers, and how they are shown."""
    figures: list[Drawn]
    common: dict[str, str]
    """Settings that all runs share."""
    varied: dict[str, list[str]]
    """The others, with their values."""
    software: dict[str, int]
    """How many runs were trained with which versions, on which device."""
    missing: pd.DataFrame
    data: dict[str, pd.DataFrame]
    """What is written as CSV alone."""


def make_report(
    store: Store,
    expected: pd.DataFrame | None,
    *,
    title: str,
    selection: str = "iid",
    study: str | None = None,
    run: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """From what is finished, and what should be (None: whole grids of what there is).

    study: draw its figure only. run: whose learning curves are drawn. Raises `UserError` where nothing is finished, and for a run
    that is not there.
    """
    results = store.results
    if results.empty or results.combined.notna().all():
        raise UserError(f"{title}: no finished runs to report on")
    if run is not None and run not in set(results.run_id[results.combined.isna()]):
        raise UserError(f"run={run}: no finished run has that id")
    if expected is None:
        expected = expected_runs(results, store.unfinished)
    progress("tables")
    series = series_of(results, expected, selection)
    tables = {}
    for dataset in dict.fromkeys(one.dataset for one in series):
        table = results_table([one for one in series if one.dataset == dataset])
        tables[f"results_{dataset}"] = table, shown_table(table, selection)
    runs = results[results.combined.isna()].drop_duplicates("path")
    for name, frame, shown in (
        ("against_the_paper", against_the_paper(series), shown_against_the_paper),
        ("published_averages", published_averages(series), shown_averages),
    ):
        if not frame.empty:
            tables[name] = frame, shown(frame)
    damaged: list[str] = []
    analysed = richness_points(series, runs, damaged)
    if not analysed.empty:
        tables["richness"] = richness_table(analysed, series)
    progress("differences")
    differences = differences_table(series)
    missing = missing_runs(results, store.unfinished, expected)
    settings = list(runs.settings)
    names = [name for name in varied_settings(settings) if name not in CONTENT]
    data = {
        "runs": runs_table(results, names),
        "chosen_pairs": chosen_pairs(series),
        "differences": differences,
        "missing": missing,
    }
    figures = []
    for drawn in drawn_figures(series, results, study):
        progress(f"figure {drawn.name}")
        figures.append(drawn)
    figures += richness_figures(analysed) if not analysed.empty else []
    figures += _learning_curves(runs, results, selection, run, damaged) if study is None or run else []
    not_common = {"test_domain", *differing(settings)}
    common = {name: f"{value}" for name, value in sorted(settings[0].items()) if name not in not_common}
    return Report(
        title,
        facts=[f"selection {selection}: {SELECTION_NOTES[selection]}", *_facts(store, runs, missing)],
        warnings=[*store.notes, *_warnings(store, runs, missing, series), *damaged],
        sentences=list(differences.get("sentence", [])),
        headlines=list(differences[differences.headline].sentence) if len(differences) else [],
        tables=tables,
        figures=figures,
        common=common,
        varied={name: _values(runs, name) for name in ("test_domain", *names)},
        software=_software(runs),
        missing=missing,
        data=data,
    )


def _values(runs: pd.DataFrame, name: str) -> list[str]:
    values = {json.dumps(settings.get(name)): settings.get(name) for settings in runs.settings}
    return [shown_value(name, value) for value in sorted(values.values(), key=in_order)]


def _facts(store: Store, runs: pd.DataFrame, missing: pd.DataFrame) -> list[str]:
    combinations = store.results[store.results.combined.notna()].path.nunique()
    hours = runs.seconds.fillna(0).sum() / 3600
    states = Counter(missing.state)
    facts = [f"{counted(len(runs), 'finished run')} of {', '.join(sorted(runs.dataset.unique()))}"]
    facts += [counted(combinations, "combination")] if combinations else []
    facts += [f"{count} {state}" for state, count in sorted(states.items())]
    return [*facts, f"{hours:.1f} hours of computing"]


def _warnings(store: Store, runs: pd.DataFrame, missing: pd.DataFrame, series: Sequence[Series]) -> list[str]:
    lines = []
    by = (["dataset"], ["dataset", "backbone"], ["dataset"])
    for name, what, columns in zip(CONTENT, ("data", "weights", "precision"), by, strict=True):
        for of, some in runs.groupby(columns):
            values = Counter(settings[name] for settings in some.settings)
            if len(values) > 1:
                told = ", ".join(
                    f"{shown_value(name, value)}: {counted(count, 'run')}" for value, count in values.items()
                )
                where = ", ".join(map(str, of))
                lines.append(
                    f"{where}: runs of different {what} ({told}) are in rows of their own, never averaged together"
                )
    incomplete = [one for one in series if not one.grid.complete]
    if incomplete:
        lines.append(
            f"{len(incomplete)} of {len(series)} rows are incomplete; {counted(len(missing), 'run')} to do: tables/missing.csv"
        )
    for one in incomplete:
        if one.combined:
            lacking = [
                d for d, its in zip(one.grid.test_domains, one.grid.ood_acc, strict=True) if not np.isfinite(its).all()
            ]
            lines.append(f"{one.dataset}: lacks combinations: {one.label}, {', '.join(lacking)} left out")
    if any(one.on_a_part for one in series):
        lines.append("rows marked “on a part” are of a part of the images (dataset.curve_images)")
    return list(dict.fromkeys(lines)) + [f"damaged: {line}" for line in store.damaged]


def _software(runs: pd.DataFrame) -> dict[str, int]:
    counts = Counter(
        f"{device or 'unknown device'}: " + ", ".join(f"{name} {version}" for name, version in (software or {}).items())
        for software, device in zip(runs.software, runs.device, strict=True)
    )
    return dict(counts.most_common())


def _learning_curves(
    runs: pd.DataFrame, results: pd.DataFrame, selection: str, run: str | None, damaged: list[str]
) -> list[Drawn]:
    """Of one run; or, of every dataset, of the run of best i.i.d. accuracy without dropout and with very large dropout.

    damaged: takes a line for every file that cannot be read.
    """
    if run is not None:
        chosen = runs[runs.run_id == run]
    else:
        erm = results[(results.method == "erm") & (results.selection == selection) & results.combined.isna()]
        rates = [rate for rate in (0.0, large_rate(erm.dropout.dropna())) if rate is not None]
        best = erm[erm.dropout.isin(rates)].sort_values(["iid_acc", "run_id"], ascending=[False, True])
        chosen = best.drop_duplicates(["dataset", "dropout"]).sort_values(["dataset", "dropout"])
    frames = []
    for row in chosen.to_dict("records"):
        rate = shown_value("dropout", row["dropout"])
        label = f"{dataset_name(row['dataset'])}, {row['test_domain']} left out, dropout {rate}\n{row['run_id']}"
        try:
            frames.append(learning_curves({label: Path(row["path"])}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged.append(f"damaged: {row['path']}/metrics.jsonl: {error!r}")
    curves = pd.concat(frames) if frames else pd.DataFrame()
    if curves.empty:
        return []
    which = (
        "" if run else " Of each dataset the run of best i.i.d. accuracy, without dropout and with very large dropout."
    )
    caption = f"Solid: o.o.d. accuracy, dashed: i.i.d. accuracy.{which}"
    return [Drawn("learning_curves", "Learning curves", caption, curves, learning_curves_figure(curves))]
