"""The results table of a dataset: a row per method and condition, averaged over test domains and the hyper-parameter grid."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from vld.config.names import COMBINATIONS, SETTING_COLUMNS
from vld.report.grid import Array
from vld.report.series import Series
from vld.report.summary import Shown
from vld.report.table import INCOMPLETE, NONE, short_name, shown_value
from vld.runs.results import COLUMNS


def results_table(series: Sequence[Series]) -> pd.DataFrame:
    """The table of one dataset; accuracies and standard errors in percent, a row per series.

    iid, ood: means over test domains, pairs and repeats. chosen_…: with DomainBed's choice of the pair, for each test domain and
    repeat that of the best i.i.d. accuracy. …_se: standard error over repeats (ddof=1) of the average over domains and pairs;
    null below two. `ood <domain>`: with that domain left out. runs, expected: that stand behind the row, and that would make it
    complete. Null averages: a test domain has no run at all.
    """
    rows = []
    for one in series:
        row = {
            "dataset": one.dataset,
            "method": one.method,
            "name": one.name,
            "selection": one.selection,
            "dropout": one.dropout,
            **one.others,
            "runs": one.grid.runs,
            "expected": one.grid.ood_acc.size,
            "pairs": len(one.grid.pairs),
            "seeds": one.seeds,
        }
        grid = one.grid
        for name, accuracy in (("iid", grid.iid_acc), ("ood", grid.ood_acc)):
            row[name], row[f"{name}_se"] = mean_and_error(accuracy)
            choice = grid.at_chosen(accuracy) if not one.combined else np.full_like(accuracy[:, :1], np.nan)
            row[f"chosen_{name}"], row[f"chosen_{name}_se"] = mean_and_error(choice)
        for number, domain in enumerate(grid.test_domains):
            for name, accuracy in (("iid", grid.iid_acc), ("ood", grid.ood_acc)):
                row[f"{name} {domain}"], row[f"{name}_se {domain}"] = mean_and_error(accuracy[number : number + 1])
            row[f"runs {domain}"] = int(np.isfinite(grid.ood_acc[number]).sum())
        rows.append(row)
    return pd.DataFrame(rows)


def mean_and_error(accuracy: Array) -> tuple[float, float]:
    """Of accuracies [test domains, pairs, repeats], in percent: the mean over domains of means over pairs of means over repeats,
    NaN where a domain has no run; and its standard error over repeats, NaN with fewer than two and where any run is missing."""
    mean = float(mean_there(mean_there(accuracy)).mean())
    by_repeat = accuracy.mean((0, 1))
    error = by_repeat.std(ddof=1) / math.sqrt(len(by_repeat)) if len(by_repeat) > 1 else math.nan
    return 100 * mean, 100 * float(error)


def mean_there(accuracy: Array) -> Array:
    """The mean over the last axis of what is there, NaN where nothing is: of a grid, over repeats [test domains, pairs]."""
    there = np.isfinite(accuracy)
    total = np.where(there, accuracy, 0.0).sum(-1)
    mean: Array = np.divide(total, there.sum(-1), out=np.full(total.shape, np.nan), where=there.any(-1))
    return mean


def runs_table(results: pd.DataFrame, varied: Sequence[str]) -> pd.DataFrame:
    """`load_results`' rows, accuracies as fractions, with every setting that differs and how long each run took (seconds)."""
    table = results[[*COLUMNS, "seconds", "evaluated_on"]].copy()
    for name in varied:
        if name not in SETTING_COLUMNS.values() and name not in table:
            table[name] = [settings.get(name) for settings in results.settings]
    table["members"] = [" ".join(members or []) for members in results.members]
    return table.sort_values(["dataset", "method", "dropout", "test_domain", "lr", "seed", "selection"], kind="stable")


def chosen_pairs(series: Sequence[Series]) -> pd.DataFrame:
    """DomainBed's choice for each series along a run, test domain and repeat: lr, weight_decay, and the run's accuracies."""
    rows = []
    for one in series:
        if one.combined:
            continue
        grid = one.grid
        iid, ood = grid.at_chosen(grid.iid_acc), grid.at_chosen(grid.ood_acc)
        for d, domain in enumerate(grid.test_domains):
            for r, (seed, split_seed) in enumerate(grid.repeats):
                if (pair := grid.chosen[d, r]) < 0:
                    continue
                lr, weight_decay = grid.pairs[pair]
                rows.append(
                    {"dataset": one.dataset, "method": one.method, "selection": one.selection}
                    | {"dropout": one.dropout, **one.others}
                    | {"test_domain": domain, "seed": seed, "split_seed": split_seed, "lr": lr}
                    | {"weight_decay": weight_decay, "iid_acc": iid[d, 0, r], "ood_acc": ood[d, 0, r]}
                )
    return pd.DataFrame(rows)


def shown_table(table: pd.DataFrame, selection: str) -> Shown:
    """`results_table` for people: percent with one digit, the best of the complete ones in bold, incomplete ones marked."""
    names = [str(name) for name in table]
    domains = [name.removeprefix("runs ") for name in names if name.startswith("runs ")]
    others = names[names.index("dropout") + 1 : names.index("runs")]
    columns = {"i.i.d. %": "iid", "o.o.d. %": "ood"}
    choice = (table.pairs > 1).any()
    if choice:
        columns |= {"chosen i.i.d. %": "chosen_iid", "chosen o.o.d. %": "chosen_ood"}
    averages = len(columns)
    columns |= {domain: f"ood {domain}" for domain in domains}
    of_domain = table.expected // len(domains)
    whole = [(table.runs == table.expected).tolist()] * averages
    whole += [(table[f"runs {domain}"] == of_domain).tolist() for domain in domains]
    contents = table["dataset.fingerprint"].tolist() if "dataset.fingerprint" in table else [""] * len(table)
    cells: list[list[str]] = []
    best: set[tuple[int, int]] = set()
    for place, (column, complete) in enumerate(zip(columns.values(), whole, strict=True), len(others) + 3):
        values, errors = table[column].tolist(), table[_error_of(column)].tolist()
        cells.append([_shown_number(v, e, c) for v, e, c in zip(values, errors, complete, strict=True)])
        best |= {(row, place) for row in _best(values, complete, contents)}
    start = []
    for row in table.to_dict("records"):
        there = f"{row['runs']}" if row["runs"] == row["expected"] else f"{row['runs']} of {row['expected']}"
        values = [shown_value(name, row[name]) for name in ("dropout", *others)]
        start.append([str(row["name"]), *values, there])
    headings = ["method", "dropout", *map(short_name, others), "runs", *columns]
    seeds = ", ".join(dict.fromkeys(table.seeds[~table.method.isin(COMBINATIONS)]))
    note = (
        f"Selection {selection}: {SELECTION_NOTES[selection]}; combinations at their members' last steps unless their name says"
        f" otherwise. Averages over test domains, (lr, weight decay) pairs and seeds; ± is the standard error over seeds"
        f" ({seeds}). Under a domain's name: o.o.d. accuracy with that domain left out."
    )
    if choice:
        note += " chosen: the pair of best i.i.d. accuracy, for each test domain and seed."
    averaged = "".join(
        cell for name, column in zip(columns, cells, strict=True) if "chosen" not in name for cell in column
    )
    note += f" {INCOMPLETE} incomplete: averaged over the runs there are." if INCOMPLETE in averaged else ""
    note += f" {NONE} a test domain has no run." if NONE in averaged else ""
    return Shown(
        headings,
        [[*first, *rest] for first, rest in zip(start, zip(*cells, strict=True), strict=True)],
        len(others) + 2,
        note,
        frozenset(best),
    )


def _best(values: Sequence[float], complete: Sequence[bool], contents: Sequence[str]) -> Iterator[int]:
    """Where the largest is of those that can be compared: complete, and of the same content of the dataset."""
    for content in set(contents):
        comparable = [
            row
            for row, (value, whole, of) in enumerate(zip(values, complete, contents, strict=True))
            if whole and of == content and math.isfinite(value)
        ]
        if len(comparable) > 1:
            top = max(values[row] for row in comparable)
            yield from (row for row in comparable if values[row] == top)


SELECTION_NOTES = {
    "iid": "each run at its step of best i.i.d. accuracy",
    "last": "each run at its last step",
    "oracle_step": "each run at its step of best accuracy on the out part of the left-out domain (not a fair choice), o.o.d."
    " accuracy that of its in part",
}


def _error_of(column: str) -> str:
    name, _, domain = column.partition(" ")
    return f"{name}_se {domain}" if domain else f"{name}_se"


def _shown_number(value: float, error: float, complete: bool) -> str:
    if not math.isfinite(value):
        return NONE
    text = f"{value:.1f} ± {error:.1f}" if math.isfinite(error) else f"{value:.1f}"
    return text if complete else f"{text} {INCOMPLETE}"
