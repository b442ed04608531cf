"""The process that talks to Weights & Biases, so that nothing W&B does can slow, stop or change a run.

It reads run directories and the wishes of the process that started it, a JSON object a line on standard input:
{"follow": directory} streams a run while it trains, {"publish": directory} delivers what has come out of it. It answers on
standard output, and ends when its input does.
"""

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

from vld.errors import UserError
from vld.runs.atomic import write_json
from vld.tracking.content import WandbRun, history_of, read_metrics, wandb_run_in_training, wandb_runs

LOOK_EVERY_SECONDS = 2.0
INIT_SECONDS, FINISH_SECONDS = 20.0, 40.0
# After W&B could not be reached, nothing is tried for so long: a sweep must not wait for it again and again.
PAUSE_SECONDS = 300.0
DELIVERED = "wandb.json"


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


class Delivery:
    def __init__(self, mode: str, project: str | None, entity: str | None, output_dir: str, trainer: int) -> None:
        self.output_dir, self.trainer = output_dir, trainer
        wandb.setup(wandb.Settings(silent=True))
        settings = wandb.setup().settings
        self.mode, self.why = resolve_mode(mode)
        self.project = project or settings.project or "vld"
        self.entity = entity or settings.entity
        place = settings.base_url if self.mode == "online" else self.mode
        self.destination = f"{place}/{self.entity or '-'}/{self.project}"
        self.followed: Followed | None = None
        self.failed_at: float | None = None
        self.failure = ""

    def follow(self, directory: Path) -> None:
        """Stream a run's ERM curve from now on. Offline runs are written when they are complete: a killed one keeps nothing."""
        if self.mode != "online" or (self.followed and self.followed.directory == directory):
            return
        self.leave()
        if self._pausing():
            return
        content = wandb_run_in_training(directory)
        with self._trying():
            self.followed = Followed(directory, content, self._open(content, stats=True))

    def look(self) -> None:
        """Pass on what the followed run has written since."""
        if self.followed is None:
            return
        with suppress(OSError, ValueError):  # it may just be beginning anew
            written = (self.followed.directory / "metrics.jsonl").stat().st_mtime
            if written != self.followed.read:
                rows = read_metrics(self.followed.directory)
                self.followed.read = written
                with self._trying():
                    batch_size = self.followed.content.config["batch_size"]
                    self.followed.open.log(history_of(rows, "erm", batch_size))

    def leave(self) -> None:
        """Close a run that is followed and has come to no end: it was interrupted, and may go on later."""
        if self.followed:
            with self._trying():
                self.followed.open.run.mark_preempting()
                self.followed.open.run.finish(exit_code=1)
            self.followed = None

    def publish(self, directory: Path) -> None:
        """Deliver all of a directory that has not been delivered yet, and say so."""
        try:
            contents = wandb_runs(directory)
            lock = SoftFileLease(directory / ".wandb.lock", lease_duration=120)
            with lock.acquire(timeout=3 * (INIT_SECONDS + FINISH_SECONDS), poll_interval=0.2):
                delivered = read_delivered(directory)
                before = delivered.setdefault(self.destination, {})
                for content in contents:
                    report(busy=content.name)
                    known = before.get(content.id, {})
                    if known.get("digest") == content.digest:
                        continue
                    if self._pausing():
                        raise NotDelivered(self.failure)
                    before[content.id] = {"digest": content.digest, "at": self._push(content, directory)}
                    if (old := known.get("at")) and self.mode == "offline":
                        remove_offline_run(Path(old), content.id)
                    write_json(directory / DELIVERED, delivered)
            report(delivered=str(directory), at=[run["at"] for run in before.values()])
        except (UserError, NotDelivered, Timeout, OSError) as error:
            report(undelivered=str(directory), why=" ".join(str(error).split()))

    def _push(self, content: WandbRun, directory: Path) -> str:
        """Where the W&B run is then. Raises `NotDelivered`."""
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
            at = str(run.settings.sync_dir if self.mode == "offline" else run.url)
            run.finish(exit_code=1 if content.failed else 0)
            return at
        raise NotDelivered(self.failure)

    def _open(self, content: WandbRun, *, stats: bool) -> OpenRun:
        """stats: W&B's own, of the process that trains."""
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
                init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT") or INIT_SECONDS),
            ),
        )
        return OpenRun(run)

    def _pausing(self) -> bool:
        return self.failed_at is not None and time.monotonic() - self.failed_at < PAUSE_SECONDS

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """Whatever wandb raises is remembered, and W&B left alone for a while."""
        try:
            yield
        except Exception as error:
            text = " ".join(str(error).split())
            self.failure = f"{type(error).__name__}: {text}" if text else type(error).__name__
            self.failed_at = time.monotonic()
            self.followed = None
            with suppress(Exception):
                wandb.teardown(exit_code=1)  # its service may be gone, or keep the run's id as in use


class NotDelivered(Exception):  # noqa: N818
    """W&B could not be reached, or refused."""


def resolve_mode(asked: str) -> tuple[str, str]:
    """online, offline or disabled, and why. Neither asks anybody nor uses the network."""
    if asked != "auto":
        return asked, f"wandb.mode={asked}"
    of_wandb = str(wandb.setup().settings.mode)
    if of_wandb != "online":
        source = "WANDB_MODE" if os.environ.get("WANDB_MODE") else "the settings of wandb"
        return of_wandb if of_wandb in ("offline", "disabled") else "online", f"so say {source}"
    try:
        if wandb.login(prompt=False, verify=False):
            return "online", "logged in"
    except Exception as error:  # a key that cannot be one
        return "offline", " ".join(str(error).split())
    return "offline", "not logged in: 'wandb login' or WANDB_API_KEY"


def read_delivered(directory: Path) -> dict[str, Any]:
    """What has been delivered to where: {destination: {W&B run: {"digest", "at"}}}."""
    try:
        delivered = json.loads((directory / DELIVERED).read_text(encoding="utf-8"))
        return delivered if isinstance(delivered, dict) else {}
    except (OSError, ValueError):
        return {}


def remove_offline_run(path: Path, run_id: str) -> None:
    """Two offline runs of one id would be mixed when they are synchronised."""
    if path.name.startswith("offline-run-") and path.name.endswith(f"-{run_id}"):
        shutil.rmtree(path, ignore_errors=True)


ANSWERS: IO[str] = sys.stdout


def report(**what: Any) -> None:
    with suppress(OSError):  # nobody may be there to read it
        print(json.dumps(what), file=ANSWERS, flush=True)


def serve(delivery: Delivery, wishes: IO[bytes]) -> None:
    os.set_blocking(wishes.fileno(), False)
    ready = selectors.DefaultSelector()
    ready.register(wishes, selectors.EVENT_READ)
    buffer = b""
    while True:
        if ready.select(LOOK_EVERY_SECONDS):
            read = wishes.read()
            if read == b"":
                break
            buffer += read or b""
        delivery.look()
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            [(wish, directory)] = json.loads(line).items()
            with suppress(UserError):  # a directory that has just gone: what cannot be published is reported
                {"follow": delivery.follow, "publish": delivery.publish}[wish](Path(directory))
    delivery.leave()


def main() -> None:
    global ANSWERS
    ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # wandb's words are not for the one who reads the answers
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it ends with its input
        signal.signal(number, signal.SIG_IGN)
    try:
        delivery = Delivery(**json.loads(sys.argv[1]))
        report(mode=delivery.mode, why=delivery.why)
        if delivery.mode != "disabled":
            serve(delivery, sys.stdin.buffer)
    except Exception as error:
        report(broken=f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise


if __name__ == "__main__":
    main()
