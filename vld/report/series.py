"""What a report compares: which runs belong together, which of them are missing, and every method under every condition."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from vld.config.names import COMBINATIONS, METHOD_NAMES, METHODS
from vld.data.domains import left_out
from vld.machine.terminal import counted
from vld.report.grid import CELL, PAIR, REPEAT, Grid, Repeat, crossed, grid_of, mean_and_error, without_nan
from vld.report.labels import NOT_CONVERGED, RECIPE, described, distinguishing, in_order, text
from vld.runs.identity import ADDED_LATER, CONTENT, run_identity
from vld.runs.results import ABOUT, COLUMNS, named_settings, settings_frame
from vld.study.member_axes import CONNECTIVITY
from vld.study.planned import PlannedRun

PLACE = ["plain", *CELL]
"""Distinguishes runs regardless of their data, weights and precision."""
STATE = ["state", "reason", "directory"]
LARGE_DROPOUT = 0.9


@dataclass(frozen=True)
class Series:
    """One row of a table, one colour of a figure: a method under one condition, on one dataset."""

    dataset: str
    condition: int
    method: str
    name: str
    """ERM; model soup of 18; ensemble (subset): evaluated on a subset of the images (`dataset.curve_images`)."""
    selection: str
    """Of a combination: that of its members."""
    settings: dict[str, Any]
    """Those that all its runs share."""
    others: dict[str, Any]
    """Those that distinguish it from the dataset's other series, except the dropout rate."""
    combined: bool
    grid: Grid

    @property
    def dropout(self) -> float | None:
        rate = self.settings["dropout"]
        return None if rate is None else float(rate)

    def average(self, side: str) -> tuple[float, float]:
        """The mean of its iid or ood accuracies and the standard error, in percent (`mean_and_error`)."""
        return mean_and_error(self.grid.accuracies[side])

    @property
    def seeds(self) -> str:
        """The number of repeats it is averaged over, in words."""
        return seeds_in_words(self.grid.repeats)

    @property
    def label(self) -> str:
        return ", ".join([self.name, f"dropout {text('dropout', self.dropout)}", *described(self.others)])


def seeds_in_words(repeats: Sequence[Repeat]) -> str:
    seeds, splits = ({repeat[i] for repeat in repeats} for i in (0, 1))
    return counted(len(seeds), "seed") + (f" on {len(splits)} splits" if len(splits) > 1 else "")


def series_of(results: pd.DataFrame, expected: pd.DataFrame | None = None, selection: str = "iid") -> list[Series]:
    """Every method under every condition of `read_results`' rows, at that selection of each run's step, except connectivity,
    which has its own figure, and runs that leave several domains out at once.

    expected: the runs that complete the grids (`expected_runs`, the default, or `expected_of` a study). Combinations come at
    their members' selection. Settings that differ among the conditions of a dataset go to `others`. With `oracle_step`,
    o.o.d. accuracy is that of the left-out domain's *in* part, which did not choose the step.
    """
    results = results[leaves_one_out(results, results)]
    if results.empty:
        return []
    if expected is None:
        expected = expected_runs(results, results.iloc[:0])
    names = setting_names(results)
    found = []
    for dataset, rows in results[results.method != CONNECTIVITY].groupby("dataset", sort=True):
        firsts = rows.drop_duplicates("condition").set_index("condition")
        settings = without_nan(firsts[names]).to_dict("index")
        of_runs = [settings[condition] for condition in firsts.index[firsts.combined.isna()]]
        others = [name for name in distinguishing(of_runs) if name not in ("dropout", "dataset.name")]
        if RECIPE not in others and any(one.get(RECIPE) for one in of_runs):  # one recipe alone is named, too
            others.append(RECIPE)
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
    name, combined = METHOD_NAMES[first.method], not pd.isna(first.combined)
    if combined:  # expected for every domain that its dataset's runs leave out
        selection, name = str(first.selection), name + first.combined.removeprefix(first.method)
        expected = crossed(expected[["test_domain"]].drop_duplicates(), rows[PAIR + REPEAT].head(1))
    else:
        expected = expected[expected.plain == first.plain]
        if settings.get("holdout") == 0:  # there is no i.i.d. accuracy to choose by
            selection = "last"
        rows = rows[rows.selection == selection]
        if selection == "oracle_step":
            rows = rows.assign(ood_acc=rows.ood_in_acc)
        name += " (subset)" * bool((rows.evaluated_on == "curve").any())
        name += f" {NOT_CONVERGED}" * bool((rows.converged == False).any())  # noqa: E712
    return Series(
        dataset=str(first.dataset),
        condition=int(first.condition),
        method=str(first.method),
        name=name,
        selection=selection,
        settings=settings,
        others={other: settings.get(other) for other in others},
        combined=combined,
        grid=grid_of(rows, expected),
    )


def _with_members(series: Sequence[Series], results: pd.DataFrame) -> list[Series]:
    """Combinations that differ only in their members get these in their names."""
    labels = Counter((one.dataset, one.label) for one in series)
    members = results.drop_duplicates("condition").set_index("condition").member_axes
    return [
        replace(one, name=f"{one.name} ({members[one.condition]})")
        if one.combined and labels[one.dataset, one.label] > 1
        else one
        for one in series
    ]


def large_rate(rates: Iterable[float | None]) -> float | None:
    """The dropout rate nearest to the paper's 0.9; None if no rate is above 0."""
    return min({rate for rate in rates if rate}, key=lambda rate: (abs(rate - LARGE_DROPOUT), rate), default=None)


def leaves_one_out(frame: pd.DataFrame, results: pd.DataFrame) -> pd.Series:
    """Of each row, whether it is of a run that leaves out one domain rather than several at once."""
    domains = set(results.domains.explode())  # which may have a + in their names
    return frame.test_domain.map(lambda name: len(left_out(name, domains)) == 1).astype(bool)


def setting_names(frame: pd.DataFrame) -> list[str]:
    """The columns with the settings that are equal among the runs of one average."""
    others = {*COLUMNS, *ABOUT, *STATE, "optim.lr", "optim.weight_decay", "plain", "condition"}
    return ["dropout", *(str(name) for name in frame if name not in others)]


def numbered(*frames: pd.DataFrame) -> list[pd.DataFrame]:
    """Adds two columns that are equal in rows that belong together, across the frames: `condition` in the rows of one average;
    `plain` in all rows of the same settings, whatever the content of data and weights and the precision."""
    together = pd.concat(frames, ignore_index=True)
    names = setting_names(together)
    together[names] = without_nan(together[names])
    by = {"condition": [*names, "combined", "member_axes"], "plain": [name for name in names if name not in CONTENT]}
    numbers = {name: together.groupby(of, dropna=False, sort=False).ngroup() for name, of in by.items()}
    found, start = [], 0
    for frame in frames:
        here = slice(start, start := start + len(frame))
        found.append(frame.assign(**{name: of[here].to_numpy() for name, of in numbers.items()}))
    return found


def among(frame: pd.DataFrame, others: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """For each row, whether the other frame has a row that is equal in these columns."""
    found = frame[columns].merge(others[columns].drop_duplicates(), how="left", indicator=True)
    return (found["_merge"] == "both").set_axis(frame.index)


def expected_runs(results: pd.DataFrame, unfinished: pd.DataFrame) -> pd.DataFrame:
    """The runs that complete the grids: for each dataset and settings every test domain, pair and repeat that one of its runs
    has, a row each with its settings."""
    runs = pd.concat([results[results.combined.isna()], unfinished])
    domains = {of: set(some.dropna()) for of, some in runs.explode("domains").groupby("dataset").domains}
    frames = []
    for _, some in runs.groupby("plain", sort=False):
        names = pd.DataFrame({"test_domain": sorted(domains[some.dataset.iloc[0]] | set(some.test_domain))})
        settings = some[["dataset", "plain", *setting_names(some)]].head(1)
        frames.append(crossed(names, some[PAIR].drop_duplicates(), some[REPEAT].drop_duplicates(), settings))
    return pd.concat(frames, ignore_index=True)


def expected_of(planned: Iterable[PlannedRun]) -> pd.DataFrame:
    """The runs of a study, a row each: their settings."""
    content = {"dataset_fingerprint": "", "weights_fingerprint": "", "precision": ""}
    settings = [ADDED_LATER | run_identity(run.config, run.test_domain, **content) for run in planned]
    return settings_frame([named_settings(one) for one in settings], COLUMNS, settings)


def missing_runs(results: pd.DataFrame, unfinished: pd.DataFrame, expected: pd.DataFrame) -> pd.DataFrame:
    """The expected runs that are not finished; of settings that were run with several contents (data, weights, precision), those
    that each lacks. A row per run: dataset, *CELL, settings (in words: those in which the expected runs differ), state, reason.
    """
    finished = results.loc[results.combined.isna(), ["condition", *PLACE]].drop_duplicates()
    planned = expected.drop_duplicates(PLACE)
    names = [name for name in setting_names(planned) if name not in CONTENT]
    kinds = planned.drop_duplicates("plain").set_index("plain")[names].to_dict("index")
    apart = [name for name in distinguishing(list(kinds.values())) if name != "dataset.name"] or ["dropout"]
    words = {plain: ", ".join(described({name: of.get(name) for name in apart})) for plain, of in kinds.items()}
    missing = planned[["dataset", *PLACE]].merge(finished[["plain", "condition"]].drop_duplicates(), how="left")
    missing = missing.assign(settings=missing.plain.map(words), kind=missing.plain.map(list(kinds).index))
    missing = missing[~among(missing, finished, ["condition", *PLACE])]
    missing = missing.merge(unfinished[[*PLACE, "state", "reason"]].drop_duplicates(PLACE), how="left", on=PLACE)
    missing = missing.fillna({"state": "missing", "reason": ""}).sort_values(["kind", "condition"], kind="stable")
    other = among(missing, finished, PLACE)
    missing.loc[other, ["state", "reason"]] = "missing", "finished with other data, weights or precision"
    return missing[["dataset", *CELL, "settings", "state", "reason"]].reset_index(drop=True)
