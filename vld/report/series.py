"""What a report compares: every method under every condition, each with its grid of accuracies."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd

from vld.config.names import COMBINATIONS, METHOD_NAMES, METHODS
from vld.report.grid import Grid, expected_runs, grid_of
from vld.report.table import in_order, shown_settings, shown_value
from vld.runs.identity import varied_settings
from vld.study.member_axes import CONNECTIVITY

LARGE_DROPOUT = 0.9


@dataclass(frozen=True)
class Series:
    """One row of a table, one colour of a figure: a method under one condition, on one dataset."""

    dataset: str
    condition: str
    method: str
    selection: str
    """Of a combination: its members'."""
    dropout: float | None
    others: dict[str, Any]
    """The other settings that tell it from the series beside it, by name."""
    on_a_part: bool
    """Evaluated on a part of the images (`dataset.curve_images`)."""
    combined: str | None
    """Of a combination: what it is made from."""
    grid: Grid

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that is equal among its runs."""
        settings = json.loads(self.condition)
        assert isinstance(settings, dict)
        return settings

    @property
    def name(self) -> str:
        """ERM; model soup of 18; ensemble (on a part)."""
        if self.combined:
            method, _, how = self.combined.partition(" of ")
            return f"{METHOD_NAMES[method]} of {how}"
        return METHOD_NAMES[self.method] + (" (on a part)" if self.on_a_part else "")

    @property
    def seeds(self) -> str:
        """How many repeats it is averaged over, in words."""
        seeds, splits = ({repeat[i] for repeat in self.grid.repeats} for i in (0, 1))
        words = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
        return words if len(splits) == 1 else f"{words} on {len(splits)} splits"

    @property
    def label(self) -> str:
        dropout = f"dropout {shown_value('dropout', self.dropout)}"
        return ", ".join([self.name, dropout, *shown_settings(self.others)])


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
    found = []
    for dataset, of_dataset in results[results.method != CONNECTIVITY].groupby("dataset", sort=True):
        conditions = {text: json.loads(text) for text in of_dataset.condition.unique()}
        names = [
            name
            for name in varied_settings([c for c in conditions.values() if "combined" not in c])
            if name not in ("dropout", "dataset.name")
        ]
        for (condition, method), rows in of_dataset.groupby(["condition", "method"], sort=False):
            combined = rows.combined.iloc[0]
            if pd.isna(combined):
                wanted = expected[(expected.dataset == dataset) & (expected.plain == rows.plain.iloc[0])]
                rows, combined = rows[rows.selection == selection], None
                if selection == "oracle_step":
                    rows = rows.assign(ood_acc=rows.ood_in_acc)
            else:
                wanted = _over_all_domains(rows, expected[expected.dataset == dataset])
            settings = conditions[str(condition)]
            series = Series(
                str(dataset),
                str(condition),
                str(method),
                selection if combined is None else str(rows.selection.iloc[0]),
                settings.get("dropout"),
                {name: settings.get(name) for name in names},
                bool((rows.evaluated_on == "curve").any()),
                combined,
                grid_of(rows, wanted),
            )
            found.append(series)
    order = (*METHODS, *COMBINATIONS)
    ordered = sorted(
        found,
        key=lambda s: (
            s.dataset,
            [in_order(value) for value in s.others.values()],
            -1 if s.dropout is None else s.dropout,
            order.index(s.method),
        ),
    )
    return _combinations_told_apart(ordered)


def _combinations_told_apart(series: list[Series]) -> list[Series]:
    """Combinations of as many, but other members say which."""
    labels = Counter((one.dataset, one.label) for one in series)
    return [
        replace(one, combined=f"{one.combined} ({one.settings['combined'].split(': ', 1)[1]})")
        if one.combined and labels[one.dataset, one.label] > 1
        else one
        for one in series
    ]


def _over_all_domains(rows: pd.DataFrame, expected: pd.DataFrame) -> pd.DataFrame:
    """A combination is expected for every domain that its dataset's runs leave out."""
    return (
        rows.drop(columns="test_domain")
        .drop_duplicates("condition")
        .merge(expected[["test_domain"]].drop_duplicates(), how="cross")
    )


def large_rate(rates: Iterable[float | None]) -> float | None:
    """The dropout rate nearest the paper's 0.9; None where there is no dropout."""
    return min({rate for rate in rates if rate}, key=lambda rate: (abs(rate - LARGE_DROPOUT), rate), default=None)
