"""What a report is made from: every finished run and combination below an `output_dir`, and the runs that are not finished."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vld.errors import UserError
from vld.runs.directory import read_json, stored_identity
from vld.runs.identity import identity_key
from vld.runs.results import finished_results, result_rows
from vld.study import FAILED, INTERRUPTED, RUNNING, is_running
from vld.terminal import combination_label, shown_axes

log = logging.getLogger(__name__)

PAIR = ("lr", "weight_decay")
REPEAT = ("seed", "split_seed")
CELL = ("test_domain", *PAIR, *REPEAT)
"""What tells the runs of one condition apart: one accuracy for each test domain, hyper-parameter pair and repeat."""
NOT_CONDITION = ("test_domain", "optim.lr", "optim.weight_decay", "seed", "split_seed")


@dataclass(frozen=True)
class Store:
    results: pd.DataFrame
    """`read_results`' rows."""
    unfinished: pd.DataFrame
    """A row per run that is running, interrupted or failed: dataset, plain, *CELL, state, reason, path."""
    damaged: list[str]
    """A line for every file that cannot be read."""


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
        settings = result["settings"]
        about = {
            "study": result.get("study"),
            "condition": condition_of(settings, _how_combined(result)),
            "plain": plain_condition(settings),
            "key": identity_key(settings),
            "how_combined": shown_axes(result) if "members" in result else None,
            "combined": combination_label(result) if "members" in result else None,
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


def condition_of(settings: Mapping[str, Any], combined: str = "") -> str:
    kept = {name: value for name, value in settings.items() if name not in NOT_CONDITION}
    return json.dumps(kept | ({"combined": combined} if combined else {}), sort_keys=True)


def plain_condition(settings: Mapping[str, Any]) -> str:
    """`condition_of` without what the settings alone do not tell: the content of data and weights, and the precision."""
    return identity_key({name: value for name, value in settings.items() if name not in NOT_CONDITION})


def _how_combined(result: Mapping[str, Any]) -> str:
    """What tells combinations of the same settings apart."""
    if "members" not in result:
        return ""
    values = list(result["member_values"].values())
    axes = {name: sorted({f"{one[name]}" for one in values}) for name in sorted(values[0])}
    shown = " ".join(f"{name}={','.join(of_axis)}" for name, of_axis in axes.items())
    return f"{combination_label(dict(result))}: {shown}"


def _unfinished(output_dir: Path, damaged: list[str]) -> pd.DataFrame:
    rows = []
    for config in sorted(output_dir.glob("runs/*/*/*/config.yaml")):
        path = config.parent
        if (path / "result.json").exists():
            continue
        try:
            settings = stored_identity(path)
            failure = read_json(path / "failure.json") if (path / "failure.json").exists() else None
        except UserError as error:
            damaged.append(str(error))
            continue
        state = FAILED if failure else RUNNING if is_running(path) else INTERRUPTED
        cell = {
            "test_domain": settings["test_domain"],
            "lr": settings["optim.lr"],
            "weight_decay": settings["optim.weight_decay"],
            "seed": settings["seed"],
            "split_seed": settings["split_seed"],
        }
        rows.append(
            cell
            | {"dataset": settings["dataset.name"], "plain": plain_condition(settings), "key": identity_key(settings)}
            | {"settings": settings, "state": state, "reason": failure.get("what", "") if failure else ""}
            | {"path": str(path)}
        )
    return pd.DataFrame(rows, columns=["dataset", "plain", *CELL, "key", "settings", "state", "reason", "path"])
