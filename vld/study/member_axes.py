"""The settings that vary among the members of a combination, their values, and the settings that must not vary."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException

from vld.config.errors import UserError
from vld.config.options import written
from vld.config.settings import Config, MethodConfig, option_names, unknown_option
from vld.runs.identity import NOT_IDENTITY, settings_key
from vld.study.jobs import values_of
from vld.study.typed_settings import with_values

ENSEMBLE_OF_RUNS = "ensemble_of_runs"
CONNECTIVITY = "connectivity"
TUNING = "backbone.tuning"

# Why some settings cannot vary among members, by the beginning of their names …
FIXED = {
    "dataset": "members are evaluated on the same images",
    "test_domain": "members are evaluated on the same images",
    "holdout": "one member would be evaluated on images that another was trained on",
    "split_seed": "one member would be evaluated on images that another was trained on",
    "precision": "members are evaluated in the same way",
    "backbone": "members share one network architecture",
}
# … and among those of a soup.
FIXED_IN_SOUPS = FIXED | {
    "head_seed": "members of a soup start from the same weights, the last layer's included",
    "image_size": "a soup is evaluated at one size",
}


def member_axes(config: Config) -> dict[str, list[Any]]:
    """The settings that vary among the members, with their values. Raises `UserError` for those that must not."""
    method, members = config.method.name, config.method.members
    axes: dict[str, list[Any]] = {}
    for text in members:
        try:
            override = OverridesParser.create().parse_override(text)
            if override.type is not OverrideType.CHANGE:
                raise HydraException
            name, values = override.key_or_group, values_of(override)
        except HydraException as error:
            raise UserError(f"method.members={text}: not understood; write it like seed=0,1,2") from error
        if problem := f"{name} is given twice" if name in axes else _refusal(name, method):
            raise UserError(f"method.members={text}: {problem}")
        axes[name] = values
    if not axes:
        raise UserError(f"method.members=[]: {method} needs members, such as 'method.members=[\"seed=0,1,2\"]'")
    if "linear" in axes.get(TUNING, ()):
        raise UserError(f"method.members={members}: {TUNING}=linear is another network; only full and head can vary")
    if method == CONNECTIVITY and math.prod(map(len, axes.values())) != 2:
        raise UserError(f"method.members={members}: connectivity takes two members, such as seed=0,1")
    if method != ENSEMBLE_OF_RUNS and config.backbone.weights == "none":
        raise UserError(
            f"method={method}: members of a soup must start from the same weights; with backbone.weights=none each run"
            " draws its own"
        )
    return axes


def _refusal(name: str, method: str) -> str | None:
    """Why this setting cannot be an axis of members."""
    if reason := fixed(name, method):
        return f"{name} cannot vary among members: {reason}"
    if name in ("optim", "method", "recipe"):
        return "a preset cannot vary among members; its settings can"
    if name not in option_names():
        return unknown_option(name)
    return f"{name} does not change a run, so members cannot differ in it" if name in NOT_IDENTITY else None


def member_configs(config: Config) -> list[tuple[dict[str, Any], Config]]:
    """For every combination of the axes' values: the values, and the settings of that run.

    Raises `UserError` for values that are not allowed, or that name the same run twice.
    """
    axes = member_axes(config)
    members: dict[str, tuple[dict[str, Any], Config]] = {}
    for chosen in itertools.product(*axes.values()):
        values = dict(zip(axes, chosen, strict=True))
        member = with_values(config, values)
        member.method = MethodConfig(name="erm")
        key = settings_key(member, "")
        if key in members:
            raise UserError(f"method.members={config.method.members}: {shown_values(values)} is given twice")
        members[key] = values, member
    return list(members.values())


def kept_file(config: Config) -> str:
    """The entry of `keep` that members need."""
    logits = "-logits" if config.method.name == ENSEMBLE_OF_RUNS else ""
    return f"erm-{config.method.member_step}{logits}"


def fixed(name: str, method: str) -> str | None:
    """Why this setting cannot vary among members of a combination."""
    if name == TUNING and method == CONNECTIVITY:  # one network, fine-tuned and with a linear probe
        return None
    reasons = FIXED if method == ENSEMBLE_OF_RUNS else FIXED_IN_SOUPS
    return next((reason for start, reason in reasons.items() if name == start or name.startswith(f"{start}.")), None)


def shown_values(values: Mapping[str, Any]) -> str:
    """As on the command line."""
    return " ".join(f"{name}={written(value)}" for name, value in values.items())
