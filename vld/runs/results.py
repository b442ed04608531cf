"""Reading back what runs have left: a table of all results."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from vld.config.errors import UserError
from vld.config.names import ACCURACIES, SETTING_COLUMNS
from vld.runs.reading import read_result

log = logging.getLogger(__name__)

COLUMNS = [
    *("run_id", "dataset", "test_domain"),
    *SETTING_COLUMNS,
    *("method", "selection", "step", *ACCURACIES, "members"),
]
WHOLE_NUMBERS = ("seed", "split_seed", "steps", "step")
"""May be null, which pandas' plain integers cannot be."""


def load_results(output_dir: str | Path) -> pd.DataFrame:
    """One row per finished run or combination × method × selection (columns: `COLUMNS`). Damaged ones are named and left out.

    `members` are the run ids of a combination's; what varies among them is null in its row.
    """
    rows: list[dict[str, Any]] = []
    for _, result, problem in finished_results(output_dir):
        if result is None:
            log.warning("%s", problem)
        else:
            rows += result_rows(result)
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(WHOLE_NUMBERS, "Int64"))


def finished_results(output_dir: str | Path) -> Iterator[tuple[Path, dict[str, Any] | None, str]]:
    """Every `result.json` of a run or a combination with its content; of a damaged one None, and what is wrong with it."""
    for kind, identity in (("runs", "settings"), ("combined", "identity")):
        for path in sorted(Path(output_dir).glob(f"{kind}/*/*/*/result.json")):
            try:
                result = read_result(path, identity)
                for row in result_rows(result):
                    if not all(isinstance(row[name], float | int) for name in ACCURACIES) or not row["method"]:
                        raise KeyError(ACCURACIES)
            except UserError as error:
                yield path, None, str(error)
            except (KeyError, TypeError) as error:
                yield path, None, f"{path}: damaged ({error!r})"
            else:
                yield path, result, ""


def result_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one `result.json`."""
    settings = result["settings"]
    run = {"run_id": result["run_id"], "dataset": settings["dataset.name"], "test_domain": settings["test_domain"]}
    run |= {column: settings[name] for column, name in SETTING_COLUMNS.items()}
    return [run | row | {"members": result.get("members")} for row in result["results"]]
