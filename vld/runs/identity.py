"""What makes two runs the same run: a hash of everything that changes their numbers, and of nothing else."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vld import PROTOCOL_VERSION
from vld.config.settings import Config

RANDOM_WEIGHTS = "random"

# Settings that leave a run's numbers as they are. Those of a weights file and a dataset folder are replaced by the content.
NOT_IDENTITY = frozenset(
    {
        "study.name",
        "study.shares",
        "study.combinations",
        "study.members",
        "dry_run",
        "dataset.folder",
        "dataset.csv",
        "dataset.verify",
        "dataset.mirror",
        "backbone.published",
        "backbone.weights",
        "method.name",
        "method.members",
        "method.member_step",
        "method.average",
        "keep",
        "data_dir",
        "output_dir",
        "test_domain",
        "checkpoint_every",
        "if_running",
        "device",
        "precision",
        "compile",
        "deterministic",
        "wandb.mode",
        "wandb.project",
        "wandb.entity",
    }
)

ADDED_LATER: dict[str, Any] = {
    "backbone.tuning": "full",
    "backbone.normalize": "l2",
    "backbone.stage_dropout": [],
    "backbone.stage_dropout_kind": "element",
    "backbone.stochastic_depth": 0.0,
    "dropout_schedule": "constant",
}
"""Settings that came after the first runs, with the values that those had: at these they are no part of an identity, so that
what was trained before keeps its name."""

WEIGHTS, PRECISION = "backbone.weights_fingerprint", "precision"
# What the settings alone do not tell.
CONTENT = ("dataset.fingerprint", WEIGHTS, PRECISION)


def identity_key(identity: Mapping[str, Any]) -> str:
    """Equal for runs of the same settings, whatever their data, weights and precision."""
    return json.dumps({name: value for name, value in identity.items() if name not in CONTENT}, sort_keys=True)


def flat_settings(config: Config) -> dict[str, Any]:
    """All settings under their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def run_identity(
    config: Config, test_domain: str, *, dataset_fingerprint: str, weights_fingerprint: str, precision: str
) -> dict[str, Any]:
    """Everything that a run's numbers depend on."""
    settings = {
        name: value
        for name, value in flat_settings(config).items()
        if name not in NOT_IDENTITY and not (name in ADDED_LATER and value == ADDED_LATER[name])
    }
    return settings | {
        "protocol_version": PROTOCOL_VERSION,
        "test_domain": test_domain,
        "dataset.fingerprint": dataset_fingerprint,
        "backbone.weights_fingerprint": weights_fingerprint,
        "precision": precision,
    }


def settings_key(config: Config, test_domain: str) -> str:
    """`identity_key` of the runs with these settings."""
    return identity_key(run_identity(config, test_domain, dataset_fingerprint="", weights_fingerprint="", precision=""))


class FixedList(tuple[Any, ...]):
    """A list that is a setting's value, as what can be compared, grouped by and counted; written as the list."""

    def __repr__(self) -> str:
        return repr(list(self))


def hashable(value: Any) -> Any:
    """A setting's value, a list as a `FixedList`."""
    return FixedList(value) if isinstance(value, list) else value


def differing(settings: Sequence[Mapping[Any, Any]]) -> list[str]:
    """The names of the settings that are not equal in all."""
    names = sorted(set().union(*settings))
    return [name for name in names if len({hashable(one.get(name)) for one in settings}) > 1]


def run_id(identity: Mapping[str, Any]) -> str:
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def weights_fingerprint(weights: Mapping[str, Tensor] | None) -> str:
    """A hash of the tensors, whatever file they were in."""
    if weights is None:
        return RANDOM_WEIGHTS
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous().flatten()
        digest.update(repr((name, str(tensor.dtype), tuple(weights[name].shape))).encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()
