"""The progress of each run of a study, from run directories alone."""

import json
import statistics
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vld.config.errors import UserError
from vld.config.settings import BackboneConfig
from vld.machine.lock import LEASE_SECONDS, LOCK
from vld.runs.identity import ADDED_LATER, identity_key, may_have, weights_fingerprint
from vld.runs.reading import read_if_whole, read_json, stored_identity
from vld.runs.results import RunResult, read
from vld.study.planned import PlannedRun

FINISHED, RUNNING, INTERRUPTED, FAILED, MISSING = STATES = ("finished", "running", "interrupted", "failed", "missing")


@dataclass(frozen=True)
class Progress:
    """path: None if the run has no directory; step, seconds_left: of a run that has begun; reason: why a failed run failed."""

    run: PlannedRun
    state: str
    path: Path | None = None
    step: int | None = None
    seconds_left: float | None = None
    reason: str | None = None
    seconds: float | None = None
    """That a finished run took."""


def progress_of(runs: Iterable[PlannedRun], fingerprints: Mapping[str, str] | None = None) -> list[Progress]:
    """The progress of each run. If several directories have its settings (other data, weights or precision), the furthest.

    fingerprints: of the weights, by `repr` of the backbone's settings, as far as they are known.
    """
    furthest = [Progress(run, MISSING) for run in runs]
    by_key: dict[tuple[Path, str], list[int]] = {}
    for number, one in enumerate(furthest):
        by_key.setdefault((one.run.folder, one.run.key), []).append(number)
    for folder in dict.fromkeys(folder for folder, _ in by_key):
        for path in sorted(folder.glob("*")):
            running = is_running(path)  # looked at first: a run that finishes has a result before it gives its lock up
            settings, result = _read(path)
            for number in by_key.get((folder, identity_key(settings)), []):
                run = furthest[number].run
                backbone = run.config.backbone
                weights = (fingerprints or {}).get(repr(backbone)) or _fingerprint(
                    backbone.weights, backbone.last_layer
                )
                if may_have(settings, run.config, weights):
                    both = furthest[number], _progress(run, path, result, running)
                    furthest[number] = min(both, key=lambda progress: STATES.index(progress.state))
    return furthest


@cache
def _fingerprint(weights: str | None, last_layer: str) -> str | None:
    """Of a weights file; None if there is none, or this machine does not have it."""
    if weights is None or weights == "none" or not Path(weights).exists():
        return None
    from vld.model.weights import load_backbone_weights  # imports torch, which is rarely needed here

    try:
        return weights_fingerprint(load_backbone_weights(BackboneConfig(weights=weights, last_layer=last_layer)))
    except UserError:
        return None


def seconds_to_go(progress: Iterable[Progress]) -> float | None:
    """The time that unfinished runs will take one after another, by the median seconds per step of finished runs with the same
    network, image size and batch size. None if some have no such run."""
    per_step: dict[tuple[str, int, int], list[float]] = {}
    steps_to_go: dict[tuple[str, int, int], int] = {}
    for one in progress:
        config = one.run.config
        kind, steps = (config.backbone.name, config.image_size, config.batch_size), config.optim.steps
        if one.seconds is not None:
            per_step.setdefault(kind, []).append(one.seconds / steps)
        if one.state != FINISHED:
            steps_to_go[kind] = steps_to_go.get(kind, 0) + steps - (one.step or 0)
    if steps_to_go.keys() - per_step.keys():
        return None
    return sum((steps * statistics.median(per_step[kind]) for kind, steps in steps_to_go.items()), 0.0)


def _read(path: Path) -> tuple[dict[str, Any], RunResult | None]:
    """The identity of the run in this directory, empty if it cannot be read, and its result if it is finished."""
    with suppress(UserError):
        result = read(path)
        return result.content["settings"], result
    with suppress(UserError):
        return stored_identity(path), None
    return {}, None


def _progress(run: PlannedRun, path: Path, result: RunResult | None, running: bool) -> Progress:
    if result is not None:
        return Progress(run, FINISHED, path, run.config.optim.steps, 0.0, seconds=result.seconds)
    failure = read_if_whole(path / "failure.json")
    if (state := unfinished_state(failure, running)) == FAILED:
        return Progress(run, state, path, reason=str(failure.get("what")))
    step, seconds_left = _last_evaluation(path, run.config.optim.steps)
    return Progress(run, state, path, step, seconds_left)


def unfinished_state(failure: Mapping[str, Any] | None, running: bool) -> str:
    """Of a run directory without a result; failure: its `failure.json`, if it has one."""
    return FAILED if failure else RUNNING if running else INTERRUPTED


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
        state, reason = unfinished_state(failure, is_running(path)), failure.get("what", "")
        runs.append({"settings": settings, "state": state, "reason": reason, "directory": str(path)})
    return runs, damaged


def _last_evaluation(path: Path, steps: int) -> tuple[int, float | None]:
    try:
        row = json.loads((path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        step, seconds = int(row["step"]), float(row["seconds"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 0, None
    return step, (steps - step) * seconds / step if step else None


def is_running(path: Path) -> bool:
    """Whether a process holds the run: it renews the lock, which any machine can see. A killed process is noticed after
    `LEASE_SECONDS`."""
    try:
        return time.time() - (path / LOCK).stat().st_mtime <= LEASE_SECONDS
    except OSError:
        return False
