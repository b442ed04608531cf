"""The members of a combination: finds the finished runs, and checks that they can be combined."""

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vld.config.errors import UserError
from vld.config.settings import Config
from vld.machine.device import resolve_device, resolve_precision
from vld.model.weights import load_backbone_weights
from vld.runs.directory import RunDirectory
from vld.runs.identity import (
    CONTENT,
    PRECISION,
    RANDOM_WEIGHTS,
    WEIGHTS,
    differing,
    identity_key,
    settings_key,
    weights_fingerprint,
)
from vld.runs.keep import check_kept
from vld.study.member_axes import fixed, kept_file, member_configs, shown_values


@dataclass(frozen=True)
class Member:
    """A finished run, and the values that distinguish it from the other members."""

    values: dict[str, Any]
    path: Path
    result: dict[str, Any]

    @property
    def run_id(self) -> str:
        return str(self.result["run_id"])

    @property
    def settings(self) -> dict[str, Any]:
        settings = self.result["settings"]
        assert isinstance(settings, dict)
        return settings

    @property
    def content(self) -> str:
        return json.dumps({name: self.settings[name] for name in CONTENT})

    def row(self, selection: str) -> dict[str, Any]:
        """Its accuracies at the step of that selection."""
        [row] = [r for r in self.result["results"] if (r["method"], r["selection"]) == ("erm", selection)]
        assert isinstance(row, dict)
        return row


def find_members(config: Config, test_domain: str, options: Sequence[str]) -> list[Member]:
    """The finished runs that the settings identify, in the order of the axes.

    options: those of this command, to show the one that trains missing members. Raises `UserError` if members are missing,
    with the settings in which the nearest run differs; if they differ in content; and if they did not keep what is needed.
    """
    folder = Path(config.output_dir) / "runs" / config.dataset.name / test_domain
    finished = _finished(folder)
    planned = member_configs(config)
    known = _known_content(config)
    found = []
    for values, member in planned:
        key = settings_key(member, test_domain)
        same = [run for run in finished if identity_key(run.settings) == key and _is_of(run, known)]
        found.append([Member(values, run.path, run.result) for run in same])
    sets: dict[str, list[Member]] = {}
    for runs in found:
        for run in runs:
            sets.setdefault(run.content, []).append(run)
    complete = [members for members in sets.values() if len(members) == len(planned)]
    here = resolve_precision(config.precision, resolve_device(config.device))
    if len(complete) > 1:  # trained on a GPU and on a CPU: those that this machine would train
        complete = [members for members in complete if members[0].settings[PRECISION] == here] or complete
    start = f"method={config.method.name}:"
    if len(complete) > 1 or (not complete and all(found)):
        [name, *_] = differing([json.loads(content) for content in sets])
        what = "members differ" if not complete else f"{len(complete)} sets of runs have these settings and differ"
        raise UserError(f"{start} {what} in {name} in {folder}: {fixed(name, config.method.name)}")
    if not complete:
        fullest = max(sets.values(), key=len, default=[])
        there = [run.values for run in fullest]
        used = {run.path for runs in found for run in runs}
        others = [run for run in finished if run.path not in used]
        missing = [(values, member) for values, member in planned if values not in there]
        shown = "; ".join(shown_values(values) for values, _ in missing[:6]) + ("; …" if len(missing) > 6 else "")
        precision = fullest[0].settings[PRECISION] if fullest else here
        raise UserError(
            f"{start} {len(missing)} of {len(planned)} members are not finished in {folder}: {shown}"
            f"{_nearest(missing[0][1], test_domain, others)};"
            f" this trains them: {_command(config, test_domain, options, None if precision == here else precision)}"
        )
    [members] = complete
    check_kept([member.path for member in members], kept_file(config))
    return members


def _finished(folder: Path) -> list[Member]:
    runs = []
    for path in sorted(folder.glob("*/result.json")):
        with suppress(UserError):  # a damaged one is named where it is needed, by the command that trains it
            if result := RunDirectory(path.parent).result():
                runs.append(Member({}, path.parent, result))
    return runs


def _known_content(config: Config) -> dict[str, str]:
    """The parts of `CONTENT` that the settings determine."""
    known = {} if config.precision == "auto" else {PRECISION: config.precision}
    try:
        known[WEIGHTS] = weights_fingerprint(load_backbone_weights(config.backbone))
    except UserError:  # a machine without network may still combine what others trained
        if config.backbone.weights is not None:
            raise
    return known


def _is_of(run: Member, known: Mapping[str, str]) -> bool:
    if WEIGHTS not in known and run.settings[WEIGHTS] == RANDOM_WEIGHTS:
        return False  # the published weights were asked for
    return all(run.settings[name] == value for name, value in known.items())


def _nearest(missing: Config, test_domain: str, others: list[Member]) -> str:
    """The settings in which the nearest other run differs from a missing member."""
    wanted = json.loads(settings_key(missing, test_domain))
    their_settings = [json.loads(identity_key(run.settings)) for run in others]
    differences = [differing([wanted, settings]) for settings in their_settings]
    if not differences:
        return ""
    names, other = min(zip(differences, their_settings, strict=True), key=lambda pair: len(pair[0]))
    if not names or len(names) > 3:
        return ""
    return (
        f" (the nearest run differs in {', '.join(f'{n}: {other.get(n)} instead of {wanted.get(n)}' for n in names)})"
    )


def _command(config: Config, test_domain: str, options: Sequence[str], precision: str | None) -> str:
    mine = ("method", "test_domain", "keep", *(["precision"] if precision else []))
    others = [option for option in options if option.split("=")[0].split(".")[0] not in mine]
    keep = ",".join(dict.fromkeys([*config.keep, kept_file(config)]))
    words = [*others, *config.method.members, f"test_domain={test_domain}", f"keep=[{keep}]"]
    return shlex.join(["python", "scripts/train.py", "-m", *words, *([f"precision={precision}"] if precision else [])])
