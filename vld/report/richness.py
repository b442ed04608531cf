"""How rich the representations are (`analyse.py`): a table of means, and o.o.d. accuracy against each quantity."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from vld.config.errors import UserError
from vld.config.names import dataset_name
from vld.report.figures import OOD, ReportFigure, own_look, report_figure, styled
from vld.report.labels import percent, text
from vld.report.series import Series
from vld.report.table import Table
from vld.runs.quantities import MASKED, QUANTITIES, SIDES, read_analyses

AGAINST = ("effective_rank", "probe_acc", MASKED[0.9], "ece", "nll")
SHORTER = QUANTITIES | {MASKED[0.9]: "90 % masked %", "ece": "ECE %", "nll": "NLL"}
"""Headings, shorter where those of `QUANTITIES` are too long."""
ABOUT = ["dataset", "condition", "method", "dropout", "series", "weights", "test_domain", "run_id"]
NOTE = (
    "Richness: means over the analysed runs, of their i.i.d. / o.o.d. evaluation images. weights: those of the last step, or"
    " of the step of best i.i.d. accuracy (iid). An effective rank is also below the number of images, of which there are"
    " more o.o.d. than i.i.d.: compare it within a column, among runs that leave the same domains out."
)
CAPTION = (
    "o.o.d. accuracy against what the representation is like, measured on the i.i.d. evaluation images (above) and on the"
    " o.o.d. ones (below): a mark per run."
)


def richness_points(series: Sequence[Series], runs: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """A row per run and analysed weights: what it is (`ABOUT`), and `iid_…` and `ood_…` of every quantity, as fractions.

    runs: of the report, a row each. problems: takes a line for every file that cannot be read.
    """
    by_name = {(one.condition, one.method): one for one in series if not one.combined}
    order = list(by_name)
    rows = []
    for run in runs.to_dict("records"):
        try:
            analyses = read_analyses(Path(run["directory"]))
        except UserError as error:
            problems.append(str(error))
            continue
        for name, analysis in analyses.items():
            method, weights = name.split("-")
            if one := by_name.get((run["condition"], method)):
                about = [one.dataset, one.condition, method, one.dropout, one.label, weights]
                row = dict(zip(ABOUT, [*about, run["test_domain"], run["run_id"]], strict=True))
                rows.append(row | {f"{side}_{name}": analysis[side][name] for side in SIDES for name in QUANTITIES})
    rows.sort(key=lambda row: (order.index((row["condition"], row["method"])), *(row[name] for name in ABOUT[-3:])))
    return pd.DataFrame(rows)


def richness_tables(points: pd.DataFrame, series: Sequence[Series]) -> dict[str, Table]:
    """A row per series and weights: means over its runs. None without points."""
    if points.empty:
        return {}
    by_name: dict[Any, Series] = {(one.condition, one.method): one for one in series}
    others = ["dropout", *dict.fromkeys(name for one in series for name in one.others)]
    rows = []
    for (condition, method, weights), some in points.groupby(["condition", "method", "weights"], sort=False):
        one = by_name[condition, method]
        about: dict[Any, Any] = {"dataset": one.dataset, "method": one.method, "name": one.name}
        about |= {name: one.settings.get(name) for name in others}
        means = some[[f"{side}_{name}" for side in SIDES for name in QUANTITIES]].mean()
        rows.append(about | {"weights": weights, "runs": len(some)} | means.to_dict())
    table = pd.DataFrame(rows)
    both = {
        SHORTER[name]: [" / ".join(text(name, row[f"{side}_{name}"]) for side in SIDES) for row in rows]
        for name in AGAINST
    }
    columns = ["dataset", "name", *others, "weights", "runs", "ood_acc", *both]
    return {"richness": Table.of(table.assign(**both), columns, len(others) + 3, NOTE, numbers=table)}


def richness_figures(points: pd.DataFrame) -> list[ReportFigure]:
    """One per dataset."""
    if points.empty:
        return []
    figures, several = [], points.dataset.nunique() > 1
    for dataset, some in points.drop(columns="condition").groupby("dataset", sort=False):
        title = "How rich the representation is" + f" ({dataset_name(str(dataset))})" * several
        figures.append(report_figure("richness" + f"_{dataset}" * several, title, CAPTION, some, _figure))
    return figures


@styled
def _figure(points: pd.DataFrame) -> Figure:
    """A column per quantity; i.i.d. above, o.o.d. below (`richness_points` of one dataset)."""
    figure = Figure(figsize=(1.75 * len(AGAINST), 4.2), layout="constrained")
    grid = figure.subplots(len(SIDES), len(AGAINST), sharey=True, squeeze=False)
    panels = [
        (side, name, axes)
        for side, row in zip(SIDES, grid, strict=True)
        for name, axes in zip(AGAINST, row, strict=True)
    ]
    seen: Counter[tuple[str, str]] = Counter()
    several = points.groupby("series").weights.nunique().max() > 1
    for (series, weights), some in points.groupby(["series", "weights"], sort=False):
        color, marker, fill = own_look(some, seen)
        look: dict[str, Any] = {"label": f"{series} ({weights})" if several else series}
        look |= {"facecolors": "none", "edgecolors": color} if fill == "none" else {"color": color, "linewidths": 0}
        look |= {"marker": marker if fill == "none" else MarkerStyle(marker, fill)}
        for side, name, axes in panels:
            values = some[f"{side}_{name}"]
            axes.scatter(
                percent(values) if QUANTITIES[name].endswith("%") else values, percent(some.ood_acc), s=18, **look
            )
    for side, name, axes in panels:
        axes.set(xlabel=f"{SHORTER[name]}, {SIDES[side]}")
    for row in grid:
        row[0].set(ylabel=OOD)
    return figure
