"""Recipes against each other, each without and with very large dropout, at the hyper-parameters that i.i.d. accuracy chooses."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vld.config.names import METHOD_COLORS, METHOD_MARKERS, METHOD_NAMES, dataset_name
from vld.report.averages import looks_of, runs_column, settings_columns, with_error
from vld.report.differences import difference
from vld.report.figures import OOD, WIDTH, styled
from vld.report.grid import Grid, Pair, mean_and_error
from vld.report.kinds import ReportFigure
from vld.report.labels import INCOMPLETE, NONE, RECIPE, described, text
from vld.report.series import Series, large_rate
from vld.report.table import Table

PLAIN = ("erm", "paper")
"""The recipes of plain fine-tuning: with very large dropout they are what all others are compared with."""
NOTE = (
    "Of the (lr, weight decay) pairs that of best i.i.d. accuracy over the test domains and seeds that all pairs have, for each"
    " recipe, method and dropout rate. ± is the standard error over seeds; of differences, in o.o.d. points, half the 95 %"
    " interval of a paired bootstrap over seeds: in bold where the interval does not contain 0. Hours: of a run, on"
    " average, with the evaluation of all methods along it, on"
)
CAPTION = (
    "o.o.d. accuracy of each recipe and method, hollow without dropout and filled with very large dropout, at the chosen (lr,"
    " weight decay) pair. Error bars: standard errors over seeds. † incomplete: over the finished runs."
)


def recipes_table(series: Sequence[Series], results: pd.DataFrame) -> pd.DataFrame:
    """A row per recipe, what else tells it apart (`Series.others`), method along a run and dropout rate. None without recipes.

    iid, ood and their …_se are in percent, at the chosen pair (lr, weight_decay); gain, against the same without dropout, and
    against_erm, plain fine-tuning with very large dropout, are differences of o.o.d. accuracy in points, each with the `_low` and
    `_high` ends of its interval; hours, those of a run on this device.
    """
    runs = results[results.combined.isna()].drop_duplicates("directory").set_index("condition")
    with_recipe = [one for one in series if one.others.get(RECIPE) and not one.combined]
    chosen = {_place(one): at_chosen_pair(one.grid) for one in with_recipe}
    rows = []
    for one in with_recipe:
        grid, (lr, weight_decay) = chosen[_place(one)]
        large = large_rate(other.dropout for other in with_recipe if other.dataset == one.dataset)
        bases = [chosen.get(_place(one, recipe=name, method="erm", dropout=large)) for name in PLAIN]
        against = {"gain": chosen.get(_place(one, dropout=0.0)), "against_erm": next(filter(None, bases), None)}
        row: dict[str, Any] = {"dataset": one.dataset, "method": one.method, "name": one.name, **one.others}
        telling = described({name: value for name, value in one.others.items() if name != RECIPE})
        row |= {"series": ", ".join([one.others[RECIPE], one.name, *telling])}
        row |= {"dropout": one.dropout, "lr": lr, "weight_decay": weight_decay}
        row |= {"runs": grid.runs, "expected": grid.ood_acc.size}
        for name, accuracy in (("iid", grid.iid_acc), ("ood", grid.ood_acc)):
            row[name], row[f"{name}_se"] = mean_and_error(accuracy)
        for name, base in against.items():
            other = None if base is None or base[0] is grid else difference(grid, base[0])
            row |= {f"{name}{end}": other[f"ood{end}"] if other else math.nan for end in ("", "_low", "_high")}
        its = runs.loc[[one.condition]]
        devices = " or ".join(sorted(its.device.dropna().unique()))
        rows.append(row | {"hours": its.seconds.mean() / 3600, "device": devices})
    return pd.DataFrame(rows)


def _place(one: Series, **changes: Any) -> tuple[Any, ...]:
    """What tells it from others with recipes; or the place of one that differs from it in this."""
    others = {name: changes.get(name, value) for name, value in one.others.items()}
    return one.dataset, *others.values(), changes.get("method", one.method), changes.get("dropout", one.dropout)


def at_chosen_pair(grid: Grid) -> tuple[Grid, Pair]:
    """The grid of one (lr, weight decay) pair alone, and which: that of the best i.i.d. accuracy, averaged over the test domains
    and repeats that every pair has; where there are none, the pair of most runs.

    The pair of such a grid has the same name in all, so that those of different recipes are compared.
    """
    common = np.isfinite(grid.iid_acc).all(1)
    runs = np.isfinite(grid.ood_acc).sum((0, 2))
    score = grid.iid_acc.transpose(1, 0, 2)[:, common].mean(1) if common.any() else runs
    best = int(score.argmax())
    iid, ood = (accuracy[:, best : best + 1] for accuracy in (grid.iid_acc, grid.ood_acc))
    return Grid(grid.test_domains, ((0.0, 0.0),), grid.repeats, iid, ood), grid.pairs[best]


def readable_recipes(recipes: pd.DataFrame) -> dict[str, Table]:
    """`recipes_table` for people, a table for each dataset."""
    datasets = recipes.groupby("dataset") if len(recipes) else ()
    return {f"recipes_{dataset}": _readable(some.reset_index(drop=True)) for dataset, some in datasets}


def _readable(table: pd.DataFrame) -> Table:
    names, rows = [str(name) for name in table], table.to_dict("records")
    about = [RECIPE, *(name for name in names[names.index("name") + 1 : names.index("series")] if name != RECIPE)]
    columns = settings_columns(table, about)
    columns.insert(1, ("method", table["name"]))
    left = len(columns)
    varied = ["dropout", "lr", *["weight_decay"] * (table.weight_decay.nunique() > 1)]
    columns += [*settings_columns(table, varied), runs_column(table)]
    whole = table.runs == table.expected
    for heading, name in (("i.i.d. %", "iid"), ("o.o.d. %", "ood")):
        cells = zip(table[name], table[f"{name}_se"], whole, strict=True)
        columns.append((heading, [with_error(*cell) for cell in cells]))
    best = set()
    for heading, name in (("against no dropout", "gain"), ("against plain ERM with it", "against_erm")):
        apart = table[f"{name}_low"] * table[f"{name}_high"] > 0
        best |= {(number, len(columns)) for number in np.flatnonzero(apart)}
        columns.append((heading, [_difference(row, name) for row in rows]))
    columns.append(("hours", [text("hours", round(row["hours"], 2)) for row in rows]))
    note = f"{NOTE} {', '.join(table.device.unique())}." + f" {INCOMPLETE} incomplete: over the finished runs." * (
        not whole.all()
    )
    return Table.of(columns, left, note=note, best=frozenset(best), numbers=table, looks=looks_of(table))


def _difference(row: dict[Any, Any], name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if not math.isfinite(value):
        return NONE
    return f"{value:+.1f} ± {(high - low) / 2:.1f}" if math.isfinite(low) else f"{value:+.1f}"


def recipes_figure(table: pd.DataFrame) -> ReportFigure:
    """`recipes_table`, without dropout and with very large dropout."""
    points = table[table.dropout.isin([0.0, large_rate(table.dropout)])]
    return ReportFigure("recipes", "Recipes with and without very large dropout", CAPTION, points, _figure(points))


@styled
def _figure(points: pd.DataFrame) -> Figure:
    """A panel per dataset, a line per recipe and method."""
    most = max(some.series.nunique() for _, some in points.groupby("dataset"))
    datasets = points.dataset.unique()
    figure = Figure(figsize=(2 * WIDTH, len(datasets) * (0.17 * most + 0.8)), layout="constrained")
    panels = dict(zip(datasets, figure.subplots(len(datasets), squeeze=False).flat, strict=True))
    for dataset, axes in panels.items():
        here = points[points.dataset == dataset]
        names, incomplete = list(here.series.unique()), set(here.series[here.runs < here.expected])
        for name, some in here.groupby("series", sort=False):
            at = names.index(name)
            method = str(some.method.iloc[0])
            color = METHOD_COLORS[method]
            axes.plot(some.ood, [at] * len(some), color=color, lw=1, alpha=0.5)
            for row in some.itertuples():
                look: dict[str, Any] = {"marker": METHOD_MARKERS[method], "mec": color, "ms": 5, "ls": "none"}
                look |= {"mfc": color if row.dropout else "white", "ecolor": color, "elinewidth": 1, "capsize": 2}
                label = f"{METHOD_NAMES[method]}, dropout {row.dropout:g}"
                axes.errorbar(row.ood, at, xerr=row.ood_se if row.ood_se > 0 else None, label=label, **look)
        axes.set(
            title=dataset_name(dataset),
            xlabel=OOD,
            yticks=range(len(names)),
            yticklabels=[f"{n} {INCOMPLETE}" if n in incomplete else n for n in names],
        )
        axes.invert_yaxis()
    return figure
