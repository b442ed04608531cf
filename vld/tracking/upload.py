"""The process that talks to Weights & Biases, so that nothing W&B does can slow, stop or change a run.

It reads run directories and the wishes of the process that started it, a JSON object a line on standard input:
{"follow": directory} streams a run while it trains, {"leave": directory} stops that, {"publish": directory} delivers what has
come out of it. It answers on standard output, and ends when its input does: what it has not delivered by then, it leaves.
"""

import hashlib
import json
import os
import selectors
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import wandb
from filelock import SoftFileLease, Timeout

from vld.config.errors import UserError
from vld.machine.atomic import write_json
from vld.machine.signals import SIGNALS
from vld.tracking import CONFIRM_SECONDS, FINISH_SECONDS, OPEN_SECONDS, PAUSE_SECONDS
from vld.tracking.content import WandbRun, history_of, read_metrics, wandb_run_in_training, wandb_runs

LOOK_EVERY_SECONDS = 2.0
DELIVERED = "wandb.json"
LOCK = ".wandb.lock"
# So many failures in a row mean that W&B is down; one may be the run's own.
FAILURES_IN_A_ROW = 2


class UploadFailed(Exception):  # noqa: N818
    """W&B could not be reached, refused, or was not asked any more."""


class OpenRun:
    """A W&B run, and which step of its history comes next: one that is opened again has the steps before."""

    def __init__(self, run: Any) -> None:
        self.run, self.next_step = run, run.starting_step

    def log(self, history: list[tuple[int, dict[str, float]]]) -> None:
        for step, values in history:
            if step >= self.next_step:
                self.run.log(values, step=step, commit=True)
                self.next_step = step + 1


@dataclass
class Followed:
    """A run that is streamed while it trains."""

    directory: Path
    content: WandbRun
    open: OpenRun
    read: float = 0.0
    """When its metrics.jsonl was written that was read last."""


class Wishes:
    """What the other process asks for, and whether it still asks."""

    def __init__(self, stream: IO[bytes]) -> None:
        os.set_blocking(stream.fileno(), False)
        self.stream, self.buffer, self.ended = stream, b"", False
        self.ready = selectors.DefaultSelector()
        self.ready.register(stream, selectors.EVENT_READ)

    def wait(self, seconds: float) -> list[tuple[str, Path]]:
        """Those that came, after so many seconds at most."""
        if not self.ended and self.ready.select(seconds):
            read = self.stream.read()
            self.ended = read == b""
            self.buffer += read or b""
        *lines, self.buffer = self.buffer.split(b"\n")
        return [(wish, Path(directory)) for line in lines for wish, directory in json.loads(line).items()]


class Delivery:
    def __init__(
        self,
        wishes: Wishes,
        *,
        mode: str,
        project: str | None,
        entity: str | None,
        output_dir: str,
        trainer: int,
        pause: float,
    ) -> None:
        self.wishes, self.output_dir, self.trainer = wishes, output_dir, trainer
        self.waiting: list[tuple[str, Path]] = []
        wandb.setup(wandb.Settings(silent=True))
        self.mode, self.why = resolve_mode(mode)
        settings = wandb.setup().settings
        self.project = project or settings.project or "vld"
        self.entity = entity or settings.entity
        place = settings.base_url if self.mode == "online" else self.mode
        account = hashlib.sha256(str(settings.api_key).encode()).hexdigest()[:8] if self.mode == "online" else "-"
        self.destination = f"{place}/{self.entity or account}/{self.project}"
        self.followed: Followed | None = None
        self.failure, self.failures = "W&B was down a moment ago", 0
        self.paused_until = time.monotonic() + pause

    def serve(self) -> None:
        while not self.wishes.ended:
            self.waiting += self.wishes.wait(0 if self.waiting else LOOK_EVERY_SECONDS)
            self.look()
            if self.waiting and not self.wishes.ended:
                wish, directory = self.waiting.pop(0)
                with suppress(UserError):  # a directory that has just gone: what cannot be published is reported
                    {"follow": self.follow, "leave": self.leave, "publish": self.publish}[wish](directory)
        self.leave()

    def follow(self, directory: Path) -> None:
        """Stream a run's ERM curve from now on. Offline runs are written when they are complete: a killed one keeps nothing."""
        if self.mode != "online" or (self.followed and self.followed.directory == directory):
            return
        self.leave()
        if time.monotonic() < self.paused_until:
            return
        content = wandb_run_in_training(directory)
        with self._trying():
            self.followed = Followed(directory, content, self._open(content, stats=True))

    def look(self) -> None:
        """Pass on what the followed run has written since."""
        if self.followed is None:
            return
        with suppress(OSError, ValueError, KeyError):  # it may just be beginning anew
            written = (self.followed.directory / "metrics.jsonl").stat().st_mtime
            if written != self.followed.read:
                rows = read_metrics(self.followed.directory)
                history = history_of(rows, "erm", self.followed.content.config["batch_size"])
                self.followed.read = written
                with self._trying():
                    self.followed.open.log(history)

    def leave(self, directory: Path | None = None) -> None:
        """Close a run that is followed and has come to no end: it was interrupted, and may go on later."""
        if self.followed and directory in (None, self.followed.directory):
            run, self.followed = self.followed.open.run, None
            with self._trying():
                run.mark_preempting()
                run.finish(exit_code=1)

    def publish(self, directory: Path) -> None:
        """Deliver all of a directory that has not been delivered yet, and say so."""
        try:
            with self._locked(directory):
                delivered = read_delivered(directory)
                before = delivered.setdefault(self.destination, {})
                for content in wandb_runs(directory):
                    known = before.get(content.id, {})
                    if known.get("digest") == content.digest and self._is_there(known):
                        self._close(content, directory)
                        continue
                    self._may_go_on()
                    if self.mode == "offline":
                        others = [
                            run["at"]
                            for place, runs in delivered.items()
                            if place != self.destination
                            for run in runs.values()
                        ]
                        self._remove_copies(content.id, others)
                    before[content.id] = {"digest": content.digest, "at": self._push(content, directory)}
                    write_json(directory / DELIVERED, delivered)
            report(delivered=str(directory), at=[run["at"] for run in before.values()])
        except Exception as error:  # of this directory; the next one may do
            report(not_uploaded=str(directory), why=" ".join(str(error).split()) or type(error).__name__)

    @contextmanager
    def _locked(self, directory: Path) -> Iterator[None]:
        """Two processes that share a directory do not deliver it at the same time."""
        lock = SoftFileLease(directory / LOCK, lease_duration=120)
        while True:
            self._may_go_on()
            try:
                lock.acquire(timeout=5, poll_interval=0.2)
                break
            except Timeout:
                continue
        try:
            yield
        finally:
            lock.release()

    def _may_go_on(self) -> None:
        """A sign of life. Raises `UploadFailed` where nobody asks any more, or W&B is down."""
        report(busy=True)
        self.waiting += self.wishes.wait(0)
        if self.wishes.ended:
            raise UploadFailed("stopped")
        if time.monotonic() < self.paused_until:
            raise UploadFailed(self.failure)

    def _is_there(self, known: dict[str, Any]) -> bool:
        return self.mode == "online" or Path(known["at"]).is_dir()

    def _remove_copies(self, run_id: str, others: list[str]) -> None:
        """Two offline runs of one id would be mixed when they are synchronised. others: of other projects."""
        folder = Path(os.environ.get("WANDB_DIR") or self.output_dir) / "wandb"
        for path in folder.glob(f"offline-run-*-{run_id}"):
            if str(path.absolute()) not in others:
                shutil.rmtree(path, ignore_errors=True)

    def _close(self, content: WandbRun, directory: Path) -> None:
        """End a followed run that another process has delivered meanwhile."""
        if self.followed and (self.followed.directory, self.followed.content.id) == (directory, content.id):
            run, self.followed = self.followed.open.run, None
            with self._trying():
                run.finish(exit_code=1 if content.failed else 0)

    def _push(self, content: WandbRun, directory: Path) -> str:
        """Where the W&B run is then. Raises `UploadFailed`."""
        followed = self.followed if self.followed and self.followed.directory == directory else None
        with self._trying():
            if followed and followed.content.id == content.id:
                opened, self.followed = followed.open, None
            else:
                opened = self._open(content, stats=False)
            run = opened.run
            opened.log(content.history)
            run.config.update(content.config, allow_val_change=True)
            run.summary.update(content.summary)
            report(busy=True)
            run.finish(exit_code=1 if content.failed else 0)
            if self.mode == "online":
                confirm(f"{run.entity}/{run.project}/{content.id}", content)
                at = str(run.url)
            else:
                at = str(Path(run.settings.sync_dir).absolute())
            self.failures = 0
            return at
        raise UploadFailed(self.failure)

    def _open(self, content: WandbRun, *, stats: bool) -> OpenRun:
        """stats: W&B's own, of the process that trains."""
        report(busy=True)
        environment_tags = [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag]
        run = wandb.init(
            mode=self.mode,  # type: ignore[arg-type]
            id=content.id,
            name=content.name,
            group=os.environ.get("WANDB_RUN_GROUP") or content.group,
            job_type=os.environ.get("WANDB_JOB_TYPE") or content.job_type,
            tags=[*content.tags, *environment_tags],
            config=content.config,
            project=self.project,
            entity=self.entity,
            dir=os.environ.get("WANDB_DIR") or self.output_dir,
            resume="allow" if self.mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
                x_disable_stats=not stats,
                x_stats_pid=self.trainer,
                init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT") or OPEN_SECONDS),
            ),
        )
        if run.id != content.id:  # W&B lets some variables go before what it is asked for
            run.finish(exit_code=1)
            raise UploadFailed(f"W&B opened {run.id} in place of {content.id}")
        return OpenRun(run)

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """Whatever wandb raises is remembered; after several failures in a row W&B is left alone for a while."""
        try:
            yield
        except Exception as error:
            text = " ".join(str(error).split())
            self.failure = text if isinstance(error, UploadFailed) else f"{type(error).__name__}: {text}"
            self.failures += 1
            if self.failures >= FAILURES_IN_A_ROW:
                self.paused_until = time.monotonic() + PAUSE_SECONDS
                report(down=True)
            self.followed = None
            with suppress(Exception):
                wandb.teardown(exit_code=1)  # its service may be gone, or keep the run's id as in use


def resolve_mode(asked: str) -> tuple[str, str]:
    """online, offline or disabled, and why. Neither asks anybody nor uses the network."""
    if asked != "auto":
        return asked, f"wandb.mode={asked}"
    of_wandb = str(wandb.setup().settings.mode)
    source = "WANDB_MODE" if os.environ.get("WANDB_MODE") else "the settings of wandb"
    if of_wandb in ("offline", "dryrun", "disabled"):
        return ("disabled" if of_wandb == "disabled" else "offline"), f"so say {source}"
    try:
        if wandb.login(prompt=False, verify=False):
            return "online", "logged in"
    except Exception as error:  # a key that cannot be one
        return "offline", " ".join(str(error).split())
    return "offline", "not logged in: 'wandb login' or WANDB_API_KEY"


def confirm(path: str, content: WandbRun) -> None:
    """Ask the server for the run: what a server refuses, wandb drops without a word. Raises `UploadFailed`."""
    until = time.monotonic() + CONFIRM_SECONDS
    try:
        run = wandb.Api(timeout=int(CONFIRM_SECONDS)).run(path)
        while run.summary_metrics.get("state") != content.summary["state"]:
            if time.monotonic() > until:
                raise UploadFailed(f"W&B did not take what was sent for {content.name}")
            report(busy=True)
            time.sleep(0.5)
            run.load(force=True)
    except UploadFailed:
        raise
    except Exception:  # it cannot be asked: that what was sent has arrived is all that is known
        return


def read_delivered(directory: Path) -> dict[str, dict[str, dict[str, str]]]:
    """What has been delivered to where: {destination: {W&B run: {"digest", "at"}}}; what is damaged counts as nothing."""
    try:
        told = json.loads((directory / DELIVERED).read_text(encoding="utf-8"))
        return {
            str(place): {
                str(run): {"digest": str(known["digest"]), "at": str(known["at"])} for run, known in runs.items()
            }
            for place, runs in told.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


ANSWERS: IO[str] = sys.stdout


def report(**what: Any) -> None:
    with suppress(OSError):  # nobody may be there to read it
        print(json.dumps(what), file=ANSWERS, flush=True)


def main() -> None:
    global ANSWERS
    ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # wandb's words are not for the one who reads the answers
    for number in SIGNALS:  # it ends with its input
        signal.signal(number, signal.SIG_IGN)
    try:
        delivery = Delivery(Wishes(sys.stdin.buffer), **json.loads(sys.argv[1]))
        report(mode=delivery.mode, why=delivery.why)
        if delivery.mode != "disabled":
            delivery.serve()
    except Exception as error:
        report(broken=" ".join(str(error).split()) or type(error).__name__)
        raise


if __name__ == "__main__":
    main()
