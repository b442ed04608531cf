"""From nothing to a dataset that is ready to train on: fetch, unpack, arrange, verify, decode."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from vld.config.command_settings import PrepareConfig
from vld.config.errors import UserError
from vld.config.settings import DatasetConfig
from vld.data.catalog import CONTENTS, SOURCES, Archive, Source
from vld.data.download import DISK_TO_UNPACK, Progress, as_they_arrive, fetch
from vld.data.folder import DatasetFiles, find_dataset, list_dataset, missing_dataset
from vld.data.glyphs import draw_glyphs
from vld.data.image_store import open_dataset, source_key, verify_store
from vld.data.unpack import unpack
from vld.data.verify import check_content
from vld.machine.disk import check_room
from vld.machine.lock import StagingFolder, staging_folder
from vld.machine.terminal import Terminal


def prepare(config: PrepareConfig, terminal: Terminal) -> DatasetFiles:
    """Make the dataset's folder and its image store, unless they are there, and check what is in it.

    Raises `UserError` that says how to go on.
    """
    try:
        return _prepare(config, terminal)
    except OSError as error:
        raise UserError(
            f"data_dir={config.data_dir}: {error.filename or 'a file'}: {error.strerror or error}"
        ) from error


def _prepare(config: PrepareConfig, terminal: Terminal) -> DatasetFiles:
    name, root = config.dataset.name, Path(config.data_dir) / config.dataset.folder
    if not root.is_dir() and config.dataset.csv is None:
        if root.exists() or root.is_symlink():
            raise UserError(f"data_dir={config.data_dir}: {root} is no folder (a link that leads nowhere, or a file)")
        if name == "glyphs":
            draw_glyphs(root)
        elif source := SOURCES.get(name):
            _make(config, source, root, terminal)
        else:
            raise missing_dataset(name, root)
    files = find_dataset(config.dataset, Path(config.data_dir))
    for warning in check_content(files, config.dataset.verify):
        terminal.warn(warning)
    stores = [Path(config.data_dir) / "stores"]
    sizes = (config.image_size, config.dataset.store_size)
    began = time.perf_counter()
    with terminal.counting(f"decoding {name}") as progress:
        dataset = open_dataset(files, stores, *sizes, progress, announce=terminal.say)
    took = time.perf_counter() - began
    if config.verify:
        with terminal.counting(f"verifying {name}") as progress:
            if different := verify_store(files, dataset, *sizes, progress):
                raise UserError(
                    f"dataset={name}: {len(different)} images are not what the store has of them, the first of them"
                    f" {different[0]}; remove {stores[0]}/{name}-{source_key(files)}-* and run this again"
                )
    images = sum(len(domain.files) for domain in files.domains)
    size = sum(domain.pixels.nbytes + domain.evaluation.nbytes for domain in dataset.domains)
    terminal.say(
        f"{name}: {images:,} images in {len(files.domains)} domains of {len(files.classes)} classes,"
        f" {'verified, ' if config.verify else ''}fingerprint {dataset.fingerprint[:8]};"
        f" image store in {stores[0]} ({size / 1e9:.2f} GB, {took:.1f} s)"
    )
    return files


def _make(config: PrepareConfig, source: Source, root: Path, terminal: Terminal) -> None:
    """Everything happens in a folder beside `root`, which becomes `root` when it is whole and right."""
    dataset = config.dataset
    root.parent.mkdir(parents=True, exist_ok=True)
    images = sum(CONTENTS[dataset.name].domains.values())
    archives = root.parent / "archives" / dataset.name
    to_fetch = sum(one.size for one in source.archives if not (archives / one.file).exists())
    unpacked = int(sum(one.size for one in source.archives) * DISK_TO_UNPACK)
    store = images * 3 * (dataset.store_size**2 + config.image_size**2)
    check_room(
        "data_dir", root.parent, to_fetch + unpacked + store, "the archives, what they unpack to and the image store"
    )
    if to_fetch:
        terminal.say(f"{to_fetch / 1e9:.1f} GB of archives to fetch")
    staging = root.with_name(f".preparing-{dataset.name}")
    with staging_folder(staging, announce=terminal.say, another="holds the lock") as place:
        if root.is_dir():  # by the process that this one waited for
            return
        _arranged(dataset, source, archives, place, terminal)
        place.move_out(place.path / "ready", root)
    terminal.say(f"{root} is ready; {archives} can be deleted")


def _arranged(dataset: DatasetConfig, source: Source, archives: Path, place: StagingFolder, terminal: Terminal) -> None:
    """Make the folder `ready`. An archive is unpacked as soon as it is there, while others arrive."""
    with terminal.counting_several(in_bytes=True) as bars:
        for path in as_they_arrive(_fetches(dataset, source, archives, terminal, bars)):
            place.lock.check()
            target = place.path / "unpacked" / path.name
            if path.suffix == ".txt":
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                continue
            check_room("data_dir", path.parent, int(path.stat().st_size * DISK_TO_UNPACK), f"what {path} unpacks to")
            unpack(path, target, bars(f"unpacking {path.name}"))
            place.lock.check()
    try:
        if warning := source.arrange(place.path / "unpacked", place.path / "ready"):
            terminal.warn(warning)
        found = list_dataset(dataset.name, place.path / "ready")
        check_content(replace(found, root=archives), dataset.verify, fix="delete them and run this again")
    except UserError as error:
        raise UserError(f"{error} (of the archives in {archives})") from error


def _fetches(
    dataset: DatasetConfig, source: Source, folder: Path, terminal: Terminal, bars: Callable[[str], Progress]
) -> list[Callable[[], Path]]:
    """What fetches each of the archives into `folder`, with a bar for each and, if several are to come, one for all."""
    to_come = {archive.file: archive.size for archive in source.archives if not (folder / archive.file).exists()}
    done = dict.fromkeys(to_come, 0)
    of_all = bars(f"{len(to_come)} archives") if len(to_come) > 1 else None

    def fetched(archive: Archive) -> Path:
        bar = bars(archive.file)

        def count(now: int, total: int) -> None:
            bar(now, total)
            if of_all and archive.file in to_come:
                done[archive.file], to_come[archive.file] = now, max(now, total)  # a mirror's may have another size
                of_all(sum(done.values()), sum(to_come.values()))

        _fetch(dataset, archive, folder / archive.file, count, terminal)
        return folder / archive.file

    return [partial(fetched, archive) for archive in source.archives]


def _fetch(dataset: DatasetConfig, archive: Archive, path: Path, progress: Progress, terminal: Terminal) -> None:
    url = f"{dataset.mirror.rstrip('/')}/{archive.file}" if dataset.mirror else archive.url
    checksum = archive.checksum if dataset.checksum == "strict" else None
    if not path.exists():
        terminal.say(f"fetching {url}")
    try:
        fetch(url, path, checksum, progress)
    except UserError as error:
        if url == archive.url and archive.instead:
            raise UserError(f"{error}; {archive.instead}") from error
        if path.suffix != ".txt" or url == archive.url:
            raise
        terminal.say(f"fetching {archive.url}, which the mirror lacks")
        fetch(archive.url, path, checksum, progress)
