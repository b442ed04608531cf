"""From nothing to a dataset that is ready to train on: fetch, unpack, arrange, verify, decode."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

from vld.claim import claim
from vld.data.catalog import SOURCES, Archive, Source
from vld.data.download import DISK_TO_UNPACK, fetch
from vld.data.folder import DatasetFiles, find_dataset, list_dataset, missing_dataset
from vld.data.glyphs import draw_glyphs
from vld.data.store import bytes_on_disk, fingerprint_of, open_dataset, source_key
from vld.data.unpack import free_disk, unpack
from vld.data.verify import check_content
from vld.errors import UserError
from vld.settings import DatasetConfig, PrepareConfig
from vld.terminal import Terminal


def prepare(config: PrepareConfig, terminal: Terminal) -> DatasetFiles:
    """Make the dataset's folder, unless it is there, and check what is in it. Raises `UserError` that says how to go on."""
    name, root = config.dataset.name, Path(config.data_dir) / config.dataset.folder
    if not root.is_dir() and config.dataset.csv is None:
        if name == "glyphs":
            draw_glyphs(root)
        elif source := SOURCES.get(name):
            _make(config.dataset, source, root, terminal)
        else:
            raise missing_dataset(name, root)
    files = find_dataset(config.dataset, Path(config.data_dir))
    for warning in check_content(files, config.dataset.verify):
        terminal.warn(warning)
    stores = [Path(config.data_dir) / "stores"]
    began = time.perf_counter()
    with terminal.counting(f"decoding {name}") as progress:
        dataset = open_dataset(
            files, stores, config.image_size, config.dataset.store_size, progress, announce=terminal.say
        )
    took = time.perf_counter() - began
    if config.verify:
        with terminal.counting(f"verifying {name}") as progress:
            if fingerprint_of(files, progress) != dataset.fingerprint:
                raise UserError(
                    f"dataset={name}: its images are not those that {stores[0]} was made from, although their files have the"
                    f" same sizes and times; remove {stores[0]}/{name}-{source_key(files)}-* and run this again"
                )
    images = sum(len(domain.files) for domain in files.domains)
    terminal.say(
        f"{name}: {images:,} images in {len(files.domains)} domains of {len(files.classes)} classes,"
        f" {'verified, ' if config.verify else ''}fingerprint {dataset.fingerprint[:8]};"
        f" image store in {stores[0]} ({bytes_on_disk(stores, files) / 1e9:.2f} GB, {took:.1f} s)"
    )
    return files


def _make(dataset: DatasetConfig, source: Source, root: Path, terminal: Terminal) -> None:
    """Everything happens in a folder beside `root`, which becomes `root` when it is whole and right."""
    staging = root.with_name(f".preparing-{dataset.name}")
    archives = root.parent / "archives" / dataset.name
    try:
        with claim(staging, wait=True, announce=terminal.say):
            if root.is_dir():  # by the process that this one waited for
                return
            try:
                _remove(staging)  # what a process that was killed has left
                for archive in source.archives:
                    url = f"{dataset.mirror.rstrip('/')}/{archive.file}" if dataset.mirror else archive.url
                    if not (archives / archive.file).exists():
                        terminal.say(f"fetching {url}")
                    with terminal.counting(archive.file, in_bytes=True) as progress:
                        fetch(url, archives / archive.file, archive.sha256, progress)
                for archive in source.archives:
                    _unpacked(archive, archives / archive.file, staging / "unpacked" / archive.file, terminal)
                try:
                    source.arrange(staging / "unpacked", staging / "ready")
                    check_content(list_dataset(dataset.name, staging / "ready"), dataset.verify)
                except UserError as error:
                    raise UserError(f"{error}; the archives are in {archives}") from error
                (staging / "ready").rename(root)
            finally:
                _remove(staging)
    finally:
        with suppress(OSError):  # somebody else may be at work in it
            staging.rmdir()
    terminal.say(f"{root} is ready; {archives} can be deleted")


def _unpacked(archive: Archive, path: Path, target: Path, terminal: Terminal) -> None:
    if archive.sha256:  # a list, no archive
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        return
    if (free := free_disk(path.parent)) < (needed := int(path.stat().st_size * DISK_TO_UNPACK)):
        raise UserError(f"data_dir: {needed / 1e9:.1f} GB are needed to unpack {path}, {free / 1e9:.1f} GB are free")
    with terminal.counting(f"unpacking {archive.file}", in_bytes=True) as progress:
        unpack(path, target, progress)


def _remove(staging: Path) -> None:
    for folder in ("unpacked", "ready"):
        shutil.rmtree(staging / folder, ignore_errors=True)
