"""Free disk space, checked before large files are written below data_dir."""

import shutil
from pathlib import Path

from vld.config.errors import UserError


def free_disk(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Raises `UserError` if `folder` has fewer than `needed` free bytes."""
    if (free := free_disk(folder)) < needed:
        raise UserError(f"data_dir: {needed / 1e9:.1f} GB are needed for {what}, {free / 1e9:.1f} GB are free")
