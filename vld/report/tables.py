"""The results table of a dataset: a row per method and condition, averaged over test domains and the hyper-parameter grid."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from vld.colors import DATASET_NAMES, METHOD_NAMES
from vld.members import CONNECTIVITY
from vld.report.grid import Array, Grid, expected_runs, grid_of
from vld.runs.identity import ADDED_LATER, CONTENT, varied_settings
from vld.settings import COMBINATIONS, METHODS

SHORT_NAMES = {
    "backbone.name": "backbone",
    "backbone.weights_fingerprint": "weights",
    "dataset.fingerprint": "data",
    "optim.last_layer_lr_factor": "last layer lr ×",
    "optim.steps": "steps",
    "image_size": "px",
}
"""Of settings; those that a person would tell runs apart by."""
INCOMPLETE = "†"
NONE = "–"
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
        others = [f"{short_name(name)} {shown_value(name, value)}" for name, value in self.others.items()]
        return ", ".join([self.name, f"dropout {shown_value('dropout', self.dropout)}", *others])


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
            if combined is None or pd.isna(combined):
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
                {name: settings.get(name, ADDED_LATER.get(name)) for name in names},
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
            [
                (isinstance(value, str), value if isinstance(value, int | float) else str(value))
                for value in s.others.values()
            ],
            -1 if s.dropout is None else s.dropout,
            order.index(s.method),
        ),
    )
    return _combinations_told_apart(ordered)


def _combinations_told_apart(series: list[Series]) -> list[Series]:
    """Combinations of as many, but other members say which."""
    labels = Counter((one.dataset, one.label) for one in series)
    return [
        replace(one, combined=f"{one.combined} ({json.loads(one.condition)['combined'].split(': ', 1)[1]})")
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
    mean = float(_mean(pair_means(accuracy)).mean())
    by_repeat = accuracy.mean((0, 1))
    error = by_repeat.std(ddof=1) / math.sqrt(len(by_repeat)) if len(by_repeat) > 1 else math.nan
    return 100 * mean, 100 * float(error)


def pair_means(accuracy: Array) -> Array:
    """Means over the repeats there are [test domains, pairs], NaN where there is none."""
    return _mean(accuracy)


def _mean(accuracy: Array) -> Array:
    """Over the last axis, of what is there."""
    there = np.isfinite(accuracy)
    total = np.where(there, accuracy, 0.0).sum(-1)
    mean: Array = np.divide(total, there.sum(-1), out=np.full(total.shape, np.nan), where=there.any(-1))
    return mean


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


@dataclass(frozen=True)
class Shown:
    """A table as text: cells by row, and which of them are best in their column."""

    headings: list[str]
    rows: list[list[str]]
    bold: list[list[bool]]
    numbers: int
    """Columns from here on are numbers, right-aligned."""
    note: str = ""


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
    cells, best = [], []
    for column, complete in zip(columns.values(), whole, strict=True):
        values, errors = table[column].tolist(), table[_error_of(column)].tolist()
        cells.append([_shown_number(v, e, c) for v, e, c in zip(values, errors, complete, strict=True)])
        best.append(_best(values, complete, contents))
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
    if not all(map(all, whole)):
        note += f" {INCOMPLETE} incomplete: averaged over the runs there are ({NONE} where a test domain has none)."
    return Shown(
        headings,
        [[*first, *rest] for first, rest in zip(start, zip(*cells, strict=True), strict=True)],
        [[*[False] * len(first), *rest] for first, rest in zip(start, zip(*best, strict=True), strict=True)],
        len(others) + 2,
        note,
    )


def _best(values: Sequence[float], complete: Sequence[bool], contents: Sequence[str]) -> list[bool]:
    """The largest of those that can be compared: complete, and of the same content of the dataset."""
    top = {}
    for content in set(contents):
        comparable = [
            v for v, c, of in zip(values, complete, contents, strict=True) if c and of == content and math.isfinite(v)
        ]
        top[content] = max(comparable) if len(comparable) > 1 else math.inf
    return [c and v == top[of] for v, c, of in zip(values, complete, contents, strict=True)]


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


def heading(name: str) -> str:
    """Of the table with that file name."""
    dataset = name.removeprefix("results_")
    return DATASET_NAMES.get(dataset, dataset.replace("_", " ") if dataset == name else dataset)


def short_name(setting: str) -> str:
    return SHORT_NAMES.get(setting, setting.replace(".", " ").replace("_", " "))


def shown_value(setting: str, value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if setting in CONTENT:
        return f"{value:.8}"
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def as_markdown(shown: Shown) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    rule = ["---" if i < shown.numbers else "---:" for i in range(len(shown.headings))]
    rows = [
        [f"**{cell}**" if best else cell.replace("|", r"\|") for cell, best in zip(row, bold, strict=True)]
        for row, bold in zip(shown.rows, shown.bold, strict=True)
    ]
    headings = [heading.replace("|", r"\|") for heading in shown.headings]
    note = ["", shown.note] if shown.note else []
    return "\n".join([line(headings), line(rule), *map(line, rows), *note, ""])


def as_latex(shown: Shown) -> str:
    """A booktabs tabular, with its note below: needs `booktabs`."""
    rows = [
        [rf"\textbf{{{_latex(cell)}}}" if best else _latex(cell) for cell, best in zip(row, bold, strict=True)]
        for row, bold in zip(shown.rows, shown.bold, strict=True)
    ]
    columns = "l" * shown.numbers + "r" * (len(shown.headings) - shown.numbers)
    lines = [" & ".join(row) + r" \\" for row in rows]
    heading = " & ".join(map(_latex, shown.headings)) + r" \\"
    note = ["", rf"{{\footnotesize {_latex(shown.note)}}}"] if shown.note else []
    whole = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", heading, r"\midrule", *lines, r"\bottomrule"]
    return "\n".join([*whole, r"\end{tabular}", *note, ""])


LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "†": r"\dag{}",
    "–": "--",
}


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
