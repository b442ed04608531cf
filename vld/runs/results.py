"""Reading back what runs have left: a table of all results, and a finished model."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file

from vld.errors import UserError
from vld.model import Classifier, build_classifier
from vld.runs.directory import check_identity, read_json, stored_identity
from vld.runs.identity import RANDOM_WEIGHTS
from vld.settings import BackboneConfig

log = logging.getLogger(__name__)

SETTING_COLUMNS = {
    "backbone": "backbone.name",
    "dropout": "dropout",
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "last_layer_lr_factor": "optim.last_layer_lr_factor",
    "seed": "seed",
    "split_seed": "split_seed",
    "steps": "optim.steps",
}
COLUMNS = [
    *("run_id", "dataset", "test_domain"),
    *SETTING_COLUMNS,
    *("method", "selection", "step", "iid_acc", "ood_acc", "ood_in_acc", "ood_out_acc", "members"),
]


def load_results(output_dir: str | Path) -> pd.DataFrame:
    """One row per finished run × method × selection (columns: `COLUMNS`). Damaged ones are named and left out."""
    rows: list[dict[str, Any]] = []
    for path in sorted(Path(output_dir).glob("runs/*/*/*/result.json")):
        try:
            result = read_json(path)
            check_identity(result.get("settings"), path)
            rows += result_rows(result)
        except UserError as error:
            log.warning("%s", error)
        except (KeyError, TypeError) as error:
            log.warning("%s: damaged (%r)", path, error)
    return pd.DataFrame(rows, columns=COLUMNS)


def result_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one `result.json`."""
    settings = result["settings"]
    run = {"run_id": result["run_id"], "dataset": settings["dataset.name"], "test_domain": settings["test_domain"]}
    run |= {column: settings[name] for column, name in SETTING_COLUMNS.items()}
    return [run | selected | {"members": None} for selected in result["results"]]


def load_model(run_dir: str | Path, weights: str = "erm-last") -> Classifier:
    """A finished run's network in eval mode and float32, on the CPU: images float [B, 3, h, w] in [0, 1] to logits [B, classes].

    weights: which of the run's `<weights>.safetensors`. Raises `UserError` where the directory lacks them.
    """
    run_dir = Path(run_dir)
    weights_file = run_dir / f"{weights}.safetensors"
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: not a run directory (it has no config.yaml)")
    if not weights_file.is_file():
        kept = sorted(path.stem for path in run_dir.glob("*.safetensors") if not path.stem.endswith("-logits"))
        raise UserError(f"{weights_file}: no such weights; the run kept {', '.join(kept) or 'none'} (see keep)")
    identity = stored_identity(run_dir)
    state = load_file(weights_file)
    backbone = {
        name.removeprefix("backbone."): value for name, value in identity.items() if name.startswith("backbone.")
    }
    pretrained = backbone.pop("weights_fingerprint") != RANDOM_WEIGHTS
    model = build_classifier(
        BackboneConfig(**backbone),
        None,
        classes=state["head.weight"].shape[0],
        dropout=identity["dropout"],
        head_seed=identity["head_seed"],
        seed=identity["seed"],
    )
    model.load_state_dict(state)
    model.pretrained = pretrained
    return model.eval()
