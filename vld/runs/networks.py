"""The network of a finished run, from the weights that it kept."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vld.config.errors import UserError, damaged
from vld.config.settings import BackboneConfig, Config
from vld.data.images import Dataset
from vld.machine.device import MemoryBudget
from vld.model.classifier import Classifier, build_classifier
from vld.runs.identity import ADDED_LATER, RANDOM_WEIGHTS
from vld.runs.keep import LOGITS
from vld.runs.reading import stored_identity
from vld.training.compiled import compile_network
from vld.training.evaluation import EvaluationSet, evaluation_set


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


def network(identity: Mapping[str, Any], state: Mapping[str, Tensor], precision: str = "fp32") -> Classifier:
    """The network of a run with that identity (`config.yaml`) and these weights, in eval mode."""
    backbone = {
        name.removeprefix("backbone."): value for name, value in identity.items() if name.startswith("backbone.")
    }
    pretrained = backbone.pop("weights_fingerprint") != RANDOM_WEIGHTS
    others = {name: identity[name] for name in ("image_size", "dropout", "head_seed", "seed")}
    config = Config(backbone=BackboneConfig(**backbone), **others)
    model = build_classifier(config, None, state["head.weight"].shape[0], precision)
    model.load_state_dict(state)
    model.pretrained = pretrained
    return model.eval()


def evaluated_network(
    identity: Mapping[str, Any],
    state: Mapping[str, Tensor],
    dataset: Dataset,
    device: torch.device,
    how: str,
    say: Callable[[str], None],
) -> tuple[Classifier, EvaluationSet]:
    """The network of a run, for weights like these, and the images that it is evaluated on: both as while it was trained.

    So in the run's precision, compiled as `compile_network` has it, and the images in a GPU's memory where they fit.
    """
    settings = ADDED_LATER | dict(identity)
    memory, chosen = MemoryBudget(device, say), (dataset, settings["test_domain"], settings["split_seed"], device)
    images = evaluation_set(*chosen, holdout=settings["holdout"], memory=memory)
    model = network(identity, state, identity["precision"]).to(device)
    compile_network(how, model, images, say)
    return model, images
