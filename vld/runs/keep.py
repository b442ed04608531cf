"""The weights and evaluation logits that a finished run keeps.

An entry of `keep` is `<method>-<selection>` (weights, float32) or `<method>-<selection>-logits` (float16), and so is the
file's name, with the ending .safetensors.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vld.config.errors import UserError, damaged
from vld.config.names import KEEPABLE
from vld.runs.directory import RunDirectory
from vld.runs.record import Record
from vld.training.evaluation import EvaluationLabels, EvaluationPart
from vld.training.loop import Evaluation

LOGITS = "-logits"
UNREADABLE = (OSError, SafetensorError, KeyError, TypeError, ValueError)
"""What reading a damaged file raises."""


def _choice(name: str) -> tuple[str, str]:
    """The method and the selection of an entry of `keep`."""
    method, selection = name.removesuffix(LOGITS).split("-")
    return method, selection


def save_kept(
    directory: RunDirectory,
    keep: Iterable[str],
    evaluation: Evaluation,
    record: Record,
    last_step: int,
    labels: EvaluationLabels,
) -> None:
    """Write those entries of `keep` for which this evaluation is the selected one so far; a better one replaces it later."""
    for name in keep:
        method, selection = _choice(name)
        if record.selected_step(method, selection) != evaluation.step:
            continue
        if selection == "last" and evaluation.step != last_step:
            continue
        if name.endswith(LOGITS):
            write_logits(directory, name, evaluation.logits[method], evaluation.step, labels)
        else:
            directory.write_tensors(name, evaluation.models[method].state_dict(), {"step": evaluation.step})


def write_logits(directory: RunDirectory, name: str, logits: Tensor, step: int, labels: EvaluationLabels) -> None:
    """logits: float32 [n, classes], of the images of `labels`."""
    parts = [(part.domain, part.part, part.start, part.stop) for part in labels.parts]
    directory.write_tensors(
        name,
        {"logits": logits.half(), "labels": labels.labels.int()},
        {"step": step, "test_domain": labels.test_domain, "parts": parts},
    )


def drop_stale(directory: RunDirectory, record: Record, keep: Collection[str] = KEEPABLE) -> None:
    """Remove kept files that are not in `keep`, or not of the step that the record selects: an attempt that got further than its
    last checkpoint may have left them."""
    for name in KEEPABLE:
        path = directory.path / f"{name}.safetensors"
        if name not in keep or kept_step(path) != record.selected_step(*_choice(name)):
            path.unlink(missing_ok=True)


def kept_step(path: Path) -> int:
    """The step of a kept file; -1 if it is missing or unreadable."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(_about(file)["step"])
    except UNREADABLE:
        return -1


def _about(file: Any) -> dict[str, Any]:
    """The metadata of a kept file, one string of JSON: safetensors writes several entries in any order."""
    about = json.loads(file.metadata()["about"])
    assert isinstance(about, dict)
    return about


def read_logits(path: Path) -> tuple[Tensor, EvaluationLabels]:
    """Kept logits, float16 [n, classes], and their labels; needs no dataset. Raises `UserError` if the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            about = _about(file)
            logits, labels = file.get_tensor("logits"), file.get_tensor("labels").long()
        parts = tuple(EvaluationPart(*part) for part in about["parts"])
        return logits, EvaluationLabels(about["test_domain"], labels, parts)
    except UNREADABLE as error:
        raise damaged(path, error) from error


def missing_files(directory: Path, keep: Iterable[str]) -> list[str]:
    """The entries of `keep` that a finished run does not have."""
    return [name for name in keep if not (directory / f"{name}.safetensors").exists()]


def check_kept(directories: Sequence[Path], name: str) -> None:
    """Raises `UserError` unless these finished runs have all kept `name`."""
    without = [path for path in directories if missing_files(path, [name])]
    if without:
        raise UserError(
            f"keep: {len(without)} of {len(directories)} members did not keep {name}, the first of them {without[0]}; move them"
            f" away and train them again with {name} in keep"
        )
