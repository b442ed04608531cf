"""The results table of a dataset: a row per method and condition, averaged over test domains and the hyper-parameter grid."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from vld.config.names import COMBINATIONS, SETTING_COLUMNS
from vld.report.grid import PAIR, REPEAT, average
from vld.report.labels import NONE, RECIPE
from vld.report.leave_one_out import LEAVE_ONE_OUT
from vld.report.series import Series
from vld.report.table import Table, complete
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

CHOSEN_NOTE = " Of several pairs each recipe is at the chosen one alone, which the recipes' table names."


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
    for name, accuracy in grid.accuracies.items():
        chosen = np.full_like(accuracy, np.nan) if one.combined else grid.at_chosen(accuracy)
        row |= average(name, accuracy) | average(f"chosen_{name}", chosen)
    for number, domain in enumerate(grid.test_domains):
        for name, accuracy in grid.accuracies.items():
            row |= average(name, accuracy[[number]], f" {domain}")
        row[f"runs {domain}"] = int(np.isfinite(grid.ood_acc[number]).sum())
    return row


def runs_table(results: pd.DataFrame, varied: Sequence[str]) -> pd.DataFrame:
    """`load_results`' rows, accuracies as fractions, with every setting that differs and each run's seconds."""
    others = [name for name in varied if name not in (*COLUMNS, *SETTING_COLUMNS.values())]
    others += ["converged"] * bool(results.converged.notna().any())
    table = results[[*COLUMNS, "seconds", "evaluated_on", *others]]
    table = table.assign(members=[" ".join(members or []) for members in results.members])
    return table.sort_values(["dataset", "method", "dropout", "test_domain", "lr", "seed", "selection"], kind="stable")


def chosen_pairs(series: Sequence[Series]) -> pd.DataFrame:
    """DomainBed's choice for each series along a run, test domain and repeat: lr, weight_decay, the run's accuracies, and the
    validation accuracy if that has chosen."""
    rows = []
    for one in series:
        grid, about = one.grid, {"dataset": one.dataset, "method": one.method, "selection": one.selection}
        for d, r in [] if one.combined else np.argwhere(grid.chosen >= 0):
            pair = grid.chosen[d, r]
            its = dict(zip(REPEAT + PAIR, (*grid.repeats[r], *grid.pairs[pair]), strict=True))
            where = {"dropout": one.dropout, **one.others, "test_domain": grid.test_domains[d], **its}
            by = {} if grid.validation_acc is None else {"validation": grid.validation_acc}
            rows.append(about | where | {f"{side}_acc": of[d, pair, r] for side, of in (grid.accuracies | by).items()})
    return pd.DataFrame(rows)


def readable_results(table: pd.DataFrame, selection: str, choose: str = "iid") -> Table:
    """`results_table` for people: percent with one digit, the best of the complete ones in bold, incomplete ones marked."""
    names = [str(name) for name in table]
    settings = names[names.index("dropout") : names.index("runs")]
    choice = CHOICE_NOTES[choose] if (table.pairs > 1).any() else ""
    numbers = ["iid", "ood", *["chosen_iid", "chosen_ood"] * bool(choice)]
    numbers += [name.replace("runs", "ood", 1) for name in names if name.startswith("runs ")]
    columns = ["name", *settings, "runs", *numbers]
    contents = table["dataset.fingerprint"] if "dataset.fingerprint" in table else pd.Series("", index=table.index)
    best = {
        (row, columns.index(name))
        for name in numbers
        for row in _best(table[name].where(complete(table, name)), contents)
    }
    note = _note(table, selection) + choice
    note += CHOSEN_NOTE * (RECIPE in table and choose != LEAVE_ONE_OUT)
    note += f" {NONE} no run of a test domain has finished." * bool(table.ood.isna().any())
    return Table.of(table, columns, len(settings) + 1, note, best=frozenset(best))


def _note(table: pd.DataFrame, selection: str) -> str:
    seeds = ", ".join(dict.fromkeys(table.seeds[~table.method.isin(COMBINATIONS)]))
    return (
        f"Selection {selection}: {SELECTION_NOTES[selection]}; combinations at their members' last steps unless their name says"
        f" otherwise. Averages over test domains, (lr, weight decay) pairs and seeds; ± is the standard error over seeds"
        f" ({seeds}). Under a domain's name: o.o.d. accuracy with that domain left out."
    )


def _best(values: pd.Series, contents: pd.Series) -> Iterable[int]:
    """The rows with the largest value among rows of one dataset content; a row alone is not marked."""
    alike = values.groupby(contents.to_numpy())
    return np.flatnonzero((values == alike.transform("max")) & (alike.transform("count") > 1))
