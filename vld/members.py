"""The members of a combination: which finished runs they are, and whether they may be combined."""

import itertools
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from vld.config import option_names, unknown_option, with_values
from vld.errors import UserError
from vld.model import load_backbone_weights
from vld.runs.directory import RunDirectory
from vld.runs.identity import NOT_IDENTITY, run_identity, weights_fingerprint
from vld.settings import Config, MethodConfig

ENSEMBLE_OF_RUNS = "ensemble_of_runs"

# What the settings alone do not tell; it has to be equal among members all the same.
CONTENT = ("dataset.fingerprint", "backbone.weights_fingerprint", "precision")

# Why some settings cannot vary among members, by the beginning of their names.
SAME_IMAGES = {
    "dataset": "members are evaluated on the same images",
    "test_domain": "members are evaluated on the same images",
    "split_seed": "what one member trained on, another would be evaluated on",
    "precision": "members are evaluated in the same way",
}
SAME_NETWORK = {
    "backbone": "the weights of different networks have no average",
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
            values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
        except HydraException as error:
            raise UserError(f"method.members={text}: not understood; written as seed=0,1,2") from error
        name = override.key_or_group
        if name not in option_names():
            raise UserError(f"method.members={text}: {unknown_option(name)}")
        if reason := _fixed(name, config.method.name):
            raise UserError(f"method.members={text}: {name} cannot vary among members: {reason}")
        if name in NOT_IDENTITY:
            raise UserError(f"method.members={text}: {name} does not make another run")
        if name in axes:
            raise UserError(f"method.members={text}: {name} is there twice")
        axes[name] = values
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
        key = _key(_identity(member, ""))
        if key in members:
            raise UserError(f"method.members={config.method.members}: {_shown(values)} is there twice")
        members[key] = values, member
    return list(members.values())


def kept_file(config: Config) -> str:
    """What a member has to have kept: the name of an entry of `keep`."""
    logits = "-logits" if config.method.name == ENSEMBLE_OF_RUNS else ""
    return f"erm-{config.method.member_step}{logits}"


def find_members(config: Config, test_domain: str) -> list[Member]:
    """The finished runs that the settings identify, in the order of the axes.

    Raises `UserError` with the command that trains those that are missing, and where they differ in what was not named.
    """
    axes, members = member_axes(config), member_configs(config)
    candidates = _candidates(config, test_domain)
    found = [candidates.get(_key(_identity(member, test_domain)), []) for _, member in members]
    # Runs of the same settings may differ in content: members are of one content.
    by_content: dict[str, list[Member | None]] = {}
    for i, runs in enumerate(found):
        for run in runs:
            if all(run.result["settings"][name] == value for name, value in _known_content(config).items()):
                by_content.setdefault(_content(run), [None] * len(members))[i] = run
    complete = [chosen for chosen in by_content.values() if all(chosen)]
    if len(complete) > 1:
        names = _differing([json.loads(content) for content in by_content])
        raise UserError(
            f"method={config.method.name}: {len(complete)} sets of runs have these settings and differ in {', '.join(names)};"
            " say precision=…, backbone.weights=… or another output_dir"
        )
    if not complete:
        if found and all(found) and by_content:  # all are there, and do not belong together
            check_members([runs[0].result["settings"] for runs in found], axes, config.method.name)
        fullest = max(by_content.values(), key=lambda chosen: sum(map(bool, chosen)), default=[None] * len(members))
        missing = [values for (values, _), run in zip(members, fullest, strict=True) if run is None]
        raise UserError(_missing(config, test_domain, missing, len(members)))
    chosen = [run for run in complete[0] if run is not None]
    check_members([run.result["settings"] for run in chosen], axes, config.method.name)
    name = kept_file(config)
    if without := [run for run in chosen if not (run.path / f"{name}.safetensors").exists()]:
        raise UserError(
            f"method={config.method.name}: {len(without)} of {len(chosen)} members did not keep {name}, the first of them"
            f" {without[0].path}; move them away and train them again with 'keep=[{','.join([*config.keep, name])}]'"
        )
    return [Member(values, run.path, run.result) for (values, _), run in zip(members, chosen, strict=True)]


def check_members(settings: Sequence[Mapping[str, Any]], named: Iterable[str], method: str) -> None:
    """Everything that is not named must be equal, and some things must be even then.

    settings: each member's identity. Raises `UserError` that names the first difference.
    """
    named = set(named)
    for name in _differing(settings):
        values = list(dict.fromkeys(json.dumps(one.get(name)) for one in settings))
        differs = (
            f"method={method}: members differ in {name} ({', '.join(values[:3])}{', …' if len(values) > 3 else ''})"
        )
        if reason := _fixed(name, method):
            raise UserError(f"{differs}: {reason}")
        if name not in named:
            raise UserError(f"{differs}, which method.members does not name")


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    names = sorted(set().union(*settings))
    return [name for name in names if len({json.dumps(one.get(name)) for one in settings}) > 1]


def _fixed(name: str, method: str) -> str | None:
    """Why this setting cannot vary among members."""
    reasons = SAME_IMAGES if method == ENSEMBLE_OF_RUNS else SAME_IMAGES | SAME_NETWORK
    return next((reason for start, reason in reasons.items() if name == start or name.startswith(f"{start}.")), None)


def _candidates(config: Config, test_domain: str) -> dict[str, list[Member]]:
    """All finished runs of the dataset and test domain, by what their settings say."""
    candidates: dict[str, list[Member]] = {}
    folder = Path(config.output_dir) / "runs" / config.dataset.name / test_domain
    for path in sorted(folder.glob("*/result.json")):
        with suppress(UserError):  # a damaged one is named where it is needed, by the command that trains it
            if result := RunDirectory(path.parent).result():
                candidates.setdefault(_key(result["settings"]), []).append(Member({}, path.parent, result))
    return candidates


def _identity(config: Config, test_domain: str) -> dict[str, Any]:
    return run_identity(config, test_domain, dataset_fingerprint="", weights_fingerprint="", precision="")


def _key(identity: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in identity.items() if name not in CONTENT}, sort_keys=True)


def _content(run: Member) -> str:
    return json.dumps({name: run.result["settings"][name] for name in CONTENT})


def _known_content(config: Config) -> dict[str, str]:
    """What the command says of the content, where it does."""
    known = {} if config.precision == "auto" else {"precision": config.precision}
    if config.backbone.weights is not None:
        known["backbone.weights_fingerprint"] = weights_fingerprint(load_backbone_weights(config.backbone))
    return known


def _missing(config: Config, test_domain: str, missing: list[dict[str, Any]], members: int) -> str:
    shown = "; ".join(_shown(values) for values in missing[:6]) + ("; …" if len(missing) > 6 else "")
    folder = Path(config.output_dir) / "runs" / config.dataset.name / test_domain
    return (
        f"method={config.method.name}: {len(missing)} of {members} members are not finished in {folder}: {shown};"
        f" train them with the same settings and: python scripts/train.py -m {shlex.join(config.method.members)}"
        f" test_domain={test_domain} 'keep=[{','.join(dict.fromkeys([*config.keep, kept_file(config)]))}]'"
    )


def _shown(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())
