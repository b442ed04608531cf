"""The network of a finished run, from the weights that it kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vld.config.errors import UserError
from vld.config.settings import BackboneConfig, Config
from vld.model.classifier import Classifier, build_classifier
from vld.runs.identity import RANDOM_WEIGHTS
from vld.runs.keep import LOGITS
from vld.runs.reading import damaged, stored_identity


def load_model(run_dir: str | Path, weights: str = "erm-last") -> Classifier:
    """A finished run's network in eval mode and float32, on the CPU: images float [B, 3, h, w] in [0, 1] to logits [B, classes].

    weights: which of the run's `<weights>.safetensors`. Raises `UserError` if the directory lacks them.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: not a run directory (it has no config.yaml)")
    return network(stored_identity(run_dir), load_weights(run_dir, weights))


def load_weights(run_dir: Path, weights: str) -> dict[str, Tensor]:
    """The tensors of a run's `<weights>.safetensors`. Raises `UserError` if they are missing or damaged."""
    path = run_dir / f"{weights}.safetensors"
    if not path.is_file():
        kept = sorted(path.stem for path in run_dir.glob("*.safetensors") if not path.stem.endswith(LOGITS))
        raise UserError(f"{path}: no such weights; the run kept {', '.join(kept) or 'none'} (see keep)")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise damaged(path, error) from error


def network(identity: Mapping[str, Any], state: Mapping[str, Tensor], *, autocast: bool = False) -> Classifier:
    """The network of a run with that identity (`config.yaml`) and these weights, in eval mode."""
    backbone = {
        name.removeprefix("backbone."): value for name, value in identity.items() if name.startswith("backbone.")
    }
    pretrained = backbone.pop("weights_fingerprint") != RANDOM_WEIGHTS
    others = {name: identity[name] for name in ("image_size", "dropout", "head_seed", "seed")}
    config = Config(backbone=BackboneConfig(**backbone), **others)
    model = build_classifier(config, None, classes=state["head.weight"].shape[0], autocast=autocast)
    model.load_state_dict(state)
    model.pretrained = pretrained
    return model.eval()
