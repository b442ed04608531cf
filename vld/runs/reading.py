"""Reads and checks the JSON and YAML of a run directory, without importing torch."""

import json
from pathlib import Path
from typing import Any

import yaml

from vld.config.errors import UserError, damaged
from vld.runs.identity import run_id

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Several times as fast, where libyaml is installed."""


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error
    if not isinstance(value, dict):
        raise damaged(path, "not a JSON object")
    return value


def read_if_whole(path: Path) -> dict[str, Any]:
    """`read_json`, but empty if the file is missing or damaged."""
    try:
        return read_json(path)
    except UserError:
        return {}


def stored_config(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings in `config.yaml` that make the run, and the others as the run's last command had them. Raises `UserError` if
    the file is damaged or another run's."""
    path = run_dir / "config.yaml"
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), LOADER)
        identity, other = dict(content["identity"]), dict(content.get("other", {}))
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, repr(error)) from error
    check_identity(identity, path)
    return identity, other


def stored_identity(run_dir: Path) -> dict[str, Any]:
    return stored_config(run_dir)[0]


def stored_settings(run_dir: Path) -> dict[str, Any]:
    """All settings in `config.yaml`."""
    identity, other = stored_config(run_dir)
    return other | identity


def check_identity(identity: Any, path: Path) -> None:
    """Raises `UserError` unless the directory of `path` is named after the id of this identity."""
    try:
        right = isinstance(identity, dict) and run_id(identity) == path.parent.name
    except (ValueError, TypeError):  # values that no setting has
        right = False
    if not right:
        raise UserError(
            f"{path}: its settings are not those of run {path.parent.name}; move its directory away and run again"
        )
