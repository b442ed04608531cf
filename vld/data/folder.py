"""The images of a dataset: a folder `<root>/<domain>/<class>/*`, or a CSV file; checked before anything is decoded.

Images are in ImageFolder's order: by class, then by path.
"""

import codecs
import csv
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path

from vld.config.errors import UserError
from vld.config.settings import DatasetConfig

NO_IMAGES = ("EPS", "MPEG")
"""Formats that Pillow opens, but not as an image of pixels."""
PLUGINS = ("pillow_heif.HeifImagePlugin", "pillow_jxl")
"""Optional packages that register more formats with Pillow when they are imported."""
SYSTEM_NAMES = (
    "__MACOSX",
    "Thumbs.db",
    "desktop.ini",
    "@eaDir",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
)
"""Files that operating systems leave in folders."""
# With fewer images the 20 % held-out part of a domain would be empty.
FEWEST_IMAGES = 5


IMAGE = "image"
COLUMNS = ("path", "domain", "class")

Listed = dict[str, dict[str, list[Path]]]
"""Images by domain and class, in order."""


@dataclass(frozen=True)
class DomainFiles:
    """One domain: its image files and their class indices, both in ImageFolder's order."""

    name: str
    files: tuple[Path, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class DatasetFiles:
    """A dataset's domains in sorted order; class index = position in `classes` in every domain."""

    name: str
    root: Path
    classes: tuple[str, ...]
    domains: tuple[DomainFiles, ...]
    skipped: dict[str, int] = field(default_factory=dict, compare=False)
    """How many other files lie beside the images: by ending, and `hidden`."""
    truncated: str = DatasetConfig.truncated
    max_megapixels: int = DatasetConfig.max_megapixels

    @property
    def domain_names(self) -> tuple[str, ...]:
        return tuple(domain.name for domain in self.domains)

    @property
    def sizes(self) -> dict[str, int]:
        """Images in each domain."""
        return {domain.name: len(domain.files) for domain in self.domains}


def find_dataset(dataset: DatasetConfig, data_dir: Path) -> DatasetFiles:
    """The dataset that the settings name. Raises `UserError` if it is missing or not a dataset."""
    if dataset.csv is not None:
        files = list_csv(dataset.name, data_dir / dataset.csv)
    else:
        files = list_dataset(dataset.name, data_dir / dataset.folder)
    return replace(files, truncated=dataset.truncated, max_megapixels=dataset.max_megapixels)


@cache
def image_endings() -> frozenset[str]:
    """Endings of the formats that Pillow reads, with the plug-ins that are installed."""
    from PIL import Image, ImageFile  # not for commands that only look

    for plugin in PLUGINS:
        with suppress(ImportError):
            import_module(plugin)
    registered = Image.registered_extensions()  # which imports Pillow's own plug-ins
    stubs = ImageFile.StubImageFile.__subclasses__()  # formats that Pillow knows but cannot read
    return frozenset(
        ending
        for ending, name in registered.items()
        if name in Image.OPEN and name not in NO_IMAGES and Image.OPEN[name][0] not in stubs
    )


def list_csv(name: str, path: Path) -> DatasetFiles:
    """List the images of a CSV file with the columns path (seen from the file's folder), domain and class; more are ignored.

    Raises `UserError` where it cannot be read, or lists what no dataset can be.
    """
    where = f"dataset.csv={path}"
    listed: Listed = {}
    seen: dict[str, tuple[int, str]] = {}
    for number, row in enumerate(_rows(path, where), 2):
        if lacking := [column for column in COLUMNS if not row.get(column)]:
            raise UserError(f"{where}: line {number} has no {lacking[0]}; its columns must be {', '.join(COLUMNS)}")
        file, domain, label = (row[column] for column in COLUMNS)
        if "\0" in file + domain + label:
            raise UserError(f"{where}: line {number} has a null byte; save the file as UTF-8")
        must_be_text = [domain, label] if (path.parent / file).exists() else [domain, label, file]
        if strange := [value for value in must_be_text if value != readable(value)]:
            raise UserError(f"{where}: line {number}, {readable(strange[0])}, is not UTF-8; save the file as UTF-8")
        if domain in (".", "..") or "/" in domain:
            raise UserError(f"{where}: domain {domain} must be the name of a folder")
        first, other = seen.setdefault(os.path.normpath(file), (number, domain))
        if first != number:
            under = f"under two domains, {other} and {domain}" if other != domain else f"twice in domain {domain}"
            raise UserError(f"{where}: lines {first} and {number} list {file} {under}; each image must be listed once")
        listed.setdefault(domain, {}).setdefault(label, []).append(path.parent / file)
    for images in (images for classes in listed.values() for images in classes.values()):
        images.sort(key=lambda file: (str(file.parent), file.name))
    return _checked(DatasetFiles(name, path, (), ()), listed, where)


def _rows(path: Path, where: str) -> list[dict[str, str]]:
    try:
        with path.open("rb") as start:  # what Excel calls Unicode text is UTF-16
            encoding = "utf-16" if start.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
        # Names of files may be in any encoding, as on the disk.
        with path.open(newline="", encoding=encoding, errors="surrogateescape") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def list_dataset(name: str, root: Path) -> DatasetFiles:
    """List a dataset folder. Raises `UserError` if it is missing, has one domain, or has unequal or empty classes."""
    if not root.is_dir():
        raise missing_dataset(name, root)
    skipped: Counter[str] = Counter()
    listed = {domain: _list_domain(root / domain, skipped) for domain in subfolders(root)}
    return _checked(DatasetFiles(name, root, (), (), skipped), listed, f"dataset={name}: {root}")


def _list_domain(folder: Path, skipped: Counter[str]) -> dict[str, list[Path]]:
    """The images of each class. What is no image is counted in `skipped`."""
    classes = subfolders(folder)
    beside = (_kind(entry.name) for entry in folder.iterdir() if entry.name not in classes)
    skipped.update("outside the class folders" if kind == IMAGE else kind for kind in beside)
    return {label: _list_class(folder / label, skipped) for label in classes}


def _list_class(folder: Path, skipped: Counter[str]) -> list[Path]:
    """Images at any depth. Raises where ImageFolder would skip an unreadable folder, or follow a link and see images twice."""

    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})") from error

    found = []
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        skipped.update("hidden" for child in folders if is_hidden(child))
        folders[:] = [child for child in folders if not is_hidden(child)]
        if links := [child for child in folders if Path(parent, child).is_symlink()]:
            raise UserError(f"{Path(parent, links[0])} is a link to a folder; images below a class must be its own")
        kinds = [(_kind(name), name) for name in names]
        skipped.update(kind for kind, _ in kinds if kind != IMAGE)
        found.append((parent, sorted(name for kind, name in kinds if kind == IMAGE)))
    return [Path(parent, name) for parent, names in sorted(found) for name in names]


def _checked(files: DatasetFiles, listed: Listed, where: str) -> DatasetFiles:
    """With these classes and domains. Raises `UserError` for what is no dataset. where: for its message."""
    if len(listed) < 2:
        raise UserError(f"{where}: {len(listed)} domain(s) found; at least 2 are needed to leave one out")
    if empty := [domain for domain, found in listed.items() if not found]:
        raise UserError(f"{where}: domain {empty[0]} has no class folders")
    classes = sorted({label for found in listed.values() for label in found})
    missing = {domain: [label for label in classes if label not in found] for domain, found in listed.items()}
    if gaps := "; ".join(f"{domain} lacks {', '.join(labels)}" for domain, labels in missing.items() if labels):
        raise UserError(f"{where}: every domain must have the same classes, but {gaps}")
    if len(classes) < 2:
        raise UserError(f"{where}: one class only ({classes[0]}); at least 2 are needed")
    domains = []
    for domain, found in sorted(listed.items()):
        if empty := [label for label in classes if not found[label]]:
            endings = ", ".join(sorted(image_endings()))
            raise UserError(f"{where}: domain {domain} has no images of {', '.join(empty)} ({endings})")
        samples = [(file, target) for target, label in enumerate(classes) for file in found[label]]
        if len(samples) < FEWEST_IMAGES:
            raise UserError(f"{where}: domain {domain} has {len(samples)} images; at least {FEWEST_IMAGES} are needed")
        domains.append(DomainFiles(domain, *(tuple(column) for column in zip(*samples, strict=True))))
    return replace(files, classes=tuple(classes), domains=tuple(domains))


def missing_dataset(name: str, root: Path) -> UserError:
    return UserError(
        f"dataset={name}: no folder {root}; it must hold <domain>/<class>/<images>"
        f" (data_dir={root.parent} is where datasets are looked for; python scripts/prepare.py fetches the known ones;"
        " dataset=glyphs needs none)"
    )


def subfolders(folder: Path) -> list[str]:
    """Sorted names, without hidden ones: domains or classes, which are written into results and tables.

    Raises `UserError` for one that is not UTF-8, and for a broken link, which may be one of them.
    """
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    for entry in entries:
        if entry.is_symlink() and not entry.exists():
            raise UserError(
                f"{readable(entry)}: a link to {readable(entry.readlink())}, which cannot be followed; fix or remove it"
            )
    names = sorted(entry.name for entry in entries if entry.is_dir())
    for name in names:
        if name != readable(name):
            raise UserError(f"{folder}: the name of the folder {readable(name)} is not UTF-8; rename it")
    return names


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or left by an operating system. A Mac leaves some beside every image."""
    return name.startswith(".") or name in SYSTEM_NAMES


def readable(path: Path | str) -> str:
    """A path for a message: bytes that are not UTF-8 are written as \\xe9."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _kind(name: str) -> str:
    """`image`, `hidden`, or the ending."""
    if is_hidden(name):
        return "hidden"
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122  (of hundreds of thousands)
    return IMAGE if ending in image_endings() else readable(ending) or "without an ending"
