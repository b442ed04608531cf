"""Device, data, weights and output folder of a command, checked before anything slow starts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from vld.config.errors import UserError
from vld.config.names import WEIGHT_REGULARISERS
from vld.config.settings import Config
from vld.data import glyphs
from vld.data.catalog import CONTENTS
from vld.data.domains import GLYPHS, resolve_test_domains
from vld.data.folder import DatasetFiles, find_dataset
from vld.data.verify import check_content
from vld.machine.device import resolve_device, resolve_precision
from vld.model.backbones import LAST_LAYER
from vld.model.classifier import build_classifier
from vld.model.published import weights_to_come
from vld.model.regularisers import check_weight_regulariser
from vld.model.weights import load_backbone_weights
from vld.runs.identity import weights_fingerprint
from vld.runs.starting_weights import check_start


@dataclass(frozen=True)
class Inputs:
    """What `check_inputs` has found."""

    device: torch.device
    precision: str
    files: DatasetFiles
    test_domains: tuple[str, ...]
    weights: dict[str, Tensor] | None
    warnings: list[str]
    start: str | None
    """Of `check_start`."""

    @cached_property
    def weights_fingerprint(self) -> str:
        return weights_fingerprint(self.weights)


def inputs_key(config: Config) -> str:
    """Equal for settings that need the same inputs, which then are checked once."""
    regularisation = [
        bool(its) if name in WEIGHT_REGULARISERS else its  # whether there is one; how strong does not matter
        for name, its in vars(config).items()
        if name.startswith(WEIGHT_REGULARISERS)
    ]
    parts = (
        *(config.dataset, config.data_dir, config.output_dir, config.backbone),
        *(config.device, config.precision, config.test_domain),
        (config.split_seed, config.holdout) if config.backbone.weights else None,  # which a run may have trained with
        *regularisation,
        config.image_size,  # which weights may not fit
    )
    return repr(parts)


def check_inputs(config: Config, *, here: bool = True) -> Inputs:
    """Raises `UserError` for a missing device, an unusable output folder, bad data or weights.

    here: the runs use this machine's device; otherwise that of another machine, which may have a GPU.
    """
    device = resolve_device(config.device if here else "cpu")
    precision = resolve_precision(config.precision, device)
    check_output_dir(Path(config.output_dir))
    root = Path(config.data_dir) / config.dataset.folder
    to_draw = config.dataset.name == "glyphs" and config.dataset.csv is None and not root.exists()
    files = None if to_draw else _listed(config, root)
    test_domains = resolve_test_domains(config.test_domain, files.domain_names if files else GLYPHS)
    warnings = check_content(files, config.dataset.verify) if files else []
    classes = files.classes if files else glyphs.CLASSES
    if weights_to_come(config.backbone):  # before they are downloaded: do the settings suit the network?
        build_classifier(config, None, len(classes))
    weights = load_backbone_weights(config.backbone)
    start = check_start(config, weights, classes, test_domains)
    network = build_classifier(config, weights, len(classes))  # do the weights fit?
    if size := network.resized_from:
        source = config.backbone.weights or config.backbone.name
        resized = f"position embeddings resized to image_size={config.image_size} (bicubic)"
        warnings = [*warnings, f"{source}: weights of {size} pixel images; {resized}"]
    warnings = [*warnings, *check_weight_regulariser(network.backbone, config)]
    files = files or _listed(config, root, draw=True)
    return Inputs(device, precision, files, test_domains, weights, warnings, start)


def check_without_images(config: Config, test_domains: Sequence[str]) -> None:
    """Of what `check_inputs` refuses, all that shows while images or published weights are still to come. Raises `UserError`."""
    weights = None if weights_to_come(config.backbone) else load_backbone_weights(config.backbone)
    known = CONTENTS.get(config.dataset.name)
    classes = sorted(next(iter(known.by_class.values()))) if known else []
    if config.dataset.name == "glyphs":
        classes = list(glyphs.CLASSES)
    if weights and not classes:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(LAST_LAYER)}
    check_start(config, weights, classes or ("?",), test_domains)
    build_classifier(config, weights, len(classes or "?"))


def _listed(config: Config, root: Path, *, draw: bool = False) -> DatasetFiles:
    try:
        if draw:
            glyphs.draw_glyphs(root)
        return find_dataset(config.dataset, Path(config.data_dir))
    except OSError as error:
        raise UserError(
            f"dataset={config.dataset.name}: {error.filename or root}: {error.strerror or error}"
        ) from error


def check_output_dir(path: Path) -> Path:
    """The nearest folder that exists. Raises `UserError` unless `path` is, or can become, a writable folder."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"output_dir={path}: {existing} is a file; use a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"output_dir={path}: {existing} cannot be written to")
    return existing
