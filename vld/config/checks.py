"""From what Hydra composed to checked settings: which keys exist, and which values are allowed."""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vld.config.errors import UserError, first_line
from vld.config.settings import (
    COMBINATIONS,
    KEEPABLE,
    KEPT_WEIGHTS,
    METHODS,
    NORMALIZATIONS,
    SCHEDULES,
    TUNINGS,
    WANDB_MODES,
    AnalyseConfig,
    Config,
    DatasetConfig,
    PrepareConfig,
    PublishConfig,
    ReportConfig,
    StatusConfig,
)

T = TypeVar("T")

LIST_OPTIONS = (
    "test_domain",
    "keep",
    "optim.milestones",
    "backbone.mean",
    "backbone.std",
    "backbone.stage_dropout",
    "method.members",
)

ConfigStore.instance().store(name="schema", node=Config)
ConfigStore.instance().store(name="prepare_schema", node=PrepareConfig)
ConfigStore.instance().store(name="status_schema", node=StatusConfig)
ConfigStore.instance().store(name="report_schema", node=ReportConfig)
ConfigStore.instance().store(name="publish_schema", node=PublishConfig)
ConfigStore.instance().store(name="analyse_schema", node=AnalyseConfig)


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


# For presets: `${vld.gpus:${device}}` is how many that may use; `${vld.if:condition,yes,no}`; `${vld.timm:mean,name}`.
OmegaConf.register_new_resolver("vld.gpus", _gpus, replace=True)
OmegaConf.register_new_resolver("vld.timm", _timm_statistic, replace=True)
OmegaConf.register_new_resolver("vld.if", lambda condition, yes, no: yes if condition else no, replace=True)


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
        raise UserError("\n".join(f"{key}: a value is needed, say {key}=…" for key in missing))
    merged = OmegaConf.merge(OmegaConf.structured(schema), settings)
    assert isinstance(merged, DictConfig)
    return merged


def checked_config(merged: DictConfig, schema: type[T]) -> T:
    """The settings as plain objects, or a `UserError` with a line for every value that is not allowed."""
    config = OmegaConf.to_object(merged)
    assert isinstance(config, schema)
    return checked(config)


def checked(config: T) -> T:
    """The same, or a `UserError` with a line for every value that is not allowed."""
    if problems := list(PROBLEMS[type(config)](config)):
        raise UserError("\n".join(problems))
    return config


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


def as_written(words: Sequence[str], option: str) -> str | None:
    """An option's value as it stands in the command, of these overrides: Hydra reads a run's id 12e456789012 as a number."""
    values = [word.partition("=")[2] for word in words if word.partition("=")[0] == option]
    return values[-1].strip("'\"") if values else None


@cache
def option_names(schema: type = Config, prefix: str = "") -> tuple[str, ...]:
    """Every option's dotted name, depth first."""
    names: tuple[str, ...] = ()
    for entry in fields(schema):
        if isinstance(entry.type, type) and is_dataclass(entry.type):
            names += option_names(entry.type, f"{prefix}{entry.name}.")
        else:
            names += (prefix + entry.name,)
    return names


def unknown_option(key: str, schema: type = Config) -> str:
    """The line for an option that does not exist."""
    names = option_names(schema)
    same_leaf = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]  # lr: optim.lr
    near = same_leaf or difflib.get_close_matches(key, names, n=1)
    return f"{key}: no such option{f', did you mean {near[0]}?' if near else ''} (--help lists them)"


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
        return f"{match[1]}: a value is needed, say {match[1]}=…"
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


def _number(name: str, value: float, allowed: str, good: bool) -> Iterator[str]:
    if not (math.isfinite(value) and good):
        yield f"{name}={value}: must be {allowed}"


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> Iterator[str]:
    if value not in allowed:
        yield f"{name}={value}: must be one of {', '.join(allowed)}"


def _whole(name: str, value: int, least: int) -> Iterator[str]:
    yield from _number(name, value, f"a whole number of at least {least}", value >= least)


def _positive(name: str, value: float) -> Iterator[str]:
    yield from _number(name, value, "a number above 0", value > 0)


def _folder(name: str, path: str) -> Iterator[str]:
    if not path:
        yield f"{name}={path}: must be a folder's path"


def _device(name: str, device: str) -> Iterator[str]:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        yield f"{name}={device}: must be auto, cpu, cuda or cuda:<index>"


def _problems(config: Config) -> Iterator[str]:
    yield from _dataset_problems(config.dataset)

    yield from _choice("backbone.library", config.backbone.library, ("torchvision", "timm"))
    yield from _positive("backbone.feature_scale", config.backbone.feature_scale)
    yield from _choice("backbone.tuning", config.backbone.tuning, TUNINGS)
    yield from _choice("backbone.normalize", config.backbone.normalize, NORMALIZATIONS)
    if config.backbone.tuning != "full" and config.backbone.weights == "none":
        yield f"backbone.tuning={config.backbone.tuning}: random initial values (backbone.weights=none) need tuning=full"
    if config.backbone.tuning == "linear" and (config.backbone.stage_dropout or config.backbone.stochastic_depth):
        yield "backbone.tuning=linear: keeps the network as it is; backbone.stage_dropout and stochastic_depth need full or head"
    for rate in config.backbone.stage_dropout:
        yield from _number("backbone.stage_dropout", rate, "rates in [0, 1)", 0 <= rate < 1)
    yield from _choice("backbone.stage_dropout_kind", config.backbone.stage_dropout_kind, ("element", "channel"))
    depth = config.backbone.stochastic_depth
    yield from _number("backbone.stochastic_depth", depth, "in [0, 1)", 0 <= depth < 1)
    for option, triple in (("backbone.mean", config.backbone.mean), ("backbone.std", config.backbone.std)):
        if (
            len(triple) != 3
            or not all(math.isfinite(v) for v in triple)
            or (option.endswith("std") and min(triple) <= 0)
        ):
            yield f"{option}={triple}: must be three numbers{' above 0' if option.endswith('std') else ''}"

    for name in config.study.members:
        if name not in option_names():
            yield f"study.members: {unknown_option(name)}"
    for method in config.study.combinations:
        yield from _choice("study.combinations", method, COMBINATIONS)
    yield from _choice("method", config.method.name, METHODS + COMBINATIONS)
    yield from _choice("method.member_step", config.method.member_step, ("last", "iid"))
    yield from _choice("method.average", config.method.average, ("logits", "softmax"))
    if config.method.members and config.method.name in METHODS:
        yield f"method.members={config.method.members}: only {', '.join(COMBINATIONS)} have members"
    yield from _choice("optim", config.optim.name, ("sgd", "adam"))
    yield from _positive("optim.lr", config.optim.lr)
    yield from _number("optim.weight_decay", config.optim.weight_decay, "at least 0", config.optim.weight_decay >= 0)
    yield from _number("optim.momentum", config.optim.momentum, "in [0, 1)", 0 <= config.optim.momentum < 1)
    yield from _whole("optim.steps", config.optim.steps, 1)
    milestones = config.optim.milestones
    if any(step < 1 for step in milestones) or sorted(set(milestones)) != milestones:
        yield f"optim.milestones={milestones}: must be increasing numbers of steps, each at least 1"
    yield from _number("optim.gamma", config.optim.gamma, "in (0, 1]", 0 < config.optim.gamma <= 1)
    yield from _positive("optim.last_layer_lr_factor", config.optim.last_layer_lr_factor)

    yield from _whole("image_size", config.image_size, 8)
    yield from _number("dropout", config.dropout, "in [0, 1)", 0 <= config.dropout < 1)
    yield from _choice("dropout_schedule", config.dropout_schedule, SCHEDULES)
    yield from _whole("batch_size", config.batch_size, 1)
    yield from _whole("eval_every", config.eval_every, 1)
    yield from _whole("averaging.start", config.averaging.start, 1)
    yield from _whole("averaging.interval", config.averaging.interval, 1)
    yield from _whole("ensemble.start", config.ensemble.start, 1)
    yield from _whole("ensemble.every", config.ensemble.every, 1)
    for name in config.keep:
        yield from _choice("keep", name, KEEPABLE)
    for option in ("seed", "split_seed", "head_seed"):
        value = getattr(config, option)
        yield from _number(option, value, "a whole number from 0 to 2^31 - 1", 0 <= value < 2**31)
    yield from _folder("data_dir", config.data_dir)
    yield from _folder("output_dir", config.output_dir)
    yield from _number(
        "checkpoint_every", config.checkpoint_every, "a number of seconds, at least 0", config.checkpoint_every >= 0
    )
    yield from _choice("if_running", config.if_running, ("wait", "skip"))
    yield from _device("device", config.device)
    yield from _choice("precision", config.precision, ("auto", "fp32", "bf16"))
    config.compile = config.compile.lower()  # Hydra reads true as a boolean
    yield from _choice("compile", config.compile, ("auto", "true", "false"))
    yield from _choice("wandb.mode", config.wandb.mode, WANDB_MODES)
    yield from _test_domain_problems(config.test_domain)


def _dataset_problems(dataset: DatasetConfig) -> Iterator[str]:
    yield from _whole("dataset.store_size", dataset.store_size, 8)
    if dataset.curve_images is not None:
        yield from _whole("dataset.curve_images", dataset.curve_images, 1)
    if dataset.name in ("", ".", "..") or "/" in dataset.name:
        yield f"dataset.name={dataset.name}: must be the name of a folder"
    yield from _choice("dataset.verify", dataset.verify, ("strict", "warn"))
    if dataset.mirror is not None and not re.fullmatch(r"https?://[\w.-]+(:\d+)?(/\S*)?", dataset.mirror):
        yield f"dataset.mirror={dataset.mirror}: must be a URL, http://… or https://…"


def _test_domain_problems(test_domain: object) -> Iterator[str]:
    entries = test_domain if isinstance(test_domain, list) else [test_domain]
    if not entries or not all(isinstance(e, str | int) and not isinstance(e, bool) and e != "" for e in entries):
        yield f"test_domain={test_domain}: must be all, a domain's name or index, or a list of those"


def _prepare_problems(config: PrepareConfig) -> Iterator[str]:
    yield from _dataset_problems(config.dataset)
    yield from _whole("image_size", config.image_size, 8)
    yield from _folder("data_dir", config.data_dir)


def _publish_problems(config: PublishConfig) -> Iterator[str]:
    yield from _choice("wandb.mode", config.wandb.mode, WANDB_MODES)


def _analyse_problems(config: AnalyseConfig) -> Iterator[str]:
    yield from _choice("weights", config.weights, KEPT_WEIGHTS)
    yield from _folder("data_dir", config.data_dir)
    yield from _folder("output_dir", config.output_dir)
    yield from _device("device", config.device)
    yield from _choice("wandb.mode", config.wandb.mode, WANDB_MODES)


PROBLEMS: dict[type, Callable[[Any], Iterator[str]]] = {
    Config: _problems,
    PrepareConfig: _prepare_problems,
    PublishConfig: _publish_problems,
    AnalyseConfig: _analyse_problems,
}
