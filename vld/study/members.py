"""The members of a combination: which finished runs they are, and whether they may be combined."""

import itertools
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException

from vld.config.errors import UserError
from vld.config.settings import Config, MethodConfig, option_names, unknown_option
from vld.machine.device import resolve_device, resolve_precision
from vld.model.classifier import load_backbone_weights
from vld.runs.directory import RunDirectory
from vld.runs.identity import (
    CONTENT,
    NOT_IDENTITY,
    PRECISION,
    RANDOM_WEIGHTS,
    WEIGHTS,
    differing,
    identity_key,
    settings_key,
    weights_fingerprint,
)
from vld.runs.keep import check_kept
from vld.study.compose import with_values
from vld.study.jobs import values_of

ENSEMBLE_OF_RUNS = "ensemble_of_runs"
CONNECTIVITY = "connectivity"
TUNING = "backbone.tuning"

# Why some settings cannot vary among members, by the beginning of their names …
FIXED = {
    "dataset": "members are evaluated on the same images",
    "test_domain": "members are evaluated on the same images",
    "split_seed": "what one member trained on, another would be evaluated on",
    "precision": "members are evaluated in the same way",
    "backbone": "members are of one network",
}
# … and among those of a soup.
FIXED_IN_SOUPS = FIXED | {
    "head_seed": "members of a soup start from the same weights, the last layer's included",
    "image_size": "a soup is evaluated at one size",
}


@dataclass(frozen=True)
class Member:
    """A finished run, and the values that tell it from the other members."""

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
        """Its own accuracies at that selection of its steps."""
        [row] = [r for r in self.result["results"] if (r["method"], r["selection"]) == ("erm", selection)]
        assert isinstance(row, dict)
        return row


def member_axes(config: Config) -> dict[str, list[Any]]:
    """The settings that vary among the members, with their values. Raises `UserError` for those that must not."""
    axes: dict[str, list[Any]] = {}
    for text in config.method.members:
        try:
            override = OverridesParser.create().parse_override(text)
            if override.type is not OverrideType.CHANGE:
                raise UserError(f"method.members={text}: not understood; written as seed=0,1,2")
            values = values_of(override)
        except HydraException as error:
            raise UserError(f"method.members={text}: not understood; written as seed=0,1,2") from error
        name = override.key_or_group
        if reason := fixed(name, config.method.name):
            raise UserError(f"method.members={text}: {name} cannot vary among members: {reason}")
        if name in ("optim", "method"):
            raise UserError(f"method.members={text}: a preset cannot vary among members; its settings can")
        if name not in option_names():
            raise UserError(f"method.members={text}: {unknown_option(name)}")
        if name in NOT_IDENTITY:
            raise UserError(f"method.members={text}: {name} does not make another run")
        if name in axes:
            raise UserError(f"method.members={text}: {name} is there twice")
        axes[name] = values
    if "linear" in axes.get(TUNING, ()):
        raise UserError(
            f"method.members={config.method.members}: {TUNING}=linear is another network: full and head can vary"
        )
    if config.method.name == CONNECTIVITY and axes and math.prod(map(len, axes.values())) != 2:
        raise UserError(f"method.members={config.method.members}: connectivity is between two members, as seed=0,1")
    if not axes:
        raise UserError(f"method.members=[]: {config.method.name} needs members, say 'method.members=[\"seed=0,1,2\"]'")
    if config.method.name != ENSEMBLE_OF_RUNS and config.backbone.weights == "none":
        raise UserError(
            f"method={config.method.name}: members of a soup start from the same weights; those of"
            " backbone.weights=none are drawn anew in each run"
        )
    return axes


def member_configs(config: Config) -> list[tuple[dict[str, Any], Config]]:
    """For every combination of the axes' values: the values, and the settings of that run.

    Raises `UserError` for values that are not allowed, and where two of them are the same run.
    """
    axes = member_axes(config)
    members: dict[str, tuple[dict[str, Any], Config]] = {}
    for chosen in itertools.product(*axes.values()):
        values = dict(zip(axes, chosen, strict=True))
        member = with_values(config, values)
        member.method = MethodConfig(name="erm")
        key = settings_key(member, "")
        if key in members:
            raise UserError(f"method.members={config.method.members}: {_shown(values)} is there twice")
        members[key] = values, member
    return list(members.values())


def kept_file(config: Config) -> str:
    """What a member has to have kept: the name of an entry of `keep`."""
    logits = "-logits" if config.method.name == ENSEMBLE_OF_RUNS else ""
    return f"erm-{config.method.member_step}{logits}"


def fixed(name: str, method: str) -> str | None:
    """Why this setting cannot vary among members of a combination."""
    if name == TUNING and method == CONNECTIVITY:  # one network, fine-tuned and with a linear probe
        return None
    reasons = FIXED if method == ENSEMBLE_OF_RUNS else FIXED_IN_SOUPS
    return next((reason for start, reason in reasons.items() if name == start or name.startswith(f"{start}.")), None)


def find_members(config: Config, test_domain: str, options: Sequence[str]) -> list[Member]:
    """The finished runs that the settings identify, in the order of the axes.

    options: the command's own, to show the command that trains those that are missing. Raises `UserError` where members are
    missing, with the settings in which the nearest run differs; where they differ in content; and where they have not kept
    what is needed.
    """
    folder = Path(config.output_dir) / "runs" / config.dataset.name / test_domain
    finished = _finished(folder)
    wanted = member_configs(config)
    known = _known_content(config)
    found = []
    for values, member in wanted:
        key = settings_key(member, test_domain)
        same = [run for run in finished if identity_key(run.settings) == key and _is_of(run, known)]
        found.append([Member(values, run.path, run.result) for run in same])
    sets: dict[str, list[Member]] = {}
    for runs in found:
        for run in runs:
            sets.setdefault(run.content, []).append(run)
    complete = [members for members in sets.values() if len(members) == len(wanted)]
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
        missing = [(values, member) for values, member in wanted if values not in there]
        shown = "; ".join(_shown(values) for values, _ in missing[:6]) + ("; …" if len(missing) > 6 else "")
        precision = fullest[0].settings[PRECISION] if fullest else here
        raise UserError(
            f"{start} {len(missing)} of {len(wanted)} members are not finished in {folder}: {shown}"
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
    """What the settings say of the content."""
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
    """In which settings the run differs that comes nearest to a missing one, of those that are no members."""
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


def _shown(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())
