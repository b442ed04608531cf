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
from vld.study import test_domains

PRESETS = ("dataset", "backbone", "optim")


def narrowed(store: Store, jobs: Sequence[Job], options: Iterable[str]) -> Store:
    """What has the jobs' values of these options. Raises `UserError` for an option that tells no runs apart."""
    results, unfinished = store.results, store.unfinished
    for option in dict.fromkeys(options):
        if option == "method":
            if not results.empty:
                results = results[results.method.isin({job.config.method.name for job in jobs})]
        elif option == "test_domain":
            domains = {domain for job in jobs for domain in test_domains(job.config)}
            results, unfinished = (
                some[some.test_domain.isin(domains)] if len(some) else some for some in (results, unfinished)
            )
        else:
            name = f"{option}.name" if option in PRESETS else option
            if name in NOT_IDENTITY and name != "precision":
                raise UserError(
                    f"{option}: does not tell runs apart; a report can be narrowed by dataset, dropout, optim.lr, …"
                )
            values = {json.dumps(flat_settings(job.config)[name]) for job in jobs}
            results, unfinished = (_having(some, name, values) for some in (results, unfinished))
    return replace(store, results=results, unfinished=unfinished)


def _having(frame: pd.DataFrame, name: str, values: set[str]) -> pd.DataFrame:
    if frame.empty:
        return frame

    def has(settings: dict[str, Any]) -> bool:
        return json.dumps(settings.get(name, ADDED_LATER.get(name))) in values

    return frame[frame.settings.map(has)]


def of_study(store: Store, expected: pd.DataFrame) -> Store:
    """The study's runs (`expected_of`), and the combinations of runs with their settings."""
    results, unfinished = store.results, store.unfinished
    if not results.empty:
        runs = results.combined.isna() & results.key.isin(expected.key)
        combined = (
            results.combined.notna()
            & results.plain.isin(expected.plain)
            & results.test_domain.isin(expected.test_domain)
        )
        results = results[runs | combined]
    return replace(store, results=results, unfinished=unfinished[unfinished.key.isin(expected.key)])
