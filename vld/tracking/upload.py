"""The process that uploads run directories, so that nothing W&B does can slow, stop or change a run.

Its input has a directory on each line, as JSON: a run that trains is streamed from then on, at its second time no longer; what
has ended is uploaded. Each is answered by a JSON object on a line, after a first one that says whether W&B is online; empty lines
are signs of life. It ends when its input does: what has not been uploaded by then, it leaves.
"""

import json
import os
import select
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from filelock import SoftFileLease

from vld.config.settings import WandbConfig
from vld.machine.atomic import write_json
from vld.machine.signals import SIGNALS
from vld.runs.reading import read_if_whole
from vld.tracking.client import Client, UploadFailed, in_one_line
from vld.tracking.content import WandbRun, history_of, read_metrics, wandb_run_in_training, wandb_runs

LOOK_EVERY_SECONDS = 2.0
NOTE = "wandb.json"
"""{destination: {W&B run: {"digest", "at"}}}"""
LOCK = ".wandb.lock"


@dataclass
class Followed:
    """A run that is streamed while it trains."""

    directory: Path
    content: WandbRun
    read: float = 0.0
    """When its metrics.jsonl was written that was read last."""


class Uploader:
    def __init__(self, requests: IO[bytes], answers: IO[str], wandb: WandbConfig, output_dir: str) -> None:
        self.requests, self.answers, self.output_dir = requests, answers, output_dir
        self.client = Client(wandb, output_dir, self._alive)
        self.followed: Followed | None = None

    def serve(self) -> None:
        while True:
            if not self._has_input(LOOK_EVERY_SECONDS):
                self.look()
            elif line := self.requests.readline():
                self.answer(**self.do(Path(json.loads(line))))
            else:
                self.leave()
                return

    def answer(self, **what: Any) -> None:
        with suppress(OSError):  # the reader may be gone
            print(json.dumps(what), file=self.answers, flush=True)

    def do(self, directory: Path) -> dict[str, Any]:
        ended = any((directory / name).exists() for name in ("result.json", "failure.json"))
        try:
            if ended:
                return {"at": self.upload(directory)}
            if self.followed and self.followed.directory == directory:
                self.leave()
            else:
                self.follow(directory)
        except Exception as error:  # of this directory; the next one may do
            return {"why": in_one_line(error), "down": self.client.down} if ended else {}
        return {}

    def follow(self, directory: Path) -> None:
        """Stream a run's ERM curve from now on, when online. An offline run is written once it is complete, so that a killed one
        leaves no half copy."""
        if self.client.mode == "online":
            self.leave()
            self.check()
            content = wandb_run_in_training(directory)
            self.client.open(content, stats=True)
            self.followed = Followed(directory, content)

    def look(self) -> None:
        """Send what the followed run has written since the last look."""
        if self.followed:
            with suppress(OSError, ValueError, KeyError, UploadFailed):  # it may just be starting again
                written = (self.followed.directory / "metrics.jsonl").stat().st_mtime
                if written != self.followed.read:
                    content, rows = self.followed.content, read_metrics(self.followed.directory)
                    self.followed.read = written
                    self.client.log(content.id, history_of(rows, content))

    def leave(self) -> None:
        """Close the followed run, which has not ended: it was interrupted, and may be resumed."""
        if self.followed:
            run_id, self.followed = self.followed.content.id, None
            self.client.close(run_id, exit_code=1, interrupted=True)

    def upload(self, directory: Path) -> list[str]:
        """Upload what is new in a directory, and note it in `wandb.json`. Returns where its W&B runs are.

        Raises `UploadFailed`, or `UserError` where the directory cannot be read.
        """
        self.check()
        with SoftFileLease(directory / LOCK, lease_duration=120).acquire(timeout=60):  # no two at the same time
            uploaded = read_if_whole(directory / NOTE)
            known = uploaded.setdefault(self.client.destination, {})
            for content in wandb_runs(directory):
                before = known.get(content.id, {"digest": "", "at": ""})
                there = self.client.mode == "online" or Path(before["at"]).is_dir()
                if there and before["digest"] == content.digest:
                    self.client.close(content.id, int(content.failed))  # streamed here, uploaded by another process
                    continue
                self.check()
                if self.client.mode == "offline":
                    self._remove_copies(content.id, uploaded)
                known[content.id] = {"digest": content.digest, "at": self.client.send(content)}
                write_json(directory / NOTE, uploaded)
        if self.followed and self.followed.directory == directory:
            self.followed = None
        return [run["at"] for run in known.values()]

    def check(self) -> None:
        """Give a sign of life. Raises `UploadFailed` when the other process has stopped waiting, or W&B is down."""
        self._alive()
        if self._has_input(0):  # nothing is asked before the last answer: this is the end
            raise UploadFailed("stopped")
        self.client.check()

    def _alive(self) -> None:
        with suppress(OSError):
            print(file=self.answers, flush=True)

    def _has_input(self, within: float) -> bool:
        """Whether a request, or the end of all requests, arrives within so many seconds."""
        return bool(select.select([self.requests], [], [], within)[0])

    def _remove_copies(self, run_id: str, uploaded: dict[str, Any]) -> None:
        """Earlier offline copies in this project, which `wandb sync` would mix with the new one."""
        elsewhere = [runs for where, runs in uploaded.items() if where != self.client.destination]
        others = [run["at"] for runs in elsewhere for run in runs.values()]
        folder = Path(os.environ.get("WANDB_DIR") or self.output_dir) / "wandb"
        for path in folder.glob(f"offline-run-*-{run_id}"):
            if str(path.absolute()) not in others:
                shutil.rmtree(path, ignore_errors=True)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # wandb may print
    for number in SIGNALS:  # it ends with its input
        signal.signal(number, signal.SIG_IGN)
    wandb, output_dir = json.loads(sys.argv[1])
    try:
        uploader = Uploader(os.fdopen(0, "rb", buffering=0), answers, WandbConfig(**wandb), output_dir)
    except Exception as error:
        print(json.dumps({"problem": in_one_line(error)}), file=answers, flush=True)
        raise
    uploader.answer(mode=uploader.client.mode, why=uploader.client.why)
    if uploader.client.mode != "disabled":
        uploader.serve()


if __name__ == "__main__":
    main()
