"""Hyper-parameters chosen by leave-one-domain-out validation, DomainBed's second selection, instead of by i.i.d. accuracy.

A pair of learning rate and weight decay is tested on one domain, d, and chosen by the mean, over all other domains e, of the
accuracy on e of the run that leaves out both d and e.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from vld.report.grid import PAIR, REPEAT, Array, Grid, tuples
from vld.report.series import Series

LEAVE_ONE_OUT = "leave_one_out"


def chosen_by_validation(series: Sequence[Series], leaving_two_out: pd.DataFrame) -> list[Series]:
    """The same series, but for combinations, with the validation accuracy of each pair."""
    groups = dict(iter(leaving_two_out.groupby(["condition", "method", "selection"])))
    none = leaving_two_out.iloc[:0]
    return [
        one
        if one.combined
        else replace(one, grid=_validated(one.grid, groups.get((one.condition, one.method, one.selection), none)))
        for one in series
    ]


def _validated(grid: Grid, leaving_two_out: pd.DataFrame) -> Grid:
    """NaN where a run that the validation needs is missing."""
    accuracy, domains = {}, set(grid.test_domains)  # to which a report may be narrowed: all domains count
    domains.update(leaving_two_out.domains.explode().dropna())
    for by_domain, *values in tuples(leaving_two_out[["ood_by_domain", *PAIR, *REPEAT]]):
        if len(by_domain) > 2:  # trained on fewer
            continue
        for tested, validated in itertools.permutations(by_domain, 2):
            accuracy[tested, validated, *values] = by_domain[validated]
    validation: Array = np.full(grid.ood_acc.shape, np.nan)
    for d, p, r in np.ndindex(*validation.shape):
        tested, values = grid.test_domains[d], (*grid.pairs[p], *grid.repeats[r])
        others = sorted(domains - {tested})
        if others:
            validation[d, p, r] = np.mean([accuracy.get((tested, other, *values), np.nan) for other in others])
    return replace(grid, validation_acc=validation)
