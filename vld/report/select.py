"""Of everything in a store, what a command asks for."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from vld.config.errors import UserError
from vld.config.names import COMBINATIONS
from vld.config.options import flat_settings
from vld.data.domains import resolve_test_domains
from vld.report.results_store import Store
from vld.runs.identity import NOT_IDENTITY
from vld.study.jobs import Job

PRESETS = ("dataset", "backbone", "optim")


def narrowed(store: Store, jobs: Sequence[Job], options: Iterable[str]) -> Store:
    """What has the jobs' values of these options: runs, and the combinations of such runs alone. Raises `UserError` for an
    option that tells no runs apart."""
    results, unfinished = store.results, store.unfinished
    options = list(dict.fromkeys(options))
    for option in options:
        name = f"{option}.name" if option in PRESETS else option
        if option in ("method", "test_domain"):
            continue
        if name in NOT_IDENTITY and name != "precision":
            raise UserError(
                f"{option}: does not tell runs apart; a report can be narrowed by dataset, dropout, optim.lr, …"
            )
        values = {json.dumps(flat_settings(job.config)[name]) for job in jobs}
        if json.dumps("auto") in values:  # which is another value on every machine
            continue
        unfinished = _having(unfinished, name, values)
        results = results[results.combined.notna() | results.index.isin(_having(results, name, values).index)]
    results, notes = with_combinations_of(results), store.notes
    if "test_domain" in options:  # of the datasets that are left
        wanted = _left_out(results, unfinished, jobs)
        results, unfinished = _leaving_out(results, wanted), _leaving_out(unfinished, wanted)
    if "method" in options:
        methods = {job.config.method.name for job in jobs}
        asked = results[results.method.isin(methods)]
        if methods <= set(COMBINATIONS) and not asked.empty:  # a report is of runs, beside which combinations stand
            asked = results[results.method.isin({*methods, "erm"})]
            notes = (
                *notes,
                f"method={','.join(sorted(methods))}: shown beside ERM, which the combinations are made from",
            )
        results = asked
    return replace(store, results=results, unfinished=unfinished, notes=notes)


def _left_out(results: pd.DataFrame, unfinished: pd.DataFrame, jobs: Sequence[Job]) -> dict[str, set[str]]:
    """By dataset: which of its own domains the jobs' `test_domain` stands for. Raises `UserError` for what stands for none of any
    dataset."""
    domains: dict[str, set[str]] = {}
    for frame in (results, unfinished):
        for dataset, test_domain in zip(frame.dataset, frame.test_domain, strict=True):
            domains.setdefault(dataset, set()).add(test_domain)
    for dataset, names in zip(results.dataset, results.domains, strict=True):
        domains[dataset].update(names)
    wanted: dict[str, set[str]] = {dataset: set() for dataset in domains}
    written = [job.config.test_domain for job in jobs]
    for entry in dict.fromkeys(entry for one in written for entry in (one if isinstance(one, list) else [one])):
        problems = []
        for dataset, names in domains.items():
            try:
                wanted[dataset].update(resolve_test_domains(entry, tuple(sorted(names))))
            except UserError as error:  # another dataset may have it
                problems.append(error)
        if problems and len(problems) == len(domains):
            raise problems[0]
    return wanted


def _leaving_out(frame: pd.DataFrame, wanted: Mapping[str, set[str]]) -> pd.DataFrame:
    """These test domains alone: the others are not missing."""
    there = [domain in wanted[dataset] for dataset, domain in zip(frame.dataset, frame.test_domain, strict=True)]
    frame = frame[pd.Series(there, index=frame.index, dtype=bool)]
    if "domains" not in frame:
        return frame
    domains = [tuple(d for d in ds if d in wanted[of]) for of, ds in zip(frame.dataset, frame.domains, strict=True)]
    return frame.assign(domains=pd.Series(domains, index=frame.index, dtype=object))


def _having(frame: pd.DataFrame, name: str, values: set[str]) -> pd.DataFrame:
    def has(settings: dict[str, Any]) -> bool:
        return json.dumps(settings.get(name)) in values

    return frame[frame.settings.map(has).astype(bool)]


def of_study(store: Store, expected: pd.DataFrame) -> Store:
    """The study's runs (`expected_of`), and the combinations of such runs alone."""
    results, unfinished = store.results, store.unfinished
    results = results[results.combined.notna() | results.key.isin(expected.key)]
    return replace(
        store, results=with_combinations_of(results), unfinished=unfinished[unfinished.key.isin(expected.key)]
    )


def with_combinations_of(results: pd.DataFrame) -> pd.DataFrame:
    """The runs, and those combinations whose members are all among them."""
    runs = set(results.run_id[results.combined.isna()])
    whole = results.members.map(lambda members: isinstance(members, list) and runs.issuperset(members)).astype(bool)
    return results[results.combined.isna() | whole]
