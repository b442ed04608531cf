"""The results table of a dataset: a row per method and condition, averaged over test domains and the hyper-parameter grid."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from vld.config.names import COMBINATIONS, METHOD_MARKERS, SETTING_COLUMNS, series_color
from vld.report.grid import mean_and_error
from vld.report.labels import INCOMPLETE, NONE, short_name, text
from vld.report.leave_one_out import LEAVE_ONE_OUT
from vld.report.series import Series
from vld.report.table import Table
from vld.runs.results import COLUMNS

SELECTION_NOTES = {
    "iid": "each run at its step of best i.i.d. accuracy",
    "last": "each run at its last step",
    "oracle_step": "each run at its step of best accuracy on the out part of the left-out domain (not a fair choice), o.o.d."
    " accuracy that of its in part",
}


CHOICE_NOTES = {
    "iid": " chosen: the pair of best i.i.d. accuracy, for each test domain and seed.",
    LEAVE_ONE_OUT: " chosen: for each test domain and seed, the pair of best accuracy on the other domains where those are left"
    " out as well (leave-one-domain-out validation).",
}


def results_table(series: Sequence[Series]) -> pd.DataFrame:
    """The table of one dataset; accuracies and standard errors in percent, a row per series.

    iid, ood: means over test domains, pairs and repeats. chosen_…: with the pair of best i.i.d. accuracy for each test domain
    and repeat, as DomainBed chooses. …_se: standard error over repeats (ddof=1) of the average over domains and pairs;
    null with fewer than two. `ood <domain>`: with that domain left out. runs, expected: how many there are, and how many make
    the row complete. Averages are null if a test domain has no run at all.
    """
    return pd.DataFrame([_row(one) for one in series])


def _row(one: Series) -> dict[str, object]:
    grid = one.grid
    row: dict[str, object] = {"dataset": one.dataset, "method": one.method, "name": one.name}
    row |= {"selection": one.selection, "dropout": one.dropout, **one.others}
    row |= {"runs": grid.runs, "expected": grid.ood_acc.size, "pairs": len(grid.pairs), "seeds": one.seeds}
    both = {"iid": grid.iid_acc, "ood": grid.ood_acc}
    for name, accuracy in both.items():
        row[name], row[f"{name}_se"] = mean_and_error(accuracy)
        choice = (math.nan, math.nan) if one.combined else mean_and_error(grid.at_chosen(accuracy))
        row[f"chosen_{name}"], row[f"chosen_{name}_se"] = choice
    for number, domain in enumerate(grid.test_domains):
        for name, accuracy in both.items():
            row[f"{name} {domain}"], row[f"{name}_se {domain}"] = mean_and_error(accuracy[number : number + 1])
        row[f"runs {domain}"] = int(np.isfinite(grid.ood_acc[number]).sum())
    return row


def runs_table(results: pd.DataFrame, varied: Sequence[str]) -> pd.DataFrame:
    """`load_results`' rows, accuracies as fractions, with every setting that differs and each run's seconds."""
    others = [name for name in varied if name not in (*COLUMNS, *SETTING_COLUMNS.values())]
    table = results[[*COLUMNS, "seconds", "evaluated_on", *others]]
    table = table.assign(members=[" ".join(members or []) for members in results.members])
    return table.sort_values(["dataset", "method", "dropout", "test_domain", "lr", "seed", "selection"], kind="stable")


def chosen_pairs(series: Sequence[Series]) -> pd.DataFrame:
    """DomainBed's choice for each series along a run, test domain and repeat: lr, weight_decay, and the run's accuracies."""
    rows = []
    for one in series:
        if one.combined:
            continue
        grid = one.grid
        iid, ood = grid.at_chosen(grid.iid_acc), grid.at_chosen(grid.ood_acc)
        about = {"dataset": one.dataset, "method": one.method, "selection": one.selection, "dropout": one.dropout}
        for d, domain in enumerate(grid.test_domains):
            for r, (seed, split_seed) in enumerate(grid.repeats):
                if (pair := grid.chosen[d, r]) < 0:
                    continue
                lr, weight_decay = grid.pairs[pair]
                where = {"test_domain": domain, "seed": seed, "split_seed": split_seed}
                chosen = {"lr": lr, "weight_decay": weight_decay, "iid_acc": iid[d, 0, r], "ood_acc": ood[d, 0, r]}
                rows.append(about | one.others | where | chosen)
    return pd.DataFrame(rows)


def readable_results(table: pd.DataFrame, selection: str, choose: str = "iid") -> Table:
    """`results_table` for people: percent with one digit, the best of the complete ones in bold, incomplete ones marked."""
    names = [str(name) for name in table]
    domains = [name.removeprefix("runs ") for name in names if name.startswith("runs ")]
    others = names[names.index("dropout") : names.index("runs")]
    averages = {"i.i.d. %": "iid", "o.o.d. %": "ood"}
    choice = CHOICE_NOTES[choose] if (table.pairs > 1).any() else ""
    if choice:
        averages |= {"chosen i.i.d. %": "chosen_iid", "chosen o.o.d. %": "chosen_ood"}
    complete = table.runs == table.expected
    numbers = [(heading, table[name], table[f"{name}_se"], complete) for heading, name in averages.items()]
    for domain in domains:
        its_runs = table[f"runs {domain}"] == table.expected // len(domains)
        numbers.append((domain, table[f"ood {domain}"], table[f"ood_se {domain}"], its_runs))
    columns: list[tuple[str, Iterable[str]]] = [("method", table["name"])]
    columns += settings_columns(table, others)
    columns.append(runs_column(table))
    first = len(columns)
    columns += [(heading, map(with_error, *cells)) for heading, *cells in numbers]
    contents = table["dataset.fingerprint"] if "dataset.fingerprint" in table else pd.Series("", index=table.index)
    best = {
        (row, column)
        for column, (_, values, _, whole) in enumerate(numbers, first)
        for row in _best(values.where(whole), contents)
    }
    note = _note(table, selection, choice)
    return Table.of(columns, first - 1, note=note, best=frozenset(best), numbers=table, looks=looks_of(table))


def settings_columns(table: pd.DataFrame, names: Iterable[str]) -> list[tuple[str, Iterable[str]]]:
    """The columns of these settings, for people."""
    return [(short_name(name), [text(name, value) for value in table[name]]) for name in names]


def runs_column(table: pd.DataFrame) -> tuple[str, Iterable[str]]:
    """How many runs stand behind each row; of how many, where some are missing."""
    counts = zip(table.runs, table.expected, strict=True)
    return "runs", [f"{runs}" if runs == expected else f"{runs} of {expected}" for runs, expected in counts]


def looks_of(table: pd.DataFrame) -> tuple[tuple[str, str], ...]:
    """Colour and marker of each row's method, the same as in figures."""
    rates = table.dropout.astype(object).where(table.dropout.notna(), None)
    return tuple((series_color(m, rate), METHOD_MARKERS[m]) for m, rate in zip(table.method, rates, strict=True))


def _note(table: pd.DataFrame, selection: str, choice: str) -> str:
    """choice: what is said of the chosen pairs."""
    seeds = ", ".join(dict.fromkeys(table.seeds[~table.method.isin(COMBINATIONS)]))
    note = (
        f"Selection {selection}: {SELECTION_NOTES[selection]}; combinations at their members' last steps unless their name says"
        f" otherwise. Averages over test domains, (lr, weight decay) pairs and seeds; ± is the standard error over seeds"
        f" ({seeds}). Under a domain's name: o.o.d. accuracy with that domain left out."
    )
    note += choice
    incomplete, unknown = table.runs < table.expected, table.ood.isna()
    if (incomplete & ~unknown).any():
        note += f" {INCOMPLETE} incomplete: averaged over the finished runs."
    return note + f" {NONE} no run of a test domain has finished." * bool(unknown.any())


def _best(values: pd.Series, contents: pd.Series) -> Iterator[int]:
    """The rows with the largest value among rows of one dataset content; a row alone is not marked."""
    for _, some in values.reset_index(drop=True).groupby(contents.to_numpy()):
        if some.count() > 1:
            yield from some.index[some == some.max()]


def with_error(value: float, error: float, complete: bool) -> str:
    if not math.isfinite(value):
        return NONE
    shown = f"{value:.1f} ± {error:.1f}" if math.isfinite(error) else f"{value:.1f}"
    return shown if complete else f"{shown} {INCOMPLETE}"
