"""Unpacking untrusted archives: everything lands below the target."""

import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from vld.config.errors import UserError, damaged

Progress = Callable[[int, int], None]

# What reading a damaged archive raises, or one with members under a password or with impossible names.
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    LZMAError,
    EOFError,
    RuntimeError,
    ValueError,
)
FIX = "remove it and run this again, or put a whole one there"
GZIP = b"\x1f\x8b"


def unpack(archive: Path, target: Path, progress: Progress) -> None:
    """Unpack a zip or tar file into the new folder `target`; progress(bytes read, bytes of the archive).

    Raises `UserError` where it is no archive, is damaged, or has a path or link that leads out of the target.
    """
    target.mkdir(parents=True)
    if not is_archive(archive):
        raise damaged(archive, "no zip or tar file", FIX)
    try:
        (_unzip if zipfile.is_zipfile(archive) else _untar)(archive, target, progress)
    except DAMAGE as error:
        raise damaged(archive, error, FIX) from error


def is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
    except DAMAGE:
        return False


def _unzip(archive: Path, target: Path, progress: Progress) -> None:
    done, size = 0, archive.stat().st_size
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if ".." in PurePosixPath(info.filename).parts:  # ZipFile would silently put it inside
                raise UserError(f"{archive}: {info.filename} leads out of the folder; do not trust this archive")
            file.extract(info, target)
            done += info.compress_size
            progress(min(done, size), size)


def _extract(archive: Path, stream: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """A folder, a file, or another name of one: tarfile's own filters are not in every Python 3.11 (Debian 12's lacks them)."""
    path = target / member.name.lstrip("/")
    names = [member.name, member.linkname] if member.islnk() else [member.name]
    if any(".." in PurePosixPath(name).parts for name in names):
        raise UserError(f"{archive}: {member.name} leads out of the folder; do not trust this archive")
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.islnk():
        shutil.copyfile(target / member.linkname.lstrip("/"), path)
    elif content := stream.extractfile(member) if member.isfile() else None:
        with path.open("wb") as file:
            shutil.copyfileobj(content, file)
    else:
        raise UserError(f"{archive}: {member.name} is a link or a device; do not trust this archive")


def _untar(archive: Path, target: Path, progress: Progress) -> None:
    size = archive.stat().st_size
    with archive.open("rb") as raw:
        zipped = raw.read(2) == GZIP
        raw.seek(0)
        plain = gzip.GzipFile(fileobj=raw) if zipped else raw  # tarfile's own way looks at no check sum
        with tarfile.open(fileobj=plain, mode="r|" if zipped else "r|*") as stream:
            for member in stream:
                _extract(archive, stream, member, target)
                progress(raw.tell(), size)
        while plain.read(2**20):  # to its end, where the check sum is
            pass
