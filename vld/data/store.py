"""The image store: a dataset decoded once, into files that are mapped into memory and shared by all processes.

`<folder>/<name>-<source>-pixels-<store_size>/` has the images for training crops, `…-views-<image_size>/` those for evaluation. A
store is there only when it is whole. `<source>` hashes names, sizes and times of the image files and the classes: where one
changes, another store is made.
"""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
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

from vld.claim import Claim, ClaimLost, claim
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
            with claim(building, wait=True, announce=announce) as held:
                found = [_find(folders, name) for name in names]  # by the process that this one waited for
                if None in found:
                    missing = [name if path is None else None for name, path in zip(names, found, strict=True)]
                    _build(files, folder, missing, building, image_size, store_size, progress, held)
        except ClaimLost as lost:
            raise UserError(f"{building}: another process makes the image store now ({lost}); run this again") from lost
        finally:
            with suppress(OSError):  # another process may be waiting in it
                building.rmdir()
        found = [_find(folders, name) for name in names]
    pixels_dir, views_dir = found
    if pixels_dir is None or views_dir is None:
        raise UserError(f"dataset={files.name}: its image store has gone while this command ran; run it again")
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


def verify_store(
    files: DatasetFiles, dataset: Dataset, image_size: int, store_size: int, progress: Progress
) -> list[Path]:
    """Decode every image again; those whose pixels or evaluation view in the store are others. Raises `UserError` for files
    that are unreadable, and where all are right but the fingerprint."""
    total = sum(len(domain.files) for domain in files.domains)
    digest, done = hashlib.sha256(repr(files.classes).encode()), 0
    different: list[Path] = []

    def compare(stored: DomainImages, place: int, path: Path) -> tuple[bool, bytes]:
        image = read_image(path)
        height, width = stored.stored_sizes[place].tolist()
        same = np.array_equal(stored.pixels[place, :height, :width].numpy(), stored_pixels(image, store_size))
        same = same and np.array_equal(stored.evaluation[place].numpy(), evaluation_view(image, image_size))
        return same, pixel_digest(image)

    with _workers() as pool:
        for domain, stored in zip(files.domains, dataset.domains, strict=True):
            digest.update(repr((domain.name, domain.labels)).encode())
            for start in range(0, len(domain.files), DECODED_AT_ONCE):
                paths = domain.files[start : start + DECODED_AT_ONCE]
                compared = _map_files(pool, partial(compare, stored), paths, start)
                _check_readable(compared)
                for path, (same, one) in zip(paths, compared, strict=True):  # type: ignore[misc]
                    digest.update(one)
                    different += [] if same else [path]
                done += len(paths)
                progress(done, total)
    if not different and digest.hexdigest() != dataset.fingerprint:
        raise UserError(f"dataset={files.name}: the image store has another fingerprint; remove it, it is made again")
    return different


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
    missing: Sequence[str | None],
    building: Path,
    image_size: int,
    store_size: int,
    progress: Progress,
    held: Claim,
) -> None:
    """One pass over the images, for the stores of pixels and of views, or the one of them that is missing.

    Everything is written in a folder of this process's own: should it lose its lock, it shares no file with the next one.
    """
    for left in building.iterdir():  # what a process that was killed has left
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
    own = Path(tempfile.mkdtemp(dir=building))
    own.chmod(0o755)
    total = sum(len(domain.files) for domain in files.domains)
    pixels, views = (None if name is None else own / name for name in missing)
    fingerprint = hashlib.sha256(repr(files.classes).encode())
    unreadable: list[UserError] = []
    done = 0
    try:
        with _workers() as pool:
            sizes = []
            for domain in files.domains:
                found = _map_files(pool, lambda _, path: size_of(path), domain.files)
                _check_readable(found)
                sizes.append(np.array(found, np.int64))
                held.check()
            height, width = (min(store_size, max(int(s[:, axis].max()) for s in sizes)) for axis in (0, 1))
            wanted = (pixels is not None) * height * width + (views is not None) * image_size**2
            _check_disk(files.name, folder, total * 3 * wanted)
            for part in (pixels, views):
                if part is not None:
                    part.mkdir()
            for number, domain in enumerate(files.domains):
                n = len(domain.files)
                fingerprint.update(repr((domain.name, domain.labels)).encode())
                stored = _array(pixels, number, (n, height, width, 3))
                evaluation = _array(views, number, (n, image_size, image_size, 3))
                for start in range(0, n, DECODED_AT_ONCE):
                    paths = domain.files[start : start + DECODED_AT_ONCE]
                    for digest in _map_files(
                        pool, partial(_decode, stored, evaluation, image_size, store_size), paths, start
                    ):
                        if isinstance(digest, UserError):
                            unreadable.append(digest)
                        else:
                            fingerprint.update(digest)
                    held.check()
                    progress(done + start + len(paths), total)
                done += n
                for array in (stored, evaluation):
                    if array is not None:
                        array.flush()
        _check_readable(unreadable)
        about: dict[str, Any] = {"version": VERSION, "name": files.name, "root": str(files.root.absolute())}
        about["domains"] = [domain.name for domain in files.domains]
        if pixels is not None:
            about |= {"height": height, "width": width, "fingerprint": fingerprint.hexdigest()}
            np.save(pixels / "original_sizes.npy", np.concatenate(sizes))
        for part in (pixels, views):
            if part is not None:
                (part / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
                if not held.holds():
                    raise ClaimLost("not renewed")
                shutil.rmtree(folder / part.name, ignore_errors=True)  # of one that was half removed
                part.rename(folder / part.name)
    except OSError as error:
        raise UserError(
            f"dataset={files.name}: the image store in {folder} cannot be written: {error.strerror}"
        ) from error
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _array(part: Path | None, number: int, shape: tuple[int, ...]) -> "np.memmap[Any, np.dtype[np.uint8]] | None":
    if part is None:
        return None
    path = part / f"{number}.uint8"
    with path.open("wb") as file:  # all of it now: a disk that fills up later would kill the process
        os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
    return np.memmap(path, np.uint8, "r+", shape=shape)


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
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{pixels_dir} or {views_dir}: damaged ({error}); remove them, they are made again") from error


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    size = int(np.prod(shape))
    if path.stat().st_size != size:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes instead of {size}")
    mapped = np.memmap(path, np.uint8, "r", shape=shape)  # read only: it may be larger than memory
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(mapped)


@contextmanager
def _workers() -> Iterator[Executor]:
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _map_files(
    pool: Executor, function: Callable[[int, Path], T], paths: Sequence[Path], first: int = 0
) -> "list[T | UserError]":
    """`function` of every file and its number, in order; a `UserError` in place of those that cannot be read."""

    def attempt(number: int, path: Path) -> T | UserError:
        try:
            return function(number, path)
        except Exception as error:  # damaged files make PIL raise nearly anything
            return UserError(f"unreadable image {path}: {' '.join(str(error).split()) or type(error).__name__}")

    return list(pool.map(attempt, range(first, first + len(paths)), paths))


def _check_readable(results: Sequence[object]) -> None:
    """Raises a `UserError` that names the first file that could not be read, and counts the others."""
    errors = [result for result in results if isinstance(result, UserError)]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}; replace the file or remove it")


def _check_disk(name: str, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"dataset={name}: its image store needs {needed / 1e9:.1f} GB of disk and {folder} has {free / 1e9:.1f} GB left;"
            " a smaller dataset.store_size or image_size needs less"
        )
