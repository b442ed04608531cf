"""The results of finished runs: the one reader of `result.json`, and the table of all results."""

import itertools
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vld.config.errors import UserError, damaged
from vld.config.names import ACCURACIES, SETTING_COLUMNS
from vld.runs.identity import ADDED_LATER, WEIGHTS, hashable
from vld.runs.reading import check_identity, read_json

if TYPE_CHECKING:  # pandas takes a second to import, and reading one result does not need it
    import pandas as pd

log = logging.getLogger(__name__)

COLUMNS = [
    *("run_id", "dataset", "test_domain"),
    *SETTING_COLUMNS,
    *("method", "selection", "step", *ACCURACIES, "members"),
]
WHOLE_NUMBERS = ("seed", "split_seed", "steps", "step")
"""May be null, which plain integers in pandas cannot be."""
NUMBERS = ("dropout", "lr", "weight_decay", "last_layer_lr_factor", *ACCURACIES)
ABOUT = ["evaluated_on", "ood_by_domain", "combined", "member_axes", "domains", "by_number_of_members", "connectivity"]
ABOUT += ["converged", "software", "device", "seconds", "directory"]
"""Further columns of the table with every setting, about the row and its run or combination."""


@dataclass(frozen=True)
class RunResult:
    """A run's `result.json`, or a combination's."""

    directory: Path
    content: dict[str, Any]
    """All of the file."""

    @property
    def run_id(self) -> str:
        return str(self.content["run_id"])

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Those of the run's identity, including ones added later; None for those in which a combination's members differ."""
        return {**ADDED_LATER, **self.content["settings"]}

    @property
    def settings_in_reports(self) -> dict[str, Any]:
        """With what starts from runs of several test domains have in common in place of their weights' fingerprint."""
        return self.settings | ({WEIGHTS: start} if (start := self.content.get("start")) else {})

    @property
    def scores(self) -> list[dict[str, Any]]:
        """method, selection, step and accuracies, of each method and selection."""
        return list(self.content["results"])

    @property
    def headline(self) -> list[dict[str, Any]]:
        """Of a run, the scores at the step of best i.i.d. accuracy, at the last without held-out images (holdout=0)."""
        selection = "iid" if any(row["selection"] == "iid" for row in self.scores) else "last"
        return [row for row in self.scores if row["selection"] == selection]

    @property
    def members(self) -> list[str] | None:
        """The run ids of a combination's members, None for a run."""
        return self.content.get("members")

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.content.get("domains", ()))

    @property
    def left_out(self) -> int:
        """How many domains it leaves out at once."""
        return len(self.scores[0].get("ood_by_domain", [None]))

    @property
    def seconds(self) -> float | None:
        return self.content.get("seconds")

    @property
    def collapse(self) -> Any:
        """How the run's representation collapsed, or None."""
        return self.content.get("health", {}).get("collapse")

    @property
    def combined(self) -> str | None:
        """Distinguishes a combination in a table: method, number of members, and settings other than the default."""
        if self.members is None:
            return None
        how = self.content["identity"]
        step = "" if how["member_step"] == "last" else f", step {how['member_step']}"
        average = "" if how.get("average", "logits") == "logits" else f", {how['average']}"
        accept = f", {how['accept']}" if "accept" in how else ""
        return f"{how['method']} of {len(how['members'])}{average}{accept}{step}"

    @property
    def member_axes(self) -> str | None:
        """What varies among a combination's members, with its values: sorted, except for connectivity, whose first member
        is at α = 1."""
        if self.members is None:
            return None
        members, axes = list(self.content["member_values"].values()), []
        for name in sorted(members[0]):
            values = dict.fromkeys(f"{member[name]}" for member in members)
            axes.append(f"{name}={','.join(values if 'connectivity' in self.content else sorted(values))}")
        return " ".join(axes)

    def rows(self) -> list[dict[str, Any]]:
        """Those of the table of results: `COLUMNS` and `ABOUT`."""
        about: dict[str, Any] = {name: self.content.get(name) for name in ABOUT}
        about |= {"combined": self.combined, "member_axes": self.member_axes, "domains": self.domains}
        about |= {"evaluated_on": "all", "directory": str(self.directory)}
        about |= {"run_id": self.run_id, "members": self.members, **named_settings(self.settings)}
        return [about | row for row in self.scores]


def read(directory: Path) -> RunResult:
    """The result in the directory of a finished run or combination. Raises `UserError` if it is damaged or another run's."""
    path = directory / "result.json"
    content = read_json(path)
    check_identity(content.get("identity" if "members" in content else "settings"), path)
    if missing := {"run_id", "settings", "results"} - content.keys():
        raise damaged(path, f"it lacks {', '.join(sorted(missing))}")
    return RunResult(directory, content)


def read_all(output_dir: str | Path) -> tuple[list[RunResult], list[str]]:
    """Every finished run and combination; and a line for each damaged one, and for each folder of copies."""
    results, problems, places = [], [], dict[str, Path]()
    paths = (sorted(Path(output_dir).glob(f"{kind}/*/*/*/result.json")) for kind in ("runs", "combined"))
    for path in itertools.chain(*paths):
        try:
            result = read(path.parent)
            defined = [name for name in ACCURACIES if name != "iid_acc" or result.settings["holdout"] != 0]
            for row in result.rows():
                if not row["method"] or not all(isinstance(row[name], float | int) for name in defined):
                    raise KeyError(ACCURACIES)
            if (place := places.setdefault(result.run_id, path.parent)) != path.parent:
                copies = f"{path.parents[1]}: copies of runs in {place.parent}, left out"
                raise UserError(f"{copies}; move them out of {output_dir}")
            results.append(result)
        except UserError as error:
            problems.append(str(error))
        except (KeyError, TypeError, IndexError) as error:
            problems.append(str(damaged(path, repr(error))))
    return results, list(dict.fromkeys(problems))


def load_results(output_dir: str | Path, every_setting: bool = False) -> "pd.DataFrame":
    """One row per finished run or combination × method × selection (columns: `COLUMNS`). Damaged ones are named and left out.

    `members` are the run ids of a combination's members; what varies among them is null. every_setting: adds a column for every
    setting of a run's identity, and what else is known about the run (`ABOUT`).
    """
    results, problems = read_all(output_dir)
    for line in problems:
        log.warning("%s", line)
    return results_frame(results, every_setting)


def results_frame(results: Sequence[RunResult], every_setting: bool = False) -> "pd.DataFrame":
    """The table of these results."""
    rows = [row for result in results for row in result.rows()]
    if not every_setting:
        return settings_frame(rows, COLUMNS, [])
    of_each = zip(settings_in_reports(results), results, strict=True)
    return settings_frame(rows, COLUMNS + ABOUT, [settings for settings, result in of_each for _ in result.scores])


def settings_in_reports(results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Of each result, where that tells it from all others: a probe that was trained again, by other threads, say, has other
    weights, and what starts from it is another run."""
    told = [
        f"{one.combined} {one.member_axes} {json.dumps(one.settings_in_reports, sort_keys=True)}" for one in results
    ]
    count = Counter(told)
    return [
        one.settings_in_reports if count[words] == 1 else one.settings for one, words in zip(results, told, strict=True)
    ]


def settings_frame(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], settings: Sequence[Mapping[str, Any]]
) -> "pd.DataFrame":
    """These columns of the rows, and a column for each setting, whose values keep their types (1 does not become 1.0)."""
    import pandas as pd

    types = dict.fromkeys(WHOLE_NUMBERS, "Int64") | dict.fromkeys(NUMBERS, "float64")  # also where there are no rows
    frame = pd.DataFrame(rows, columns=list(columns)).astype(types)
    others = [{name: hashable(value) for name, value in one.items() if name not in columns} for one in settings]
    return pd.concat([frame, pd.DataFrame(others, index=frame.index, dtype=object)], axis=1)


def named_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that have a column of the contract's table, under its name."""
    columns = {column: settings[name] for column, name in SETTING_COLUMNS.items()}
    return columns | {"dataset": settings["dataset.name"], "test_domain": settings["test_domain"]}
