"""Apply a function to every image of a dataset, on all processors; failures and warnings name the image."""

import itertools
import os
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, ImageFile

from vld.config.errors import UserError, in_one_line
from vld.data.folder import DatasetFiles, image_endings, readable

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""
Job = tuple[int, int, Path]
"""The domain's number, the image's number in it, and its file."""

DECODED_AT_ONCE = 256
MOST_LINES = 10
KNOWN_TRUNCATED = {
    "vlcs": (
        "LabelMe/car/44b07a801b794b0ebadf75eabe761386",
        "LabelMe/car/a4fc44181c584986888c78fea2c1d310",
        "LabelMe/person/54acb3ec4dbc42d3bcff926091dbadd1",
        "LabelMe/person/7e457522cdcb4790b70f8b7eefb8e4b0",
    ),
    "office_home": ("Art/Notebook/00003",),
}
"""Truncated files in the official archives, without their endings. DomainBed and published results use what there is of them."""


def every_image(
    files: DatasetFiles,
    function: Callable[[int, int, Path], T],
    progress: Progress = lambda *_: None,
    announce: Callable[[str], None] = lambda _: None,
    only: Collection[Path] | None = None,
) -> list[T]:
    """The values of `function` for every image: called with the domain's number, the image's number in it, and the file.

    announce: called with Pillow's warnings, and with the number of truncated files and the name of the first. only: these
    images alone. Raises a
    `UserError` that names the first file that cannot be read, and counts the others.
    """
    image_endings()  # registers plug-ins
    jobs = [(number, i, path) for number, domain in enumerate(files.domains) for i, path in enumerate(domain.files)]
    jobs = jobs if only is None else [job for job in jobs if job[2] in only]
    at_work = threading.local()
    with _warnings_of(at_work) as notes:
        results = _attempts(partial(_attempt, function, at_work), jobs, progress)
        with _pillow(load_truncated=True):  # which holds for all threads, so these come after the others
            for i, (result, job) in enumerate(zip(results, jobs, strict=True)):
                if isinstance(result, UserError) and _may_be_truncated(files, *job):
                    results[i] = again = _attempt(function, at_work, job)
                    if not isinstance(again, UserError):
                        notes.setdefault("truncated: the missing part is grey", {})[job[2]] = None
    done = [result for result in results if not isinstance(result, UserError)]
    if len(done) < len(results):
        raise _refusal([result for result in results if isinstance(result, UserError)])
    _say(files.name, notes, announce)
    return done


def _attempt(function: Callable[[int, int, Path], T], at_work: threading.local, job: Job) -> T | UserError:
    """at_work: where the thread's warnings find the image's path."""
    at_work.path = job[2]
    try:
        return function(*job)
    except Exception as error:  # damaged files make PIL raise nearly anything
        return UserError(f"unreadable image {readable(job[2])}: {in_one_line(error)}")
    finally:
        del at_work.path


def _attempts(attempt: Callable[[Job], T | UserError], jobs: Sequence[Job], progress: Progress) -> list[T | UserError]:
    results: list[T | UserError] = []
    with _pillow(load_truncated=False), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(jobs), DECODED_AT_ONCE):
            results += pool.map(attempt, jobs[start : start + DECODED_AT_ONCE])
            progress(len(results), len(jobs))
    return results


def _may_be_truncated(files: DatasetFiles, number: int, i: int, path: Path) -> bool:
    domain = files.domains[number]
    name = f"{domain.name}/{files.classes[domain.labels[i]]}/{path.stem}"
    return files.truncated == "allow" or name in KNOWN_TRUNCATED.get(files.name, ())


def _refusal(errors: list[UserError]) -> UserError:
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    accept = ", or accept truncated files with dataset.truncated=allow"
    return UserError(
        f"{errors[0]}{more}; replace the file or remove it{accept if 'truncated' in str(errors[0]).lower() else ''}"
    )


@contextmanager
def _pillow(load_truncated: bool) -> Iterator[None]:
    """Set Pillow's global switches. Its limit on pixels is off: `size_of` has its own."""
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, load_truncated
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


@contextmanager
def _warnings_of(at_work: threading.local) -> Iterator[dict[str, dict[Path, None]]]:
    """Collects the warnings that a thread raises while it decodes an image; others are passed on."""
    notes: dict[str, dict[Path, None]] = {}
    with warnings.catch_warnings():
        for category in (UserWarning, RuntimeWarning):
            warnings.simplefilter("always", category)
        show = warnings.showwarning

        def note(message: Warning | str, *rest: Any, **named: Any) -> None:
            if path := getattr(at_work, "path", None):
                notes.setdefault(" ".join(str(message).split()), {})[path] = None
            else:
                show(message, *rest, **named)

        warnings.showwarning = note
        yield notes


def _say(name: str, notes: dict[str, dict[Path, None]], announce: Callable[[str], None]) -> None:
    for message, paths in itertools.islice(sorted(notes.items()), MOST_LINES):
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        announce(f"dataset={name}: {readable(min(paths))}{more}: {message}")
    if len(notes) > MOST_LINES:
        announce(f"dataset={name}: {len(notes) - MOST_LINES} other warnings about images")
