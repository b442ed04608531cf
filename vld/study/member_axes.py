"""Which settings vary among the members of a combination, with which values, and which settings must not."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException

from vld.config.errors import UserError
from vld.config.settings import Config, MethodConfig, option_names, unknown_option
from vld.runs.identity import NOT_IDENTITY, settings_key
from vld.study.compose import with_values
from vld.study.jobs import values_of

ENSEMBLE_OF_RUNS = "ensemble_of_runs"
CONNECTIVITY = "connectivity"
TUNING = "backbone.tuning"

# Why some settings cannot vary among members, by the beginning of their names …
FIXED = {
    "dataset": "members are evaluated on the same images",
    "test_domain": "members are evaluated on the same images",
    "holdout": "what one member trained on, another would be evaluated on",
    "split_seed": "what one member trained on, another would be evaluated on",
    "precision": "members are evaluated in the same way",
    "backbone": "members are of one network",
}
# … and among those of a soup.
FIXED_IN_SOUPS = FIXED | {
    "head_seed": "members of a soup start from the same weights, the last layer's included",
    "image_size": "a soup is evaluated at one size",
}


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
        if name in ("optim", "method", "recipe"):
            raise UserError(f"method.members={text}: a preset cannot vary among members; its settings can")
        if name not in option_names():
            raise UserError(f"method.members={text}: {unknown_option(name)}")
        if name in NOT_IDENTITY:
            raise UserError(f"method.members={text}: {name} does not make another run")
        if name in axes:
            raise UserError(f"method.members={text}: {name} is given twice")
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
            raise UserError(f"method.members={config.method.members}: {shown_values(values)} is given twice")
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


def shown_values(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())
