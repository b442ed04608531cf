"""Reading back what runs have left: a table of all results, and a finished model."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vld.config.errors import UserError
from vld.config.names import ACCURACIES, SETTING_COLUMNS
from vld.config.settings import BackboneConfig
from vld.model.classifier import Classifier, build_classifier
from vld.runs.directory import read_result, stored_identity
from vld.runs.identity import RANDOM_WEIGHTS
from vld.runs.keep import LOGITS

log = logging.getLogger(__name__)

COLUMNS = [
    *("run_id", "dataset", "test_domain"),
    *SETTING_COLUMNS,
    *("method", "selection", "step", *ACCURACIES, "members"),
]
WHOLE_NUMBERS = ("seed", "split_seed", "steps", "step")
"""May be null, which pandas' plain integers cannot be."""


def load_results(output_dir: str | Path) -> pd.DataFrame:
    """One row per finished run or combination × method × selection (columns: `COLUMNS`). Damaged ones are named and left out.

    `members` are the run ids of a combination's; what varies among them is null in its row.
    """
    rows: list[dict[str, Any]] = []
    for _, result, problem in finished_results(output_dir):
        if result is None:
            log.warning("%s", problem)
        else:
            rows += result_rows(result)
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(WHOLE_NUMBERS, "Int64"))


def finished_results(output_dir: str | Path) -> Iterator[tuple[Path, dict[str, Any] | None, str]]:
    """Every `result.json` of a run or a combination with its content; of a damaged one None, and what is wrong with it."""
    for kind, identity in (("runs", "settings"), ("combined", "identity")):
        for path in sorted(Path(output_dir).glob(f"{kind}/*/*/*/result.json")):
            try:
                result = read_result(path, identity)
                for row in result_rows(result):
                    if not all(isinstance(row[name], float | int) for name in ACCURACIES) or not row["method"]:
                        raise KeyError(ACCURACIES)
            except UserError as error:
                yield path, None, str(error)
            except (KeyError, TypeError) as error:
                yield path, None, f"{path}: damaged ({error!r})"
            else:
                yield path, result, ""


def result_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one `result.json`."""
    settings = result["settings"]
    run = {"run_id": result["run_id"], "dataset": settings["dataset.name"], "test_domain": settings["test_domain"]}
    run |= {column: settings[name] for column, name in SETTING_COLUMNS.items()}
    return [run | row | {"members": result.get("members")} for row in result["results"]]


def load_model(run_dir: str | Path, weights: str = "erm-last") -> Classifier:
    """A finished run's network in eval mode and float32, on the CPU: images float [B, 3, h, w] in [0, 1] to logits [B, classes].

    weights: which of the run's `<weights>.safetensors`. Raises `UserError` where the directory lacks them.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: not a run directory (it has no config.yaml)")
    return network(stored_identity(run_dir), load_weights(run_dir, weights))


def load_weights(run_dir: Path, weights: str) -> dict[str, Tensor]:
    """The tensors of a run's `<weights>.safetensors`. Raises `UserError` where it lacks them or they are damaged."""
    path = run_dir / f"{weights}.safetensors"
    if not path.is_file():
        kept = sorted(path.stem for path in run_dir.glob("*.safetensors") if not path.stem.endswith(LOGITS))
        raise UserError(f"{path}: no such weights; the run kept {', '.join(kept) or 'none'} (see keep)")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({error}); move its directory away and train the run again") from error


def network(identity: Mapping[str, Any], state: Mapping[str, Tensor], *, autocast: bool = False) -> Classifier:
    """The network of a run with that identity (`config.yaml`) and these weights, in eval mode."""
    backbone = {
        name.removeprefix("backbone."): value for name, value in identity.items() if name.startswith("backbone.")
    }
    pretrained = backbone.pop("weights_fingerprint") != RANDOM_WEIGHTS
    model = build_classifier(
        BackboneConfig(**backbone),
        None,
        image_size=identity["image_size"],
        classes=state["head.weight"].shape[0],
        dropout=identity["dropout"],
        head_seed=identity["head_seed"],
        seed=identity["seed"],
        autocast=autocast,
    )
    model.load_state_dict(state)
    model.pretrained = pretrained
    return model.eval()
