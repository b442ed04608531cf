"""Of everything in a store, what a command asks for."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from vld.errors import UserError
from vld.jobs import Job
from vld.report.store import Store
from vld.runs.identity import ADDED_LATER, NOT_IDENTITY, flat_settings
from vld.study import left_out_domains

PRESETS = ("dataset", "backbone", "optim")


def narrowed(store: Store, jobs: Sequence[Job], options: Iterable[str]) -> Store:
    """What has the jobs' values of these options: runs, and the combinations of such runs alone. Raises `UserError` for an
    option that tells no runs apart."""
    results, unfinished = store.results, store.unfinished
    options = list(dict.fromkeys(options))
    for option in options:
        name = f"{option}.name" if option in PRESETS else option
        if option == "method":
            continue
        if option == "test_domain":
            results, unfinished = _leaving_out(results, jobs), _leaving_out(unfinished, jobs)
            continue
        if name in NOT_IDENTITY and name != "precision":
            raise UserError(
                f"{option}: does not tell runs apart; a report can be narrowed by dataset, dropout, optim.lr, …"
            )
        values = {json.dumps(flat_settings(job.config)[name]) for job in jobs}
        unfinished = _having(unfinished, name, values)
        results = results[results.combined.notna() | results.index.isin(_having(results, name, values).index)]
    results = with_combinations_of(results)
    if "method" in options:
        results = results[results.method.isin({job.config.method.name for job in jobs})]
    return replace(store, results=results, unfinished=unfinished)


def _leaving_out(frame: pd.DataFrame, jobs: Sequence[Job]) -> pd.DataFrame:
    """The jobs' test domains alone: the others are not missing."""
    wanted = {domain for job in jobs for domain in left_out_domains(job.config)}
    frame = frame[frame.test_domain.isin(wanted)]
    if "domains" not in frame:
        return frame
    return frame.assign(domains=frame.domains.map(lambda domains: tuple(d for d in domains if d in wanted)))


def _having(frame: pd.DataFrame, name: str, values: set[str]) -> pd.DataFrame:
    def has(settings: dict[str, Any]) -> bool:
        return json.dumps(settings.get(name, ADDED_LATER.get(name))) in values

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
