"""Archives from strangers: only plain files come out, only below the target, and not without end."""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from vld.config.errors import UserError

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
GZIP = b"\x1f\x8b"
# Images hardly compress. Annotations do, but they are small.
MOST_PER_BYTE, AND_SO_MUCH_MORE = 20, 2**30


def unpack(archive: Path, target: Path, progress: Progress) -> None:
    """Unpack a zip or tar file into the new folder `target`; progress(bytes read, bytes of the archive).

    Raises `UserError` where it is no archive, is damaged, or holds a link, a path that leads out of the target, a file twice, or
    far more than an archive of its size has to.
    """
    target.mkdir(parents=True)
    if not is_archive(archive):
        raise damaged(archive, "no zip or tar file")
    allowed = MOST_PER_BYTE * archive.stat().st_size + AND_SO_MUCH_MORE
    try:
        for name, content in _members(archive, progress):
            path = target / _checked(archive, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                while block := content.read(2**20):
                    allowed -= len(block)
                    if allowed < 0:
                        raise UserError(f"{archive}: unpacks to far more than images do; it is another archive")
                    file.write(block)
    except FileExistsError as error:
        raise UserError(f"{archive}: holds {error.filename} twice, as a file or a folder") from error
    except DAMAGE as error:
        raise damaged(archive, f"{error}") from error


def is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
    except (EOFError, zlib.error, LZMAError, gzip.BadGzipFile):
        return False


def damaged(archive: Path, why: str) -> UserError:
    return UserError(f"{archive}: damaged ({why}); remove it and run this again, or put a whole one there")


def _members(archive: Path, progress: Progress) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, content) of its files. Raises `UserError` for links and devices."""
    size = archive.stat().st_size
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            done = 0
            for info in file.infolist():
                if (info.external_attr >> 16) & 0o170000 == 0o120000:
                    raise UserError(f"{archive}: {info.filename} is a link; an archive of images has none")
                if not info.is_dir():
                    with file.open(info) as content:
                        yield info.filename, content
                done += info.compress_size
                progress(min(done, size), size)
        return
    with archive.open("rb") as raw:
        zipped = raw.read(2) == GZIP
        raw.seek(0)
        plain = gzip.GzipFile(fileobj=raw) if zipped else raw  # tarfile's own way looks at no check sum
        with tarfile.open(fileobj=plain, mode="r|" if zipped else "r|*", tarinfo=_StrictTarInfo) as stream:
            for member in stream:
                if not (member.isfile() or member.isdir()):
                    raise UserError(f"{archive}: {member.name} is a link or a device; an archive of images has none")
                if (inside := stream.extractfile(member)) is not None:
                    yield member.name, inside
                progress(raw.tell(), size)
        while plain.read(2**20):  # to its end, where the check sum is
            pass


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged header, and a file that just stops, for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]  # the end as it should be
                raise
            raise tarfile.ReadError(f"{error}" or "it ends in the middle") from error


def _checked(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise UserError(
            f"{archive}: {name} leads out of the folder that it is unpacked into; do not trust this archive"
        )
    return path
