"""Text options get exactly what the command line or a preset says, even if it looks like a number."""

import re
import shlex
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from vld.config.errors import UserError
from vld.config.options import Option, options_of, presets_of
from vld.study.typed_settings import SCHEMAS


def is_text(one: Option) -> bool:
    """Whether its values, or the elements of its list, are text; a test domain is a name or a number."""
    return str in (one.type, *get_args(one.type)) or one.type is Any


TEXTS = {name.rpartition(".")[2] for s in SCHEMAS.values() for name, one in options_of(s).items() if is_text(one)}
"""The last parts of the names of all text options."""
OF_HYDRA = ("run.dir", "sweep.dir", "sweep.subdir", "job.name", "launcher.partition", "launcher.account")
"""Text options of Hydra's own."""
BARE = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\$\{[^}]*\}|(?P<bare>[^][(),{}"']+)""")
"""The elements of a value: quoted ones and references stay as they are, bare ones are checked."""


def quoted_for_hydra(words: Sequence[str], schema: type) -> list[str]:
    """The same overrides, quoted where Hydra would read text as a number or fail: `output_dir="2026_11_25"`.

    Raises `UserError` with a line for every override that the user has to quote.
    """
    options = options_of(schema)
    quoted, problems = [], []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name.startswith("-"):
            quoted.append(word)
            continue
        name = name.lstrip("+")
        option = options.get(name)
        text = is_text(option) if option else name.removeprefix("hydra.") in OF_HYDRA
        new = BARE.sub(partial(_quoted, text=text), value)
        listed = option is not None and option.type in (str, str | None) and new.startswith(("[", "{"))
        if listed or not _parsed(f"{name}={new}"):
            as_list = option.is_list if option else value.startswith("[")
            hint = _all_quoted(word.removesuffix(f"={value}"), value, as_list=as_list)
            problems += [f"{word}: write {hint}"] if hint else []
        # ++ adds what may not be there; options are there, and everything else knows them by their names.
        quoted.append(f"{word.removesuffix(value).removeprefix('++' if option else '')}{new}")
    if problems:
        raise UserError("\n".join(problems))
    return quoted


def check_presets(words: Sequence[str], schema: type) -> None:
    """Raises `UserError` for several studies, since each has its own axes, combinations and figure; and for the preset null."""
    for word in words:
        name, _, value = word.lstrip("+").partition("=")
        override = _parsed(word) if name == "study" else None
        if override and override.is_sweep_override():
            raise UserError(f"{word}: one study at a time; run the command once for each of them")
        if name in presets_of(schema) and "null" in value.split(","):
            raise UserError(f"{word}: null is no preset; leave {name} out for its default")


def _quoted(match: re.Match[str], *, text: bool) -> str:
    """A bare element in quotes, unless Hydra reads it as written."""
    element = (match["bare"] or "").strip()
    if not element:
        return match[0]
    if override := _parsed(f"x={element}"):
        value = override.value()
        quotes = text and not isinstance(value, str | None) and str(value) != element
    else:
        quotes = not element.isascii() and _parsed("x=" + re.sub(r"[^\x00-\x7f]", "a", element)) is not None
    return match[0].replace(element, f'"{element}"') if quotes else match[0]


def _all_quoted(name: str, value: str, *, as_list: bool) -> str | None:
    """The word with its whole value in quotes (of a list, each element, perhaps `name=1,2`), as a shell takes it; None if that
    does not help."""

    def quoted(text: str) -> str:
        text = re.sub(r'(\\*)"', r'\1\1\\"', text.strip().strip("\"'"))
        return f'"{text}"'

    if as_list:
        elements = re.split(
            r""",(?=\s*["']?[\w.]+=)""" if "=" in value else ",", value.removeprefix("[").removesuffix("]")
        )
        word = f"{name}=[{','.join(map(quoted, elements))}]"
    else:
        word = f"{name}={quoted(value)}"
    return shlex.quote(word) if _parsed(word) else None


def _parsed(word: str) -> Override | None:
    """None where Hydra does not understand it."""
    try:
        return _parser().parse_override(word)
    except HydraException:
        return None


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def keep_text_of_presets() -> None:
    """From now on text options keep the text of a YAML file, not what YAML reads it as (20261125, True, 83)."""
    Plugins.instance()  # it registers Hydra's own, which is replaced
    SourcesRegistry.instance().types["file"] = TextSource


class TextSource(FileConfigSource):
    """Hydra's files of presets."""

    def load_config(self, config_path: str) -> ConfigResult:
        result = super().load_config(config_path)
        path = Path(self.path) / self._normalize_file_name(config_path)
        written = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # it makes strings alone
        if isinstance(result.config, DictConfig):
            _keep(result.config, written)
        return result


TextSource.__name__ = (
    FileConfigSource.__name__
)  # the registry, which a job's process has from the command's, goes by it


def _keep(loaded: DictConfig, written: Any) -> None:
    for key, value in OmegaConf.to_container(loaded).items():  # type: ignore[union-attr]
        text = written.get(str(key)) if isinstance(written, dict) else None
        if isinstance(value, dict):
            _keep(loaded[key], text)
        elif str(key).rpartition(".")[2] in TEXTS and text is not None:
            loaded[key] = _kept(value, text)


def _kept(value: Any, text: Any) -> Any:
    if isinstance(value, list) and isinstance(text, list):
        return [_kept(one, its) for one, its in zip(value, text, strict=True)]
    return text if isinstance(value, int | float) and str(value) != text else value
