"""What a report is made from: every finished run and combination below an `output_dir`, and the runs that are not finished."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vld.config.errors import UserError
from vld.config.names import SETTING_COLUMNS
from vld.report.summary import combination_label, shown_axes
from vld.runs.identity import ADDED_LATER, identity_key
from vld.runs.reading import read_json, stored_identity
from vld.runs.results import finished_results, result_rows
from vld.study.progress import unfinished_state

PAIR = ("lr", "weight_decay")
REPEAT = ("seed", "split_seed")
CELL = ("test_domain", *PAIR, *REPEAT)
"""What tells the runs of one condition apart: one accuracy for each test domain, hyper-parameter pair and repeat."""
SETTING_OF = {column: SETTING_COLUMNS.get(column, column) for column in CELL}


@dataclass(frozen=True)
class Store:
    results: pd.DataFrame
    """`read_results`' rows."""
    unfinished: pd.DataFrame
    """A row per run that is running, interrupted or failed: dataset, plain, *CELL, state, reason, path."""
    damaged: list[str]
    """A line for every file that cannot be read."""
    notes: tuple[str, ...] = ()
    """What else is to be said of what is there."""


def read_results(output_dir: str | Path) -> pd.DataFrame:
    """`load_results`' table with what a report needs beside it, a row per run (or combination) × method × selection.

    condition: all that is equal among the runs of one average, as JSON: every setting but the test domain, learning rate,
    weight decay and seeds; the dataset's fingerprint, the weights' and the precision are part of it. plain: the same without
    those three. settings: of the run, by name. evaluated_on: "curve" where a row is of a part of the images.
    """
    return read_store(output_dir).results


def read_store(output_dir: str | Path) -> Store:
    rows: list[dict[str, Any]] = []
    damaged: list[str] = []
    unfinished = _unfinished(Path(output_dir), damaged)  # first: what finishes meanwhile is among the results
    for path, result, problem in finished_results(output_dir):
        if result is None:
            damaged.append(problem)
            continue
        settings = result["settings"] = with_defaults(result["settings"])
        combined = combination_label(result) if "members" in result else None
        about = {
            "condition": condition_of(settings, f"{combined}: {shown_axes(result)}" if combined else ""),
            "plain": plain_condition(settings),
            "key": identity_key(settings),
            "combined": combined,
            "settings": settings,
            "domains": tuple(result.get("domains", ())),
            "by_number_of_members": result.get("by_number_of_members"),
            "connectivity": result.get("connectivity"),
            "software": result.get("software"),
            "device": result.get("device"),
            "seconds": result.get("seconds"),
            "path": str(path.parent),
        }
        rows += [about | row | {"evaluated_on": row.get("evaluated_on", "all")} for row in result_rows(result)]
    results = pd.DataFrame(rows)
    if not results.empty:
        results = results.astype(dict.fromkeys(("seed", "split_seed", "steps", "step"), "Int64"))
        unfinished = unfinished[~unfinished.path.isin(results.path)]
    return Store(results, unfinished, damaged)


def with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """An identity's settings, and those that are no part of it at the values that the first runs had."""
    return ADDED_LATER | dict(settings)


def condition_of(settings: Mapping[str, Any], combined: str = "") -> str:
    return json.dumps(_without_cell(settings) | ({"combined": combined} if combined else {}), sort_keys=True)


def plain_condition(settings: Mapping[str, Any]) -> str:
    """`condition_of` without what the settings alone do not tell: the content of data and weights, and the precision."""
    return identity_key(_without_cell(settings))


def _without_cell(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in SETTING_OF.values()}


def _unfinished(output_dir: Path, damaged: list[str]) -> pd.DataFrame:
    rows = []
    for config in sorted(output_dir.glob("runs/*/*/*/config.yaml")):
        path = config.parent
        if (path / "result.json").exists():
            continue
        try:
            settings = with_defaults(stored_identity(path))
            failure = read_json(path / "failure.json") if (path / "failure.json").exists() else None
        except UserError as error:
            damaged.append(str(error))
            continue
        rows.append(
            {column: settings[name] for column, name in SETTING_OF.items()}
            | {"dataset": settings["dataset.name"], "plain": plain_condition(settings), "key": identity_key(settings)}
            | {
                "settings": settings,
                "state": unfinished_state(path, failure),
                "reason": failure.get("what", "") if failure else "",
            }
            | {"path": str(path)}
        )
    return pd.DataFrame(rows, columns=["dataset", "plain", *CELL, "key", "settings", "state", "reason", "path"])
