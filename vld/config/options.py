"""What a setting is: a field of a dataclass that says its default, meaning, allowed values and part in a run's id.

`dropout: float = option(0.9, "probability that …", RATE)`. From such declarations (`vld.config.settings`) come the checks,
`--help`, `conf/README.md` and the identity of a run.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from functools import cache, reduce
from typing import Any, get_args, get_origin

from vld.config.checks import Must, one_of
from vld.config.errors import UserError

# omegaconf's marker of a value that must be given, spelt out so that settings need no library.
MISSING = "???"

ALWAYS, NEVER, IF_CHANGED = "yes", "no", "unless it has its default"
"""Whether a setting is part of a run's identity. IF_CHANGED is for settings added later, so that runs of before keep their ids:
such a default must never change."""


def option(default: Any, help: str, must: Must | None = None, *, identity: str = ALWAYS) -> Any:
    """A field of a settings class. help: what it means, for `--help` and `conf/README.md`. must: for values that are not null."""
    about = {"help": help, "must": must, "identity": identity}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=about)
    return field(default=default, metadata=about)


def choice(names: str, help: str, *, identity: str = ALWAYS) -> Any:
    """An option that has one of these names, auto|true|false; the first is its default."""
    allowed = names.split("|")
    return option(allowed[0], help, one_of(*allowed), identity=identity)


def group(settings: type, preset: str = "", *, identity: str | None = None) -> Any:
    """Settings that have a name in common. preset: of a group that presets fill, what choosing one means. identity: of all its
    settings."""
    return field(default_factory=settings, metadata={"help": preset, "identity": identity})


def same(settings: type, name: str, help: str = "") -> Any:
    """The setting of another command; help: what it means here."""
    its = _own(settings)[name]
    return field(default=its.default, metadata={**its.metadata, "help": help or its.metadata["help"]})


@dataclass(frozen=True)
class Option:
    """One setting, under its dotted name."""

    name: str
    type: Any
    default: Any
    help: str
    must: Must | None
    identity: str

    @property
    def is_list(self) -> bool:
        return get_origin(self.type) is list

    def problems(self, value: Any) -> Iterator[str]:
        """A line for each thing that is wrong with this value."""
        if self.must is None or (value is None and type(None) in get_args(self.type)):
            return
        for one in value if self.must.each else [value]:
            if not self.must.allows(one):
                yield f"{self.name}={one}: must be {self.must.be}"


@cache
def options_of(settings: Any, prefix: str = "") -> Mapping[str, Option]:
    """Every setting of a class, those of its groups included, in their order."""
    found: dict[str, Option] = {}
    for name, entry in _own(settings).items():
        kind: Any = entry.type
        if _is_group(entry):
            identity = entry.metadata["identity"]
            for one in options_of(kind, f"{prefix}{name}.").values():
                found[one.name] = replace(one, identity=identity or one.identity)
        else:
            default = entry.default if entry.default_factory is NO_DEFAULT else entry.default_factory()
            found[prefix + name] = Option(prefix + name, kind, default, **entry.metadata)
    return found


def presets_of(settings: type) -> dict[str, str]:
    """The groups of a settings class that presets fill, and what choosing one means."""
    groups = {name: entry.metadata["help"] for name, entry in _own(settings).items() if _is_group(entry)}
    return {name: meaning for name, meaning in groups.items() if meaning}


def flat_settings(config: Any) -> dict[str, Any]:
    """All settings under their dotted names."""
    kind: Any = type(config)
    return {name: reduce(getattr, name.split("."), config) for name in options_of(kind)}


def check_values(settings: type, values: Mapping[str, Any], others: Iterable[str] = ()) -> None:
    """Raises `UserError` with a line for every value that its option does not allow, and these other lines."""
    options = options_of(settings)
    problems = [line for name, value in values.items() for line in options[name].problems(value)]
    if problems := [*problems, *others]:
        raise UserError("\n".join(problems))


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else "…" if value == MISSING else str(value)


def beyond(settings: type, others: type) -> list[Option]:
    """The options of a class that another one lacks."""
    return [one for name, one in options_of(settings).items() if name not in options_of(others)]


def help_lines(options: Iterable[Option], groups: Iterable[tuple[str, str, str]] = ()) -> str:
    """For `--help`: the groups that presets fill, with the chosen one and its meaning, then the options."""
    lines = [(f"{name}={preset}", meaning) for name, preset, meaning in groups]
    # What has no group first.
    lines += [
        (f"{one.name}={written(one.default)}", one.help) for one in sorted(options, key=lambda one: "." in one.name)
    ]
    return "\n".join(
        textwrap.fill(f"{option:<29}  {meaning}", 120, subsequent_indent=" " * 31, break_on_hyphens=False)
        for option, meaning in lines
    )


def _own(settings: type) -> dict[str, Field[Any]]:
    return {entry.name: entry for entry in fields(settings)}


def _is_group(entry: Field[Any]) -> bool:
    return isinstance(entry.type, type) and is_dataclass(entry.type)
