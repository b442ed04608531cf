"""Recipes against each other, each without and with very large dropout, at the hyper-parameters that i.i.d. accuracy chooses."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vld.config.names import METHOD_COLORS, METHOD_MARKERS, METHOD_NAMES
from vld.report.differences import difference
from vld.report.figures import OOD, ReportFigure, panels, report_figure, styled
from vld.report.grid import CHOSEN, PAIR, Grid, Pair, average, tuples, without_rounding
from vld.report.labels import INCOMPLETE, RECIPE, described
from vld.report.series import Series, large_rate
from vld.report.table import Table

OR = " or "
PLAIN = ("erm", "paper")
"""The recipes of plain fine-tuning: with very large dropout they are what all others are compared with."""
RIVALS = {"swad": METHOD_NAMES["swad"], "erm_plus_plus": METHOD_NAMES["weight_averaging"]}
"""Recipes whose rival is another method than the network itself."""
NOTE = (
    "Of the (lr, weight decay) pairs that of best i.i.d. accuracy over the test domains and seeds that all pairs have (if there"
    " are none, that of most runs), for each recipe, method and dropout rate. ± is the standard error over seeds; of"
    " differences, in o.o.d. points, half the 95 % interval of a paired bootstrap over seeds: in bold where the interval does not"
    " contain 0. Hours: of a run (median, wall time: they compare recipes where no other work shared the machine), with the"
    " evaluation of all methods along it, on"
)
CAPTION = (
    "o.o.d. accuracy of each recipe and method, hollow without dropout and filled with very large dropout, at the chosen (lr,"
    " weight decay) pair. Error bars: standard errors over seeds."
)


def recipes_table(series: Sequence[Series], results: pd.DataFrame) -> pd.DataFrame:
    """A row per recipe, what else tells it apart (`Series.others`), method along a run and dropout rate. None without recipes.

    iid, ood and their …_se are in percent, at the chosen pair (lr, weight_decay); gain, against the same without dropout, and
    against_erm, plain fine-tuning with very large dropout, are differences of o.o.d. accuracy in points, each with the `_low` and
    `_high` ends of its interval; hours, the median of its runs on these devices (one that shared its machine takes longer).
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
        row |= average("iid", grid.iid_acc) | average("ood", grid.ood_acc)
        for name, base in against.items():
            other = None if base is None or base[0] is grid else difference(grid, base[0])
            row |= {f"{name}{end}": other[f"ood{end}"] if other else math.nan for end in ("", "_low", "_high")}
        its = runs.loc[[one.condition]]
        devices = OR.join(sorted(its.device.dropna().unique()))
        rows.append(row | {"hours": its.seconds.median() / 3600, "device": devices})
    return pd.DataFrame(rows)


def _place(one: Series, **changes: Any) -> tuple[Any, ...]:
    """What tells it from others with recipes; or the place of one that differs from it in this."""
    place = {"dataset": one.dataset, **one.others, "method": one.method, "dropout": one.dropout}
    return tuple((place | changes).values())


def at_chosen_pair(grid: Grid) -> tuple[Grid, Pair]:
    """The grid of one (lr, weight decay) pair alone, and which: that of the best i.i.d. accuracy, averaged over the test domains
    and repeats that every pair has; where there are none, the pair of most runs."""
    common = np.isfinite(grid.iid_acc).all(1)
    runs = np.isfinite(grid.ood_acc).sum((0, 2))
    score = without_rounding(grid.iid_acc.transpose(1, 0, 2)[:, common].mean(1)) if common.any() else runs
    best = int(score.argmax())
    iid, ood = (accuracy[:, [best]] for accuracy in (grid.iid_acc, grid.ood_acc))
    return Grid(grid.test_domains, CHOSEN, grid.repeats, iid, ood), grid.pairs[best]


def at_chosen_pairs(series: Sequence[Series]) -> list[Series]:
    """Where there are several pairs, those with recipes at the chosen one alone: as the recipes' table compares them."""
    several = any(len(one.grid.pairs) > 1 for one in series)
    return [
        replace(one, grid=at_chosen_pair(one.grid)[0]) if several and one.others.get(RECIPE) else one for one in series
    ]


def without_other_pairs(expected: pd.DataFrame, series: Sequence[Series], results: pd.DataFrame) -> pd.DataFrame:
    """The expected runs, but of recipes not those at a pair that none of its methods has chosen, once a seed has all pairs: they
    would change nothing that is shown."""
    plain = results.drop_duplicates("condition").set_index("condition").plain
    chosen: dict[Any, set[Pair]] = {}
    for one in series:
        if one.others.get(RECIPE) and np.isfinite(one.grid.iid_acc).all((0, 1)).any():
            chosen.setdefault(plain[one.condition], set()).add(at_chosen_pair(one.grid)[1])
    places = zip(expected.plain, tuples(expected[PAIR]), strict=True)
    return expected[[pair in chosen.get(its, {pair}) for its, pair in places]]


def readable_recipes(recipes: pd.DataFrame) -> dict[str, Table]:
    """`recipes_table` for people, a table for each dataset."""
    tables = {}
    for dataset, table in recipes.groupby("dataset") if len(recipes) else ():
        names = [str(name) for name in table]
        others = [name for name in names[names.index("name") + 1 : names.index("series")] if name != RECIPE]
        rate = ["dropout", "lr", *["weight_decay"] * (table.weight_decay.nunique() > 1)]
        columns = [RECIPE, "name", *others, *rate, "runs", "iid", "ood", "gain", "against_erm", "hours"]
        best = {
            (int(row), columns.index(name))
            for name in ("gain", "against_erm")
            for row in np.flatnonzero(table[f"{name}_low"] * table[f"{name}_high"] > 0)
        }
        note = f"{NOTE} {OR.join(sorted(set(OR.join(table.device).split(OR))))}."
        its_own = [f"{RIVALS[name]} that of {name}" for name in dict.fromkeys(table[RECIPE]) if name in RIVALS]
        note += f" The rival itself is the row of its method: {', '.join(its_own)}; ERM of all others." * bool(its_own)
        tables[f"recipes_{dataset}"] = Table.of(table, columns, len(others) + 2, note, best=frozenset(best))
    return tables


def recipes_figures(table: pd.DataFrame) -> list[ReportFigure]:
    """`recipes_table`, without dropout and with very large dropout: what has a run of every test domain."""
    points = table[table.dropout.isin([0.0, large_rate(table.dropout)]) & table.ood.notna()]
    title = "Recipes with and without very large dropout"
    return [report_figure("recipes", title, CAPTION, points, _figure)] if len(points) else []


@styled
def _figure(points: pd.DataFrame) -> Figure:
    """A panel per dataset, a line per recipe and method."""
    most = max(some.series.nunique() for _, some in points.groupby("dataset"))
    figure, parts = panels(points, "dataset", 0.17 * most + 0.1, wide=True)
    for axes, here in parts:
        names, incomplete = list(here.series.unique()), set(here.series[here.runs < here.expected])
        for name, some in here.groupby("series", sort=False):
            at = names.index(name)
            method = str(some.method.iloc[0])
            color = METHOD_COLORS[method]
            axes.plot(some.ood, [at] * len(some), color=color, lw=1, alpha=0.5)
            for rate, ood, error in zip(some.dropout, some.ood, some.ood_se, strict=True):
                look: dict[str, Any] = {"marker": METHOD_MARKERS[method], "mec": color, "ms": 5, "ls": "none"}
                look |= {"mfc": color if rate else "white", "ecolor": color, "elinewidth": 1, "capsize": 2}
                label = f"{METHOD_NAMES[method]}, dropout {rate:g}"
                axes.errorbar(ood, at, xerr=error if error > 0 else None, label=label, **look)
        labels = [f"{name} {INCOMPLETE}" if name in incomplete else name for name in names]
        axes.set(xlabel=OOD, yticks=range(len(names)), yticklabels=labels)
        axes.invert_yaxis()
    return figure
