"""A run's directory `<output_dir>/runs/<dataset>/<test_domain>/<run_id>/`: all that is known about the run."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save
from torch import Tensor

from vld.machine.atomic import write_atomically, write_json, write_text
from vld.machine.lock import LOCK
from vld.runs.checkpoint import read_checkpoint, write_checkpoint
from vld.runs.quantities import ANALYSIS
from vld.runs.reading import stored_identity
from vld.runs.results import read

FAILURE = "failure.json"
# Files that `write_atomically` leaves when it is killed.
TEMPORARY = re.compile(r"\.(config\.yaml|metrics\.jsonl|\w+\.json|checkpoint\.pt|[\w-]+\.safetensors)\.\w+")


@dataclass(frozen=True)
class RunDirectory:
    path: Path

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def checkpoint_file(self) -> Path:
        return self.path / "checkpoint.pt"

    def result(self) -> dict[str, Any] | None:
        """The content of `result.json`, None if the run or combination is not finished.

        Raises `UserError` if it or `config.yaml` is damaged, or another run's.
        """
        if not self.result_file.exists():
            return None
        result = read(self.path)
        if result.members is None:
            stored_identity(self.path)
        return result.content

    def start(self, identity: dict[str, Any], other_settings: dict[str, Any]) -> dict[str, Any] | None:
        """Prepare the directory, with the settings that make the run's identity and, separately, those that do not.

        Returns the checkpoint of an unfinished attempt, if there is one. Raises `UserError`, and changes nothing, if the files
        are damaged or another run's.
        """
        config_file = self.path / "config.yaml"
        if config_file.exists():
            stored_identity(self.path)
        state = read_checkpoint(self.checkpoint_file, self.path.name) if self.checkpoint_file.exists() else None
        for left in self.path.glob(".*"):
            if TEMPORARY.fullmatch(left.name):
                with suppress(OSError):
                    left.unlink()
        if state is None:  # else there are the evaluations until the checkpoint
            (self.path / "metrics.jsonl").unlink(missing_ok=True)
        write_text(config_file, yaml.safe_dump({"identity": identity, "other": other_settings}, sort_keys=True))
        (self.path / FAILURE).unlink(missing_ok=True)
        (self.path / ANALYSIS).unlink(missing_ok=True)  # of weights that are rebuilt
        return state

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        write_checkpoint(self.checkpoint_file, {"run_id": self.path.name} | state)

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def write_tensors(self, name: str, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        serialised = save(
            plain, {"about": json.dumps(about)}
        )  # to memory first: a full disk then is an OSError, as everywhere
        write_atomically(self.path / f"{name}.safetensors", lambda temporary: temporary.write_bytes(serialised))

    def finish(self, result: dict[str, Any]) -> None:
        """Written last: `result.json` means that the run is finished."""
        write_json(self.result_file, result)
        self.tidy()

    def tidy(self) -> None:
        """Remove what a finished run no longer needs; a process that was killed at the end may have left it."""
        for left in (self.checkpoint_file, self.path / FAILURE, self.path / LOCK):
            left.unlink(missing_ok=True)

    def fail(self, failure: dict[str, Any]) -> None:
        write_json(self.path / FAILURE, failure)
