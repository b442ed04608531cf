"""The image store: a dataset decoded once, into files that are mapped into memory and shared by all processes.

`<folder>/<name>-<source>-pixels-<store_size>/` has the images for training crops, `…-views-<image_size>/` those for evaluation. A
store is there only when it is whole. `<source>` hashes names, sizes and times of the image files and the classes: where one
changes, another store is made. Images whose time is not older than the store are decoded again and compared when it is opened.
"""

import hashlib
import itertools
import json
import os
import shutil
import stat
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vld.config.errors import UserError
from vld.data.decoding import Progress, every_image
from vld.data.folder import DatasetFiles, readable
from vld.data.images import (
    Dataset,
    DomainImages,
    evaluation_view,
    pixel_digest,
    read_image,
    size_of,
    stored_pixels,
)
from vld.machine.atomic import write_json
from vld.machine.lock import StagingFolder, staging_folder

VERSION = 3
"""To be raised whenever the content of stores changes."""
CLOCKS_DIFFER = 2_000_000_000
"""In nanoseconds: some file systems store times to two seconds."""
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

    announce: prints when another process is making the store, what was skipped, and warnings about images. Raises
    `UserError` naming the files that are unreadable or truncated, or where the disk has too little room.
    """
    if files.passed_over:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(files.passed_over.items()))
        announce(f"dataset={files.name}: passed over {kinds}")
    source, times = _source(files)
    names = (f"{files.name}-{source}-pixels-{store_size}", f"{files.name}-{source}-views-{image_size}")

    def find() -> list[Path | None]:
        return [
            next((folder / name for folder in folders if (folder / name / ABOUT).is_file()), None) for name in names
        ]

    if None in find():
        folder = _writable(files.name, folders)
        building = folder / f".building-{files.name}-{source}"
        with staging_folder(
            building, announce=lambda line: announce(f"images of {files.name}: {line}"), another="makes the image store"
        ) as place:
            # Without what the process has made that this one waited for.
            missing = [name if path is None else None for name, path in zip(names, find(), strict=True)]
            if any(missing):
                sizes = (store_size, image_size)
                _build(files, folder, list(zip(missing, sizes, strict=True)), place, progress, announce)
        times = []  # nothing to look at again
    pixels_dir, views_dir = find()
    if pixels_dir is None or views_dir is None:
        raise UserError(
            f"dataset={files.name}: its image store was removed while this command was running; run it again"
        )
    dataset = _opened(files, pixels_dir, views_dir, image_size, store_size)
    _look_again(files, times, pixels_dir, views_dir)
    return dataset


def source_key(files: DatasetFiles) -> str:
    """Changes with the images' files, their order or their classes; not with where they are."""
    return _source(files)[0]


def _source(files: DatasetFiles) -> tuple[str, list[int]]:
    """The key, and the time of every file in nanoseconds. Raises `UserError` for what is no file, or in two domains."""
    digest = hashlib.sha256(repr((VERSION, files.classes, files.truncated)).encode())
    times: list[int] = []
    seen: dict[tuple[int, int], tuple[str, Path]] = {}
    for domain in files.domains:
        digest.update(repr((domain.name, domain.labels)).encode())
        try:
            for path in domain.files:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise UserError(f"unreadable image {readable(path)}: it is not a regular file; remove it")
                other, first = seen.setdefault((status.st_dev, status.st_ino), (domain.name, path))
                # Some network file systems give many files one number, but say of none that it has two names.
                if other != domain.name and (status.st_nlink > 1 or first.resolve() == path.resolve()):
                    raise UserError(
                        f"dataset={files.name}: {readable(first)} and {readable(path)} are one file in two domains, {other} and"
                        f" {domain.name}; an image must be in one, or what is left out is trained on"
                    )
                times.append(status.st_mtime_ns)
                digest.update(os.fsencode(path.name) + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        except OSError as error:
            name, reason = error.filename, error.strerror
            if os.path.islink(name):  # noqa: PTH114  (what the error has is text)
                reason = f"a link to {readable(os.readlink(name))} ({reason})"  # noqa: PTH115
            raise UserError(f"unreadable image {readable(name)}: {reason}; replace the file or remove it") from error
    return digest.hexdigest()[:12], times


def _look_again(files: DatasetFiles, times: list[int], pixels_dir: Path, views_dir: Path) -> None:
    """An image that is not older than the store can have been replaced by one of its size and time: decode it and compare.

    Raises `UserError` where one was. What was looked at is trusted from now on.
    """
    now, abouts = time.time_ns(), {part: json.loads((part / ABOUT).read_text()) for part in (pixels_dir, views_dir)}
    trusted = min(about["begun"] for about in abouts.values()) - CLOCKS_DIFFER
    recent = [i for i, changed in enumerate(times) if changed >= trusted]
    if not recent:
        return
    before, domains, start, digests = set(recent), [], 0, np.load(pixels_dir / "digests.npy")
    for domain in files.domains:
        chosen = [i for i in range(len(domain.files)) if start + i in before]
        paths, labels = zip(*((domain.files[i], domain.labels[i]) for i in chosen), strict=True) if chosen else ((), ())
        domains.append(replace(domain, files=paths, labels=labels))
        start += len(domain.files)
    looked_at = replace(files, domains=tuple(domains))
    found = every_image(looked_at, lambda _, __, path: (path, pixel_digest(read_image(path))))
    for number, (path, digest) in zip(recent, found, strict=True):
        if digest != digests[number].tobytes():
            raise UserError(
                f"dataset={files.name}: {readable(path)} was replaced by an image of the same size and time after the image"
                f" store was made; remove {pixels_dir} and {views_dir}, they are made again"
            )
    with suppress(OSError):  # of a store that cannot be written to they are looked at again
        for part, about in abouts.items():
            write_json(part / ABOUT, about | {"begun": now})


def verify_store(
    files: DatasetFiles, dataset: Dataset, image_size: int, store_size: int, progress: Progress
) -> list[Path]:
    """Decode every image again and return those that differ from the store. Raises `UserError` for unreadable files, and if only
    the fingerprint differs."""

    def compare(domain: int, place: int, path: Path) -> tuple[bool, bytes]:
        image, stored = read_image(path), dataset.domains[domain]
        height, width = stored.stored_sizes[place].tolist()
        same = np.array_equal(stored.pixels[place, :height, :width].numpy(), stored_pixels(image, store_size))
        same = same and np.array_equal(stored.evaluation[place].numpy(), evaluation_view(image, image_size))
        return same, pixel_digest(image)

    compared = every_image(files, compare, progress)
    paths = [path for domain in files.domains for path in domain.files]
    different = [path for path, (same, _) in zip(paths, compared, strict=True) if not same]
    if not different and _fingerprint(files, [digest for _, digest in compared]) != dataset.fingerprint:
        raise UserError(f"dataset={files.name}: the image store has another fingerprint; remove it, it is made again")
    return different


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
    missing: Sequence[tuple[str | None, int]],
    place: StagingFolder,
    progress: Progress,
    announce: Callable[[str], None],
) -> None:
    """Make the stores of pixels and of views, or the one of them that is missing, in one pass over the images.

    missing: for either store, its name, None if it exists, and the size of its images.
    """
    about: dict[str, Any] = {"version": VERSION, "name": files.name, "root": readable(files.root.absolute())}
    about |= {"begun": time.time_ns(), "domains": [domain.name for domain in files.domains]}
    pixels, views = (None if name is None else place.path / name for name, _ in missing)
    store_size, image_size = (size for _, size in missing)
    total = sum(len(domain.files) for domain in files.domains)
    for part in (pixels, views):
        if part is not None:  # one that was half removed would be in the way
            shutil.rmtree(folder / part.name, ignore_errors=True)

    def passed(done: int, of: int) -> None:
        place.lock.check()
        progress(done, of)

    try:
        sizes = _sizes(files, place)
        height, width = (min(store_size, int(largest)) for largest in sizes.max(0))
        wanted = (pixels is not None) * height * width + (views is not None) * image_size**2
        _check_disk(files.name, folder, total * 3 * wanted)
        stored = _arrays(files, pixels, height, width)
        evaluation = _arrays(files, views, image_size, image_size)

        def decode(domain: int, number: int, path: Path) -> bytes:
            """Write an image to the stores. Returns the digest of its pixels at full size, if the store for training is made."""
            image = read_image(path)
            if evaluation:
                evaluation[domain][number] = evaluation_view(image, image_size)
            if not stored:
                return b""
            reduced = stored_pixels(image, store_size)
            stored[domain][number, : reduced.shape[0], : reduced.shape[1]] = reduced
            return pixel_digest(image)

        digests = every_image(files, decode, passed, announce)
        for array in (*stored, *evaluation):
            array.flush()
        if pixels is not None:
            about |= {"height": height, "width": width, "fingerprint": _fingerprint(files, digests)}
            np.save(pixels / "original_sizes.npy", sizes)
            np.save(pixels / "digests.npy", np.frombuffer(b"".join(digests), np.uint8).reshape(total, -1))
        for part in (pixels, views):
            if part is not None:
                (part / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
                place.move_out(part, folder / part.name)
    except OSError as error:
        raise UserError(
            f"dataset={files.name}: the image store in {folder} cannot be written: {error.strerror}"
        ) from error


def _sizes(files: DatasetFiles, place: StagingFolder) -> NDArray[np.int64]:
    """(height, width) of every image, in order."""
    found = every_image(files, lambda _, __, path: size_of(path, files.max_megapixels), lambda *_: place.lock.check())
    return np.array(found, np.int64)


def _arrays(
    files: DatasetFiles, part: Path | None, height: int, width: int
) -> "list[np.memmap[Any, np.dtype[np.uint8]]]":
    """An array per domain, in new files in the new folder `part`; none without a folder."""
    arrays: list[np.memmap[Any, np.dtype[np.uint8]]] = []
    if part is not None:
        part.mkdir()
        for number, domain in enumerate(files.domains):
            shape = (len(domain.files), height, width, 3)
            path = part / f"{number}.uint8"
            with path.open("wb") as file:  # all of it now: a disk that fills up later would kill the process
                os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
            arrays.append(np.memmap(path, np.uint8, "r+", shape=shape))
    return arrays


def _fingerprint(files: DatasetFiles, digests: Sequence[bytes]) -> str:
    """A hash of classes, domains, labels and the digests of all images' pixels, in order."""
    whole, images = hashlib.sha256(repr(files.classes).encode()), iter(digests)
    for domain in files.domains:
        whole.update(repr((domain.name, domain.labels)).encode())
        whole.update(b"".join(itertools.islice(images, len(domain.files))))
    return whole.hexdigest()


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


def _check_disk(name: str, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"dataset={name}: its image store needs {needed / 1e9:.1f} GB of disk and {folder} has {free / 1e9:.1f} GB left;"
            " a smaller dataset.store_size or image_size needs less"
        )
