"""The content of a report: tables, figures with their points, sentences and warnings."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from vld.config.errors import UserError
from vld.config.names import dataset_name
from vld.machine.terminal import counted
from vld.report.averages import SELECTION_NOTES, chosen_pairs, readable_results, results_table, runs_table
from vld.report.differences import differences_table
from vld.report.figures import ReportFigure, learning_curves_figure, report_figure
from vld.report.grid import REPEAT, without_nan
from vld.report.kinds import drawn_figures
from vld.report.labels import distinguishing, in_order, text
from vld.report.leave_one_out import LEAVE_ONE_OUT, chosen_by_validation
from vld.report.paper import against_the_paper_tables, not_compared
from vld.report.points import learning_curves
from vld.report.recipes import (
    at_chosen_pairs,
    readable_recipes,
    recipes_figures,
    recipes_table,
    without_other_pairs,
)
from vld.report.richness import richness_figures, richness_points, richness_tables
from vld.report.select import Store
from vld.report.series import (
    Series,
    expected_runs,
    large_rate,
    leaves_one_out,
    missing_runs,
    series_of,
    setting_names,
)
from vld.report.table import Table
from vld.runs.identity import CONTENT


@dataclass(frozen=True)
class Report:
    """The content of a report, ready to be shown."""

    title: str
    facts: list[str]
    """How many runs, of what."""
    warnings: list[str]
    tables: dict[str, Table]
    not_compared: str
    """A line on results that are not compared with the paper's."""
    figures: list[ReportFigure]
    common: dict[str, str]
    """Settings that all runs share."""
    varied: dict[str, list[str]]
    """The others, with their values."""
    software: dict[str, int]
    """Number of runs by device and versions."""
    data: dict[str, pd.DataFrame]
    """Written only as CSV: runs, chosen_pairs, differences, missing (`missing_runs`)."""

    @property
    def missing(self) -> pd.DataFrame:
        return self.data["missing"]

    @property
    def sentences(self) -> list[str]:
        """What the differences say."""
        return list(self.data["differences"].get("sentence", []))

    @property
    def headlines(self) -> list[str]:
        """Those between very large dropout and no dropout."""
        return [
            s for s, large in zip(self.sentences, self.data["differences"].get("headline", []), strict=True) if large
        ]


def make_report(
    store: Store, *, selection: str = "iid", choose: str = "iid", study: str | None = None, run: str | None = None
) -> Report:
    """Of the finished runs, and those that are missing.

    choose: how an (lr, weight decay) pair is chosen, by i.i.d. accuracy or leave_one_out. study: draw its figure only. run: whose
    learning curves are drawn. Raises `UserError` if no run has finished, or not this one.
    """
    store, leaving_two_out = _leaving_one_out(store)
    results, title, damaged = store.results, study or "vld", list[str]()
    runs = results[results.combined.isna()].drop_duplicates("directory")
    not_averaged = leaving_two_out.directory.nunique()
    if runs.empty:
        why = "; those that leave out several domains at once only serve choose=leave_one_out" if not_averaged else ""
        raise UserError(f"{title}: no finished runs to report on{why}")
    with_pairs = pd.concat([runs, leaving_two_out[leaving_two_out.combined.isna()]]).drop_duplicates("directory")
    if run is not None and run not in set(with_pairs.run_id):
        raise UserError(f"run={run}: no finished run has that id")
    if (runs.holdout == 0).all():
        selection = "last"
    expected = expected_runs(results, store.unfinished) if store.expected is None else store.expected
    series = series_of(results, expected, selection)
    if choose == LEAVE_ONE_OUT:
        series = chosen_by_validation(series, leaving_two_out)
    at_chosen = at_chosen_pairs(series)
    shown = series if choose == LEAVE_ONE_OUT else at_chosen
    recipes, analysed = recipes_table(series, results), richness_points(series, runs, damaged)
    figures = recipes_figures(recipes) if len(recipes) else list(drawn_figures(series, results, study))
    figures += richness_figures(analysed)
    if study is None or run:
        figures += _learning_curves(_with_curves(with_pairs, results, selection, run), run is None, damaged)
    common, varied = _settings(runs)
    missing = missing_runs(results, store.unfinished, without_other_pairs(expected, series, results))
    data = {"runs": runs_table(results, list(varied)), "chosen_pairs": chosen_pairs(series)}
    return Report(
        title,
        [f"selection {selection}: {SELECTION_NOTES[selection]}", *_facts(results, runs, missing, not_averaged)],
        warnings=[*store.notes, *_warnings(store, runs, missing, shown), *damaged],
        tables=_tables(shown, selection, choose) | readable_recipes(recipes) | richness_tables(analysed, series),
        not_compared=not_compared(series),
        figures=figures,
        common=common,
        varied=varied,
        software=_software(runs),
        data=data | {"differences": differences_table(at_chosen), "missing": missing},
    )


def _tables(series: Sequence[Series], selection: str, choose: str) -> dict[str, Table]:
    tables = {}
    for dataset in dict.fromkeys(one.dataset for one in series):
        table = results_table([one for one in series if one.dataset == dataset])
        tables[f"results_{dataset}"] = readable_results(table, selection, choose)
    return tables | against_the_paper_tables(series)


def _leaving_one_out(store: Store) -> tuple[Store, pd.DataFrame]:
    """The store without the runs that leave several domains out at once, and the results of these."""
    results, expected = store.results, store.expected
    one = leaves_one_out(results, results)
    unfinished = store.unfinished[leaves_one_out(store.unfinished, results)]
    expected = None if expected is None else expected[leaves_one_out(expected, results)]
    return replace(store, results=results[one], unfinished=unfinished, expected=expected), results[~one]


def _settings(runs: pd.DataFrame) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The settings that all runs share, and the values of the others."""
    names = sorted({*setting_names(runs), "optim.lr", "optim.weight_decay", *REPEAT})
    settings = without_nan(runs[["test_domain", *names]])
    apart = [name for name in distinguishing(settings.to_dict("records")) if name not in CONTENT]
    common = {name: f"{runs[name].iloc[0]}" for name in names if runs[name].nunique(dropna=False) == 1}
    values = {name: sorted(settings[name].unique(), key=in_order) for name in ("test_domain", *apart)}
    return common, {name: [text(name, value) for value in some] for name, some in values.items()}


def _facts(results: pd.DataFrame, runs: pd.DataFrame, missing: pd.DataFrame, not_averaged: int) -> list[str]:
    combinations = results[results.combined.notna()].directory.nunique()
    facts = [f"{counted(len(runs), 'finished run')} of {', '.join(sorted(runs.dataset.unique()))}"]
    facts += [counted(combinations, "combination")] if combinations else []
    facts += [f"{not_averaged} that leave out several domains, in no average"] if not_averaged else []
    facts += [f"{count} {state}" for state, count in missing.state.value_counts().sort_index().items()]
    return [*facts, f"{runs.seconds.fillna(0).sum() / 3600:.1f} hours of computing"]


def _warnings(store: Store, runs: pd.DataFrame, missing: pd.DataFrame, series: Sequence[Series]) -> list[str]:
    lines = []
    by = (["dataset"], ["dataset", "backbone"], ["dataset"])
    for name, what, columns in zip(CONTENT, ("data", "weights", "precision"), by, strict=True):
        for of, some in runs.groupby(columns):
            counts = some[name].value_counts(sort=False)
            if len(counts) > 1:
                each = ", ".join(f"{text(name, value)}: {counted(count, 'run')}" for value, count in counts.items())
                apart = f"runs of different {what} ({each}) are in rows of their own, never averaged together"
                lines.append(f"{', '.join(map(str, of))}: {apart}")
    incomplete = [one for one in series if not one.grid.complete]
    if incomplete:
        to_do = f"{counted(len(missing), 'run')} to do: tables/missing.csv"
        lines.append(f"{len(incomplete)} of {len(series)} rows are incomplete; {to_do}")
    for one in incomplete:
        if one.combined:
            cells = zip(one.grid.test_domains, one.grid.ood_acc, strict=True)
            lacking = ", ".join(domain for domain, accuracies in cells if not np.isfinite(accuracies).all())
            lines.append(f"{one.dataset}: no combination yet: {one.label}, {lacking} left out")
    if without := sum(one.grid.validation_acc is not None and bool((one.grid.chosen < 0).any()) for one in series):
        lines.append(
            f"{without} of {len(series)} rows lack runs that leave two domains out, by which to choose; train.py with"
            " test_domain=pairs makes them (a report narrowed by test_domain needs them there, too: test_domain=sketch,pairs)"
        )
    if any(one.settings.get("holdout") == 0 for one in series):
        lines.append("rows with holdout 0 have no i.i.d. accuracy, and are at their last steps")
    if any("(subset)" in one.name for one in series):
        lines.append("rows marked “subset” were evaluated on a subset of the images (dataset.curve_images)")
    return list(dict.fromkeys(lines)) + [f"damaged: {line}" for line in store.damaged]


def _software(runs: pd.DataFrame) -> dict[str, int]:
    """How many runs have each device and versions, the most frequent first."""
    described = (
        f"{device}: " + ", ".join(f"{name} {version}" for name, version in (versions or {}).items())
        for versions, device in zip(runs.software, runs.device.fillna("unknown device"), strict=True)
    )
    return dict(Counter(described).most_common())


def _with_curves(runs: pd.DataFrame, results: pd.DataFrame, selection: str, run: str | None) -> pd.DataFrame:
    """That run; or each dataset's run of best i.i.d. accuracy without dropout, and with very large dropout."""
    if run is not None:
        return runs[runs.run_id == run]
    erm = results[(results.method == "erm") & (results.selection == selection) & results.combined.isna()]
    best = erm[erm.dropout.isin([0.0, large_rate(erm.dropout.dropna())]) & erm.iid_acc.notna()]
    best = best.sort_values(["iid_acc", "run_id"], ascending=[False, True])
    return best.drop_duplicates(["dataset", "dropout"]).sort_values(["dataset", "dropout"])


def _learning_curves(runs: pd.DataFrame, best: bool, damaged: list[str]) -> list[ReportFigure]:
    """best: the runs are the best of their kind. damaged: takes a line for every file that cannot be read."""
    frames = []
    for row in runs.to_dict("records"):
        rate = text("dropout", row["dropout"])
        label = f"{dataset_name(row['dataset'])}, {row['test_domain']} left out, dropout {rate}\n{row['run_id']}"
        try:
            frames.append(learning_curves({label: Path(row["directory"])}).assign(dropout=row["dropout"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged.append(f"damaged: {row['directory']}/metrics.jsonl: {error!r}")
    curves = pd.concat([pd.DataFrame(), *frames])
    if curves.empty:
        return []
    which = " Of each dataset the run of best i.i.d. accuracy, without dropout and with very large dropout." * best
    caption = f"Solid: o.o.d. accuracy, dashed: i.i.d. accuracy.{which}"
    return [report_figure("learning_curves", "Learning curves", caption, curves, learning_curves_figure)]
