"""Differences between methods with paired bootstrap intervals, which resample seeds but not hyper-parameters."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vld.config.names import dataset_name
from vld.report.grid import CHOSEN, Array, Grid, mean_and_error, mean_there
from vld.report.labels import described, percent
from vld.report.series import Series, large_rate, seeds_in_words

DRAWS = 10_000
LEVEL, NORMAL = 0.95, 1.959964
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""Student's t at 97.5 % for 1 to 10 degrees of freedom."""
SEED = 0


def difference(a: Grid, b: Grid, *, draws: int = DRAWS) -> dict[str, float | int] | None:
    """Accuracy of `a` minus that of `b`, in percentage points, over the cells (test domain × pair) that both have.

    Repeats are paired: within each cell those of both are resampled together, with replacement, and the cells' means are
    averaged over pairs and then over test domains. iid and ood, each with `_low` and `_high`, the ends of the 95 % interval (null
    with fewer than two repeats): on either side as far as the farther end of the percentile interval, so that one ± tells all,
    and `widened` since repeats are few; cells; repeats, the fewest in a cell. None if a test
    domain has no common cell. Where a combination's members vary in them, there is nothing to pair: the difference of means.
    """
    if a.test_domains != b.test_domains:
        return None
    if any(None in one for one in (*a.pairs, *b.pairs, *a.repeats, *b.repeats)):
        return _of_means(a, b)
    between = {side: _at_common(a, b, side) - _at_common(b, a, side) for side in a.accuracies}
    counts = np.isfinite(between["ood"]).sum(2)
    if not (counts > 0).any(1).all():
        return None
    cells, repeats = int((counts > 0).sum()), int(counts[counts > 0].min())
    row: dict[str, float | int] = {"cells": cells, "repeats": repeats}
    for side, values in between.items():
        mean = float(mean_there(mean_there(values)).mean())
        there = repeats > 1 and np.isfinite(values).any()  # not i.i.d. accuracies without held-out images
        sampled = _bootstrap(values, draws) if there else np.array([math.nan])
        ends = np.quantile(sampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        half = widened(cells, repeats) * float(np.abs(ends - mean).max())
        row |= {side: percent(mean), f"{side}_low": percent(mean - half), f"{side}_high": percent(mean + half)}
    return row


def widened(cells: int, repeats: int) -> float:
    """The factor by which a bootstrap over few repeats is too narrow: √(n / (n − 1)), as it resamples deviations from the mean of
    the same n, times Student's t over the normal quantile, as the variance is estimated too."""
    if repeats < 2:
        return math.nan
    freedom = cells * (repeats - 1)
    if freedom <= len(T_975):
        t = T_975[freedom - 1]
    else:  # the first terms of Cornish and Fisher's expansion
        z = NORMAL
        t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return math.sqrt(repeats / (repeats - 1)) * t / NORMAL


def _at_common(grid: Grid, other: Grid, side: str) -> Array:
    """Accuracies [test domains, pairs, repeats] at the pairs and repeats that the other has as well, or whose members vary in."""
    pairs = [i for i, pair in enumerate(grid.pairs) if _is_among(pair, other.pairs)]
    repeats = [i for i, repeat in enumerate(grid.repeats) if _is_among(repeat, other.repeats)]
    at: Array = grid.accuracies[side][:, pairs][:, :, repeats]
    return at


def _is_among(values: Sequence[float | None], others: Iterable[Sequence[float | None]]) -> bool:
    """None, in which a combination's members vary, is equal to any value."""
    return any(all(None in both or both[0] == both[1] for both in zip(values, one, strict=True)) for one in others)


def _bootstrap(values: Array, draws: int) -> Array:
    """Averages [draws] over cells of resampled differences [test domains, pairs, repeats]."""
    random = np.random.default_rng(SEED)
    total = np.zeros(draws)
    for of_domain in values:
        cells = [there for cell in of_domain if len(there := cell[np.isfinite(cell)])]
        sums = sum(cell[random.integers(0, len(cell), (draws, len(cell)))].mean(1) for cell in cells)
        total += sums / len(cells)
    return total / len(values)


def _of_means(a: Grid, b: Grid) -> dict[str, float | int] | None:
    row: dict[str, float | int] = {"cells": len(a.test_domains), "repeats": 1}
    for side in a.accuracies:
        ours, theirs = _at_common(a, b, side), _at_common(b, a, side)
        if not ours.size:
            return None
        row |= {side: mean_and_error(ours)[0] - mean_and_error(theirs)[0]}
        row |= {f"{side}_low": math.nan, f"{side}_high": math.nan}
    return row if math.isfinite(row["ood"]) else None


def compared(series: Sequence[Series]) -> Iterator[tuple[Series, Series]]:
    """The pairs to compare among series of one dataset with equal other settings: ERM at each dropout rate with every method
    without dropout, and every other method with ERM at the same rate."""
    for a, b in itertools.product(series, repeat=2):
        if a.others != b.others or a.dropout is None or b.dropout is None:
            continue
        dropout_helps = a.method == "erm" and a.dropout > 0 and b.dropout == 0
        more_helps = a.dropout == b.dropout and b.method == "erm" and a.method != "erm"
        if dropout_helps or more_helps:
            yield a, b


def differences_table(series: Sequence[Series]) -> pd.DataFrame:
    """A row per comparison (`compared`): dataset, a, b, what `difference` returns, complete, headline (very large dropout against
    none), and the sentence."""
    rows = []
    for dataset in dict.fromkeys(one.dataset for one in series):
        here = [one for one in series if one.dataset == dataset]
        large = large_rate(one.dropout for one in series)
        for a, b in compared(here):
            if (found := difference(a.grid, b.grid)) is None:
                continue
            row: dict[str, Any] = {"dataset": dataset, "a": a.label, "b": b.label, "selection": a.selection, **found}
            row["complete"] = a.grid.complete and b.grid.complete
            row["headline"] = a.dropout != b.dropout and a.dropout == large
            rows.append(row | {"sentence": sentence(a, b, row)})
    return pd.DataFrame(rows)


def sentence(a: Series, b: Series, row: Mapping[str, Any]) -> str:
    """`PACS: ERM with dropout 0.9 beats the ensemble without dropout by 0.9 ± 0.3 points o.o.d. (95 %, 3 seeds).`"""
    ood, low, high = (float(row[name]) for name in ("ood", "ood_low", "ood_high"))
    why = "difference of means" if a.combined or b.combined else "one seed"
    seeds = seeds_in_words([repeat for repeat in a.grid.repeats if repeat in b.grid.repeats])
    interval, how = f"{abs(ood):.1f} ± {(high - low) / 2:.1f} points o.o.d.", f"95 %, {seeds}"
    if math.isfinite(low) and low <= 0 <= high:
        verb = f"is not distinguishable from {_called(b)} ({'+' if ood >= 0 else '−'}{interval}, {how})"
    elif math.isfinite(low):
        verb = f"{'beats' if low > 0 else 'is beaten by'} {_called(b)} by {interval} ({how})"
    elif f"{abs(ood):.1f}" == "0.0":
        verb = f"is level with {_called(b)} o.o.d., to 0.1 points ({why}, no interval)"
    else:
        verb = f"is {'above' if ood > 0 else 'below'} {_called(b)} by {abs(ood):.1f} points o.o.d. ({why}, no interval)"
    where = ", ".join([dataset_name(a.dataset), *described(a.others)]) + " at its chosen pairs" * (
        a.grid.pairs == CHOSEN
    )
    return f"{where}: {_called(a)} {verb}.{_over_what(a, b, complete=row['complete'])}"


def _over_what(a: Series, b: Series, *, complete: bool) -> str:
    """A sentence on the runs that the difference is of, unless these are all that either has."""
    if not complete:
        return f" Incomplete: over the runs {'there are' if a.combined or b.combined else 'that both have'}."
    both = ((a.grid, b.grid), (b.grid, a.grid))
    if all(_at_common(grid, other, "ood").size == grid.ood_acc.size for grid, other in both):
        return ""
    return " Over the (lr, weight decay) pairs and seeds that both have."


def _called(series: Series) -> str:
    article = "" if series.method in ("erm", "weight_averaging", "swad") else "the "
    return f"{article}{series.name} " + (f"with dropout {series.dropout:g}" if series.dropout else "without dropout")
