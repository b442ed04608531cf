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
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vld.config.errors import UserError, damaged
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
from vld.machine.disk import check_room
from vld.machine.lock import StagingFolder, staging_folder

VERSION = 3
"""To be raised whenever the content of stores changes."""
CLOCKS_DIFFER = 2_000_000_000
"""In nanoseconds: some file systems store times to two seconds."""
ABOUT, SIZES, DIGESTS = "about.json", "original_sizes.npy", "digests.npy"
PIXELS, VIEWS = "pixels", "views"

Array = np.memmap[Any, np.dtype[np.uint8]]


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
    if files.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(files.skipped.items()))
        announce(f"dataset={files.name}: skipped {kinds}")
    source, times = _source(files)
    sizes = {PIXELS: store_size, VIEWS: image_size}
    names = {kind: f"{files.name}-{source}-{kind}-{size}" for kind, size in sizes.items()}

    def find() -> dict[str, Path]:
        # Where several folders have one, the first folder's is taken.
        there = ((kind, folder / name) for kind, name in names.items() for folder in reversed(folders))
        return {kind: path for kind, path in there if (path / ABOUT).is_file()}

    if len(find()) < 2:
        folder = _writable(files.name, folders)
        building = folder / f".building-{files.name}-{source}"
        with staging_folder(
            building, announce=lambda line: announce(f"images of {files.name}: {line}"), another="makes the image store"
        ) as place:
            # Without what the process has made that this one waited for.
            if missing := {kind: folder / name for kind, name in names.items() if kind not in find()}:
                _build(files, missing, sizes, place, progress, announce)
        times = []  # nothing to look at again
    store = find()
    if len(store) < 2:
        raise UserError(
            f"dataset={files.name}: its image store was removed while this command was running; run it again"
        )
    try:
        dataset = _opened(files, store, sizes)
        _look_again(files, times, store)
    except (OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError) as error:
        where = f"{store[PIXELS]} or {store[VIEWS]}"
        raise damaged(where, error, "remove them, they are made again") from error
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


def _look_again(files: DatasetFiles, times: list[int], store: dict[str, Path]) -> None:
    """An image that is not older than the store can have been replaced by one of its size and time: decode it and compare.

    Raises `UserError` where one was. What was looked at is trusted from now on.
    """
    now, abouts = time.time_ns(), {part: json.loads((part / ABOUT).read_text()) for part in store.values()}
    trusted = min(about["begun"] for about in abouts.values()) - CLOCKS_DIFFER
    recent = [i for i, changed in enumerate(times) if changed >= trusted]
    if not recent:
        return
    paths = [path for domain in files.domains for path in domain.files]
    digests = dict(zip((paths[i] for i in recent), np.load(store[PIXELS] / DIGESTS)[recent], strict=True))
    found = every_image(files, lambda _, __, path: (path, pixel_digest(read_image(path))), only=digests)
    for path, digest in found:
        if digest != digests[path].tobytes():
            raise UserError(
                f"dataset={files.name}: {readable(path)} was replaced by an image of the same size and time after the image"
                f" store was made; remove {store[PIXELS]} and {store[VIEWS]}, they are made again"
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
    missing: dict[str, Path],
    sizes: dict[str, int],
    place: StagingFolder,
    progress: Progress,
    announce: Callable[[str], None],
) -> None:
    """Make the stores that are missing in one pass over the images. sizes: of the images in either store."""
    about: dict[str, Any] = {"version": VERSION, "name": files.name, "root": readable(files.root.absolute())}
    about |= {"begun": time.time_ns(), "domains": list(files.domain_names)}
    for target in missing.values():  # one that was half removed would be in the way
        shutil.rmtree(target, ignore_errors=True)

    def passed(done: int, of: int) -> None:
        place.lock.check()
        progress(done, of)

    try:
        original_sizes = _sizes(files, place)
        height, width = (min(sizes[PIXELS], int(largest)) for largest in original_sizes.max(0))
        shapes = {PIXELS: (height, width), VIEWS: (sizes[VIEWS], sizes[VIEWS])}
        _check_room(files, [shapes[kind] for kind in missing], place.path)
        arrays = {kind: _arrays(files, place.path / target.name, shapes[kind]) for kind, target in missing.items()}
        digests = every_image(files, _writing(arrays, sizes), passed, announce)
        for array in itertools.chain(*arrays.values()):
            array.flush()
        if PIXELS in missing:
            about |= {"height": height, "width": width, "fingerprint": _fingerprint(files, digests)}
            new = place.path / missing[PIXELS].name
            np.save(new / SIZES, original_sizes)
            np.save(new / DIGESTS, np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1))
        for target in missing.values():
            (place.path / target.name / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
            place.move_out(place.path / target.name, target)
    except OSError as error:
        [folder, *_] = (target.parent for target in missing.values())
        raise UserError(
            f"dataset={files.name}: the image store in {folder} cannot be written: {error.strerror}"
        ) from error


def _writing(arrays: dict[str, list[Array]], sizes: dict[str, int]) -> Callable[[int, int, Path], bytes]:
    """What writes an image into these stores, and returns the digest of its pixels at full size if training's is one of them."""

    def write(domain: int, number: int, path: Path) -> bytes:
        image = read_image(path)
        if VIEWS in arrays:
            arrays[VIEWS][domain][number] = evaluation_view(image, sizes[VIEWS])
        if PIXELS not in arrays:
            return b""
        reduced = stored_pixels(image, sizes[PIXELS])
        arrays[PIXELS][domain][number, : reduced.shape[0], : reduced.shape[1]] = reduced
        return pixel_digest(image)

    return write


def _sizes(files: DatasetFiles, place: StagingFolder) -> NDArray[np.int64]:
    """(height, width) of every image, in order."""
    found = every_image(files, lambda _, __, path: size_of(path, files.max_megapixels), lambda *_: place.lock.check())
    return np.array(found, np.int64)


def _check_room(files: DatasetFiles, shapes: Iterable[tuple[int, int]], folder: Path) -> None:
    needed = sum(files.sizes.values()) * 3 * sum(height * width for height, width in shapes)
    what = "the image store (less with a smaller dataset.store_size or image_size)"
    check_room(f"dataset={files.name}", folder, needed, what)


def _arrays(files: DatasetFiles, part: Path, shape: tuple[int, int]) -> list[Array]:
    """An array per domain of images of this (height, width), in new files in the new folder `part`."""
    part.mkdir()
    arrays: list[Array] = []
    for number, images in enumerate(files.sizes.values()):
        path, whole = part / f"{number}.uint8", (images, *shape, 3)
        with path.open("wb") as file:  # all of it now: a disk that fills up later would kill the process
            os.posix_fallocate(file.fileno(), 0, int(np.prod(whole)))
        arrays.append(np.memmap(path, np.uint8, "r+", shape=whole))
    return arrays


def _fingerprint(files: DatasetFiles, digests: Sequence[bytes]) -> str:
    """A hash of classes, domains, labels and the digests of all images' pixels, in order."""
    whole, images = hashlib.sha256(repr(files.classes).encode()), iter(digests)
    for domain in files.domains:
        whole.update(repr((domain.name, domain.labels)).encode())
        whole.update(b"".join(itertools.islice(images, len(domain.files))))
    return whole.hexdigest()


def _opened(files: DatasetFiles, store: dict[str, Path], sizes: dict[str, int]) -> Dataset:
    about = json.loads((store[PIXELS] / ABOUT).read_text())
    stored = (about["height"], about["width"], 3)
    original = torch.split(torch.from_numpy(np.load(store[PIXELS] / SIZES)), list(files.sizes.values()))
    domains = [
        DomainImages(
            name=domain.name,
            pixels=_mapped(store[PIXELS] / f"{number}.uint8", (len(domain.files), *stored)),
            stored_sizes=original_sizes.clamp(max=sizes[PIXELS]),
            original_sizes=original_sizes,
            evaluation=_mapped(store[VIEWS] / f"{number}.uint8", (len(domain.files), sizes[VIEWS], sizes[VIEWS], 3)),
            labels=torch.tensor(domain.labels, dtype=torch.int64),
        )
        for number, (domain, original_sizes) in enumerate(zip(files.domains, original, strict=True))
    ]
    return Dataset(files.name, files.classes, tuple(domains), about["fingerprint"])


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    size = int(np.prod(shape))
    if path.stat().st_size != size:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes instead of {size}")
    mapped = np.memmap(path, np.uint8, "r", shape=shape)  # read only: it may be larger than memory
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(mapped)
