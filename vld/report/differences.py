"""Differences between methods, with paired bootstrap intervals: seeds are resampled, hyper-parameters are not a sample."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vld.config.names import dataset_name
from vld.report.averages import mean_and_error, mean_there
from vld.report.grid import Array, Grid, Pair, Repeat
from vld.report.labels import described, percent, text
from vld.report.series import Series, large_rate

DRAWS = 10_000
LEVEL, NORMAL = 0.95, 1.959964
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""Student's t at 97.5 % for 1 to 10 degrees of freedom."""
SEED = 0


def difference(a: Grid, b: Grid, *, draws: int = DRAWS, seed: int = SEED) -> dict[str, float | int] | None:
    """Accuracy of `a` minus that of `b`, in percentage points, over the cells (test domain × pair) that both have.

    Repeats are paired: within each cell those of both are resampled together, with replacement, and the cells' means are
    averaged over pairs and then over test domains. iid and ood, each with `_low` and `_high`, the ends of the 95 % percentile
    interval, `widened` since repeats are few (null with fewer than two); cells; repeats, the fewest in a cell. None where a
    test domain of either is in no common cell. Against a combination, which is one for each domain, there are no repeats to
    pair: the difference of means.
    """
    if a.test_domains != b.test_domains:
        return None
    if (None, None) in (*a.pairs, *b.pairs) or any(seed is None for seed, _ in (*a.repeats, *b.repeats)):
        return _of_means(a, b)
    pairs = [pair for pair in a.pairs if pair in b.pairs]
    repeats = [repeat for repeat in a.repeats if repeat in b.repeats]
    if not pairs or not repeats:
        return None
    iid = _at(a, a.iid_acc, pairs, repeats) - _at(b, b.iid_acc, pairs, repeats)
    ood = _at(a, a.ood_acc, pairs, repeats) - _at(b, b.ood_acc, pairs, repeats)
    counts = np.isfinite(ood).sum(2)
    if not (counts > 0).any(1).all():
        return None
    row: dict[str, float | int] = {"cells": int((counts > 0).sum()), "repeats": int(counts[counts > 0].min())}
    for name, values in (("iid", iid), ("ood", ood)):
        mean = float(mean_there(mean_there(values)).mean())
        there = row["repeats"] > 1 and np.isfinite(values).any()  # not i.i.d. accuracies without held-out images
        sampled = _bootstrap(values, draws, seed) if there else np.array([math.nan])
        low, high = np.quantile(sampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        wider = widened(int(row["cells"]), int(row["repeats"]))
        ends = {"": mean, "_low": mean + wider * (low - mean), "_high": mean + wider * (high - mean)}
        row |= {f"{name}{end}": percent(value) for end, value in ends.items()}
    return row


def widened(cells: int, repeats: int) -> float:
    """By how much a bootstrap over so few repeats in so many cells is too narrow: √(n / (n − 1)), since it resamples deviations
    from the mean of the same n; and Student's t over the normal quantile, since their variance is not known either."""
    if repeats < 2:
        return math.nan
    freedom = cells * (repeats - 1)
    if freedom <= len(T_975):
        t = T_975[freedom - 1]
    else:  # the first terms of Cornish and Fisher's expansion
        z = NORMAL
        t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return math.sqrt(repeats / (repeats - 1)) * t / NORMAL


def _at(grid: Grid, accuracy: Array, pairs: Sequence[Pair], repeats: Sequence[Repeat]) -> Array:
    """Accuracies [test domains, these pairs, these repeats]."""
    in_order = [grid.pairs.index(pair) for pair in pairs]
    at: Array = accuracy[:, in_order][:, :, [grid.repeats.index(repeat) for repeat in repeats]]
    return at


def _bootstrap(values: Array, draws: int, seed: int) -> Array:
    """Averages [draws] over cells of resampled differences [test domains, pairs, repeats]."""
    random = np.random.default_rng(seed)
    total = np.zeros(draws)
    for of_domain in values:
        cells = [cell[np.isfinite(cell)] for cell in of_domain]
        cells = [cell for cell in cells if len(cell)]
        sums = sum(cell[random.integers(0, len(cell), (draws, len(cell)))].mean(1) for cell in cells)
        total += sums / len(cells)
    return total / len(values)


def _of_means(a: Grid, b: Grid) -> dict[str, float | int] | None:
    row: dict[str, float | int] = {"cells": len(a.test_domains), "repeats": 1}
    for name in ("iid", "ood"):
        means = [mean_and_error(getattr(grid, f"{name}_acc"))[0] for grid in (a, b)]
        if name == "ood" and not np.isfinite(means).all():
            return None
        row |= {name: means[0] - means[1], f"{name}_low": math.nan, f"{name}_high": math.nan}
    return row


def compared(series: Sequence[Series]) -> Iterator[tuple[Series, Series]]:
    """What the study asks about, among series of one dataset whose other settings are equal: ERM at each dropout rate against
    every method without dropout; and every other method against ERM at the same rate."""
    for a in series:
        for b in series:
            if a.others != b.others or a.dropout is None or b.dropout is None:
                continue
            dropout_helps = a.method == "erm" and a.dropout > 0 and b.dropout == 0
            more_helps = a.dropout == b.dropout and b.method == "erm" and a.method != "erm"
            if dropout_helps or more_helps:
                yield a, b


def differences_table(series: Sequence[Series]) -> pd.DataFrame:
    """A row per comparison (`compared`): dataset, a, b, what `difference` returns, complete, headline (very large dropout against
    what goes without), and the sentence that says it."""
    rows = []
    for dataset in dict.fromkeys(one.dataset for one in series):
        for a, b in compared([one for one in series if one.dataset == dataset]):
            if (found := difference(a.grid, b.grid)) is None:
                continue
            complete = a.grid.complete and b.grid.complete
            row: dict[str, Any] = {"dataset": dataset, "a": a.label, "b": b.label, "selection": a.selection}
            row |= {**found, "complete": complete}
            row |= {"headline": a.dropout != b.dropout and a.dropout == large_rate(one.dropout for one in series)}
            rows.append(row | {"sentence": sentence(dataset, a, b, row)})
    return pd.DataFrame(rows)


def sentence(dataset: str, a: Series, b: Series, row: Mapping[str, Any]) -> str:
    """`PACS: ERM with dropout 0.9 beats the ensemble without dropout by 0.9 ± 0.3 points o.o.d. (95 %, 3 seeds).`"""
    ood, low, high = (float(row[name]) for name in ("ood", "ood_low", "ood_high"))
    size = f"{abs(ood):.1f}"
    if not math.isfinite(low):
        verb = "is above" if ood > 0 else "is below"
        why = "difference of means" if a.combined or b.combined else "one seed"
        if size == "0.0":
            verb, size = "is level with", f"o.o.d., to 0.1 points ({why}, no interval)"
        else:
            size = f"by {size} points o.o.d. ({why}, no interval)"
    else:
        interval = f"{size} ± {(high - low) / 2:.1f} points o.o.d."
        how = f"95 %, {a.seeds}"
        verb = "beats" if low > 0 else "is beaten by" if high < 0 else "is not distinguishable from"
        size = f"by {interval} ({how})" if low > 0 or high < 0 else f"({'+' if ood >= 0 else '−'}{interval}, {how})"
    where = ", ".join([dataset_name(dataset), *described(a.others)])
    both = "there are" if a.combined or b.combined else "that both have"
    incomplete = "" if row["complete"] else f" Incomplete: over the runs {both}."
    return f"{where}: {_called(a)} {verb} {_called(b)} {size}.{incomplete}"


def _called(series: Series) -> str:
    name = series.name if series.method in ("erm", "weight_averaging") else f"the {series.name}"
    how = f"with dropout {text('dropout', series.dropout)}" if series.dropout else "without dropout"
    return f"{name} {how}"
