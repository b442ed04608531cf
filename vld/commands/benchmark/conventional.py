"""The usual way, written to compare with: images decoded by PIL and augmented by torchvision in DataLoader workers, eager, every
method evaluated on its own."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from vld.config.settings import Config
from vld.data.augment import CROP_RATIO, CROP_SCALE, FLIP_PROBABILITY, GRAYSCALE_PROBABILITY, JITTER
from vld.data.domains import left_out
from vld.data.folder import DatasetFiles
from vld.data.split import split_indices
from vld.model.classifier import Classifier
from vld.training.evaluation import IN, OUT
from vld.training.loop import Trajectory, update

TIMEOUT = 60
PREFETCHED = 2  # DataLoader's default, for each worker
WORKERS = 8  # DomainBed's, for each domain


def pytorch_s_defaults() -> AbstractContextManager[None]:
    """cuDNN's convolutions in TF32 (where they are in float32 at all), by the first algorithm that it proposes."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=True)


class Examples(NamedTuple):
    files: Sequence[Path]
    labels: Sequence[int]


def chosen_files(files: DatasetFiles, test_domain: str, config: Config, part: str) -> list[Examples]:
    """For each domain, what a run trains on (IN) or is evaluated on (OUT), if there is anything."""
    chosen, left = [], left_out(test_domain, files.domain_names)
    for index, domain in enumerate(files.domains):
        indices: Sequence[int] = range(len(domain.files))
        if domain.name not in left:
            split = split_indices(len(domain.files), index, config.split_seed, config.holdout)
            indices = split[part == OUT].tolist()
        elif part == IN:
            indices = ()
        if indices:
            chosen.append(Examples([domain.files[i] for i in indices], [domain.labels[i] for i in indices]))
    return chosen


class DecodedFiles(Dataset[tuple[Tensor, int]]):
    """Decodes a file each time it is asked for."""

    def __init__(self, examples: Examples, transform: transforms.Compose) -> None:
        self.examples, self.transform = examples, transform
        self._decoded = multiprocessing.Value("q", 0)

    def __len__(self) -> int:
        return len(self.examples.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.examples.files[index]) as image:
            example = self.transform(image.convert("RGB")), self.examples.labels[index]
        with self._decoded.get_lock():
            self._decoded.value += 1
        return example

    def wait_for(self, images: int) -> None:
        """Until all processes together have decoded that many: its loader is full then and its workers rest."""
        given_up = time.monotonic() + TIMEOUT
        while self._decoded.value < images and time.monotonic() < given_up:
            time.sleep(0.005)


def training_transform(image_size: int) -> transforms.Compose:
    """To tensors in [0, 1]: pre-processing statistics belong to the backbone here too."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(image_size, scale=CROP_SCALE, ratio=CROP_RATIO),
            transforms.RandomHorizontalFlip(FLIP_PROBABILITY),
            transforms.ColorJitter(JITTER, JITTER, JITTER, JITTER),
            transforms.RandomGrayscale(GRAYSCALE_PROBABILITY),
            transforms.ToTensor(),
        ]
    )


class ConventionalBatches:
    """Batches without end from DataLoader workers, one loader for each training domain, as in DomainBed.

    workers: of each domain; None: all cores are shared. Theirs go through pinned memory.
    """

    def __init__(
        self,
        domains: Sequence[Examples],
        batch_size: int,
        image_size: int,
        device: torch.device,
        workers: int | None = None,
    ) -> None:
        self.device, self._batch_size, self._taken = device, batch_size, 0
        pinned = workers is None and device.type == "cuda"
        workers = workers or max(1, len(os.sched_getaffinity(0)) // len(domains))
        self.datasets = [DecodedFiles(examples, training_transform(image_size)) for examples in domains]
        self._loaders = [
            iter(DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, pin_memory=pinned))
            for dataset in self.datasets
            for sampler in [RandomSampler(dataset, replacement=True, num_samples=10**8)]
        ]
        self.waiting = PREFETCHED * workers
        """Batches that lie ready when nobody has asked for a while."""

    def wait_until_full(self) -> None:
        for dataset in self.datasets:
            dataset.wait_for((self._taken + self.waiting) * self._batch_size)

    def batch(self) -> tuple[Tensor, Tensor]:
        self._taken += 1
        parts = [next(loader) for loader in self._loaders]
        there = [[tensor.to(self.device, non_blocking=True) for tensor in part] for part in parts]
        images, labels = (torch.cat(tensors) for tensors in zip(*there, strict=True))
        return images, labels

    def close(self) -> None:
        """Its processes end."""
        self._loaders = []

    def images_per_second_and_core(self, images: int) -> float:
        """Decoding and augmenting alone, in this process."""
        began = time.perf_counter()
        for i in range(images):
            dataset = self.datasets[i % len(self.datasets)]
            dataset[(7 * i) % len(dataset)]
        return images / (time.perf_counter() - began)


@dataclass
class Loop:
    """A training loop as it is usually written."""

    trajectory: Trajectory
    batches: ConventionalBatches
    reads_loss: bool = False
    """After every step, as DomainBed does."""

    def step(self, step: int) -> None:
        with pytorch_s_defaults():
            loss = update(self.trajectory, *self.batches.batch(), step)
        if self.reads_loss:
            loss.item()


def domainbed_style(trajectory: Trajectory, batches: ConventionalBatches) -> Loop:
    """Images and weights as they lie in memory by default, NCHW."""
    trajectory.model.to(memory_format=torch.contiguous_format)
    trajectory.model.compute = _nchw
    return Loop(trajectory, batches, reads_loss=True)


def _nchw(backbone: nn.Module, images: Tensor, mean: Tensor, std: Tensor, scale: float, *_: object) -> Tensor:
    features: Tensor = backbone((images - mean) / std)
    return features * scale


class ConventionalEvaluation:
    """One network evaluated on the images that a run is evaluated on, over and over, in batches from DataLoader workers."""

    batch_size = 64

    def __init__(self, model: Classifier, domains: Sequence[Examples], image_size: int) -> None:
        files, labels = ([one for part in parts for one in part] for parts in zip(*domains, strict=True))
        transform = transforms.Compose([transforms.Resize((image_size, image_size)), transforms.ToTensor()])
        self._dataset = dataset = DecodedFiles(Examples(files, labels), transform)
        self._model, self._device, self._taken = model, model.head.weight.device, 0
        workers, pinned = len(os.sched_getaffinity(0)), self._device.type == "cuda"
        sampler = cycle(range(len(dataset)))
        self._batches = iter(
            DataLoader(dataset, self.batch_size, sampler=sampler, num_workers=workers, pin_memory=pinned)
        )
        self.waiting = PREFETCHED * workers
        """Batches that lie ready when nobody has asked for a while."""

    def wait_until_full(self) -> None:
        self._dataset.wait_for((self._taken + self.waiting) * self.batch_size)

    @torch.no_grad()
    def evaluate(self, batches: int) -> int:
        """Correct images of that many batches, counted on the host as everybody does."""
        was_training = self._model.training
        self._model.eval()
        correct = 0
        self._taken += batches
        with pytorch_s_defaults():
            for inputs, expected in islice(self._batches, batches):
                correct += int((self._model(inputs.to(self._device)).argmax(1).cpu() == expected).sum())
        self._model.train(was_training)
        return correct
