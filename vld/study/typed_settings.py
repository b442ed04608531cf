"""From what Hydra composed to checked settings, its errors in one line, and the text of `--help`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vld.config.checked import checked
from vld.config.command_settings import AnalyseConfig, PrepareConfig, PublishConfig, ReportConfig, StatusConfig
from vld.config.errors import UserError, first_line
from vld.config.names import METHODS
from vld.config.options import beyond, help_lines, options_of, presets_of
from vld.config.settings import Config, option_names, unknown_option

T = TypeVar("T")

SCHEMAS = {
    "schema": Config,
    "prepare_schema": PrepareConfig,
    "status_schema": StatusConfig,
    "report_schema": ReportConfig,
    "publish_schema": PublishConfig,
    "analyse_schema": AnalyseConfig,
}
"""By the name that conf/*.yaml knows them by."""
LIST_OPTIONS = [one.name for one in options_of(Config).values() if one.is_list] + ["test_domain"]

for name, schema in SCHEMAS.items():
    ConfigStore.instance().store(name=name, node=schema)
for name in METHODS:  # combinations have files, which list their members
    ConfigStore.instance().store(group="method", name=name, node={"name": name})


def _gpus(device: str = "auto") -> int:
    import torch

    return 0 if device == "cpu" else torch.cuda.device_count()


def _timm_statistic(which: str, name: str) -> list[float]:
    """`mean` or `std` of the images that timm's weights of that name were trained on."""
    import timm

    try:
        pretrained = timm.get_pretrained_cfg(name)
    except RuntimeError:  # no such weights
        pretrained = None
    # A name that timm does not have is refused where its network is built.
    return list(getattr(pretrained, which)) if pretrained else [0.5, 0.5, 0.5]


def _on(dataset: str, *values: Any) -> Any:
    """values: dataset, value, dataset, value, …, and the value of any other dataset."""
    return dict(zip(values[:-1:2], values[1::2], strict=True)).get(dataset, values[-1])


def _help(app_name: str, *, _root_: DictConfig) -> str:
    """The presets and options of a command, for its `--help`: its own options first, then those that it shares with train.py."""
    settings = SCHEMAS.get(app_name.replace("vld-", "") + "_schema", Config)
    chosen = _root_.hydra.runtime.choices
    groups = [(name, str(chosen.get(name) or "…"), meaning) for name, meaning in presets_of(settings).items()]
    shown = "== Presets: group=preset ==\n$APP_CONFIG_GROUPS\n" if groups else ""
    options = options_of(settings)
    if issubclass(settings, Config):
        if own := beyond(settings, Config):
            shown += f"== Its own options (default) ==\n{help_lines(own)}\n\n"
        options, title = options_of(Config), "Options of a run"
    else:
        title = "Options"
    return f"{shown}== {title} (default) ==\n{help_lines(options.values(), groups)}"


# For presets: `${vld.gpus:${device}}` is how many that may use; `${vld.if:condition,yes,no}`; `${vld.timm:mean,name}`;
# `${vld.on:${dataset.name},vlcs,50,domain_net,500,100}` is 50 on VLCS, 500 on DomainNet and 100 elsewhere.
OmegaConf.register_new_resolver("vld.gpus", _gpus, replace=True)
OmegaConf.register_new_resolver("vld.timm", _timm_statistic, replace=True)
OmegaConf.register_new_resolver("vld.if", lambda condition, yes, no: yes if condition else no, replace=True)
OmegaConf.register_new_resolver("vld.on", _on, replace=True)
OmegaConf.register_new_resolver("vld.help", _help, replace=True)


def typed_config(composed: DictConfig, schema: type[T]) -> T:
    """Turn what Hydra composed into valid settings, or raise a `UserError` with a line for everything wrong."""
    return checked_config(merged_config(composed, schema), schema)


def merged_config(composed: DictConfig, schema: type = Config) -> DictConfig:
    """What Hydra composed, without unknown keys and missing values, in the types of the schema; nothing resolved yet."""
    unknown = [unknown_option(key, schema) for key in _keys_beyond(composed, schema)]
    if unknown:
        raise UserError("\n".join(unknown))
    # Read before anything is resolved: a value that is missing makes others, which refer to it, unreadable.
    settings = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    missing = sorted(str(key) for key in OmegaConf.missing_keys(settings))
    if missing:
        raise UserError("\n".join(f"{key}: a value is needed, set {key}=…" for key in missing))
    merged = OmegaConf.merge(OmegaConf.structured(schema), settings)
    assert isinstance(merged, DictConfig)
    return merged


def checked_config(merged: DictConfig, schema: type[T]) -> T:
    """The settings as plain objects, or a `UserError` with a line for every value that is not allowed."""
    config = OmegaConf.to_object(merged)
    assert isinstance(config, schema)
    return checked(config)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The same settings but for these, by dotted name. Raises `UserError` for what is not an option or not allowed."""
    changed = OmegaConf.structured(config)
    for name, value in values.items():
        if name not in option_names():
            raise UserError(unknown_option(name))
        try:
            OmegaConf.update(changed, name, value)
        except OmegaConfBaseException as error:
            raise UserError(f"{name}={value}: {first_line(error)}") from error
    return checked_config(changed, Config)


def describe_error(error: BaseException, schema: type = Config) -> str:
    """What is wrong in one line (several only where several things are), from Hydra's and omegaconf's longer messages."""
    text = str(error)
    if isinstance(error, UserError):
        return text
    if match := re.search(r"Could not find '([\w/]+)/([^'/]*)'\s+Available options in '[\w/]+':\n((?:\t.*\n?)*)", text):
        group, choice, options = match.groups()
        return f"{group}={choice}: must be one of {', '.join(options.split())}"
    if match := re.search(r"Could not override '([^']*)'", text):
        return unknown_option(match[1], schema)
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{match[1]}: a value is needed, set {match[1]}=…"
    if match := re.search(r"Error merging override (.*)", text):
        reason = first_line(error.__cause__) if error.__cause__ else "has a wrong type"
        key, _, value = match[1].partition("=")
        return f"{match[1]}: write '{key}=[{value}]'" if key in LIST_OPTIONS else f"{match[1]}: {reason}"
    if match := re.search(r"Ambiguous value for argument '([^']*)'", text):
        key, _, values = match[1].partition("=")
        as_list = f", or write '{key}=[{values}]' for a list" if key in LIST_OPTIONS else ""
        return f"{match[1]}: add -m to run each of the values{as_list}"
    if "See https://hydra.cc" in text:  # the override grammar
        return f"{text.splitlines()[0]}: not understood; options are written key=value"
    return " ".join(text.split())


def _keys_beyond(composed: DictConfig, schema: type, prefix: str = "") -> Iterator[str]:
    """Keys that `+key=value` added: Hydra lets them through, and nothing would ever read them."""
    known = {entry.name: entry.type for entry in fields(schema)}
    for key in composed:
        if key == "hydra":
            continue
        if key not in known:
            yield f"{prefix}{key!s}"
            continue
        kind = known[str(key)]
        if isinstance(kind, type) and is_dataclass(kind):
            yield from _keys_beyond(composed[key], kind, f"{prefix}{key}.")
