"""The settings of a command as they must be: each by itself, and those that concern each other."""

from collections.abc import Iterator
from typing import TypeVar

from vld.config.command_settings import AnalyseConfig
from vld.config.names import COMBINATIONS, METHODS, ON_REQUEST, WEIGHT_REGULARISERS
from vld.config.options import check_values, flat_settings
from vld.config.settings import Config, option_names, unknown_option

T = TypeVar("T")


def accumulated(settings: object) -> tuple[str, ...]:
    """The methods along a run with these settings: all of a run's, or those of its methods alone."""
    return tuple(name for name in METHODS if name not in ON_REQUEST or getattr(settings, name).enabled)


def checked(config: T) -> T:
    """The same, or a `UserError` with a line for every value that is not allowed."""
    if isinstance(config, Config | AnalyseConfig):
        config.compile = config.compile.lower()  # Hydra reads true as a boolean
    check_values(type(config), flat_settings(config), _contradictions(config) if isinstance(config, Config) else ())
    return config


def _without_held_out(config: Config) -> Iterator[str]:
    """What needs the images that holdout=0 trains on, a line each."""
    none = "needs held-out images, of which holdout=0 leaves none"
    if config.swad.enabled:
        yield f"swad.enabled=true: {none} (it chooses by the loss on them)"
    if config.method.name == "greedy_soup":
        yield f"method=greedy_soup: {none} (it chooses by i.i.d. accuracy)"
    if config.method.name in COMBINATIONS and config.method.member_step != "last":
        yield f"method.member_step={config.method.member_step}: {none}; use last"
    for name in config.keep:
        method, selection = name.split("-")[:2]
        if selection != "last":
            yield f"keep={name}: {none}; use {method}-last{name.removeprefix(f'{method}-{selection}')}"


def _contradictions(config: Config) -> Iterator[str]:
    """What is wrong with settings that concern each other, a line each."""
    backbone, method = config.backbone, config.method
    if backbone.tuning != "full" and backbone.weights == "none":
        yield f"backbone.tuning={backbone.tuning}: random initial values (backbone.weights=none) need tuning=full"
    if backbone.tuning == "linear" and (backbone.stage_dropout or backbone.stochastic_depth):
        yield "backbone.tuning=linear: keeps the network as it is; backbone.stage_dropout and stochastic_depth need full or head"
    if backbone.batch_norm == "trained" and backbone.tuning != "full":
        yield f"backbone.batch_norm=trained: needs backbone.tuning=full (it is {backbone.tuning}, on a frozen network)"
    if backbone.last_layer == "given" and backbone.weights in (None, "none"):
        has = "random initial values" if backbone.weights else "published weights"
        yield f"backbone.last_layer=given: {has} come without; needs backbone.weights=<run directory or file>"
    regularisers = {name: value for name in WEIGHT_REGULARISERS if (value := getattr(config, name))}
    for name, value in regularisers.items():
        if backbone.tuning != "full":
            yield f"{name}={value}: acts on weights that are trained; needs backbone.tuning=full (it is {backbone.tuning})"
    if len(regularisers) > 1:
        yield f"{', '.join(regularisers)}: each has weights stand in for the backbone's; use one of them"
    for name, steps in (("warm_start", config.warm_start), ("optim.warm_up", config.optim.warm_up)):
        if 0 < config.optim.steps <= steps:  # a number of steps below 1 has its own line
            yield f"{name}={steps}: must be below optim.steps={config.optim.steps}"
    if config.holdout == 0:
        yield from _without_held_out(config)
    for asked, value in (("method", method.name), *(("keep", name) for name in config.keep)):
        if (name := value.split("-")[0]) in METHODS and name not in accumulated(config):
            yield f"{asked}={value}: needs {name}.enabled=true"
    if method.members and method.name in METHODS:
        yield f"method.members={method.members}: only {', '.join(COMBINATIONS)} have members"
    for name in config.study.members:
        if name not in option_names():
            yield f"study.members: {unknown_option(name)}"
