"""What makes two runs the same run: a hash of everything that changes their numbers, and of nothing else."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vld import PROTOCOL_VERSION
from vld.config.options import IF_CHANGED, NEVER, flat_settings, options_of
from vld.config.settings import Config

if TYPE_CHECKING:
    from torch import Tensor

RANDOM_WEIGHTS = "random"

_OPTIONS = options_of(Config).values()
NOT_IDENTITY = frozenset(one.name for one in _OPTIONS if one.identity == NEVER)
"""Settings that do not change a run's numbers. Paths of weights and data are among them: their content counts instead."""
ADDED_LATER = {one.name: one.default for one in _OPTIONS if one.identity == IF_CHANGED}
"""Settings that were added after the first runs, with the values that those runs had."""

WEIGHTS, PRECISION = "backbone.weights_fingerprint", "precision"
# What the settings alone do not determine.
CONTENT = ("dataset.fingerprint", WEIGHTS, PRECISION)


def identity_key(identity: Mapping[str, Any]) -> str:
    """Equal for runs of the same settings, regardless of data, weights and precision."""
    return json.dumps({name: value for name, value in identity.items() if name not in CONTENT}, sort_keys=True)


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


def may_have(settings: Mapping[str, Any], config: Config, weights: str | None) -> bool:
    """Whether a run with these settings has the weights and the precision of the config, as far as this machine knows.

    weights: the fingerprint of the config's, None if it is unknown.
    """
    its = settings.get(WEIGHTS)
    return (
        config.precision in ("auto", settings.get(PRECISION))
        and (config.backbone.weights == "none") == (its == RANDOM_WEIGHTS)
        and weights in (None, its)
    )


def runs_folder(config: Config, test_domain: str) -> Path:
    """The folder of the runs that leave this domain out."""
    return Path(config.output_dir) / "runs" / config.dataset.name / test_domain


class FixedList(tuple[Any, ...]):
    """A setting's list in hashable form, written like a list."""

    def __repr__(self) -> str:
        return repr(list(self))


def hashable(value: Any) -> Any:
    """A setting's value; a list becomes a `FixedList`."""
    return FixedList(value) if isinstance(value, list) else value


def differing(settings: Sequence[Mapping[Any, Any]]) -> list[str]:
    """The names of the settings that are not equal in all."""
    names = sorted(set().union(*settings))
    return [name for name in names if len({hashable(one.get(name)) for one in settings}) > 1]


def run_id(identity: Mapping[str, Any]) -> str:
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def weights_fingerprint(weights: "Mapping[str, Tensor] | None") -> str:
    """A hash of the tensors, independent of their file."""
    if weights is None:
        return RANDOM_WEIGHTS
    import torch  # already imported by whoever has tensors; other callers do not need it

    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous().flatten()
        digest.update(repr((name, str(tensor.dtype), tuple(weights[name].shape))).encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()
