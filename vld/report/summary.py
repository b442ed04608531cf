"""The tables of results at the end of a command, and how methods and combinations are called in them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from vld.runs.identity import ADDED_LATER, varied_settings

SELECTION_NOTE = "each method at its own step of best i.i.d. accuracy (selection iid)"


@dataclass(frozen=True)
class Shown:
    """A table as text: cells by row."""

    headings: list[str]
    rows: list[list[str]]
    numbers: int
    """Columns from here on are numbers, right-aligned."""
    note: str = ""
    best: frozenset[tuple[int, int]] = frozenset()
    """Cells that are the best of their column: (row, column)."""


def results_table(rows: list[dict[str, Any]], chosen: str) -> Table:
    """A line per method and test domain, and the average of several; the chosen method first and in bold.

    rows: method, test_domain, iid_acc, ood_acc, step, collapse.
    """
    methods = sorted(dict.fromkeys(row["method"] for row in rows), key=lambda method: method.split(" ")[0] != chosen)
    table = _table(("method", "test domain"), ("i.i.d. %", "o.o.d. %", "step"))
    for method in methods:
        style = "bold" if method.split(" ")[0] == chosen else ""
        mine = [row for row in rows if row["method"] == method]
        for i, row in enumerate(mine):
            name = f"{row['test_domain']} (collapsed)" if row["collapse"] else row["test_domain"]
            table.add_row("" if i else method, name, *_means([row]), str(row["step"]), style=style)
        if len(mine) > 1:
            table.add_row("", "average", *_means(mine), "", style=f"{style} italic")
        table.add_section()
    return table


def combination_tables(method: str, results: dict[str, dict[str, Any]]) -> list[Table | str]:
    """A combination beside the mean of its members, for each test domain and on average (`result.json` by domain).

    With what was measured on the way, where there is such: accuracy against the number of members, and along a line.
    """
    table = _table(("method", "test domain"), ("members", "i.i.d. %", "o.o.d. %"))
    rows = {
        "mean of the members": {d: (f"{len(r['members'])}", r["member_mean"]) for d, r in results.items()},
        method: {d: (members_used(r), r["results"][0]) for d, r in results.items()},
    }
    for name, by_domain in rows.items():
        style = "bold" if name == method else ""
        for i, (domain, (members, row)) in enumerate(by_domain.items()):
            table.add_row("" if i else name, domain, members, *_means([row]), style=style)
        if len(by_domain) > 1:
            means = _means([row for _, row in by_domain.values()])
            table.add_row("", "average", "", *means, style=f"{style} italic")
        table.add_section()
    [selection] = {row["selection"] for result in results.values() for row in result["results"]}
    steps = "last steps" if selection == "last" else "steps of best i.i.d. accuracy"
    parts: list[Table | str] = [f"{method} of the members' {steps}", table]
    curves = [result["by_number_of_members"] for result in results.values() if "by_number_of_members" in result]
    if curves:
        parts += ["accuracy against the number of members, averaged over random subsets of each size"]
        parts += [_number_of_members_table(curves)]
    lines = [result["connectivity"] for result in results.values() if "connectivity" in result]
    if lines:
        parts += ["α of the first member and 1 - α of the second: their weights, and their representations"]
        parts += [_connectivity_table(lines)]
    return parts


def _number_of_members_table(curves: list[list[dict[str, Any]]]) -> Table:
    """Accuracy against the number of members, averaged over random subsets and test domains."""
    table = _table((), ("members", "subsets", "i.i.d. %", "o.o.d. %"))
    most = min(map(len, curves))
    for k in sorted({k for k in (1, 2, 3, 4, 6, 9, 12, most) if k <= most}):
        points = [curve[k - 1] for curve in curves]
        table.add_row(f"{k}", f"{points[0]['subsets']}", *_means(points, "iid_acc_mean", "ood_acc_mean"))
    return table


def _connectivity_table(lines: list[list[dict[str, Any]]]) -> Table:
    """Accuracies along the line between two networks, averaged over test domains."""
    table = _table((), ("α", "weights: i.i.d. %", "o.o.d. %", "representations: i.i.d. %", "o.o.d. %"))
    cells: dict[float, list[str]] = {}
    for points in zip(*lines, strict=True):  # the weights' come first
        cells.setdefault(points[0]["alpha"], []).extend(_means(points))
    for alpha, row in cells.items():
        table.add_row(f"{alpha:g}", *row)
    return table


def sweep_table(results: list[dict[str, Any]], chosen: str) -> list[Table | str]:
    """A line per setting that differs among results (`result.json`) and method, the chosen one first and in bold.

    It has the averages over the test domains, then the o.o.d. accuracy with each domain left out.
    """
    all_settings = [ADDED_LATER | result["settings"] for result in results]
    varied = varied_settings(all_settings)
    domains = sorted({settings["test_domain"] for settings in all_settings})
    cells: dict[tuple[str, ...], dict[str, dict[str, dict[str, Any]]]] = {}
    for result, settings in zip(results, all_settings, strict=True):
        values = tuple(shown_setting(settings.get(name)) for name in varied)
        by_method, test_domain = cells.setdefault(values, {}), settings["test_domain"]
        if "members" in result:
            label, [row] = combination_label(result), result["results"]
            if test_domain in by_method.get(label, {}):  # of other members, which vary in the same settings
                label = f"{label} ({shown_axes(result)})"
            by_method.setdefault(label, {})[test_domain] = row
            continue
        for row in result["results"]:
            if row["selection"] == "iid":
                by_method.setdefault(shown_method(row), {})[test_domain] = row
    shown_domains = domains if len(domains) > 1 else []
    table = _table((*varied, "method"), ("i.i.d. %", "o.o.d. %", *shown_domains))
    for values, by_method in cells.items():
        for method in sorted(by_method, key=lambda method: method.split(" ")[0] != chosen):
            by_domain = by_method[method]
            complete = len(by_domain) == len(domains)  # an average over fewer domains is another quantity
            means = _means(list(by_domain.values())) if complete else ["–", "–"]
            each = [percent(by_domain[d]["ood_acc"]) if d in by_domain else "–" for d in shown_domains]
            style = "bold" if method.split(" ")[0] == chosen else ""
            table.add_row(*values, method, *means, *each, style=style)
    if not shown_domains:
        return [table, f"{domains[0]} left out"]
    return [table, "averages over the test domains; under a domain's name: o.o.d. accuracy with that domain left out"]


def counts_table(
    headings: Sequence[str], states: Sequence[str], rows: Mapping[tuple[str, ...], Mapping[str, int]]
) -> Table:
    """How many runs of each kind are in each state; sums below."""
    table = _table(headings, (*states, "all"))
    for kind, counts in rows.items():
        shown = [f"{counts.get(state, 0) or '–'}" for state in states]
        table.add_row(*kind, *shown, f"{sum(counts.values())}")
    if len(rows) > 1:
        sums = [sum(counts.get(state, 0) for counts in rows.values()) for state in states]
        table.add_section()
        table.add_row("all", *[""] * (len(headings) - 1), *[f"{n or '–'}" for n in sums], f"{sum(sums)}")
    return table


def text_table(shown: Shown) -> Table:
    """Cells as they are, the best in bold."""
    table = _table(shown.headings[: shown.numbers], shown.headings[shown.numbers :])
    table.columns[0].no_wrap = True
    for i, row in enumerate(shown.rows):
        table.add_row(*(Text(cell, "bold" if (i, j) in shown.best else "") for j, cell in enumerate(row)))
    return table


def shown_method(row: Mapping[str, Any]) -> str:
    """A result's method, marked where it is of a part of the images only (`dataset.curve_images`)."""
    return f"{row['method']} (on a part)" if row.get("evaluated_on") == "curve" else str(row["method"])


def members_used(result: dict[str, Any]) -> str:
    """How many members a combination is made from; of a greedy soup, how many of how many."""
    members = len(result["members"])
    return f"{sum(taste['kept'] for taste in result['trace'])} of {members}" if "trace" in result else f"{members}"


def combination_label(result: dict[str, Any]) -> str:
    """What tells combinations apart in one table: method, number of members, and what is not the default."""
    how = result["identity"]
    step = "" if how["member_step"] == "last" else f", step {how['member_step']}"
    average = "" if how.get("average", "logits") == "logits" else f", {how['average']}"
    return f"{how['method']} of {len(how['members'])}{average}{step}"


def shown_axes(result: dict[str, Any]) -> str:
    """What varies among a combination's members, with its values; sorted, in whatever order the members were named, but for
    connectivity, where the first is at α = 1."""
    members = list(result["member_values"].values())
    listed: Callable[[Iterable[str]], list[str]] = list if "connectivity" in result else sorted
    axes = {name: listed(dict.fromkeys(f"{values[name]}" for values in members)) for name in sorted(members[0])}
    return " ".join(f"{name}={','.join(values)}" for name, values in axes.items())


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    """With headings of columns that are left-aligned, and of others after them."""
    table = Table()
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def _means(rows: Sequence[Mapping[str, Any]], *names: str) -> list[str]:
    """Of i.i.d. and o.o.d. accuracies, in percent."""
    return [percent(sum(row[name] for row in rows) / len(rows)) for name in names or ("iid_acc", "ood_acc")]


def shown_setting(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else f"{value}"


def counted(number: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
