"""The members of a combination: finds the finished runs, and checks that they can be combined."""

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vld.config.errors import UserError
from vld.config.options import written
from vld.config.settings import Config
from vld.machine.device import resolve_device, resolve_precision
from vld.model.weights import load_backbone_weights
from vld.runs.directory import RunDirectory
from vld.runs.identity import (
    ADDED_LATER,
    CONTENT,
    PRECISION,
    differing,
    identity_key,
    may_have,
    runs_folder,
    settings_key,
    weights_fingerprint,
)
from vld.runs.keep import check_kept
from vld.runs.results import RunResult
from vld.study.member_axes import fixed, kept_file, member_configs, shown_values


@dataclass(frozen=True)
class Member(RunResult):
    """A finished run, and the values that distinguish it from the other members."""

    values: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        return identity_key(self.content["settings"])

    @property
    def known_by(self) -> dict[str, Any]:
        """What members have in common besides their settings: images, weights, precision."""
        return {name: self.settings[name] for name in CONTENT}

    def row(self, selection: str) -> dict[str, Any]:
        """Its accuracies at the step of that selection."""
        [row] = [row for row in self.scores if (row["method"], row["selection"]) == ("erm", selection)]
        return row


class MissingMembers(UserError):  # noqa: N818  (an outcome)
    """Members that are not finished."""


def find_members(config: Config, test_domain: str, options: Sequence[str] | None = None) -> list[Member]:
    """The finished runs that the settings identify, in the order of the axes.

    options: those of this command, to show the one that trains missing members. Raises `MissingMembers` with the settings in
    which the nearest run differs, and `UserError` if members differ in content or did not keep what is needed.
    """
    planned, folder = member_configs(config), runs_folder(config, test_domain)
    sets, others = _sets(config, test_domain, folder)
    here = resolve_precision(config.precision, resolve_device(config.device))
    complete = [members for members in sets if len(members) == len(planned)]
    if len(complete) > 1:  # trained on a GPU and on a CPU: those that this machine would train
        complete = [members for members in complete if members[0].settings[PRECISION] == here] or complete
    if len(complete) == 1:
        check_kept([member.directory for member in complete[0]], kept_file(config))
        return complete[0]
    found = [run.values for members in sets for run in members]
    if complete or all(values in found for values, _ in planned):
        [name, *_] = differing([members[0].known_by for members in sets])
        what = f"{len(complete)} sets of runs have these settings and differ" if complete else "members differ"
        raise UserError(f"method={config.method.name}: {what} in {name} in {folder}: {fixed(name, config.method.name)}")
    fullest = max(sets, key=len, default=[])
    missing = [(values, member) for values, member in planned if values not in [run.values for run in fullest]]
    shown = "; ".join(shown_values(values) for values, _ in missing[:6]) + ("; …" if len(missing) > 6 else "")
    line = (
        f"method={config.method.name}: {len(missing)} of {len(planned)} members are not finished in {folder}: {shown}"
    )
    line += _nearest(missing[0][1], test_domain, others)
    if options is not None:
        precision = fullest[0].settings[PRECISION] if fullest else here
        line += (
            f"; this trains them: {_command(config, test_domain, options, None if precision == here else precision)}"
        )
    raise MissingMembers(line)


def _sets(config: Config, test_domain: str, folder: Path) -> tuple[list[list[Member]], list[Member]]:
    """The finished runs that are members by their settings, together those of the same content; and all other runs."""
    weights = _weights_here(config)
    others = _finished(folder)
    sets: dict[str, list[Member]] = {}
    for values, member in member_configs(config):
        key = settings_key(member, test_domain)
        fitting = [run for run in others if run.key == key and may_have(run.settings, member, weights)]
        for run in fitting:
            sets.setdefault(repr(run.known_by), []).append(replace(run, values=values))
            others.remove(run)
    return list(sets.values()), others


def _finished(folder: Path) -> list[Member]:
    runs = []
    for path in sorted(folder.glob("*/result.json")):
        with suppress(UserError):  # a damaged one is named where it is needed, by the command that trains it
            if result := RunDirectory(path.parent).result():
                runs.append(Member(path.parent, result))
    return runs


def _weights_here(config: Config) -> str | None:
    """Their fingerprint; None if this machine has no published weights, but may combine what others trained."""
    try:
        return weights_fingerprint(load_backbone_weights(config.backbone))
    except UserError:
        if config.backbone.weights is not None:
            raise
        return None


def _nearest(missing: Config, test_domain: str, others: list[Member]) -> str:
    """The settings in which the nearest other run differs from a missing member."""
    wanted = ADDED_LATER | json.loads(settings_key(missing, test_domain))
    of_others = [{name: value for name, value in run.settings.items() if name not in CONTENT} for run in others]
    differences = [(differing([wanted, settings]), settings) for settings in of_others]
    names, other = min(differences, key=lambda pair: len(pair[0]), default=([], {}))
    shown = ", ".join(f"{name}: {written(other.get(name))} instead of {written(wanted.get(name))}" for name in names)
    return f" (the nearest run differs in {shown})" if 0 < len(names) <= 3 else ""


def _command(config: Config, test_domain: str, options: Sequence[str], precision: str | None) -> str:
    """That of `train.py` which trains missing members, with this precision."""
    replaced = ("method", "test_domain", "keep", *(["precision"] if precision else []))
    others = [option for option in options if option.split("=")[0].split(".")[0] not in replaced]
    keep = ",".join(dict.fromkeys([*config.keep, kept_file(config)]))
    words = [*others, *config.method.members, f"test_domain={test_domain}", f"keep=[{keep}]"]
    return shlex.join(["python", "scripts/train.py", "-m", *words, *([f"precision={precision}"] if precision else [])])
