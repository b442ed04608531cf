"""How far each run of a study is, told from run directories alone."""

import json
import statistics
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vld.config.errors import UserError
from vld.config.settings import BackboneConfig, Config
from vld.machine.lock import LEASE_SECONDS, LOCK
from vld.runs.identity import ADDED_LATER, PRECISION, RANDOM_WEIGHTS, WEIGHTS, identity_key, weights_fingerprint
from vld.runs.reading import read_if_whole, read_json, stored_identity
from vld.runs.results import RunResult, read
from vld.study.planned import PlannedRun

FINISHED, RUNNING, INTERRUPTED, FAILED, MISSING = STATES = ("finished", "running", "interrupted", "failed", "missing")


@dataclass(frozen=True)
class Progress:
    """How far a run is. path: None where nothing is there; step, seconds_left: of one that has begun; reason: of a failed one."""

    wanted: PlannedRun
    state: str
    path: Path | None = None
    step: int | None = None
    seconds_left: float | None = None
    reason: str | None = None
    seconds: float | None = None
    """That a finished one took."""


def progress_of(runs: Iterable[PlannedRun], fingerprints: Mapping[str, str] | None = None) -> list[Progress]:
    """How far each run is. Where several directories have its settings (other data, weights or precision), the furthest.

    fingerprints: of the weights, by `repr` of the backbone's settings, where they are known.
    """
    runs = list(runs)
    found: list[list[Progress]] = [[Progress(run, MISSING)] for run in runs]
    by_key: dict[tuple[Path, str], list[int]] = {}
    for number, run in enumerate(runs):
        by_key.setdefault((_folder(run), run.key), []).append(number)
    for folder in dict.fromkeys(folder for folder, _ in by_key):
        for path in sorted(folder.glob("*")):
            settings, result = _settings(path)
            for number in by_key.get((folder, identity_key(settings)), []) if settings else []:
                if settings and _may_be(runs[number].config, settings, fingerprints or {}):
                    found[number].append(_progress(runs[number], path, result))
    return [min(some, key=lambda progress: STATES.index(progress.state)) for some in found]


def _may_be(config: Config, settings: Mapping[str, Any], fingerprints: Mapping[str, str]) -> bool:
    """Whether a run with the same settings is of the weights and the precision that were asked for, as far as is known here."""
    weights, there = config.backbone.weights, settings.get(WEIGHTS)
    if fingerprints.get(repr(config.backbone), there) != there:
        return False
    if config.precision not in ("auto", settings.get(PRECISION)) or (weights == "none") != (there == RANDOM_WEIGHTS):
        return False
    return weights in (None, "none") or _fingerprint(str(weights), config.backbone.last_layer) in (None, there)


@cache
def _fingerprint(weights: str, last_layer: str) -> str | None:
    """Of a weights file; None where this machine does not have it."""
    if not Path(weights).exists():
        return None
    from vld.model.weights import load_backbone_weights  # needs torch, which most who look at runs can do without

    try:
        return weights_fingerprint(load_backbone_weights(BackboneConfig(weights=weights, last_layer=last_layer)))
    except UserError:
        return None


def seconds_to_go(progress: Iterable[Progress]) -> float | None:
    """What the runs that are not finished will take, one after the other: as long a step as the median of finished runs of the
    same network and image size. None where some have no such example."""
    per_step: dict[tuple[str, int, int], list[float]] = {}
    progress = list(progress)
    for one in progress:
        if one.seconds is not None:
            per_step.setdefault(_kind(one.wanted.config), []).append(one.seconds / one.wanted.config.optim.steps)
    total = 0.0
    for one in progress:
        config = one.wanted.config
        if one.state == FINISHED:
            continue
        if _kind(config) not in per_step:
            return None
        total += (config.optim.steps - (one.step or 0)) * statistics.median(per_step[_kind(config)])
    return total


def _kind(config: Config) -> tuple[str, int, int]:
    return config.backbone.name, config.image_size, config.batch_size


def _folder(run: PlannedRun) -> Path:
    return Path(run.config.output_dir) / "runs" / run.config.dataset.name / run.test_domain


def _settings(path: Path) -> tuple[dict[str, Any] | None, RunResult | None]:
    """What makes the run in this directory, and its result. None for what is not there or damaged."""
    with suppress(UserError):
        result = read(path)
        return result.content["settings"], result
    try:
        config = yaml.load(
            (path / "config.yaml").read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
    except (OSError, ValueError, yaml.YAMLError):
        return None, None
    identity = config.get("identity") if isinstance(config, dict) else None
    return (identity, None) if isinstance(identity, dict) else (None, None)


def _progress(run: PlannedRun, path: Path, result: RunResult | None) -> Progress:
    if result is not None:
        return Progress(run, FINISHED, path, run.config.optim.steps, 0.0, seconds=result.seconds)
    failure = read_if_whole(path / "failure.json")
    if (state := unfinished_state(path, failure)) == FAILED:
        return Progress(run, state, path, reason=str(failure.get("what")))
    step, seconds_left = _last_evaluation(path, run.config.optim.steps)
    return Progress(run, state, path, step, seconds_left)


def unfinished_state(path: Path, failure: Mapping[str, Any] | None) -> str:
    """Of a run directory without a result; failure: its `failure.json`, if it has one."""
    return FAILED if failure else RUNNING if is_running(path) else INTERRUPTED


def unfinished_runs(output_dir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Every run that is running, interrupted or failed: settings, state, reason, directory; and a line for each damaged one."""
    runs, damaged = [], []
    for config in sorted(output_dir.glob("runs/*/*/*/config.yaml")):
        path = config.parent
        if (path / "result.json").exists():
            continue
        try:
            settings = ADDED_LATER | stored_identity(path)
            failure = read_json(path / "failure.json") if (path / "failure.json").exists() else {}
        except UserError as error:
            damaged.append(str(error))
            continue
        how = {"state": unfinished_state(path, failure), "reason": failure.get("what", ""), "directory": str(path)}
        runs.append({"settings": settings, **how})
    return runs, damaged


def _last_evaluation(path: Path, steps: int) -> tuple[int, float | None]:
    try:
        row = json.loads((path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        step, seconds = int(row["step"]), float(row["seconds"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 0, None
    return step, (steps - step) * seconds / step if step else None


def is_running(path: Path) -> bool:
    """Whether a process holds the run, as far as can be told from anywhere: its lock is renewed. Of one that was killed that is
    known after `LEASE_SECONDS`."""
    try:
        return time.time() - (path / LOCK).stat().st_mtime <= LEASE_SECONDS
    except OSError:
        return False
