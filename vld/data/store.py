"""The image store: a dataset decoded once, into files that are mapped into memory and shared by all processes.

`<folder>/<name>-<source>-pixels-<store_size>/` has the images for training crops, `…-views-<image_size>/` those for evaluation. A
store is there only when it is whole. `<source>` hashes names, sizes and times of the image files and the classes: where one
changes, another store is made.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vld.claim import claim
from vld.data.folder import DatasetFiles
from vld.data.images import (
    Dataset,
    DomainImages,
    evaluation_view,
    pixel_digest,
    read_image,
    size_of,
    stored_pixels,
)
from vld.errors import UserError

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""

VERSION = 1
"""Raised whenever the content of stores changes."""
DECODED_AT_ONCE = 256
ABOUT = "about.json"


def open_dataset(
    files: DatasetFiles,
    folders: Sequence[Path],
    image_size: int,
    store_size: int,
    progress: Progress,
    announce: Callable[[str], None] = lambda _: None,
) -> Dataset:
    """The dataset, decoded: from a store in one of the folders, or made in the first of them that can be written to.

    announce: is told when another process is making the store. Raises `UserError` naming the files that are unreadable or
    truncated, or where the disk has too little room.
    """
    source = source_key(files)
    names = (f"{files.name}-{source}-pixels-{store_size}", f"{files.name}-{source}-views-{image_size}")
    found = [_find(folders, name) for name in names]
    if None in found:
        folder = _writable(files.name, folders)
        building = folder / f".building-{files.name}-{source}"
        try:
            with claim(building, wait=True, announce=announce):
                found = [_find(folders, name) for name in names]  # by the process that this one waited for
                pixels, views = (path is None for path in found)
                if pixels or views:
                    _build(files, folder, names, building, image_size, store_size, progress, pixels=pixels, views=views)
        finally:
            with suppress(OSError):  # another process may be waiting in it
                building.rmdir()
        found = [_find(folders, name) for name in names]
    pixels_dir, views_dir = found
    assert pixels_dir is not None
    assert views_dir is not None
    return _opened(files, pixels_dir, views_dir, image_size, store_size)


def source_key(files: DatasetFiles) -> str:
    """Changes with the images' files, their order or their classes; not with where they are."""
    digest = hashlib.sha256(repr((VERSION, files.classes)).encode())
    for domain in files.domains:
        digest.update(repr((domain.name, domain.labels)).encode())
        try:
            for path in domain.files:
                status = path.stat()
                digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        except OSError as error:
            raise UserError(
                f"unreadable image {error.filename}: {error.strerror}; replace the file or remove it"
            ) from error
    return digest.hexdigest()[:12]


def fingerprint_of(files: DatasetFiles, progress: Progress) -> str:
    """The fingerprint of what the files hold now. Raises `UserError` naming those that are unreadable."""
    total = sum(len(domain.files) for domain in files.domains)
    digest, done = hashlib.sha256(repr(files.classes).encode()), 0
    with _workers() as pool:
        for domain in files.domains:
            digest.update(repr((domain.name, domain.labels)).encode())
            for start in range(0, len(domain.files), DECODED_AT_ONCE):
                paths = domain.files[start : start + DECODED_AT_ONCE]
                for one in _map_files(pool, lambda _, path: pixel_digest(read_image(path)), paths):
                    digest.update(one)
                done += len(paths)
                progress(done, total)
    return digest.hexdigest()


def bytes_on_disk(folders: Sequence[Path], files: DatasetFiles) -> int:
    """Of all stores of these files."""
    stores = [path for folder in folders for path in folder.glob(f"{files.name}-{source_key(files)}-*")]
    return sum(path.stat().st_blocks * 512 for store in stores for path in store.iterdir())


def _find(folders: Sequence[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name / ABOUT).is_file()), None)


def _writable(name: str, folders: Sequence[Path]) -> Path:
    for folder in folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
    raise UserError(
        f"dataset={name}: no place for the image store: {' and '.join(map(str, folders))} cannot be written to"
    )


def _build(
    files: DatasetFiles,
    folder: Path,
    names: tuple[str, str],
    building: Path,
    image_size: int,
    store_size: int,
    progress: Progress,
    *,
    pixels: bool,
    views: bool,
) -> None:
    """One pass over the images, for both stores or the one that is missing."""
    total = sum(len(domain.files) for domain in files.domains)
    parts = {name: building / name for name, wanted in zip(names, (pixels, views), strict=True) if wanted}
    fingerprint = hashlib.sha256(repr(files.classes).encode())
    done = 0
    try:
        with _workers() as pool:
            sizes = [
                np.array(_map_files(pool, lambda _, path: size_of(path), domain.files), np.int64)
                for domain in files.domains
            ]
            height, width = (min(store_size, max(int(s[:, axis].max()) for s in sizes)) for axis in (0, 1))
            _check_disk(files.name, folder, total * 3 * (pixels * height * width + views * image_size**2))
            for part in parts.values():
                shutil.rmtree(part, ignore_errors=True)  # a process that was killed may have left it
                part.mkdir()
            for number, domain in enumerate(files.domains):
                n = len(domain.files)
                fingerprint.update(repr((domain.name, domain.labels)).encode())
                stored = _array(parts.get(names[0]), number, (n, height, width, 3))
                evaluation = _array(parts.get(names[1]), number, (n, image_size, image_size, 3))
                for start in range(0, n, DECODED_AT_ONCE):
                    chunk = range(start, min(start + DECODED_AT_ONCE, n))
                    decode = partial(_decode, stored, evaluation, image_size, store_size)
                    for digest in _map_files(pool, decode, domain.files[start : chunk.stop], start):
                        fingerprint.update(digest)
                    progress(done + chunk.stop, total)
                done += n
                for array in (stored, evaluation):
                    if array is not None:
                        array.flush()
        about: dict[str, Any] = {"version": VERSION, "name": files.name, "root": str(files.root.absolute())}
        about["domains"] = [domain.name for domain in files.domains]
        if pixels:
            about |= {"height": height, "width": width, "fingerprint": fingerprint.hexdigest()}
            np.save(parts[names[0]] / "original_sizes.npy", np.concatenate(sizes))
        for name, part in parts.items():
            (part / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
            part.rename(folder / name)
    finally:
        for part in parts.values():
            shutil.rmtree(part, ignore_errors=True)


def _array(part: Path | None, number: int, shape: tuple[int, ...]) -> "np.memmap[Any, np.dtype[np.uint8]] | None":
    return None if part is None else np.memmap(part / f"{number}.uint8", np.uint8, "w+", shape=shape)


def _size(_: int, path: Path) -> tuple[int, int]:
    return size_of(path)


def _decode(
    stored: NDArray[np.uint8] | None,
    evaluation: NDArray[np.uint8] | None,
    image_size: int,
    store_size: int,
    place: int,
    path: Path,
) -> bytes:
    """Put an image where it belongs; the digest of its pixels at full size, where the store for training is made."""
    image = read_image(path)
    if evaluation is not None:
        evaluation[place] = evaluation_view(image, image_size)
    if stored is None:
        return b""
    pixels = stored_pixels(image, store_size)
    stored[place, : pixels.shape[0], : pixels.shape[1]] = pixels
    return pixel_digest(image)


def _opened(files: DatasetFiles, pixels_dir: Path, views_dir: Path, image_size: int, store_size: int) -> Dataset:
    try:
        about = json.loads((pixels_dir / ABOUT).read_text())
        sizes = torch.from_numpy(np.load(pixels_dir / "original_sizes.npy"))
        domains, start = [], 0
        for number, domain in enumerate(files.domains):
            n = len(domain.files)
            original_sizes = sizes[start : start + n]
            start += n
            domains.append(
                DomainImages(
                    name=domain.name,
                    pixels=_mapped(pixels_dir / f"{number}.uint8", (n, about["height"], about["width"], 3)),
                    stored_sizes=original_sizes.clamp(max=store_size),
                    original_sizes=original_sizes,
                    evaluation=_mapped(views_dir / f"{number}.uint8", (n, image_size, image_size, 3)),
                    labels=torch.tensor(domain.labels, dtype=torch.int64),
                )
            )
        return Dataset(files.name, files.classes, tuple(domains), about["fingerprint"])
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{pixels_dir} or {views_dir}: damaged ({error}); remove them, they are made again") from error


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    size = int(np.prod(shape))
    if path.stat().st_size != size:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes instead of {size}")
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).view(shape)


@contextmanager
def _workers() -> Iterator[Executor]:
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _map_files(pool: Executor, function: Callable[[int, Path], T], paths: Sequence[Path], first: int = 0) -> list[T]:
    """`function` of every file and its number, in order; a `UserError` names those that cannot be read."""

    def attempt(number: int, path: Path) -> T | UserError:
        try:
            return function(number, path)
        except Exception as error:  # damaged files make PIL raise nearly anything
            return UserError(f"unreadable image {path}: {' '.join(str(error).split()) or type(error).__name__}")

    results = list(pool.map(attempt, range(first, first + len(paths)), paths))
    errors = [result for result in results if isinstance(result, UserError)]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}; replace the file or remove it")
    return [result for result in results if not isinstance(result, UserError)]


def _check_disk(name: str, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"dataset={name}: its image store needs {needed / 1e9:.1f} GB of disk and {folder} has {free / 1e9:.1f} GB left;"
            " a smaller dataset.store_size or image_size needs less"
        )
