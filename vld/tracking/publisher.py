"""The handle on the process that copies run directories to Weights & Biases (`vld.tracking.delivery`)."""

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from vld.settings import WandbConfig

# The process is given up when it has said nothing for so long: longer than W&B's own time limits in it.
PATIENCE_SECONDS = 75.0


class Publisher:
    """Asks for runs to be copied; nothing here waits for W&B but `connect`, `wait` and `close`.

    say, warn: print a line. announces: say whether W&B is used online or offline, where the settings leave that open.
    """

    def __init__(
        self,
        wandb: WandbConfig,
        output_dir: str,
        *,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        announces: bool = True,
    ) -> None:
        self.announces = announces
        self.wandb, self.output_dir, self.say, self.warn = wandb, output_dir, say, warn
        self.process: subprocess.Popen[bytes] | None = None
        self.asked: dict[str, None] = {}
        """Directories to publish that nothing has been heard of yet."""
        self.total = 0
        """How many were ever asked for."""
        self.delivered: dict[str, list[str]] = {}
        """What has been copied: where its W&B runs are."""
        self.undelivered: dict[str, str] = {}
        """What has not, and why."""
        # Of WANDB_MODE this much is looked at here, so that no process is started for nothing.
        off = wandb.mode == "auto" and os.environ.get("WANDB_MODE") == "disabled"
        self.mode = "disabled" if off else wandb.mode
        self.why = f"wandb.mode={wandb.mode}"
        self.connected = threading.Event()
        self.broken = ""
        self.heard = 0.0

    def follow(self, directory: Path) -> None:
        """Stream a run from now on, as it trains."""
        self._wish("follow", directory)

    def publish(self, directory: Path) -> None:
        """Copy a finished run, a failed one or a combination, unless that has been done."""
        if self.mode != "disabled" and any((directory / name).exists() for name in ("result.json", "failure.json")):
            self.asked[str(directory.absolute())] = None
            self.total += 1
            self._wish("publish", directory)

    def connect(self) -> tuple[str, str]:
        """online, offline or disabled, and why: what the mode that was asked for comes to. Uses no network."""
        if self.process is None and self.mode != "disabled":
            self._start()
            self.connected.wait(timeout=PATIENCE_SECONDS)
        return self.mode, self.why

    def wait(self, left: int, progress: Callable[[int, int], None] = lambda *_: None) -> None:
        """Until no more than `left` directories are to be copied, or W&B is given up; progress(done, asked for in all)."""
        self.heard = time.monotonic()
        while len(self.asked) > left and self.process is not None:
            if self.process.poll() is not None:
                self.reader.join(timeout=5)  # there may be answers that have not been read
                self._give_up(self.broken or "its process ended without a word")
            elif time.monotonic() - self.heard > PATIENCE_SECONDS:
                self.process.kill()
                self._give_up(f"nothing heard of it for {PATIENCE_SECONDS:.0f} s")
            progress(self.total - len(self.asked), self.total)
            time.sleep(0.05)

    def close(self, progress: Callable[[int, int], None] = lambda *_: None) -> None:
        """Wait for everything that is still to be copied, and let the process end."""
        if self.process is not None:
            assert self.process.stdin is not None
            with suppress(OSError):
                self.process.stdin.close()
            self.wait(0, progress)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=1)  # of a run that was left it takes longer to let go, and may
            self.process = None

    def _give_up(self, why: str) -> None:
        self.undelivered |= dict.fromkeys(self.asked, why)
        self.asked.clear()

    @property
    def command(self) -> str:
        """What delivers later."""
        chosen = {"wandb.project": self.wandb.project, "wandb.entity": self.wandb.entity}
        where = [f"{name}={value}" for name, value in chosen.items() if value]
        return shlex.join(["python", "scripts/publish.py", f"output_dir={self.output_dir}", *where])

    def summary(self) -> None:
        """Say what was copied, and what was not, with the command that does it."""
        if self.undelivered:
            why = next(iter(self.undelivered.values()))
            self.warn(
                f"W&B: {len(self.undelivered)} of {len(self.undelivered) + len(self.delivered)} run directories were not"
                f" delivered ({why}); {self.command} delivers them"
            )
        places = [place for at in self.delivered.values() for place in at]
        if places and self.mode == "offline":
            folder = Path(places[0]).parent
            self.say(f"W&B: {len(places)} offline runs in {folder}; once logged in: {self.command}")
        elif places:
            self.say(f"W&B: {len(places)} runs at {places[0].rsplit('/runs/', 1)[0]}")

    def _wish(self, wish: str, directory: Path) -> None:
        if self.mode == "disabled":
            return
        if self.process is None:
            self._start()
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({wish: str(directory.absolute())}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:  # it has gone; `close` says what was not delivered
            pass

    def _start(self) -> None:
        options = {
            "mode": self.wandb.mode,
            "project": self.wandb.project,
            "entity": self.wandb.entity,
            "output_dir": self.output_dir,
            "trainer": os.getpid(),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vld.tracking.delivery", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the one who trains
        )
        assert self.process.stdout is not None
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self.reader.start()

    def _read(self, answers: IO[bytes]) -> None:
        for line in answers:
            answer = json.loads(line)
            self.heard = time.monotonic()
            if mode := answer.get("mode"):
                self.mode, self.why = mode, answer["why"]
                self.connected.set()
                if mode == "disabled":
                    self.asked.clear()
                elif self.announces and self.wandb.mode == "auto":
                    others = "wandb.mode=online or disabled" if mode == "offline" else "wandb.mode=offline or disabled"
                    self.say(f"W&B: {mode} ({self.why}); {others} changes that")
            elif directory := answer.get("delivered"):
                self.asked.pop(directory, None)
                self.undelivered.pop(directory, None)
                self.delivered[directory] = answer["at"]
            elif directory := answer.get("undelivered"):
                self.asked.pop(directory, None)
                self.undelivered[directory] = answer["why"]
            elif broken := answer.get("broken"):
                self.broken = broken
