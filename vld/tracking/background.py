"""The process that uploads run directories to Weights & Biases (`vld.tracking.upload`), as the process that trains uses it."""

import json
import os
import queue
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from vld.config.errors import UserError
from vld.config.settings import WandbConfig
from vld.machine.processes import own_python
from vld.tracking import variables


class Publisher:
    """Has run directories uploaded, one at a time. Nothing here waits for W&B but `connect`, `finish` and the thread.

    say, warn: print a line. Raises `UserError` where a variable of W&B's is not what W&B takes.
    """

    down_until: ClassVar[float] = 0.0
    """After W&B was found to be down, no job of this process starts with it before then (`time.monotonic`)."""
    announced: ClassVar[set[str]] = set()
    """Lines about the mode that have been printed: once is enough for all jobs of a sweep."""

    def __init__(
        self, wandb: WandbConfig, output_dir: str, *, say: Callable[[str], None], warn: Callable[[str], None]
    ) -> None:
        variables.check_environment(wandb.mode)
        self.wandb, self.output_dir, self.say, self.warn = wandb, output_dir, say, warn
        self.mode = "disabled" if variables.is_off(wandb.mode) else wandb.mode
        self.why = f"wandb.mode={wandb.mode}"
        self.problem = ""
        """Why there is no process, if so."""
        self.process: subprocess.Popen[str] | None = None
        self.thread = threading.Thread(target=self._ask, daemon=True)
        self.requests: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.connected = threading.Event()
        self.heard = 0.0
        """When the process last gave a sign of life."""
        self.waiting: dict[str, None] = {}
        """Directories that are still to be uploaded."""
        self.total = 0
        """All that were to be."""
        self.uploaded: dict[str, list[str]] = {}
        """Where the W&B runs of each directory are."""
        self.not_uploaded: dict[str, str] = {}
        """Why the others have none."""

    def started(self, directory: Path) -> None:
        """Stream a run from now on, as it trains."""
        if self.mode != "disabled" and self._is_started():
            self.requests.put(str(directory.absolute()))

    def ended(self, directory: Path) -> None:
        """Upload a finished run, a failed run or a combination; stop streaming a run that is neither."""
        if self.mode != "disabled" and any((directory / name).exists() for name in ("result.json", "failure.json")):
            self.waiting[str(directory.absolute())] = None
            self.total += 1
        self.started(directory)

    def connect(self) -> None:
        """Resolve `mode` (and `why`), without the network. Raises `UserError` if W&B cannot be used."""
        if self.mode != "disabled" and self._is_started():
            self.connected.wait(timeout=variables.patience_seconds())
        if self.problem:
            raise UserError(f"W&B: {self.problem}")

    def finish(self, progress: Callable[[int, int], None] = lambda *_: None) -> None:
        """Wait for all uploads, unless interrupted or W&B stops responding; then print what was uploaded and what was not.

        progress: called with (directories done, all).
        """
        why = "interrupted"
        try:
            why = self._wait(progress)
        finally:
            self._close(why)

    def abandon(self) -> None:
        """`finish` without waiting: the process ends after what it is doing now."""
        self._close("interrupted")

    @property
    def command(self) -> str:
        """Uploads what is left, later."""
        chosen = {"output_dir": self.output_dir, "wandb.project": self.wandb.project, "wandb.entity": self.wandb.entity}
        words = [
            f"{name}={value}" if re.fullmatch(r"[\w./-]+", value) else f'{name}="{value}"'  # for Hydra's own grammar
            for name, value in chosen.items()
            if value
        ]
        return shlex.join(["python", "scripts/publish.py", *words])

    def _is_started(self) -> bool:
        """Start the process unless there is one; whether there is one then."""
        if self.process is None and not self.problem and time.monotonic() > Publisher.down_until:
            options = json.dumps([asdict(self.wandb), self.output_dir])
            try:
                self.process = subprocess.Popen(
                    [*own_python(), "-m", "vld.tracking.upload", options],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,  # Ctrl-C is for the process that trains
                    env=variables.environment_of_uploads(),
                )
                self.thread.start()
            except (OSError, RuntimeError) as error:  # no more processes, for example
                self.problem = f"its process cannot be started: {error}"
        return self.process is not None and not self.problem

    def _ask(self) -> None:
        """In the thread: pass on one request at a time and wait for its answer. Ends with the process."""
        assert self.process and self.process.stdin
        with suppress(OSError, ValueError, EOFError):  # it has ended, or its input is closed
            hello = self._answer()
            self.mode, self.why = hello.get("mode", self.mode), hello.get("why", self.why)
            self.problem = hello.get("problem", "")
            self.connected.set()
            while not self.problem and self.mode != "disabled":
                directory = self.requests.get()
                self._announce()
                print(json.dumps(directory), file=self.process.stdin, flush=True)
                answer = self._answer()
                if answer.get("down"):
                    Publisher.down_until = time.monotonic() + variables.PAUSE_SECONDS
                if "at" in answer:
                    self.uploaded[directory] = answer["at"]
                    self.not_uploaded.pop(directory, None)
                elif "why" in answer and directory in self.waiting:  # else it has been given up
                    self.not_uploaded[directory] = answer["why"]
                if answer.keys() & {"at", "why"}:
                    self.waiting.pop(directory, None)
        self.connected.set()

    def _answer(self) -> dict[str, Any]:
        """The next one of the process. Empty lines are signs of life."""
        assert self.process and self.process.stdout
        for line in self.process.stdout:
            self.heard = time.monotonic()
            if line.strip():
                return dict(json.loads(line))
        raise EOFError

    def _announce(self) -> None:
        lines = []
        if ignored := [name for name in variables.MERGING if os.environ.get(name)]:
            lines.append(f"W&B: {', '.join(ignored)} ignored: each run here is a W&B run of its own, with its own id")
        if self.wandb.mode == "auto":
            others = "wandb.mode=online or disabled" if self.mode == "offline" else "wandb.mode=offline or disabled"
            lines.append(f"W&B: {self.mode} ({self.why}); {others} changes that")
        for line in lines:
            if line not in Publisher.announced:
                Publisher.announced.add(line)
                self.say(line)

    def _wait(self, progress: Callable[[int, int], None]) -> str:
        """Until all is uploaded. Returns why the rest will not be."""
        self.heard = time.monotonic()
        while self.waiting and self.mode != "disabled":
            if not self.thread.is_alive():
                ended = "its process ended without an answer" if self.process else "W&B was down a moment ago"
                return self.problem or ended
            if self.process and time.monotonic() - self.heard > variables.patience_seconds():
                self.process.kill()
                return f"its process has not responded for {variables.patience_seconds():.0f} s"
            progress(self.total - len(self.waiting), self.total)
            time.sleep(0.05)
        progress(self.total, self.total)
        return ""

    def _close(self, why: str) -> None:
        """End the process, and with it the thread; print what was uploaded, and the command that uploads the rest."""
        if self.mode != "disabled":
            self.not_uploaded |= dict.fromkeys(self.waiting, why)
        self.waiting.clear()
        if self.process and self.process.stdin:
            with suppress(OSError):
                self.process.stdin.close()
            self.requests.put("")  # the thread finds the input closed
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=1)  # closing a run that is streamed takes longer, and may
        if self.not_uploaded:
            count, first = len(self.not_uploaded), next(iter(self.not_uploaded.values()))
            of_all = f"{count} of {count + len(self.uploaded)} run directories"
            self.warn(f"W&B: {of_all} were not uploaded ({first}); to upload them: {self.command}")
        places = [place for at in self.uploaded.values() for place in at]
        if places and self.mode == "offline":
            self.say(f"W&B: {len(places)} offline runs in {Path(places[0]).parent}; once logged in: {self.command}")
        elif places:
            self.say(f"W&B: {len(places)} runs at {places[0].rsplit('/runs/', 1)[0]}")
