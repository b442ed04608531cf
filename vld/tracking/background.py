"""The handle on the process that copies run directories to Weights & Biases (`vld.tracking.upload`)."""

import json
import os
import re
import shlex
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, ClassVar

from vld.config.settings import WandbConfig
from vld.machine.processes import own_python
from vld.tracking import CONFIRM_SECONDS, FINISH_SECONDS, OPEN_SECONDS, PAUSE_SECONDS
from vld.tracking.environment import MERGING, check_environment, environment_of_uploads, is_off

# So many directories are asked for at a time: a pipe holds no more than some hundreds.
AT_ONCE = 50


def patience_seconds() -> float:
    """The process is given up when it has said nothing for so long: it says something before everything that may take long."""
    opening = float(os.environ.get("WANDB_INIT_TIMEOUT") or OPEN_SECONDS)
    return max(opening, FINISH_SECONDS, CONFIRM_SECONDS) + 30


class Publisher:
    """Asks for runs to be copied; nothing here waits for W&B but `connect`, `close` and `finish`.

    say, warn: print a line. announces: say whether W&B is used online or offline, where the settings leave that open.
    Raises `UserError` where a variable of W&B's is not what W&B takes.
    """

    down_at: ClassVar[float | None] = None
    """When W&B was found down: the next job of this process does not wait for it again."""
    announced: ClassVar[set[str]] = set()
    """What this process has said of the mode: once is enough for all jobs of a sweep."""

    def __init__(
        self,
        wandb: WandbConfig,
        output_dir: str,
        *,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        announces: bool = True,
    ) -> None:
        self.wandb, self.output_dir, self.say, self.warn, self.announces = wandb, output_dir, say, warn, announces
        self.process: subprocess.Popen[bytes] | None = None
        self.wishes: deque[tuple[str, str]] = deque()
        """What has not been passed on yet."""
        self.asked: dict[str, None] = {}
        """Directories to publish that nothing has been heard of yet."""
        self.total = 0
        """How many were ever asked for."""
        self.delivered: dict[str, list[str]] = {}
        """What has been copied: where its W&B runs are."""
        self.not_uploaded: dict[str, str] = {}
        """What has not, and why."""
        check_environment(wandb.mode)
        self.mode = "disabled" if is_off(wandb.mode) else wandb.mode
        self.why = f"wandb.mode={wandb.mode}"
        self.connected = threading.Event()
        self.broken = ""
        self.heard = 0.0

    def started(self, directory: Path) -> None:
        """Stream a run from now on, as it trains."""
        self._wish("follow", directory)

    def ended(self, directory: Path) -> None:
        """Copy a finished run, a failed one or a combination, unless that has been done; leave one that has come to no end."""
        if self.mode == "disabled":
            return
        if not any((directory / name).exists() for name in ("result.json", "failure.json")):
            self._wish("leave", directory)
            return
        self.asked[str(directory.absolute())] = None
        self.total += 1
        self._wish("publish", directory)

    def connect(self) -> tuple[str, str]:
        """online, offline or disabled, and why: what the mode that was asked for comes to; or broken. Uses no network."""
        if self.process is None and self.mode != "disabled" and self._start():
            self.connected.wait(timeout=patience_seconds())
        return ("broken", self.broken) if self.broken else (self.mode, self.why)

    def close(self, progress: Callable[[int, int], None] = lambda *_: None) -> None:
        """Wait until all is copied, or W&B is given up, and let the process end; progress(done, asked for in all)."""
        self.heard = time.monotonic()
        while self.asked:
            self._pass_on()
            if self.process is None or self.process.poll() is not None:
                if self.process is not None:
                    self.reader.join(timeout=5)  # there may be answers that have not been read
                self._give_up(self.broken or "its process ended without a word")
            elif time.monotonic() - self.heard > patience_seconds():
                self.process.kill()
                self._give_up(f"nothing heard of it for {patience_seconds():.0f} s")
            progress(self.total - len(self.asked), self.total)
            time.sleep(0.05)
        progress(self.total - len(self.asked), self.total)
        if self.process is not None:
            self._let_go(self.process)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=1)  # closing a run that was followed takes longer, and may
            self.process = None

    def abandon(self) -> None:
        """Wait for nothing: the process ends with what it is at."""
        self._give_up("interrupted")
        if self.process is not None:
            self._let_go(self.process)

    def finish(self, progress: Callable[[int, int], None]) -> None:
        """`close`, and say what was copied and what was not; interrupted, it says that at once."""
        try:
            self.close(progress)
        except BaseException:
            self.abandon()
            raise
        finally:
            self.summary()

    @property
    def command(self) -> str:
        """What delivers later."""
        chosen = {"output_dir": self.output_dir, "wandb.project": self.wandb.project, "wandb.entity": self.wandb.entity}
        words = [
            f"{name}={value}" if re.fullmatch(r"[\w./-]+", value) else f'{name}="{value}"'  # for Hydra's own grammar
            for name, value in chosen.items()
            if value
        ]
        return shlex.join(["python", "scripts/publish.py", *words])

    def summary(self) -> None:
        """Say what was copied, and what was not, with the command that does it."""
        if self.not_uploaded:
            why = next(iter(self.not_uploaded.values()))
            self.warn(
                f"W&B: {len(self.not_uploaded)} of {len(self.not_uploaded) + len(self.delivered)} run directories were not"
                f" delivered ({why}); {self.command} delivers them"
            )
        places = [place for at in self.delivered.values() for place in at]
        if places and self.mode == "offline":
            folder = Path(places[0]).parent
            self.say(f"W&B: {len(places)} offline runs in {folder}; once logged in: {self.command}")
        elif places:
            self.say(f"W&B: {len(places)} runs at {places[0].rsplit('/runs/', 1)[0]}")

    def _give_up(self, why: str) -> None:
        self.not_uploaded |= dict.fromkeys(self.asked, why)
        self.asked.clear()
        self.wishes.clear()

    def _let_go(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()

    def _wish(self, wish: str, directory: Path) -> None:
        if self.mode != "disabled":
            self.wishes.append((wish, str(directory.absolute())))
            self._pass_on()

    def _pass_on(self) -> None:
        """As much as the pipe holds for sure; a process that reads no more holds nobody up."""
        if self.mode == "disabled" or self.broken or (self.process is None and not self._start()):
            return
        assert self.process is not None
        assert self.process.stdin is not None
        while self.wishes and len(self.asked) - sum(wish == "publish" for wish, _ in self.wishes) < AT_ONCE:
            wish, directory = self.wishes[0]
            try:
                # A line is shorter than what pipes take in one piece: it is written whole or not at all.
                os.write(self.process.stdin.fileno(), json.dumps({wish: directory}).encode() + b"\n")
            except (OSError, ValueError):  # it is full, or the process has gone: `close` finds out
                return
            self.wishes.popleft()

    def _start(self) -> bool:
        """Whether there is a process now."""
        if ignored := [name for name in MERGING if os.environ.get(name)]:
            self._say_once(f"W&B: {', '.join(ignored)} ignored: each run here is a W&B run of its own, with its own id")
        since = None if Publisher.down_at is None else time.monotonic() - Publisher.down_at
        options = {
            "mode": self.wandb.mode,
            "project": self.wandb.project,
            "entity": self.wandb.entity,
            "output_dir": self.output_dir,
            "trainer": os.getpid(),
            "pause": 0.0 if since is None else max(0.0, PAUSE_SECONDS - since),
        }
        try:
            self.process = subprocess.Popen(
                [*own_python(), "-m", "vld.tracking.upload", json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the one who trains
                env=environment_of_uploads(),
            )
        except OSError as error:  # no more processes, say
            self.broken = f"its process cannot be started: {error}"
            return False
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdin.fileno(), False)
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self.reader.start()
        return True

    def _say_once(self, line: str) -> None:
        if line not in Publisher.announced:
            Publisher.announced.add(line)
            self.say(line)

    def _read(self, answers: IO[bytes]) -> None:
        for line in answers:
            answer = json.loads(line)
            self.heard = time.monotonic()
            if mode := answer.get("mode"):
                self.mode, self.why = mode, answer["why"]
                self.connected.set()
                if mode == "disabled":
                    self.asked.clear()
                    self.wishes.clear()
                elif self.announces and self.wandb.mode == "auto":
                    others = "wandb.mode=online or disabled" if mode == "offline" else "wandb.mode=offline or disabled"
                    self._say_once(f"W&B: {mode} ({self.why}); {others} changes that")
            elif directory := answer.get("delivered"):
                self.asked.pop(directory, None)
                self.not_uploaded.pop(directory, None)
                self.delivered[directory] = answer["at"]
            elif directory := answer.get("not_uploaded"):
                if self.asked.pop(directory, 0) is None:
                    self.not_uploaded[directory] = answer["why"]
            elif answer.get("down"):
                Publisher.down_at = time.monotonic()
            elif broken := answer.get("broken"):
                self.broken = broken
        self.connected.set()
