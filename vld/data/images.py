"""Decoded images: every file read once into uint8 arrays, one for training crops and one for evaluation."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vld.data.folder import DatasetFiles
from vld.errors import UserError

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""

DECODED_AT_ONCE = 256


@dataclass(frozen=True)
class DomainImages:
    """The decoded images of one domain, n of them.

    pixels: uint8 [n, H, W, 3], each image in the top left corner, at most the store's size on a side.
    stored_sizes, original_sizes: int64 [n, 2], (height, width) as stored and in the file.
    evaluation: uint8 [n, s, s, 3], torchvision's `Resize((s, s))` of the original image.
    labels: int64 [n].
    """

    name: str
    pixels: Tensor
    stored_sizes: Tensor
    original_sizes: Tensor
    evaluation: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """All domains of a dataset, decoded; `fingerprint` hashes its pixels, labels and order (not its files' format)."""

    name: str
    classes: tuple[str, ...]
    domains: tuple[DomainImages, ...]
    fingerprint: str

    @property
    def domain_names(self) -> tuple[str, ...]:
        return tuple(domain.name for domain in self.domains)


def decode_dataset(files: DatasetFiles, image_size: int, store_size: int, progress: Progress) -> Dataset:
    """Decode every image of a dataset on all processors.

    Raises `UserError` naming the files that are unreadable or truncated, or where the arrays would not fit in memory.
    """
    total = sum(len(domain.files) for domain in files.domains)
    fingerprint = hashlib.sha256(repr(files.classes).encode())
    domains: list[DomainImages] = []
    done = 0
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        sizes = [np.array(_map_files(pool, _size, domain.files), np.int64) for domain in files.domains]
        height, width = (min(store_size, max(int(s[:, axis].max()) for s in sizes)) for axis in (0, 1))
        # Each run's evaluation set is a copy of some of the evaluation views.
        _check_memory(files.name, total * 3 * (height * width + 2 * image_size**2))

        for domain, original_sizes in zip(files.domains, sizes, strict=True):
            n = len(domain.files)
            pixels = np.zeros((n, height, width, 3), np.uint8)
            evaluation = np.empty((n, image_size, image_size, 3), np.uint8)
            fingerprint.update(repr((domain.name, domain.labels)).encode())
            for start in range(0, n, DECODED_AT_ONCE):
                chunk = slice(start, min(start + DECODED_AT_ONCE, n))
                decoded = _map_files(pool, lambda path: _decode(path, image_size, store_size), domain.files[chunk])
                for i, (stored, view, digest) in enumerate(decoded, start):
                    pixels[i, : stored.shape[0], : stored.shape[1]] = stored
                    evaluation[i] = view
                    fingerprint.update(digest)
                progress(done + chunk.stop, total)
            done += n
            domains.append(
                DomainImages(
                    name=domain.name,
                    pixels=torch.from_numpy(pixels),
                    stored_sizes=torch.from_numpy(np.minimum(original_sizes, store_size)),
                    original_sizes=torch.from_numpy(original_sizes),
                    evaluation=torch.from_numpy(evaluation),
                    labels=torch.tensor(domain.labels, dtype=torch.int64),
                )
            )
    return Dataset(files.name, files.classes, tuple(domains), fingerprint.hexdigest())


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.height, image.width


def _decode(path: Path, image_size: int, store_size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], bytes]:
    """The image as stored, its evaluation view, and the digest of its pixels at full size."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    size = (min(image.width, store_size), min(image.height, store_size))
    stored = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
    view = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
    return np.asarray(stored), np.asarray(view), digest


def _map_files(pool: Executor, function: Callable[[Path], T], paths: Sequence[Path]) -> list[T]:
    """`function` of every file, in order; a `UserError` names those that cannot be read."""

    def attempt(path: Path) -> T | UserError:
        try:
            return function(path)
        except Exception as error:  # damaged files make PIL raise nearly anything
            return UserError(f"unreadable image {path}: {' '.join(str(error).split()) or type(error).__name__}")

    results = list(pool.map(attempt, paths))
    errors = [result for result in results if isinstance(result, UserError)]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}; replace the file or remove it")
    return [result for result in results if not isinstance(result, UserError)]


def _check_memory(name: str, needed: int) -> None:
    available = _available_memory()
    if needed > available:
        raise UserError(
            f"dataset={name}: its decoded images need {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB"
            " are free; a smaller dataset.store_size or image_size needs less"
        )


def _available_memory() -> int:
    """Bytes that this process can allocate without swapping: the machine's, or what its control group has left."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return machine if limit == "max" else min(machine, int(limit) - used)
    except (OSError, ValueError):
        return machine
