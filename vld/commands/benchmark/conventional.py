"""The usual way, written to compare with: images decoded by PIL and augmented by torchvision in DataLoader workers, float32,
eager, every method evaluated on its own."""

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from vld.data.augment import CROP_RATIO, CROP_SCALE, FLIP_PROBABILITY, GRAYSCALE_PROBABILITY, JITTER
from vld.data.domains import left_out
from vld.data.folder import DatasetFiles
from vld.data.split import split_indices
from vld.model.classifier import Classifier
from vld.training.evaluation import IN, OUT

TIMEOUT = 60
PREFETCHED = 2  # DataLoader's default, for each worker


@contextmanager
def pytorch_s_defaults() -> Iterator[None]:
    """cuDNN's convolutions in TF32, as everybody has them who says nothing."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        yield


class DecodedFiles(Dataset[tuple[Tensor, int]]):
    """Image files and labels; decodes a file each time it is asked for."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int], transform: transforms.Compose) -> None:
        self.files, self.labels, self.transform = files, labels, transform
        self._decoded = multiprocessing.Value("q", 0)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.files[index]) as image:
            example = self.transform(image.convert("RGB")), self.labels[index]
        with self._decoded.get_lock():
            self._decoded.value += 1
        return example

    def wait_for(self, images: int) -> None:
        """Until all processes together have decoded so many: its loader is full then and its workers rest."""
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


def evaluation_transform(image_size: int) -> transforms.Compose:
    return transforms.Compose([transforms.Resize((image_size, image_size)), transforms.ToTensor()])


def chosen_files(
    files: DatasetFiles, test_domain: str, split_seed: int, part: str
) -> list[tuple[list[Path], list[int]]]:
    """For each domain, the files and labels that a run trains on (IN) or is evaluated on (OUT)."""
    chosen, left = [], left_out(test_domain, files.domain_names)
    for index, domain in enumerate(files.domains):
        in_indices, out_indices = split_indices(len(domain.files), index, split_seed)
        outside = domain.name in left
        if outside and part == IN:
            continue
        wanted: NDArray[np.int64] = in_indices if part == IN else out_indices
        if outside:
            wanted = np.arange(len(domain.files))
        chosen.append(([domain.files[i] for i in wanted], [domain.labels[i] for i in wanted]))
    return chosen


class ConventionalBatches:
    """Batches without end from DataLoader workers, one loader for each training domain, as in DomainBed."""

    def __init__(
        self,
        files: DatasetFiles,
        test_domain: str,
        split_seed: int,
        batch_size: int,
        image_size: int,
        device: torch.device,
    ) -> None:
        domains = chosen_files(files, test_domain, split_seed, IN)
        self.device = device
        self.workers = max(1, len(os.sched_getaffinity(0)) // len(domains))
        self.datasets = [DecodedFiles(paths, labels, training_transform(image_size)) for paths, labels in domains]
        self._loaders = [
            iter(
                DataLoader(
                    dataset,
                    batch_size,
                    sampler=torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**8),
                    num_workers=self.workers,
                    pin_memory=device.type == "cuda",
                )
            )
            for dataset in self.datasets
        ]
        self.waiting = PREFETCHED * self.workers
        """Batches that lie ready when nobody has asked for a while."""
        self._batch_size, self._taken = batch_size, 0

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

    def read_files(self) -> None:
        """All of them, so that they are in the operating system's cache."""
        for dataset in self.datasets:
            for path in dataset.files:
                path.read_bytes()

    def images_per_second_and_core(self, images: int) -> float:
        """Decoding and augmenting alone, in this process."""
        began = time.perf_counter()
        for i in range(images):
            dataset = self.datasets[i % len(self.datasets)]
            dataset[(7 * i) % len(dataset)]
        return images / (time.perf_counter() - began)


class ConventionalEvaluation:
    """One network evaluated on the images that a run is evaluated on, over and over, in batches from DataLoader workers."""

    batch_size = 64

    def __init__(
        self, model: Classifier, files: DatasetFiles, test_domain: str, split_seed: int, image_size: int
    ) -> None:
        parts = chosen_files(files, test_domain, split_seed, OUT)
        paths, labels = [p for part, _ in parts for p in part], [label for _, part in parts for label in part]
        self._dataset = dataset = DecodedFiles(paths, labels, evaluation_transform(image_size))
        self._taken = 0
        self._model, self._device = model, model.head.weight.device
        workers = len(os.sched_getaffinity(0))
        self._batches = iter(
            DataLoader(
                dataset,
                self.batch_size,
                sampler=cycle(range(len(dataset))),
                num_workers=workers,
                pin_memory=self._device.type == "cuda",
            )
        )
        self.waiting = PREFETCHED * workers
        """Batches that lie ready when nobody has asked for a while."""

    def wait_until_full(self) -> None:
        self._dataset.wait_for((self._taken + self.waiting) * self.batch_size)

    @torch.no_grad()
    def evaluate(self, batches: int) -> int:
        """Correct images of so many batches, counted on the host as everybody does."""
        was_training = self._model.training
        self._model.eval()
        correct = 0
        self._taken += batches
        for inputs, expected in islice(self._batches, batches):
            correct += int((self._model(inputs.to(self._device)).argmax(1).cpu() == expected).sum())
        self._model.train(was_training)
        return correct
