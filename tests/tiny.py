"""A run of milliseconds: three domains of twenty 10 x 10 images whose tint is their class, and a small network."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vld.config.settings import BackboneConfig, Config, OptimConfig
from vld.data.batches import TrainingBatches
from vld.data.folder import DatasetFiles
from vld.data.image_store import open_dataset
from vld.data.images import Dataset, DomainImages
from vld.data.split import split_indices
from vld.model.classifier import Classifier, seeded_linear
from vld.model.dropout import RepresentationDropout
from vld.training.evaluation import EvaluationSet, evaluation_set

CPU = torch.device("cpu")
MEAN, STD, SCALE, RATE = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], 0.7, 0.5
SEED = 11


def make_dataset() -> Dataset:
    random = np.random.default_rng(0)
    domains = []
    for name in ("a", "b", "c"):
        labels = torch.arange(20) % 3
        pixels = torch.from_numpy(random.integers(0, 200, (20, 10, 10, 3), dtype=np.uint8))
        pixels[torch.arange(20), :, :, labels] += 55  # the class is the tint
        sizes = torch.full((20, 2), 10)
        domains.append(DomainImages(name, pixels, sizes, sizes, pixels[:, 1:9, 1:9].contiguous(), labels))
    return Dataset("tiny", ("x", "y", "z"), tuple(domains), "fingerprint")


def make_batches() -> TrainingBatches:
    domains = make_dataset().domains
    return TrainingBatches(
        domains=domains[:2],
        in_indices=tuple(split_indices(20, i, 0)[0] for i in range(2)),
        images_per_domain=4,
        image_size=8,
        device=CPU,
        seed=SEED,
    )


def make_evaluation_set() -> EvaluationSet:
    return evaluation_set(make_dataset(), "c", 0, CPU)


def make_backbone() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )


def make_model(
    *, pretrained: bool = True, dropout: float = RATE, schedule: str = "constant", steps: int = 12, **changes: Any
) -> Classifier:
    settings = BackboneConfig(**{"mean": MEAN, "std": STD, "feature_scale": SCALE, **changes})
    noise = RepresentationDropout(dropout, schedule, steps)
    return Classifier(make_backbone(), seeded_linear(24, 3, 0), noise, settings, pretrained=pretrained)


def settings(**changes: Any) -> Config:
    """Of a run of twelve steps, evaluated every fourth."""
    optim = {"lr": 0.05, "weight_decay": 0.01, "momentum": 0.9, "steps": 12, "milestones": [5, 9]}
    optim |= {name: changes.pop(name) for name in list(changes) if hasattr(OptimConfig, name) or name == "milestones"}
    return Config(optim=OptimConfig(**optim), **{"eval_every": 4, "seed": SEED, **changes})


def decode_dataset(
    files: DatasetFiles, image_size: int, store_size: int, progress: Callable[[int, int], None]
) -> Dataset:
    """Decoded into a store that nobody else sees."""
    with tempfile.TemporaryDirectory() as folder:  # what is mapped stays
        return open_dataset(files, [Path(folder)], image_size, store_size, progress)
