"""How rich the representations are (`analyse.py`): a table of means, and o.o.d. accuracy against each quantity."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from vld.config.errors import UserError
from vld.config.names import dataset_name
from vld.report.averages import looks_of
from vld.report.figures import OOD, own_look, styled
from vld.report.kinds import ReportFigure
from vld.report.labels import percent, short_name, text
from vld.report.series import Series
from vld.report.table import Table
from vld.runs.quantities import MASKED, QUANTITIES, SIDES, read_analyses

AGAINST = ("effective_rank", "probe_acc", MASKED[0.9], "ece", "nll")
SHORTER = {MASKED[0.9]: "90 % masked %", "ece": "ECE %", "nll": "NLL"}
"""Column headings, where those of `QUANTITIES` are too long."""
ABOUT = ["dataset", "condition", "method", "dropout", "series", "weights", "test_domain", "run_id"]


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


def richness_table(points: pd.DataFrame, series: Sequence[Series]) -> Table:
    """A row per series and weights: means over its runs."""
    by_name: dict[tuple[Hashable, ...], Series] = {(one.condition, one.method): one for one in series}
    others = ["dropout", *dict.fromkeys(name for one in series for name in one.others)]
    rows, methods = [], []
    for (condition, method, weights), some in points.groupby(["condition", "method", "weights"], sort=False):
        one = by_name[condition, method]
        methods.append(str(method))
        means = some[[f"{side}_{name}" for side in SIDES for name in QUANTITIES]].mean().to_dict()
        about = {"dataset": one.dataset, "method": one.name} | {name: one.settings.get(name) for name in others}
        rows.append(about | {"weights": weights, "runs": len(some)} | means)
    table = pd.DataFrame(rows)
    columns: list[tuple[str, Iterable[str]]] = [
        ("dataset", table.dataset.map(dataset_name)),
        ("method", table.method),
        *((short_name(name), [text(name, row[name]) for row in rows]) for name in others),
        ("weights", table.weights),
        ("runs", table.runs.map(str)),
        ("o.o.d. %", [text("acc", row["ood_acc"]) for row in rows]),
    ]
    for name in AGAINST:
        both = [" / ".join(text(name, row[f"{side}_{name}"]) for side in SIDES) for row in rows]
        columns.append((SHORTER.get(name, QUANTITIES[name]), both))
    note = (
        "Richness: means over the analysed runs, of their i.i.d. / o.o.d. evaluation images. weights: those of the last step, or"
        " of the step of best i.i.d. accuracy (iid). An effective rank is also below the number of images, of which there are"
        " more o.o.d. than i.i.d.: compare it within a column, among runs that leave the same domains out."
    )
    looks = looks_of(table.assign(method=methods))
    return Table.of(columns, len(others) + 3, note=note, numbers=table, looks=looks)


def richness_figures(points: pd.DataFrame) -> list[ReportFigure]:
    """One per dataset."""
    caption = (
        "o.o.d. accuracy against what the representation is like, measured on the i.i.d. evaluation images (above) and on the"
        " o.o.d. ones (below): a mark per run."
    )
    figures = []
    for dataset, some in points.drop(columns="condition").groupby("dataset", sort=False):
        several = points.dataset.nunique() > 1
        title = "How rich the representation is" + f" ({dataset_name(str(dataset))})" * several
        name = f"richness_{dataset}" if several else "richness"
        figures.append(ReportFigure(name, title, caption, some, _figure(some)))
    return figures


@styled
def _figure(points: pd.DataFrame) -> Figure:
    """A column per quantity; i.i.d. above, o.o.d. below (`richness_points` of one dataset)."""
    figure = Figure(figsize=(1.75 * len(AGAINST), 4.2), layout="constrained")
    grid = figure.subplots(len(SIDES), len(AGAINST), sharey=True, squeeze=False)
    seen: Counter[tuple[str, str]] = Counter()
    several = points.groupby("series").weights.nunique().max() > 1
    for (series, weights), some in points.groupby(["series", "weights"], sort=False):
        color, marker, fill = own_look(some, seen)
        look: dict[str, Any] = {"label": f"{series} ({weights})" if several else series}
        look |= {"facecolors": "none", "edgecolors": color} if fill == "none" else {"color": color, "linewidths": 0}
        look |= {"marker": marker if fill == "none" else MarkerStyle(marker, fill)}
        for side, row in zip(SIDES, grid, strict=True):
            for name, axes in zip(AGAINST, row, strict=True):
                values = some[f"{side}_{name}"]
                in_percent = QUANTITIES[name].endswith("%")
                axes.scatter(percent(values) if in_percent else values, percent(some.ood_acc), s=18, **look)
    for side, row in zip(SIDES.values(), grid, strict=True):
        row[0].set(ylabel=OOD)
        for name, axes in zip(AGAINST, row, strict=True):
            axes.set(xlabel=f"{SHORTER.get(name, QUANTITIES[name])}, {side}")
    return figure
