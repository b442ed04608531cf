"""The accuracies of one method under one condition as an array: test domains × (lr, weight decay) pairs × repeats."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from vld.report.results_store import CELL, PAIR, REPEAT, SETTING_OF, plain_condition, with_defaults
from vld.runs.identity import identity_key, varied_settings
from vld.study.planned import Wanted

Array = npt.NDArray[np.float64]
Pair = tuple[float | None, float | None]
Repeat = tuple[int | None, int | None]

EXPECTED = ["dataset", "plain", *CELL]


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

    @property
    def runs(self) -> int:
        return int(np.isfinite(self.ood_acc).sum())

    @property
    def complete(self) -> bool:
        return self.runs == self.ood_acc.size

    @cached_property
    def chosen(self) -> npt.NDArray[np.int64]:
        """DomainBed's choice of hyper-parameters [test domains, repeats]: the pair of best i.i.d. accuracy, the first of equal
        ones; -1 where there is no run."""
        score = np.where(np.isfinite(self.iid_acc), self.iid_acc, -np.inf)
        return np.where(np.isfinite(score).any(1), score.argmax(1), -1)

    def at_chosen(self, accuracy: Array) -> Array:
        """Accuracies [test domains, 1, repeats] of the chosen pairs."""
        taken = np.take_along_axis(accuracy, np.maximum(self.chosen, 0)[:, None, :], 1)
        return np.where(self.chosen[:, None, :] < 0, np.nan, taken)


def grid_of(rows: pd.DataFrame, expected: pd.DataFrame) -> Grid:
    """Of the rows of one condition, method and selection. expected: the runs that should be there, which get their place."""
    cells = [_cell(row) for row in _tuples(rows)]
    wanted = cells + [_cell(row) for row in _tuples(expected)]
    test_domains = sorted({domain for domain, _, _ in wanted})
    pairs = sorted({pair for _, pair, _ in wanted}, key=_largest_first)
    repeats = sorted(
        {repeat for _, _, repeat in wanted}, key=lambda repeat: tuple(-1 if s is None else s for s in repeat)
    )
    shape = (len(test_domains), len(pairs), len(repeats))
    iid_acc, ood_acc = np.full(shape, np.nan), np.full(shape, np.nan)
    index: tuple[dict[object, int], ...] = tuple(
        {value: i for i, value in enumerate(values)} for values in (test_domains, pairs, repeats)
    )
    for (domain, pair, repeat), iid, ood in zip(cells, rows.iid_acc, rows.ood_acc, strict=True):
        at = index[0][domain], index[1][pair], index[2][repeat]
        if np.isfinite(ood_acc[at]):
            raise ValueError(f"two results of {domain}, {pair}, {repeat}")
        iid_acc[at], ood_acc[at] = iid, ood
    return Grid(tuple(test_domains), tuple(pairs), tuple(repeats), iid_acc, ood_acc)


def _tuples(frame: pd.DataFrame) -> Iterable[tuple[object, ...]]:
    return frame[list(CELL)].astype(object).where(frame[list(CELL)].notna(), None).itertuples(index=False, name=None)


def _cell(row: tuple[object, ...]) -> tuple[str, Pair, Repeat]:
    domain, lr, weight_decay, seed, split_seed = row
    return str(domain), (lr, weight_decay), (seed, split_seed)  # type: ignore[return-value]


def _largest_first(pair: Pair) -> tuple[float, ...]:
    return tuple(float("inf") if value is None else -value for value in pair)


def expected_runs(results: pd.DataFrame, unfinished: pd.DataFrame) -> pd.DataFrame:
    """The runs that make whole grids of what there is: of each dataset and settings every test domain, pair and repeat that any
    of its runs has. A row per run: `EXPECTED`."""
    runs = results[results.combined.isna()]
    there = pd.concat([runs[EXPECTED], unfinished[EXPECTED]]) if len(unfinished) else runs[EXPECTED]
    domains: dict[str, set[str]] = {}
    for dataset, names in runs[["dataset", "domains"]].drop_duplicates().itertuples(index=False):
        domains.setdefault(dataset, set()).update(names)
    rows = []
    for (dataset, plain), some in there.drop_duplicates().groupby(["dataset", "plain"], sort=False):
        names = sorted(domains.get(str(dataset), set()) | set(some.test_domain))
        pairs = some[list(PAIR)].drop_duplicates().itertuples(index=False, name=None)
        repeats = some[list(REPEAT)].drop_duplicates().itertuples(index=False, name=None)
        rows += [(dataset, plain, d, *p, *r) for d, p, r in itertools.product(names, list(pairs), list(repeats))]
    return pd.DataFrame(rows, columns=EXPECTED)


def expected_of(wanted: Iterable[Wanted]) -> pd.DataFrame:
    """The runs of a study as rows `EXPECTED`, and with their `key`."""
    rows = []
    for run in wanted:
        settings = with_defaults(json.loads(run.key))
        cell = [settings[name] for name in SETTING_OF.values()]
        rows.append((settings["dataset.name"], plain_condition(settings), *cell, identity_key(settings)))
    return pd.DataFrame(rows, columns=[*EXPECTED, "key"])


def missing_runs(results: pd.DataFrame, unfinished: pd.DataFrame, expected: pd.DataFrame) -> pd.DataFrame:
    """The expected runs that are not finished; of what is finished with several contents (data, weights, precision), those that
    each lacks. A row per run: dataset, plain, *CELL, settings (in words: those in which the expected runs differ), condition
    (null: nothing like it is finished), state and reason."""
    runs = results[results.combined.isna()]
    finished = runs[[*EXPECTED, "condition"]].drop_duplicates()
    anywhere = set(finished[EXPECTED].itertuples(index=False, name=None))
    states = {
        tuple(row[:-2]): row[-2:]
        for row in unfinished[[*EXPECTED, "state", "reason"]].itertuples(index=False, name=None)
    }
    rows = []
    plains = [json.loads(str(plain)) for plain in expected.plain.unique()]
    telling = [name for name in varied_settings(plains) if name != "dataset.name"] or ["dropout"]
    for (dataset, plain), wanted in expected[EXPECTED].drop_duplicates().groupby(["dataset", "plain"], sort=False):
        settings = json.loads(str(plain))
        about = ", ".join(f"{name} {settings.get(name)}" for name in telling)
        of_these = finished[(finished.dataset == dataset) & (finished.plain == plain)]
        contents: list[str | None] = list(of_these.condition.unique()) or [None]
        cells = list(wanted.itertuples(index=False, name=None))
        for condition in contents:
            there = set(of_these[of_these.condition == condition][EXPECTED].itertuples(index=False, name=None))
            for cell in cells:
                if cell in there:
                    continue
                state, reason = states.get(cell, ("missing", ""))
                if cell in anywhere:
                    state, reason = "missing", "finished with other data, weights or precision"
                rows.append((*cell, about, condition, state, reason))
    return pd.DataFrame(rows, columns=[*EXPECTED, "settings", "condition", "state", "reason"])
