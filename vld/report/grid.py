"""The accuracies of one method under one condition as an array: test domains × (lr, weight decay) pairs × repeats."""

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vld.report.labels import percent

Array = npt.NDArray[np.float64]
Pair = tuple[float | None, float | None]
Repeat = tuple[int | None, int | None]

PAIR = ["lr", "weight_decay"]
CHOSEN: tuple[Pair] = ((0.0, 0.0),)
"""The pairs of a grid that has its chosen one alone: the same in all, so that such grids are compared."""
REPEAT = ["seed", "split_seed"]
CELL = ["test_domain", *PAIR, *REPEAT]
"""Distinguishes the runs of one condition: test domain, hyper-parameter pair and repeat."""


@dataclass(frozen=True)
class Grid:
    """Accuracies [test domains, pairs, repeats] as fractions, NaN if there is no run.

    A pair is a learning rate and a weight decay, a repeat a seed and a split seed; None in those of a combination, whose
    members vary in it.
    """

    test_domains: tuple[str, ...]
    pairs: tuple[Pair, ...]
    repeats: tuple[Repeat, ...]
    iid_acc: Array
    ood_acc: Array
    validation_acc: Array | None = None
    """By which pairs are chosen instead of by i.i.d. accuracy: `vld.report.leave_one_out`."""

    @property
    def accuracies(self) -> dict[str, Array]:
        return {"iid": self.iid_acc, "ood": self.ood_acc}

    @property
    def runs(self) -> int:
        return int(np.isfinite(self.ood_acc).sum())

    @property
    def complete(self) -> bool:
        return self.runs == self.ood_acc.size

    @cached_property
    def chosen(self) -> npt.NDArray[np.int64]:
        """DomainBed's choice of hyper-parameters [test domains, repeats]: the pair of best i.i.d. (or validation) accuracy, the
        first of equal ones; -1 if there is no run, or nothing to choose by."""
        by = without_rounding(self.iid_acc if self.validation_acc is None else self.validation_acc)
        score = np.where(np.isfinite(by) & np.isfinite(self.ood_acc), by, -np.inf)
        return np.where(np.isfinite(score).any(1), score.argmax(1), -1)

    def at_chosen(self, accuracy: Array) -> Array:
        """Accuracies [test domains, 1, repeats] of the chosen pairs."""
        taken = np.take_along_axis(accuracy, np.maximum(self.chosen, 0)[:, None, :], 1)
        return np.where(self.chosen[:, None, :] < 0, np.nan, taken)


def without_rounding(accuracy: Array) -> Array:
    """Equal where accuracies are but for the rounding of their means, which is no reason for a choice."""
    return np.round(accuracy, 12)


def mean_there(accuracy: Array) -> Array:
    """The mean over the last axis of what is not NaN; NaN if all of it is."""
    return np.asarray(np.ma.masked_invalid(accuracy).mean(-1).filled(np.nan))


def mean_and_error(accuracy: Array) -> tuple[float, float]:
    """Of accuracies [test domains, pairs, repeats], in percent: the mean over domains of means over pairs of means over repeats,
    NaN if a domain has no run; and its standard error over repeats, NaN if there are fewer than two or any run is missing."""
    mean = mean_there(mean_there(accuracy)).mean()
    by_repeat = accuracy.mean((0, 1))
    error = by_repeat.std(ddof=1) / np.sqrt(len(by_repeat)) if len(by_repeat) > 1 else np.nan
    return percent(float(mean)), percent(float(error))


def average(name: str, accuracy: Array, of: str = "") -> dict[str, float]:
    """`mean_and_error` as two columns of a table, <name> and <name>_se."""
    return dict(zip((f"{name}{of}", f"{name}_se{of}"), mean_and_error(accuracy), strict=True))


def grid_of(rows: pd.DataFrame, expected: pd.DataFrame) -> Grid:
    """The grid of the rows of one condition, method and selection. expected: the runs that it should have, which get a cell each.

    Raises `ValueError` if two rows share a cell.
    """
    cells = pd.concat([rows[CELL], expected[CELL]])
    domains = cells[["test_domain"]].drop_duplicates().sort_values("test_domain")
    pairs = cells[PAIR].drop_duplicates().sort_values(PAIR, ascending=False)  # the largest first, what varies last
    repeats = cells[REPEAT].drop_duplicates().sort_values(REPEAT, na_position="first")
    whole = crossed(domains, pairs, repeats)
    whole = whole.merge(rows[[*CELL, "iid_acc", "ood_acc"]], how="left", on=CELL, validate="one_to_one")
    shape = len(domains), len(pairs), len(repeats)
    iid, ood = (whole[name].to_numpy(np.float64).reshape(shape) for name in ("iid_acc", "ood_acc"))
    return Grid(tuple(domains.test_domain), tuples(pairs), tuples(repeats), iid, ood)


def crossed(*frames: pd.DataFrame) -> pd.DataFrame:
    """Every combination of their rows; those of the last vary fastest."""
    return reduce(lambda one, other: one.merge(other, how="cross"), frames)


def tuples(frame: pd.DataFrame) -> tuple[Any, ...]:
    """Its rows, None for what is null."""
    return tuple(without_nan(frame).itertuples(index=False, name=None))


def without_nan(frame: pd.DataFrame) -> pd.DataFrame:
    """With None for what is null, and values of their own types."""
    return frame.astype(object).where(frame.notna(), None)
