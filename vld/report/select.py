"""What a report is made from: everything in an `output_dir`, or the part that a command selects."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from vld.config.errors import UserError
from vld.config.names import COMBINATIONS
from vld.config.options import flat_settings
from vld.data.domains import left_out, resolve_test_domains
from vld.report.labels import RECIPE
from vld.report.series import PLACE, STATE, among, expected_of, numbered
from vld.runs.identity import NOT_IDENTITY, hashable
from vld.runs.results import COLUMNS, named_settings, read_all, results_frame, settings_frame
from vld.study.jobs import Job
from vld.study.planned import PlannedRun
from vld.study.progress import unfinished_runs

PRESETS = ("dataset", "backbone", "optim", RECIPE)


@dataclass(frozen=True)
class Store:
    results: pd.DataFrame
    """`read_results`' rows."""
    unfinished: pd.DataFrame
    """A row per run that is running, interrupted or failed: its settings, state, reason and directory."""
    damaged: list[str]
    """A line for every file that cannot be read."""
    empty: bool
    """Whether nothing at all has finished, even before narrowing."""
    expected: pd.DataFrame | None = None
    """A row per run of a study: its settings. None: complete grids of what is there."""
    notes: tuple[str, ...] = ()
    """Shown as warnings."""


def read_results(output_dir: str | Path) -> pd.DataFrame:
    """`load_results`' table with every setting, and two columns that are equal in rows that belong together (`numbered`):
    `condition` in the rows of one average, `plain` also in those of other data, weights or precision."""
    return read_store(output_dir).results


def read_store(output_dir: str | Path, planned: Iterable[PlannedRun] | None = None) -> Store:
    """planned: the runs of a study, to which the store is narrowed."""
    rows, damaged = unfinished_runs(Path(output_dir))  # first: a run that finishes meanwhile is among the results
    results, damaged_results = read_all(output_dir)
    finished = {str(result.directory) for result in results}
    rows = [row | named_settings(row["settings"]) for row in rows if row["directory"] not in finished]
    settings = [row["settings"] for row in rows]
    unfinished = settings_frame(rows, [*COLUMNS, *STATE], settings)
    runs = list(planned or ())
    frames = numbered(results_frame(results, every_setting=True), unfinished, expected_of(runs))
    if any(run.config.recipe.name for run in runs):
        frames = _with_recipes(frames, [run.config.recipe.name for run in runs])
    store = Store(frames[0], frames[1], damaged + damaged_results, empty=not results)
    return store if planned is None else of_study(store, frames[2])


def _with_recipes(frames: Sequence[pd.DataFrame], names: Sequence[str | None]) -> list[pd.DataFrame]:
    """names: the recipes of the last frame's runs. With their names as a setting of all runs that are like these."""
    known: dict[int, list[str]] = {}
    for plain, name in zip(frames[-1].plain, names, strict=True):
        known.setdefault(plain, []).extend([name] if name else [])
    by_plain = {plain: " or ".join(dict.fromkeys(some)) or None for plain, some in known.items()}
    return [frame.assign(**{RECIPE: frame.plain.map(by_plain).astype(object)}) for frame in frames]


def of_study(store: Store, expected: pd.DataFrame) -> Store:
    """The study's runs, and the combinations of such runs alone."""
    results, unfinished = store.results, store.unfinished
    results = with_combinations_of(results[results.combined.notna() | among(results, expected, PLACE)])
    return replace(store, results=results, unfinished=unfinished[among(unfinished, expected, PLACE)], expected=expected)


def narrowed(store: Store, jobs: Sequence[Job], options: Iterable[str]) -> Store:
    """The runs that have the jobs' values of these options, and the combinations of such runs alone. Raises `UserError` for an
    option that does not distinguish runs."""
    results, unfinished, options = store.results, store.unfinished, dict.fromkeys(options)
    for option in options:
        name = f"{option}.name" if option in PRESETS else option
        if option in ("method", "test_domain"):
            continue
        if name in NOT_IDENTITY and name != "precision":
            raise UserError(
                f"{option}: does not distinguish runs; a report can be narrowed by dataset, dropout, optim.lr, …"
            )
        values = {hashable(flat_settings(job.config)[name]) for job in jobs}
        if "auto" not in values:  # which is another value on every machine
            unfinished = unfinished[_having(unfinished, name, values)]
            results = results[results.combined.notna() | _having(results, name, values)]
    store = replace(store, results=with_combinations_of(results), unfinished=unfinished)
    if "test_domain" in options:  # of the datasets that are left
        store = _leaving_out(store, [job.config.test_domain for job in jobs])
    return _of_methods(store, {job.config.method.name for job in jobs}) if "method" in options else store


def _having(frame: pd.DataFrame, name: str, values: set[Any]) -> pd.Series:
    if name not in frame:  # no run has such a setting, or there are no runs
        return pd.Series(False, index=frame.index)
    return frame[name].map(lambda value: value in values).astype(bool)


def with_combinations_of(results: pd.DataFrame) -> pd.DataFrame:
    """The runs, and those combinations whose members are all among them."""
    runs = set(results.run_id[results.combined.isna()])
    whole = results.members.map(lambda members: isinstance(members, list) and runs.issuperset(members)).astype(bool)
    return results[results.combined.isna() | whole]


def _of_methods(store: Store, methods: set[str]) -> Store:
    """These alone; but with combinations also their members' method, since a report is about runs."""
    results = store.results[store.results.method.isin(methods)]
    if not methods <= set(COMBINATIONS) or results.empty:
        return replace(store, results=results)
    note = f"method={','.join(sorted(methods))}: shown beside ERM, which the combinations are made from"
    results = store.results[store.results.method.isin({*methods, "erm"})]
    return replace(store, results=results, notes=(*store.notes, note))


def _leaving_out(store: Store, written: Sequence[Any]) -> Store:
    """Only the test domains that `test_domain` stands for in each dataset: the others do not count as missing. Raises `UserError`
    if it stands for a domain of no dataset."""
    runs = pd.concat([store.results, store.unfinished])
    domains = {}
    for of, some in runs.groupby("dataset"):
        known = set(some.domains.explode().dropna())  # earlier runs do not tell
        domains[of] = known.union(*(left_out(name, known) for name in some.test_domain))
    wanted: dict[Any, set[str]] = {dataset: set() for dataset in domains}
    for entry in dict.fromkeys(entry for one in written for entry in (one if isinstance(one, list) else [one])):
        problems = []
        for dataset, names in domains.items():
            try:
                wanted[dataset].update(resolve_test_domains(entry, tuple(sorted(names))))
            except UserError as error:  # another dataset may have it
                problems.append(error)
        if problems and len(problems) == len(domains):
            raise problems[0]

    def left(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.loc[[domain in wanted[of] for of, domain in zip(frame.dataset, frame.test_domain, strict=True)]]

    results = left(store.results)
    # By the others a pair is chosen, where they are left out as well.
    names_left = [
        names if name not in names else tuple(domain for domain in names if domain in wanted[of])
        for of, name, names in zip(results.dataset, results.test_domain, results.domains, strict=True)
    ]
    results = results.assign(domains=pd.Series(names_left, index=results.index, dtype=object))
    return replace(store, results=results, unfinished=left(store.unfinished))
