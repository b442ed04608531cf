"""Downloads from a server on this machine, and all that goes wrong on the way."""

import hashlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Barrier, Event
from unittest.mock import patch

import pytest
import requests
from archive_server import ArchiveServer

from vld.config.errors import UserError
from vld.data import catalog
from vld.data.download import as_they_arrive, fetch


def progress(_done: int, _total: int) -> None:
    pass


def fetch_pacs(server: ArchiveServer, folder: Path, *, name: str = "PACS.zip", retries: int = 0) -> bytes:
    """What has come, into a folder that nothing else is in."""
    target = folder / "fetched/PACS.zip"
    with patch("vld.data.download.RETRIES", retries):
        fetch(f"{server.url}/{name}", target, None, progress)
    assert [path.name for path in target.parent.iterdir()] == ["PACS.zip"]
    return target.read_bytes()


def test_a_dropped_connection_is_resumed(server: ArchiveServer, archive: bytes, tmp_path: Path) -> None:
    server.files["PACS.zip"] = archive
    server.drops = 2
    told: list[tuple[int, int]] = []
    fetch(f"{server.url}/PACS.zip", tmp_path / "PACS.zip", None, lambda *counts: told.append(counts))
    assert (tmp_path / "PACS.zip").read_bytes() == archive
    starts = [int((wanted or "bytes=0-")[6:-1]) for _, wanted in server.asked]
    assert len(starts) == 3
    assert 0 == starts[0] < len(archive) // 4 < starts[1] < len(archive) // 2 < starts[2]
    assert told[-1] == (len(archive), len(archive))


# What the server has at first, whether it knows ranges later, and what is fetched then.
INTERRUPTED: dict[str, tuple[Callable[[bytes], bytes], bool, str]] = {
    "the same": (lambda archive: archive, True, "PACS.zip"),
    "without ranges": (lambda archive: archive, False, "PACS.zip"),
    "another file of the same size": (lambda archive: archive[::-1], True, "PACS.zip"),
    "another file": (lambda archive: archive[::-1] + b"0", True, "PACS.zip"),
    "another address": (lambda archive: archive[::-1], True, "other.zip"),
}


@pytest.mark.parametrize("what", INTERRUPTED)
def test_an_interrupted_download_is_resumed_next_time(
    what: str, server: ArchiveServer, archive: bytes, tmp_path: Path
) -> None:
    """From a server without ranges it comes again from the beginning, and so does what is another file by then."""
    at_first, server_has_ranges, name = INTERRUPTED[what]
    server.files["PACS.zip"] = at_first(archive)
    server.drops = 1
    with pytest.raises(UserError, match=r"not whole .*; try again, or fetch it with a browser, put it at .*PACS.zip"):
        fetch_pacs(server, tmp_path)
    assert not (tmp_path / "fetched/PACS.zip").exists()
    server.files[name] = archive
    server.ranges = server_has_ranges
    assert fetch_pacs(server, tmp_path, name=name) == archive
    assert any(wanted for _, wanted in server.asked) == (at_first(archive) == archive)


@pytest.mark.parametrize("status", [503, 429])
def test_a_busy_server_is_asked_again_for_the_rest(
    server: ArchiveServer, archive: bytes, tmp_path: Path, status: int
) -> None:
    server.files["PACS.zip"] = archive
    server.drops = 1
    with pytest.raises(UserError):
        fetch_pacs(server, tmp_path)
    [part] = (tmp_path / "fetched/PACS.zip.arriving").glob("*.part")
    came = part.stat().st_size
    assert came > 1_000_000
    server.busy = [None, status, status]  # to the request for the rest, and to the question whether it knows ranges
    with pytest.raises(UserError):
        fetch_pacs(server, tmp_path)
    assert part.stat().st_size == came
    server.busy = [status]
    assert fetch_pacs(server, tmp_path, retries=2) == archive
    assert f"bytes={came}-" in [wanted for _, wanted in server.asked]


def test_a_redirect_and_no_length(server: ArchiveServer, archive: bytes, tmp_path: Path) -> None:
    server.files["moved.zip"] = archive
    server.moved["PACS.zip"] = "/moved.zip"
    server.lengths = False
    fetch(f"{server.url}/PACS.zip", tmp_path / "PACS.zip", hashlib.md5(archive).hexdigest(), progress)
    assert (tmp_path / "PACS.zip").read_bytes() == archive


# What the server does, and what is said of it.
NO_ARCHIVE: dict[str, tuple[Callable[[ArchiveServer], object], str]] = {
    "less than announced": (
        lambda server: vars(server).update(files={"PACS.zip": b"PK" * 999}, announces=10),
        "not whole",
    ),
    "a web page": (
        lambda server: server.pages.update({"PACS.zip": b"<!DOCTYPE html><html><body>Sign in</body></html>"}),
        "a web page instead of an archive",
    ),
    "nothing": (lambda _: None, r"cannot be fetched .*404"),
    "no answer": (
        lambda server: vars(server).update(url="http://127.0.0.1:9"),
        r"put it at .*PACS.zip and run this again",
    ),
}


@pytest.mark.parametrize("what", NO_ARCHIVE)
def test_what_cannot_be_fetched_is_named(what: str, server: ArchiveServer, tmp_path: Path) -> None:
    spoil, said = NO_ARCHIVE[what]
    spoil(server)
    with pytest.raises(UserError, match=said):
        fetch_pacs(server, tmp_path)
    assert not (tmp_path / "fetched/PACS.zip").exists()


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_wrong_list_is_refused(server: ArchiveServer, tmp_path: Path, kind: str) -> None:
    server.files["list.txt"] = b"clipart/cat/000.png"
    digits = hashlib.new(kind).digest_size * 2
    with pytest.raises(UserError, match=rf"its {kind} is .*, expected 0{{{digits}}}; it is kept as .*list.txt.wrong"):
        fetch(f"{server.url}/list.txt", tmp_path / "list.txt", "0" * digits, progress)
    assert not (tmp_path / "list.txt").exists()
    assert (tmp_path / "list.txt.wrong").exists()
    right = hashlib.new(kind, server.files["list.txt"]).hexdigest()
    fetch(f"{server.url}/list.txt", tmp_path / "list.txt", right, progress)


def test_too_little_disk_is_said_before_the_download(
    server: ArchiveServer, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["PACS.zip"] = archive
    monkeypatch.setattr("vld.machine.disk.free_disk", lambda _: len(archive))
    with pytest.raises(UserError, match=r"data_dir: .* MB of disk are needed for PACS.zip and what it unpacks to"):
        fetch(f"{server.url}/PACS.zip", tmp_path / "PACS.zip", None, progress)
    assert not (tmp_path / "PACS.zip").exists()


def test_what_had_come_whole_is_no_hindrance(
    server: ArchiveServer, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before it had its name, or on a disk that then lacked the room to unpack it: there is no rest to ask for."""
    server.files["PACS.zip"] = archive[:1000]
    monkeypatch.setattr("vld.machine.disk.free_disk", lambda _: 0)
    with pytest.raises(UserError, match="disk are needed"):
        fetch_pacs(server, tmp_path)
    [part] = (tmp_path / "fetched/PACS.zip.arriving").glob("*.part")
    assert part.read_bytes() == archive[:1000]
    monkeypatch.undo()
    monkeypatch.setattr("vld.data.download.is_archive", lambda _: True)
    assert fetch_pacs(server, tmp_path) == archive[:1000]


CONFIRM = (
    b'<html><body><form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
    b'<input type="hidden" name="id" value="1JFr8f805nMUelQWWmfnJR3y4_SYoN5Pd">'
    b'<input type="hidden" name="confirm" value="t"></form></body></html>'
)
QUOTA = (
    b'<html><body><p class="uc-error-subcaption">Too many users have viewed or downloaded this file</p></body></html>'
)


@pytest.fixture
def drive(server: ArchiveServer, monkeypatch: pytest.MonkeyPatch) -> ArchiveServer:
    """Google Drive's addresses lead to the server."""
    request = requests.Session.request

    def elsewhere(session: requests.Session, method: str, url: str, **options: object) -> requests.Response:
        there = re.sub(r"https://[\w.]*google(usercontent)?\.com", server.url, url)
        return request(session, method, there, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(requests.Session, "request", elsewhere)
    return server


def test_drive_asks_for_confirmation(drive: ArchiveServer, archive: bytes, tmp_path: Path) -> None:
    drive.pages["uc"] = CONFIRM
    drive.files["download"] = archive
    fetch(catalog.SOURCES["pacs"].archives[0].url, tmp_path / "PACS.zip", None, progress)
    assert (tmp_path / "PACS.zip").read_bytes() == archive
    assert "confirm=t" in drive.asked[-1][0]


def test_drive_s_quota_is_said(drive: ArchiveServer, tmp_path: Path) -> None:
    drive.pages["uc"] = QUOTA
    with pytest.raises(
        UserError, match=r"Google Drive refuses \(Too many users .*\); later try again, or fetch it with"
    ):
        fetch(catalog.SOURCES["pacs"].archives[0].url, tmp_path / "PACS.zip", None, progress)


def test_two_archives_arrive_at_a_time(tmp_path: Path) -> None:
    both, taken = Barrier(2, timeout=60), Event()

    def first_or_second(name: str) -> Path:
        both.wait()
        return tmp_path / name

    def third() -> Path:
        taken.wait(60)
        raise UserError("third: is not there")

    arriving = as_they_arrive([partial(first_or_second, "first"), partial(first_or_second, "second"), third])
    assert {next(arriving).name, next(arriving).name} == {"first", "second"}
    taken.set()
    with pytest.raises(UserError, match="third"):
        next(arriving)
