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
from vld.data.download import DISK_TO_UNPACK, as_they_arrive, fetch
from vld.data.folder import DatasetFiles, find_dataset, list_dataset, missing_dataset
from vld.data.glyphs import draw_glyphs
from vld.data.image_store import open_dataset, source_key, verify_store
from vld.data.unpack import Progress, unpack
from vld.data.verify import check_content
from vld.machine.disk import check_room
from vld.machine.lock import StagingFolder, staging_folder
from vld.machine.terminal import Terminal


def prepare(config: PrepareConfig, terminal: Terminal) -> DatasetFiles:
    """Make the dataset's folder and its image store, unless they exist, and check the content.

    Raises `UserError` that says how to continue.
    """
    dataset, data_dir = config.dataset, Path(config.data_dir)
    try:
        if not (data_dir / dataset.folder).is_dir() and dataset.csv is None:
            _make_folder(config, data_dir / dataset.folder, terminal)
        files = find_dataset(dataset, data_dir)
        for warning in check_content(files, dataset.verify):
            terminal.warn(warning)
        _make_store(config, files, terminal)
    except OSError as error:
        raise UserError(f"data_dir={data_dir}: {error.filename or 'a file'}: {error.strerror or error}") from error
    return files


def _make_folder(config: PrepareConfig, root: Path, terminal: Terminal) -> None:
    name = config.dataset.name
    if root.exists() or root.is_symlink():
        raise UserError(f"data_dir={config.data_dir}: {root} is not a folder but a file, or a link that leads nowhere")
    if name == "glyphs":
        draw_glyphs(root)
    elif source := SOURCES.get(name):
        _fetch_and_arrange(config, source, root, terminal)
    else:
        raise missing_dataset(name, root)


def _make_store(config: PrepareConfig, files: DatasetFiles, terminal: Terminal) -> None:
    """Decode the images, unless that has been done. Raises `UserError` if `verify` finds other images than the store has."""
    name, stores = files.name, Path(config.data_dir) / "stores"
    sizes = (config.image_size, config.dataset.store_size)
    began = time.perf_counter()
    with terminal.counting(f"decoding {name}") as progress:
        dataset = open_dataset(files, [stores], *sizes, progress, announce=terminal.say)
    took = time.perf_counter() - began
    if config.verify:
        with terminal.counting(f"verifying {name}") as progress:
            if different := verify_store(files, dataset, *sizes, progress):
                raise UserError(
                    f"dataset={name}: {len(different)} images differ from those in the store, the first of them {different[0]};"
                    f" remove {stores}/{name}-{source_key(files)}-* and run this again"
                )
    images = sum(len(domain.files) for domain in files.domains)
    size = sum(domain.pixels.nbytes + domain.evaluation.nbytes for domain in dataset.domains)
    terminal.say(
        f"{name}: {images:,} images in {len(files.domains)} domains of {len(files.classes)} classes,"
        f" {'verified, ' if config.verify else ''}fingerprint {dataset.fingerprint[:8]};"
        f" image store in {stores} ({size / 1e9:.2f} GB, {took:.1f} s)"
    )


def _fetch_and_arrange(config: PrepareConfig, source: Source, root: Path, terminal: Terminal) -> None:
    """All work is done in a folder beside `root`; its result becomes `root` once it is complete and correct."""
    dataset = config.dataset
    root.parent.mkdir(parents=True, exist_ok=True)
    images = sum(CONTENTS[dataset.name].domains.values())
    archives = root.parent / "archives" / dataset.name
    to_fetch = sum(one.size for one in source.archives if not (archives / one.file).exists())
    unpacked = int(sum(one.size for one in source.archives) * DISK_TO_UNPACK)
    store = images * 3 * (dataset.store_size**2 + config.image_size**2)
    needed = to_fetch + unpacked + store
    check_room("data_dir", root.parent, needed, "the archives, what they unpack to and the image store")
    if to_fetch:
        terminal.say(f"{to_fetch / 1e9:.1f} GB of archives to fetch")
    staging = root.with_name(f".preparing-{dataset.name}")
    with staging_folder(staging, announce=terminal.say, another="holds the lock") as place:
        if root.is_dir():  # made by the process that this one waited for
            return
        _arrange(dataset, source, archives, place, terminal)
        place.move_out(place.path / "ready", root)
    terminal.say(f"{root} is ready; {archives} can be deleted")


def _arrange(dataset: DatasetConfig, source: Source, archives: Path, place: StagingFolder, terminal: Terminal) -> None:
    """Make the folder `ready`. Each archive is unpacked once it has arrived, while others are still arriving."""
    with terminal.counting_several(in_bytes=True) as bars:
        for path in as_they_arrive(_fetches(dataset, source, archives, terminal, bars)):
            place.lock.check()
            target = place.path / "unpacked" / path.name
            if path.suffix == ".txt":
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                continue
            unpack(path, target, bars(f"unpacking {path.name}"))
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
    """Functions that each fetch an archive into `folder`, with a bar for each and, if there are several, one for all."""
    to_come = {archive.file: archive.size for archive in source.archives if not (folder / archive.file).exists()}
    done = dict.fromkeys(to_come, 0)
    of_all = bars(f"{len(to_come)} archives") if len(to_come) > 1 else None

    def fetched(archive: Archive) -> Path:
        bar = bars(archive.file)

        def count(now: int, total: int) -> None:
            bar(now, total)
            if of_all and archive.file in to_come:
                done[archive.file], to_come[archive.file] = now, max(now, total)  # a mirror's size may differ
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
