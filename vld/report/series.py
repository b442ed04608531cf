"""What a report compares: every method under every condition, each with its grid of accuracies."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from vld.config.names import COMBINATIONS, METHOD_NAMES, METHODS
from vld.report.grid import Grid, expected_runs, grid_of, setting_names
from vld.report.labels import described, distinguishing, in_order, text
from vld.study.member_axes import CONNECTIVITY

LARGE_DROPOUT = 0.9


@dataclass(frozen=True)
class Series:
    """One row of a table, one colour of a figure: a method under one condition, on one dataset."""

    dataset: str
    condition: int
    method: str
    selection: str
    """Of a combination: its members'."""
    settings: dict[str, Any]
    """All that is equal among its runs."""
    others: dict[str, Any]
    """Those that tell it from the series beside it, but for the dropout rate."""
    on_subset: bool
    """Evaluated on a subset of the images (`dataset.curve_images`)."""
    combined: str | None
    """Of a combination: what it is made from."""
    grid: Grid

    @property
    def dropout(self) -> float | None:
        rate = self.settings["dropout"]
        return None if rate is None else float(rate)

    @property
    def name(self) -> str:
        """ERM; model soup of 18; ensemble (subset)."""
        if self.combined:
            method, _, how = self.combined.partition(" of ")
            return f"{METHOD_NAMES[method]} of {how}"
        return METHOD_NAMES[self.method] + (" (subset)" if self.on_subset else "")

    @property
    def seeds(self) -> str:
        """How many repeats it is averaged over, in words."""
        seeds, splits = ({repeat[i] for repeat in self.grid.repeats} for i in (0, 1))
        words = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
        return words if len(splits) == 1 else f"{words} on {len(splits)} splits"

    @property
    def label(self) -> str:
        return ", ".join([self.name, f"dropout {text('dropout', self.dropout)}", *described(self.others)])


def series_of(results: pd.DataFrame, expected: pd.DataFrame | None = None, selection: str = "iid") -> list[Series]:
    """Every method under every condition of `read_results`' rows, at that selection of each run's steps; but connectivity, which
    has a figure of its own.

    expected: the runs that make the grids whole (`expected_runs`, the default, or `expected_of` a study's). Combinations come at
    the selection of their members. Settings that differ among the conditions of a dataset go to `others`. With `oracle_step`,
    o.o.d. accuracy is that of the left-out domain's *in* part, which did not choose the step.
    """
    if results.empty:
        return []
    if expected is None:
        expected = expected_runs(results, results.iloc[:0])
    names = setting_names(results)
    found = []
    for dataset, rows in results[results.method != CONNECTIVITY].groupby("dataset", sort=True):
        firsts = rows.drop_duplicates("condition").set_index("condition")
        settings = firsts[names].astype(object).where(firsts[names].notna(), None).to_dict("index")
        of_runs = [settings[condition] for condition in firsts.index[firsts.combined.isna()]]
        others = [name for name in distinguishing(of_runs) if name not in ("dropout", "dataset.name")]
        wanted = expected[expected.dataset == dataset]
        for (condition, _), some in rows.groupby(["condition", "method"], sort=False):
            found.append(_series(some, dict(settings[condition]), others, wanted, selection))
    order = (*METHODS, *COMBINATIONS)

    def place(one: Series) -> tuple[Any, ...]:
        rate = -1 if one.dropout is None else one.dropout
        return one.dataset, [in_order(value) for value in one.others.values()], rate, order.index(one.method)

    return sorted(_with_members(found, results), key=place)


def _series(
    rows: pd.DataFrame, settings: dict[Any, Any], others: Sequence[str], expected: pd.DataFrame, selection: str
) -> Series:
    """Of the rows of one condition and method. expected: the runs of the dataset."""
    first = rows.iloc[0]
    combined = None if pd.isna(first.combined) else str(first.combined)
    if combined is None:
        expected = expected[expected.plain == first.plain]
        if settings.get("holdout") == 0:  # there is no i.i.d. accuracy to choose by
            selection = "last"
        rows = rows[rows.selection == selection]
        if selection == "oracle_step":
            rows = rows.assign(ood_acc=rows.ood_in_acc)
    else:  # a combination is expected for every domain that its dataset's runs leave out
        selection = str(first.selection)
        one = rows.drop(columns="test_domain").head(1)
        expected = one.merge(expected[["test_domain"]].drop_duplicates(), how="cross")
    return Series(
        dataset=str(first.dataset),
        condition=int(first.condition),
        method=str(first.method),
        selection=selection,
        settings=settings,
        others={name: settings.get(name) for name in others},
        on_subset=bool((rows.evaluated_on == "curve").any()),
        combined=combined,
        grid=grid_of(rows, expected),
    )


def _with_members(series: Sequence[Series], results: pd.DataFrame) -> list[Series]:
    """Combinations of as many, but other members say which."""
    labels = Counter((one.dataset, one.label) for one in series)
    members = results.drop_duplicates("condition").set_index("condition").member_axes
    return [
        replace(one, combined=f"{one.combined} ({members[one.condition]})")
        if one.combined and labels[one.dataset, one.label] > 1
        else one
        for one in series
    ]


def large_rate(rates: Iterable[float | None]) -> float | None:
    """The dropout rate nearest the paper's 0.9; None where there is no dropout."""
    return min({rate for rate in rates if rate}, key=lambda rate: (abs(rate - LARGE_DROPOUT), rate), default=None)
