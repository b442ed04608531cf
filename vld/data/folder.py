"""The images of a dataset: a folder `<root>/<domain>/<class>/*`, or a CSV file; checked before anything is decoded.

Images are in ImageFolder's order: by class, then by path.
"""

import codecs
import csv
import os
from collections import Counter
from collections.abc import Iterator
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
    passed_over: dict[str, int] = field(default_factory=dict, compare=False)
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
    return frozenset(
        ending
        for ending, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in NO_IMAGES and not _is_stub(Image.OPEN[name][0], ImageFile.StubImageFile)
    )


def _is_stub(reader: object, stub: type) -> bool:
    """Whether Pillow knows the format but cannot read it."""
    return isinstance(reader, type) and issubclass(reader, stub)


def list_csv(name: str, path: Path) -> DatasetFiles:
    """List the images of a CSV file with the columns path (seen from the file's folder), domain and class; more are ignored.

    Raises `UserError` where it cannot be read, or lists what no dataset can be.
    """
    where = f"dataset.csv={path}"
    try:
        with path.open("rb") as start:  # what Excel calls Unicode text is UTF-16
            encoding = "utf-16" if start.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
        # Names of files may be in any encoding, as on the disk.
        with path.open(newline="", encoding=encoding, errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    columns = ("path", "domain", "class")
    for number, row in enumerate(rows, 2):
        if lacking := [column for column in columns if not row.get(column)]:
            raise UserError(f"{where}: line {number} has no {lacking[0]}; its columns must be {', '.join(columns)}")
        named = [row[column] for column in columns[1:]]
        if not (path.parent / row["path"]).exists():
            named.append(row["path"])
        if strange := [value for value in named if value != readable(value)]:
            raise UserError(f"{where}: line {number}, {readable(strange[0])}, is not UTF-8; save the file as UTF-8")
    listed: dict[str, dict[str, list[Path]]] = {}
    seen: dict[str, tuple[int, str]] = {}
    for number, row in enumerate(rows, 2):
        first, domain = seen.setdefault(os.path.normpath(row["path"]), (number, row["domain"]))
        if domain != row["domain"]:
            raise UserError(
                f"{where}: lines {first} and {number} list {row['path']} under two domains, {domain} and {row['domain']};"
                " an image must be in one, or what is left out is trained on"
            )
        listed.setdefault(row["domain"], {}).setdefault(row["class"], []).append(path.parent / row["path"])
    if len(listed) < 2:
        raise UserError(f"{where}: lists {len(listed)} domain(s); at least 2 are needed to leave one out")
    for domain in listed:
        if domain in (".", "..") or "/" in domain:
            raise UserError(f"{where}: domain {domain} must be the name of a folder")
    _check_equal_classes(name, {domain: sorted(classes) for domain, classes in listed.items()})
    classes = sorted(next(iter(listed.values())))
    if len(classes) < 2:
        raise UserError(f"{where}: lists one class only ({classes[0]}); at least 2 are needed")
    domains = []
    for domain in sorted(listed):
        samples = [
            (file, i)
            for i, label in enumerate(classes)
            for file in sorted(listed[domain][label], key=lambda file: (str(file.parent), file.name))
        ]
        [(most, times)] = Counter(file for file, _ in samples).most_common(1)
        if times > 1:
            raise UserError(f"{where}: lists {most} twice in domain {domain}")
        _check_enough(name, domain, len(samples))
        domains.append(DomainFiles(domain, tuple(file for file, _ in samples), tuple(i for _, i in samples)))
    return DatasetFiles(name, path, tuple(classes), tuple(domains))


def list_dataset(name: str, root: Path) -> DatasetFiles:
    """List a dataset folder. Raises `UserError` if it is missing, has one domain, or has unequal or empty classes."""
    if not root.is_dir():
        raise missing_dataset(name, root)
    names = subfolders(root)
    _check_readable(name, names)
    if len(names) < 2:
        raise UserError(
            f"dataset={name}: {root} has {len(names)} domain folder(s); at least 2 are needed to leave one out"
        )
    class_lists = {domain: subfolders(root / domain) for domain in names}
    for domain, found in class_lists.items():
        _check_readable(name, found)
        if not found:
            raise UserError(f"dataset={name}: domain {domain} has no class folders in {root / domain}")
    _check_equal_classes(name, class_lists)
    classes = class_lists[names[0]]
    if len(classes) < 2:
        raise UserError(f"dataset={name}: {root} has one class only ({classes[0]}); at least 2 are needed")
    passed_over: Counter[str] = Counter()
    domains = tuple(_list_domain(name, root / domain, classes, passed_over) for domain in names)
    return DatasetFiles(name, root, tuple(classes), domains, passed_over)


def missing_dataset(name: str, root: Path) -> UserError:
    return UserError(
        f"dataset={name}: no folder {root}; it must hold <domain>/<class>/<images>"
        f" (data_dir={root.parent} is where datasets are looked for; python scripts/prepare.py fetches the known ones;"
        " dataset=glyphs needs none)"
    )


def subfolders(folder: Path) -> list[str]:
    """Sorted names, without hidden ones. Raises `UserError` for a broken link, which may be one of them."""
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    for entry in entries:
        if entry.is_symlink() and not entry.exists():
            raise UserError(
                f"{readable(entry)}: a link to {readable(entry.readlink())}, which cannot be followed; fix or remove it"
            )
    return sorted(entry.name for entry in entries if entry.is_dir())


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or left by an operating system. A Mac leaves some beside every image."""
    return name.startswith(".") or name in SYSTEM_NAMES


def readable(path: Path | str) -> str:
    """A path for a message: bytes that are not UTF-8 are written as \\xe9."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _check_readable(name: str, folders: list[str]) -> None:
    """Domains and classes are written into results and tables."""
    for folder in folders:
        if folder != readable(folder):
            raise UserError(f"dataset={name}: the name of the folder {readable(folder)} is not UTF-8; rename it")


def _check_equal_classes(name: str, class_lists: dict[str, list[str]]) -> None:
    everything = sorted(set().union(*class_lists.values()))
    gaps = [
        f"{domain} lacks {', '.join(missing)}"
        for domain, found in class_lists.items()
        if (missing := sorted(set(everything) - set(found)))
    ]
    if gaps:
        raise UserError(f"dataset={name}: every domain must have the same classes, but {'; '.join(gaps)}")


def _check_tree(name: str, folder: Path) -> None:
    """Raises where ImageFolder would skip an unreadable folder, or follow a link and see images twice."""

    def unreadable(error: OSError) -> None:
        raise UserError(f"dataset={name}: {error.filename} cannot be read ({error.strerror})") from error

    for class_folder in folder.iterdir():
        if class_folder.is_dir() and not is_hidden(class_folder.name):
            for parent, folders, _ in os.walk(class_folder, onerror=unreadable):
                folders[:] = [child for child in folders if not is_hidden(child)]
                for link in (Path(parent, child) for child in folders if Path(parent, child).is_symlink()):
                    raise UserError(
                        f"dataset={name}: {link} is a link to a folder; images below a class must be its own"
                    )


def _list_domain(name: str, folder: Path, classes: list[str], passed_over: Counter[str]) -> DomainFiles:
    """What is no image is counted in `passed_over`."""
    _check_tree(name, folder)
    beside = (_kind(entry.name) for entry in folder.iterdir() if entry.name not in classes)
    passed_over.update("outside the class folders" if kind == "image" else kind for kind in beside)
    samples = []
    for target, label in enumerate(classes):
        for parent, names in sorted(_walk(folder / label, passed_over)):
            for file in sorted(names):
                if _kind(file) == "image":
                    samples.append((os.path.join(parent, file), target))  # noqa: PTH118  (of hundreds of thousands)
                else:
                    passed_over[_kind(file)] += 1
    if not samples:
        raise UserError(
            f"dataset={name}: domain {folder.name} has no images in {folder} ({', '.join(sorted(image_endings()))})"
        )
    there = {target for _, target in samples}
    empty = [label for i, label in enumerate(classes) if i not in there]
    if empty:
        raise UserError(f"dataset={name}: domain {folder.name} has no images of {', '.join(empty)}")
    _check_enough(name, folder.name, len(samples))
    return DomainFiles(folder.name, tuple(Path(path) for path, _ in samples), tuple(target for _, target in samples))


def _walk(folder: Path, passed_over: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Folders below, without the hidden ones, and the names of their files."""
    for parent, folders, names in os.walk(folder):
        passed_over.update("hidden" for child in folders if is_hidden(child))
        folders[:] = [child for child in folders if not is_hidden(child)]
        yield parent, names


def _kind(name: str) -> str:
    """`image`, `hidden`, or the ending."""
    if is_hidden(name):
        return "hidden"
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122  (of hundreds of thousands)
    return "image" if ending in image_endings() else readable(ending) or "without an ending"


def _check_enough(name: str, domain: str, images: int) -> None:
    if images < FEWEST_IMAGES:
        raise UserError(f"dataset={name}: domain {domain} has {images} images; at least {FEWEST_IMAGES} are needed")
