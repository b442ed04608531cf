"""The tables of results at the end of a command."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vld.report.labels import NONE, distinguishing, text
from vld.report.table import Table
from vld.runs.results import RunResult, settings_in_reports

SELECTION_NOTES = {
    "iid": "each method at its own step of best i.i.d. accuracy (selection iid)",
    "last": "each method at the last step (selection last; with holdout=0 there is no i.i.d. accuracy)",
}
ACCURACIES = ["i.i.d. %", "o.o.d. %"]


def selection_note(results: Iterable[RunResult]) -> str:
    """The steps at which the runs among these are shown."""
    selections = {row["selection"] for result in results if result.members is None for row in result.headline}
    return "; ".join(note for selection, note in SELECTION_NOTES.items() if selection in selections)


def job_table(results: Mapping[str, RunResult], chosen: str) -> Table:
    """A line per method and test domain (`results`' keys), and the average of several; the chosen method first and in bold."""
    rows: list[list[Any]] = [
        [method_of(row), f"{domain}{' (collapsed)' * bool(result.collapse)}{converged([row])}", row, str(row["step"])]
        for domain, result in results.items()
        for row in result.headline
    ]
    rows.sort(key=lambda row: not _is(row[0], chosen))
    return _by_method(rows, ["method", "test domain", *ACCURACIES, "step"], chosen)


def combination_tables(method: str, results: Mapping[str, RunResult]) -> list[Table | str]:
    """A combination beside the mean of its members, for each test domain and on average (`results`' keys).

    If they were measured: accuracy against the number of members, and along a line.
    """
    contents = {domain: result.content for domain, result in results.items()}
    rows = [
        ["mean of the members", domain, its["member_mean"], f"{len(its['members'])}"]
        for domain, its in contents.items()
    ]
    rows += [[method, domain, its["results"][0], members_used(its)] for domain, its in contents.items()]
    table = _by_method(rows, ["method", "test domain", *ACCURACIES, "members"], method)
    [selection] = {row["selection"] for its in contents.values() for row in its["results"]}
    steps = "last steps" if selection == "last" else "steps of best i.i.d. accuracy"
    parts: list[Table | str] = [f"{method} of the members' {steps}", table]
    if curves := [its["by_number_of_members"] for its in contents.values() if "by_number_of_members" in its]:
        parts += ["accuracy against the number of members, averaged over random subsets of each size"]
        parts += [_number_of_members_table(curves)]
    if lines := [its["connectivity"] for its in contents.values() if "connectivity" in its]:
        parts += ["α of the first member and 1 - α of the second: their weights, and their representations"]
        parts += [_connectivity_table(lines)]
    return parts


def _by_method(rows: Sequence[Sequence[Any]], headings: Sequence[str], chosen: str) -> Table:
    """rows: method, test domain, accuracies (two columns), and one more cell. Rows of a method come together, with their average
    if there are several."""
    cells: list[list[str]] = []
    in_bold: list[int] = []
    for method in dict.fromkeys(method for method, *_ in rows):
        mine = [row for row in rows if row[0] == method]
        lines = [["", domain, *means([accuracies]), other] for _, domain, accuracies, other in mine]
        if len(mine) > 1:
            lines.append(["", "average", *means([accuracies for _, _, accuracies, _ in mine]), ""])
        lines[0][0] = method
        in_bold += range(len(cells), len(cells) + len(lines)) if _is(method, chosen) else []
        cells += lines
    return Table(headings, cells, 2, best=_whole(in_bold, len(headings)))


def _number_of_members_table(curves: list[list[dict[str, Any]]]) -> Table:
    """Accuracy against the number of members, averaged over random subsets and test domains."""
    most = min(map(len, curves))
    rows = []
    for k in sorted({k for k in (1, 2, 3, 4, 6, 9, 12, most) if k <= most}):
        points = [curve[k - 1] for curve in curves]
        rows.append([f"{k}", f"{points[0]['subsets']}", *means(points, "iid_acc_mean", "ood_acc_mean")])
    return Table(["members", "subsets", *ACCURACIES], rows, 0)


def _connectivity_table(lines: list[list[dict[str, Any]]]) -> Table:
    """Accuracies along the line between two networks, averaged over test domains."""
    cells: dict[float, list[str]] = {}
    for points in zip(*lines, strict=True):  # the weights' come first
        cells.setdefault(points[0]["alpha"], []).extend(means(points))
    headings = ["α", "weights: i.i.d. %", "o.o.d. %", "representations: i.i.d. %", "o.o.d. %"]
    return Table(headings, [[f"{alpha:g}", *row] for alpha, row in cells.items()], 0)


def sweep_table(results: Sequence[RunResult], chosen: str) -> list[Table | str]:
    """A line per setting that differs among results and method, the chosen one first and in bold.

    Averages over the test domains come first, then the o.o.d. accuracy with each domain left out. Runs that leave several domains
    out at once have rows of their own.
    """
    settings = settings_in_reports(results)
    varied, domains = distinguishing(settings), sorted({its["test_domain"] for its in settings})
    by_values: dict[tuple[tuple[int, str], tuple[str, ...]], dict[str, dict[str, Any]]] = {}
    alike: dict[tuple[int, str], set[str]] = {}
    for result, its in zip(results, settings, strict=True):
        values, domain = tuple(text(name, its.get(name)) for name in varied), its["test_domain"]
        kind = result.left_out, str(its.get("dataset.name"))
        alike.setdefault(kind, set()).add(domain)
        by_method = by_values.setdefault((kind, values), {})
        for row in result.scores if result.combined else result.headline:
            if (label := result.combined) is None:
                label = method_of(row)
            elif domain in by_method.get(label, {}):  # other members, which vary in the same settings
                label = f"{label} ({result.member_axes})"
            by_method.setdefault(label, {})[domain] = row
    shown_domains = domains if len(domains) > 1 else []
    cells: list[list[str]] = []
    in_bold: list[int] = []
    for (kind, values), by_method in sorted(by_values.items(), key=lambda entry: entry[0][0][0]):
        for method in sorted(by_method, key=lambda method: not _is(method, chosen)):
            rows = by_method[method]
            complete = len(rows) == len(alike[kind])  # an average over fewer domains is another quantity
            each = [text("ood_acc", rows[domain]["ood_acc"]) if domain in rows else NONE for domain in shown_domains]
            in_bold += [len(cells)] * _is(method, chosen)
            cells.append(
                [
                    *values,
                    method + converged(rows.values()),
                    *(means(list(rows.values())) if complete else [NONE, NONE]),
                    *each,
                ]
            )
    headings = [*varied, "method", *ACCURACIES, *shown_domains]
    table = Table(headings, cells, len(varied) + 1, best=_whole(in_bold, len(headings)))
    if not shown_domains:
        return [table, f"{domains[0]} left out"]
    return [table, "averages over the test domains; under a domain's name: o.o.d. accuracy with that domain left out"]


def counts_table(
    headings: Sequence[str], states: Sequence[str], counts: Mapping[tuple[str, ...], Mapping[str, int]]
) -> Table:
    """The number of runs of each kind in each state, with sums below."""
    rows = [[*kind, *(of.get(state, 0) for state in states), sum(of.values())] for kind, of in counts.items()]
    if len(rows) > 1:
        sums = [sum(column) for column in zip(*(row[len(headings) :] for row in rows), strict=True)]
        rows.append(["all", *[""] * (len(headings) - 1), *sums])
    return Table(
        [*headings, *states, "all"], [[f"{cell}" if cell != 0 else NONE for cell in row] for row in rows], len(headings)
    )


def method_of(row: Mapping[str, Any]) -> str:
    """A result's method, marked where it was evaluated on a subset (`dataset.curve_images`)."""
    return f"{row['method']} (subset)" if row.get("evaluated_on") == "curve" else str(row["method"])


def converged(rows: Iterable[Mapping[str, Any]]) -> str:
    """Marks where SWAD found no interval."""
    without = [row.get("converged") is False for row in rows]
    return " (not converged)" if all(without) else " (in part not converged)" * any(without)


def members_used(result: Mapping[str, Any]) -> str:
    """The number of members of a combination; for a greedy soup, `3 of 18`."""
    members = len(result["members"])
    return (
        f"{sum(candidate['kept'] for candidate in result['trace'])} of {members}" if "trace" in result else f"{members}"
    )


def means(rows: Sequence[Mapping[str, Any]], *names: str) -> list[str]:
    """Mean i.i.d. and o.o.d. accuracies, in percent."""
    values = [[row[name] for row in rows] for name in names or ("iid_acc", "ood_acc")]
    return [NONE if None in some else text("acc", sum(some) / len(some)) for some in values]


def _is(method: str, chosen: str) -> bool:
    return method.split(" ")[0] == chosen


def _whole(rows: Iterable[int], columns: int) -> frozenset[tuple[int, int]]:
    """The cells of these rows."""
    return frozenset((row, column) for row in rows for column in range(columns))
