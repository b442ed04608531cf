"""Free disk space, checked before large files are written."""

import shutil
from pathlib import Path

from vld.config.errors import UserError
from vld.machine.terminal import size_text


def free_disk(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def check_room(setting: str, folder: Path, needed: int, what: str, *, held: int = 0) -> None:
    """Raises `UserError` if the disk of `folder` has fewer than `needed` free bytes.

    setting: that decides on the disk or the bytes. held: bytes of files that will be replaced.
    """
    if (free := free_disk(folder) + held) < needed:
        raise UserError(f"{setting}: {size_text(needed)} of disk are needed for {what}; {size_text(free)} are free")
