"""The jobs of a sweep, composed and checked before the first of them starts."""

from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any, cast

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vld.config.checked import checked
from vld.config.errors import UserError, first_line
from vld.config.settings import Config, option_names
from vld.study.typed_settings import describe_error, merged_config
from vld.study.words import quoted_for_hydra

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
JOBLIB_LAUNCHER = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"


@dataclass(frozen=True)
class Job:
    """A job's overrides, as Hydra gets them, and its settings."""

    overrides: tuple[str, ...]
    config: Config


def axes_of(config: DictConfig, without: Collection[str] = ()) -> list[str]:
    """The overrides of a sweep: the axes of its study, then those of the command (except for `without`), which replace them."""
    return [*_axes_of_file(config), *words_without(without, config)]


def _axes_of_file(config: DictConfig) -> list[str]:
    """A study's axes as its file has them, also where Hydra would read text as a number."""
    axes = _as_written(config.hydra.sweeper.params or {})
    return quoted_for_hydra([f"{name}={values}" for name, values in axes.items()], Config)


def words_without(names: Collection[str], config: DictConfig) -> list[str]:
    """The overrides of a command, except for those of these options."""
    return [word for word in _as_written(config.hydra.overrides.task) if word.split("=")[0] not in names]


def _as_written(words: Any) -> Any:
    """With references as they are: each job has its own values of what `${optim.lr}` refers to."""
    return OmegaConf.to_container(words, resolve=False) if OmegaConf.is_config(words) else words


def words_of_jobs(axes: Sequence[str]) -> list[list[str]]:
    """The overrides of every job, as Hydra's sweeper makes them."""
    [jobs] = BasicSweeper.split_arguments(overrides_parser().parse_overrides(list(axes)), max_batch_size=None)
    return jobs


def jobs_of(axes: Sequence[str], problems: dict[str, None], config_name: str = "train") -> Iterator[Job]:
    """Every valid job of a sweep. problems: gets a line for everything wrong with the others.

    Only presets are composed again: most of thousands of jobs differ in plain values.
    """
    parser = overrides_parser()
    options = set(option_names())
    bases: dict[object, _Base | UserError] = {}
    parse = cache(lambda word: parser.parse_overrides([word])[0])  # takes long, and jobs share their words
    for words in words_of_jobs(axes):
        parsed = [parse(word) for word in words]
        plain = [override for override in parsed if _is_plain(override, options)]
        others = tuple(str(override.input_line) for override in parsed if override not in plain)
        key = (others, tuple(override.key_or_group for override in plain))  # then each value below replaces another
        try:
            if key not in bases:
                bases[key] = _Base(merged_config(_composed(config_name, words)))
            base = bases[key]
            if isinstance(base, UserError):
                raise base
            yield Job(tuple(words), base.settings(plain))
        except UserError as error:
            problems |= dict.fromkeys(str(error).splitlines())
            if key not in bases and not plain:  # else the next job may have valid values
                bases[key] = error


class _Base:
    """The settings of jobs that share their presets, and have other values for the same options.

    omegaconf takes long, and there are thousands of jobs: it checks and converts each value once, and makes the settings anew
    only where some of them refer to others.
    """

    def __init__(self, merged: DictConfig) -> None:
        self._merged = merged
        self._refers = "${" in repr(OmegaConf.to_container(merged))
        self._settings: Config | None = None
        self._values: dict[str, Any] = {}
        """In the types of the schema, by the overrides that set them."""

    def settings(self, plain: Sequence[Override]) -> Config:
        """With these values. Raises `UserError` for what is not allowed."""
        if self._refers or any("${" in str(override.value()) for override in plain):
            for override in plain:
                self._set(override)
            return checked(self._object())
        values = [self._value(override) for override in plain]
        self._settings = self._settings or self._object()
        config = deepcopy(self._settings)
        for override, value in zip(plain, values, strict=True):
            *groups, name = override.key_or_group.split(".")
            setattr(reduce(getattr, groups, config), name, deepcopy(value))
        return checked(config)

    def _object(self) -> Config:
        return cast(Config, OmegaConf.to_object(self._merged))

    def _value(self, override: Override) -> Any:
        line = str(override.input_line)
        if line not in self._values:
            self._set(override)
            value = OmegaConf.select(self._merged, override.key_or_group)
            self._values[line] = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
        return self._values[line]

    def _set(self, override: Override) -> None:
        try:
            OmegaConf.update(self._merged, override.key_or_group, override.value())
        except OmegaConfBaseException as error:
            raise UserError(f"{override.input_line}: {first_line(error)}") from error


def study_axes(study: str, words: list[str]) -> list[str] | None:
    """The axes of another study, narrowed by the same words; None if that leaves no runs."""
    composed = compose("train", overrides=[f"study={study}"], return_hydra_config=True)
    axes = {word.partition("=")[0]: word for word in _axes_of_file(composed)}
    parser = overrides_parser()
    others = [f"study={study}"]
    for word in words:
        name = word.partition("=")[0]
        if name not in axes:
            others.append(word)
            continue
        its_own = values_of(parser.parse_override(axes[name]))
        both = [value for value in values_of(parser.parse_override(word)) if value in its_own]
        if not both:
            return None
        axes[name] = f"{name}={','.join(map(str, both))}"
    return [*axes.values(), *others]


def overrides_parser() -> OverridesParser:
    """A parser that knows the presets, which `backbone=glob(resnet*)` refers to."""
    return OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())


def values_of(override: Override) -> list[Any]:
    """All values of an axis, or the one value that is set."""
    return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]


def _composed(config_name: str, words: Sequence[str]) -> DictConfig:
    try:
        return compose(config_name, overrides=list(words))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(describe_error(error)) from error


def _is_plain(override: Override, names: set[str]) -> bool:
    """Whether it is the value of an option, on which no other part of the composition depends."""
    return override.type is OverrideType.CHANGE and override.package is None and override.key_or_group in names
