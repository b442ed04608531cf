"""Downloading an archive: resumed after an interruption, retried, verified, and given its name only once it is complete."""

import hashlib
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import gdown
import requests
from gdown.exceptions import DownloadError, FileURLRetrievalError

from vld.config.errors import UserError, in_one_line
from vld.data.unpack import Progress, is_archive
from vld.machine.disk import check_room

AT_A_TIME = 2
RETRIES = 5
TIMEOUT_SECONDS = 60.0
# An archive of images unpacks to about its own size.
DISK_TO_UNPACK = 1.2


def as_they_arrive(fetches: list[Callable[[], Path]]) -> Iterator[Path]:
    """The results of these functions, in the order in which they end; `AT_A_TIME` run at once. The first failure is raised.

    Their threads end with the process, so that stopping it does not wait for a server that does not answer.
    """
    waiting, ended = iter(fetches), SimpleQueue[Future[Path]]()

    def work() -> None:
        for fetch_one in waiting:  # a list's iterator gives each to one thread
            its = Future[Path]()
            try:
                its.set_result(fetch_one())
            except Exception as error:
                its.set_exception(error)
            ended.put(its)

    for _ in range(AT_A_TIME):
        Thread(target=work, daemon=True).start()
    for _ in fetches:
        yield ended.get().result()


def fetch(url: str, target: Path, checksum: str | None, progress: Progress) -> None:
    """Download `url` to `target`, unless it exists; progress(bytes, bytes in all). A partial download is kept for the next time.

    Answers Google Drive's confirmation page and recognises its quota page. Raises `UserError` that says how to fetch it by hand.
    """
    if target.exists():
        _check(target, checksum, url, target)
        return

    def count(done: int, total: int | None) -> None:
        if total is not None:
            needed = int(total - done + total * DISK_TO_UNPACK)
            check_room("data_dir", target.parent, needed, f"{target.name} and what it unpacks to")
        progress(done, total or 0)

    by_hand = (
        f"try again, or fetch it with a browser, put it at {target} and run this again;"
        f" or set dataset.mirror to the address of a folder that has {target.name}"
    )
    arriving = target.with_name(f"{target.name}.arriving")
    arriving.mkdir(parents=True, exist_ok=True)
    whole = arriving / target.name
    try:
        _download(url, whole, count)
    except FileURLRetrievalError as error:
        reason = " ".join(line.strip() for line in str(error).split("\n\n")[1].split())
        raise UserError(f"{url}: Google Drive refuses ({reason}); later {by_hand}") from error
    except DownloadError as error:
        raise UserError(f"{url}: not whole ({in_one_line(error)}); {by_hand}") from error
    except (requests.RequestException, ValueError) as error:
        raise UserError(f"{url}: cannot be fetched ({in_one_line(error)}); {by_hand}") from error
    try:
        _check(whole, checksum, url, target)
    except UserError:
        whole.unlink(missing_ok=True)
        raise
    whole.rename(target)
    shutil.rmtree(arriving)


def _download(url: str, whole: Path, progress: Callable[[int, int | None], None]) -> None:
    """Resume an earlier download if the address still has the same file. Ask a busy server again."""
    source = whole.with_name("source")
    before, _, known = source.read_text().partition("\n") if source.exists() else ("", "", "")
    version = _version(url)
    if before != url or (known and version and known != version):
        _forget(whole)
        known = version
    source.write_text(f"{url}\n{known or version}")
    for attempt in itertools.count():
        try:
            gdown.download(
                url,
                str(whole),
                quiet=True,
                resume=True,
                retries=RETRIES,
                timeout=TIMEOUT_SECONDS,
                use_cookies=False,
                progress=progress,
            )
            return
        except (DownloadError, requests.HTTPError) as error:
            unranged = "byte range" in str(error)
            if unranged and not _has_the_rest(url, whole):
                _forget(whole)  # from the beginning, then
            elif not (unranged or _is_busy(error)) or attempt == RETRIES:
                raise
            else:
                time.sleep(min(2**attempt, 30))


def _forget(whole: Path) -> None:
    for part in whole.parent.glob(f"{whole.name}*"):
        part.unlink()


def _version(url: str) -> str:
    """The server's ETag or date of the file, and its size: other ones are of another file. Empty where it tells none.

    Google Drive answers with a page; its files are known by their identifier and their check sum.
    """
    try:
        headers = {"Accept-Encoding": "identity"}
        answer = requests.head(url, headers=headers, allow_redirects=True, timeout=TIMEOUT_SECONDS)
    except requests.RequestException:
        return ""
    if not answer.ok or answer.headers.get("Content-Type", "").startswith("text/html"):
        return ""
    parts = (answer.headers.get("ETag") or answer.headers.get("Last-Modified"), answer.headers.get("Content-Length"))
    return " ".join(part for part in parts if part)


def _has_the_rest(url: str, whole: Path) -> bool:
    """False only if the server answers a request for it with the whole file, or there is none: all had come."""
    there = sum(part.stat().st_size for part in whole.parent.glob(f"{whole.name}*"))
    with requests.get(url, headers={"Range": f"bytes={there}-"}, stream=True, timeout=TIMEOUT_SECONDS) as response:
        return response.status_code not in (200, 416)


def _is_busy(error: Exception) -> bool:
    response = error.response if isinstance(error, requests.HTTPError) else None
    return response is not None and response.status_code in (429, 500, 502, 503, 504)


def _check(path: Path, checksum: str | None, url: str, target: Path) -> None:
    """Raises `UserError` if `path`, which is or becomes `target`, is no archive or has the wrong checksum."""
    if target.suffix != ".txt" and not is_archive(path):
        with path.open("rb") as file:
            start = file.read(512).lstrip().lower()
        what = "a web page" if start.startswith((b"<!doctype html", b"<html")) else "no zip or tar file"
        raise UserError(
            f"{target}: {what} instead of an archive, from {url}; fetch it with a browser, put it there and run this again"
        )
    if checksum is not None:
        kind = "md5" if len(checksum) == 32 else "sha256"
        with path.open("rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        if found != checksum:
            kept = target.with_name(f"{target.name}.wrong")
            path.replace(kept)
            raise UserError(
                f"{target}: not the known file, from {url}: its {kind} is {found}, expected {checksum}; it is kept as {kept}."
                f" Put the right one at {target}, or rename this one back and set dataset.checksum=off, and run this again"
            )
