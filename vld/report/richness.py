"""How rich the representations are (`analyse.py`): a table of means, and o.o.d. accuracy against each quantity."""

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from vld.config.errors import UserError
from vld.config.names import dataset_name
from vld.report.figures import OOD, STYLE, legend_below, own_look
from vld.report.kinds import Drawn
from vld.report.series import Series
from vld.report.summary import Shown
from vld.report.table import short_name, shown_value
from vld.runs.quantities import MASKED, QUANTITIES, SIDES, in_table_units, read_analyses, shown_quantity

AGAINST = ("effective_rank", "probe_acc", MASKED[0.9], "ece", "nll")
SHORTER = {MASKED[0.9]: "90 % masked %", "ece": "ECE %", "nll": "NLL"}
"""Than `QUANTITIES`: columns of a table."""
ABOUT = ["dataset", "condition", "method", "dropout", "series", "weights", "test_domain", "run_id"]


def richness_points(series: Sequence[Series], runs: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """A row per run and analysed weights: what it is (`ABOUT`), and `iid_…` and `ood_…` of every quantity, as fractions.

    runs: of the report, a row each. problems: takes a line for every file that cannot be read.
    """
    by_name = {(one.condition, one.method): one for one in series if not one.combined}
    rows = []
    for run in runs.to_dict("records"):
        try:
            analyses = read_analyses(Path(run["path"]))
        except UserError as error:
            problems.append(str(error))
            continue
        for weights, analysis in analyses.items():
            method, selection = weights.split("-")
            one = by_name.get((run["condition"], method))
            if one is None:
                continue
            about = [one.dataset, one.condition, method, one.dropout, one.label, selection]
            about += [run["test_domain"], run["run_id"]]
            values = {f"{side}_{name}": analysis[side][name] for side in SIDES for name in QUANTITIES}
            rows.append(dict(zip(ABOUT, about, strict=True)) | values)
    order = {(one.condition, one.method): place for place, one in enumerate(series)}
    rows.sort(
        key=lambda row: (order[row["condition"], row["method"]], row["weights"], row["test_domain"], row["run_id"])
    )
    return pd.DataFrame(rows)


def richness_table(points: pd.DataFrame, series: Sequence[Series]) -> tuple[pd.DataFrame, Shown]:
    """A row per series and weights, means over its runs: the numbers (fractions), and how they are shown."""
    by_name: dict[tuple[Hashable, ...], Series] = {(one.condition, one.method): one for one in series}
    others = list(dict.fromkeys(name for one in series for name in one.others))
    rows, cells = [], []
    for (condition, method, weights), some in points.groupby(["condition", "method", "weights"], sort=False):
        one = by_name[condition, method]
        about: dict[str, Any] = {"dataset": one.dataset, "method": one.name, "dropout": one.dropout}
        about |= {name: one.others.get(name) for name in others} | {"weights": weights, "runs": len(some)}
        means = {f"{side}_{name}": some[f"{side}_{name}"].mean() for side in SIDES for name in QUANTITIES}
        rows.append(about | means)
        told = [shown_value(name, about[name]) for name in ("dropout", *others)]
        start = [dataset_name(one.dataset), one.name, *told, str(weights), f"{len(some)}"]
        both = [" / ".join(shown_quantity(name, means[f"{side}_{name}"]) for side in SIDES) for name in AGAINST]
        cells.append([*start, shown_quantity("acc", means["ood_acc"]), *both])
    headings = ["dataset", "method", "dropout", *map(short_name, others), "weights", "runs", "o.o.d. %"]
    headings += [SHORTER.get(name, QUANTITIES[name]) for name in AGAINST]
    note = (
        "Richness: means over the analysed runs, of their i.i.d. / o.o.d. evaluation images. weights: those of the last step, or"
        " of the step of best i.i.d. accuracy (iid). An effective rank is also below the number of images, of which there are"
        " more o.o.d. than i.i.d.: compare it within a column, among runs that leave the same domains out."
    )
    return pd.DataFrame(rows), Shown(headings, cells, len(others) + 4, note)


def richness_figures(points: pd.DataFrame) -> list[Drawn]:
    """One of each dataset."""
    caption = (
        "o.o.d. accuracy against what the representation is like, measured on the i.i.d. evaluation images (above) and on the"
        " o.o.d. ones (below): a mark per run."
    )
    figures = []
    for dataset, some in points.groupby("dataset", sort=False):
        several = points.dataset.nunique() > 1
        title = "How rich the representation is"
        title += f" ({dataset_name(str(dataset))})" if several else ""
        some = some.drop(columns="condition")
        figures.append(Drawn(f"richness_{dataset}" if several else "richness", title, caption, some, _figure(some)))
    return figures


@rc_context(STYLE)  # type: ignore[arg-type]
def _figure(points: pd.DataFrame) -> Figure:
    """A column per quantity; i.i.d. above, o.o.d. below (`richness_points` of one dataset)."""
    figure = Figure(figsize=(1.75 * len(AGAINST), 4.2), layout="constrained")
    grid = figure.subplots(len(SIDES), len(AGAINST), sharey=True, squeeze=False)
    seen: Counter[tuple[str, str]] = Counter()
    several = points.groupby("series").weights.nunique().max() > 1
    for (series, weights), some in points.groupby(["series", "weights"], sort=False):
        color, marker, hollow = own_look(some, seen)
        look: dict[str, Any] = {"marker": marker, "label": f"{series} ({weights})" if several else series}
        look |= {"facecolors": "none", "edgecolors": color} if hollow else {"color": color, "linewidths": 0}
        for side, row in zip(SIDES, grid, strict=True):
            for name, axes in zip(AGAINST, row, strict=True):
                values = [in_table_units(name, value) for value in some[f"{side}_{name}"]]
                axes.scatter(values, 100 * some.ood_acc, s=18, **look)
    for side, row in zip(SIDES.values(), grid, strict=True):
        row[0].set(ylabel=OOD)
        for name, axes in zip(AGAINST, row, strict=True):
            axes.set(xlabel=f"{SHORTER.get(name, QUANTITIES[name])}, {side}")
    legend_below(figure, grid.flat)
    return figure
