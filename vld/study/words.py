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
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from vld.config.errors import UserError
from vld.config.options import Option, options_of
from vld.study.compose import SCHEMAS


def is_text(one: Option) -> bool:
    """Whether its values, or the elements of its list, are text; a test domain is a name or a number."""
    return str in (one.type, *get_args(one.type)) or one.type is Any


TEXTS = {name.rpartition(".")[2] for s in SCHEMAS.values() for name, one in options_of(s).items() if is_text(one)}
"""The last parts of the names of all text options."""
OF_HYDRA = ("run.dir", "sweep.dir", "sweep.subdir", "job.name", "launcher.partition", "launcher.account")
BARE = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\$\{[^}]*\}|(?P<bare>[^][(),{}"']+)""")
"""The elements of a value: quoted ones and references stay as they are, bare ones are checked."""


def quoted_for_hydra(words: Sequence[str], schema: type) -> list[str]:
    """The same overrides, quoted where Hydra would read text as a number or fail: `output_dir="2026_11_25"`.

    Raises `UserError` with a line for every override that the user has to quote.
    """
    options = options_of(schema)
    texts = {name for name, one in options.items() if is_text(one)} | {f"hydra.{name}" for name in OF_HYDRA}
    taken, problems = [], []
    for word in words:
        name, equals, value = word.partition("=")
        text = name.lstrip("+") in texts
        if equals and not name.startswith("-"):
            value = BARE.sub(partial(_quoted, text=text), value)
            one = options.get(name.lstrip("+"))
            listed = one is not None and one.type in (str, str | None) and value.startswith(("[", "{"))
            if (listed or not _is_understood(f"{name}={value}")) and (
                hint := _all_quoted(*word.split("=", 1), as_list=not listed)
            ):
                problems.append(f"{word}: write {hint}")
        taken.append(f"{name}{equals}{value}")
    if problems:
        raise UserError("\n".join(problems))
    return taken


def check_one_study(words: Sequence[str]) -> None:
    """Raises `UserError` for several studies: each has its own axes, combinations and figure."""
    for word in words:
        if (
            word.lstrip("+").startswith("study=")
            and _is_understood(word)
            and _parser().parse_override(word).is_sweep_override()
        ):
            raise UserError(f"{word}: one study at a time; run the command once for each of them")


def _quoted(match: re.Match[str], *, text: bool) -> str:
    """A bare element in quotes, unless Hydra reads it as written."""
    element = (match["bare"] or "").strip()
    if not element:
        return match[0]
    if _is_understood(f"x={element}"):
        value = _parser().parse_override(f"x={element}").value()
        changed = value is not None and not isinstance(value, str) and str(value) != element
        quotes = text and changed
    else:
        quotes = not element.isascii() and _is_understood("x=" + re.sub(r"[^\x00-\x7f]", "a", element))
    return match[0].replace(element, f'"{element}"') if quotes else match[0]


def _all_quoted(name: str, value: str, *, as_list: bool) -> str | None:
    """The word with its whole value in quotes (each element of a list), as a shell takes it; None if that does not help."""

    def quoted(text: str) -> str:
        text = re.sub(r'(\\*)"', r'\1\1\\"', text.strip().strip("\"'"))
        return f'"{text}"'

    if as_list and value.startswith("[") and value.endswith("]"):
        word = f"{name}=[{','.join(map(quoted, value[1:-1].split(',')))}]"
    else:
        word = f"{name}={quoted(value)}"
    return shlex.quote(word) if _is_understood(word) else None


def _is_understood(word: str) -> bool:
    try:
        _parser().parse_override(word)
    except HydraException:
        return False
    return True


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
