"""Archives, and a server of them on 127.0.0.1, with ranges, and with the misfortunes that downloads meet."""

import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Files = dict[str, bytes]
"""Their content, by their paths."""


def tree(root: Path) -> Files:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def below(folder: str, files: Files) -> Files:
    return {f"{folder}/{path}": content for path, content in files.items()}


def zipped(members: Files) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return archive.getvalue()


def tarred(members: Files) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return archive.getvalue()


@dataclass
class ArchiveServer:
    """files: by the last part of the path. drops: how often a connection is to be cut in the middle."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    pages: dict[str, bytes] = field(default_factory=dict)
    """Answered as web pages."""
    drops: int = 0
    ranges: bool = True
    lengths: bool = True
    """Whether it says how long a file is."""
    moved: dict[str, str] = field(default_factory=dict)
    """Addresses that lead to others, by the last part of the path."""
    announces: int = 0
    """So many bytes more than there are."""
    busy: list[int | None] = field(default_factory=list)
    """What the next requests are answered with, None with what they ask for."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, range) of every request."""

    def serve_folder(self, folder: Path) -> None:
        self.files |= {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def serving_archives() -> Iterator[ArchiveServer]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            server.asked.append((self.path, self.headers.get("Range")))
            if server.busy and (status := server.busy.pop(0)):
                self.send_error(status)
                return
            self.answer()

        def answer(self) -> None:
            wanted = self.headers.get("Range") if server.ranges else None
            name = self.path.split("?")[0].rsplit("/", 1)[-1]
            if place := server.moved.get(name):
                self.send_response(302)
                self.send_header("Location", place)
                self.end_headers()
                return
            if page := server.pages.get(name):
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(page)
                return
            if name not in server.files:
                self.send_error(404)
                return
            content = server.files[name]
            start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Disposition", f'attachment; filename="{name}"')
            self.send_header("ETag", f'"{hash(content)}"')
            if server.lengths:
                self.send_header("Content-Length", str(len(content) - start + server.announces))
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            if server.drops:
                server.drops -= 1
                self.wfile.write(content[start : start + (len(content) - start) // 2])
                self.wfile.flush()
                self.connection.close()
                return
            self.wfile.write(content[start:])

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """Cut connections are meant."""

    http = Server(("127.0.0.1", 0), Handler)
    server = ArchiveServer(f"http://127.0.0.1:{http.server_port}")
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
