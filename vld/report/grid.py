"""The accuracies of one method under one condition as an array: test domains × (lr, weight decay) pairs × repeats."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vld.report.labels import described, distinguishing
from vld.runs.identity import ADDED_LATER, CONTENT, run_identity
from vld.runs.results import ABOUT, COLUMNS, named_settings, settings_frame
from vld.study.planned import PlannedRun

Array = npt.NDArray[np.float64]
Pair = tuple[float | None, float | None]
Repeat = tuple[int | None, int | None]

PAIR = ["lr", "weight_decay"]
REPEAT = ["seed", "split_seed"]
CELL = ["test_domain", *PAIR, *REPEAT]
"""What tells the runs of one condition apart: one accuracy for each test domain, hyper-parameter pair and repeat."""
PLACE = ["plain", *CELL]
"""What tells runs apart, whatever their data, weights and precision."""
STATE = ["state", "reason", "directory"]


@dataclass(frozen=True)
class Grid:
    """Accuracies [test domains, pairs, repeats] as fractions, NaN where there is no run.

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
    def runs(self) -> int:
        return int(np.isfinite(self.ood_acc).sum())

    @property
    def complete(self) -> bool:
        return self.runs == self.ood_acc.size

    @cached_property
    def chosen(self) -> npt.NDArray[np.int64]:
        """DomainBed's choice of hyper-parameters [test domains, repeats]: the pair of best i.i.d. (or validation) accuracy, the
        first of equal ones; -1 where there is no run, or nothing to choose by."""
        by = self.iid_acc if self.validation_acc is None else self.validation_acc
        score = np.where(np.isfinite(by) & np.isfinite(self.ood_acc), by, -np.inf)
        return np.where(np.isfinite(score).any(1), score.argmax(1), -1)

    def at_chosen(self, accuracy: Array) -> Array:
        """Accuracies [test domains, 1, repeats] of the chosen pairs."""
        taken = np.take_along_axis(accuracy, np.maximum(self.chosen, 0)[:, None, :], 1)
        return np.where(self.chosen[:, None, :] < 0, np.nan, taken)


def grid_of(rows: pd.DataFrame, expected: pd.DataFrame) -> Grid:
    """Of the rows of one condition, method and selection. expected: the runs that should be there, which get their place.

    Raises `ValueError` where two rows have one place.
    """
    cells = pd.concat([rows[CELL], expected[CELL]])
    domains = cells[["test_domain"]].drop_duplicates().sort_values("test_domain")
    pairs = cells[PAIR].drop_duplicates().sort_values(PAIR, ascending=False)  # the largest first, what varies last
    repeats = cells[REPEAT].drop_duplicates().sort_values(REPEAT, na_position="first")
    whole = domains.merge(pairs, how="cross").merge(repeats, how="cross")
    whole = whole.merge(rows[[*CELL, "iid_acc", "ood_acc"]], how="left", on=CELL, validate="one_to_one")
    shape = len(domains), len(pairs), len(repeats)
    iid, ood = (whole[name].to_numpy(np.float64).reshape(shape) for name in ("iid_acc", "ood_acc"))
    return Grid(tuple(domains.test_domain), tuples(pairs), tuples(repeats), iid, ood)


def tuples(frame: pd.DataFrame) -> tuple[Any, ...]:
    """Its rows, None for what is null."""
    return tuple(frame.astype(object).where(frame.notna(), None).itertuples(index=False, name=None))


def setting_names(frame: pd.DataFrame) -> list[str]:
    """The columns with the settings that are equal among the runs of one average."""
    others = {*COLUMNS, *ABOUT, *STATE, "optim.lr", "optim.weight_decay", "plain", "condition"}
    return ["dropout", *(str(name) for name in frame if name not in others)]


def numbered(*frames: pd.DataFrame) -> list[pd.DataFrame]:
    """With two columns that are equal where rows belong together, across the frames: `condition`, for the rows of one average;
    `plain`, also for those that differ in what the settings alone do not tell, the content of data and weights and precision."""
    together = pd.concat(frames, ignore_index=True)
    names = setting_names(together)
    together[names] = together[names].astype(object).where(together[names].notna(), None)
    by = {"condition": [*names, "combined", "member_axes"], "plain": [name for name in names if name not in CONTENT]}
    together = together.assign(
        **{column: together.groupby(of, dropna=False, sort=False).ngroup().astype("Int64") for column, of in by.items()}
    )
    numbers = together[list(by)]
    ends = np.cumsum([len(frame) for frame in frames])
    return [
        frame.assign(**numbers.iloc[end - len(frame) : end].set_axis(frame.index))
        for frame, end in zip(frames, ends, strict=True)
    ]


def among(frame: pd.DataFrame, others: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """Of each row, whether another frame has one that is equal in these columns."""
    found = frame[columns].merge(others[columns].drop_duplicates(), how="left", indicator=True)
    return (found["_merge"] == "both").set_axis(frame.index)


def expected_runs(results: pd.DataFrame, unfinished: pd.DataFrame) -> pd.DataFrame:
    """The runs that make whole grids of what there is: of each dataset and settings every test domain, pair and repeat that any
    of its runs has. A row per run: its settings."""
    runs = pd.concat([results[results.combined.isna()], unfinished])
    domains = {of: set(some.dropna()) for of, some in runs.explode("domains").groupby("dataset").domains}
    frames = []
    for _, some in runs.groupby("plain", sort=False):
        names = sorted(domains[some.dataset.iloc[0]] | set(some.test_domain))
        whole = pd.DataFrame({"test_domain": names})
        for columns in (PAIR, REPEAT):
            whole = whole.merge(some[columns].drop_duplicates(), how="cross")
        frames.append(whole.merge(some[["dataset", "plain", *setting_names(some)]].head(1), how="cross"))
    return pd.concat(frames, ignore_index=True)


def expected_of(wanted: Iterable[PlannedRun]) -> pd.DataFrame:
    """The runs of a study, a row each: their settings."""
    content = {"dataset_fingerprint": "", "weights_fingerprint": "", "precision": ""}
    settings = [run_identity(run.config, run.test_domain, **content) for run in wanted]
    settings = [ADDED_LATER | one for one in settings]
    return settings_frame([named_settings(one) for one in settings], COLUMNS, settings)


def missing_runs(results: pd.DataFrame, unfinished: pd.DataFrame, expected: pd.DataFrame) -> pd.DataFrame:
    """The expected runs that are not finished; of what is finished with several contents (data, weights, precision), those that
    each lacks. A row per run: dataset, *CELL, settings (in words: those in which the expected runs differ), state, reason, and
    condition (null: nothing like it is finished)."""
    finished = results.loc[results.combined.isna(), ["condition", *PLACE]].drop_duplicates()
    wanted = expected.drop_duplicates(PLACE)
    names = [name for name in setting_names(wanted) if name not in CONTENT]
    kinds = wanted.drop_duplicates("plain").set_index("plain")[names].to_dict("index")
    telling = [name for name in distinguishing(list(kinds.values())) if name != "dataset.name"] or ["dropout"]
    said = {plain: ", ".join(described({name: of.get(name) for name in telling})) for plain, of in kinds.items()}
    missing = wanted[["dataset", *PLACE]].merge(finished[["plain", "condition"]].drop_duplicates(), how="left")
    missing = missing.assign(settings=missing.plain.map(said), kind=missing.groupby("plain", sort=False).ngroup())
    missing = missing[~among(missing, finished, ["condition", *PLACE])]
    missing = missing.merge(unfinished[[*PLACE, "state", "reason"]].drop_duplicates(PLACE), how="left", on=PLACE)
    missing = missing.fillna({"state": "missing", "reason": ""}).sort_values(["kind", "condition"], kind="stable")
    other = among(missing, finished, PLACE)
    missing.loc[other, ["state", "reason"]] = "missing", "finished with other data, weights or precision"
    return missing[["dataset", *CELL, "settings", "state", "reason", "condition"]].reset_index(drop=True)
