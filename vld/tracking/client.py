"""All use of the wandb library: opening, sending and confirming runs. Only the process of `vld.tracking.upload` imports it."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import wandb

from vld.config.settings import WandbConfig
from vld.tracking.content import History, WandbRun
from vld.tracking.variables import CONFIRM_SECONDS, FINISH_SECONDS, PAUSE_SECONDS, open_seconds

FAILURES_IN_A_ROW = 2
"""This many mean that W&B is down; a single one may be due to the run."""


class UploadFailed(Exception):  # noqa: N818
    """W&B could not be reached or refused, or the other process has stopped waiting."""


class Client:
    """mode: online, offline or disabled; why: what decided it. destination: server, account and project.

    alive: called before anything that may take long. All methods raise `UploadFailed`.
    """

    def __init__(self, chosen: WandbConfig, output_dir: str, alive: Callable[[], None]) -> None:
        self.output_dir, self.alive = output_dir, alive
        settings = wandb.setup(wandb.Settings(silent=True)).settings
        self.mode, self.why = resolve_mode(chosen.mode)
        self.project, self.entity = chosen.project or settings.project or "vld", chosen.entity or settings.entity
        account = hashlib.sha256(str(settings.api_key).encode()).hexdigest()[:8] if self.mode == "online" else "-"
        server = settings.base_url if self.mode == "online" else self.mode
        self.destination = f"{server}/{self.entity or account}/{self.project}"
        self.opened: dict[str, wandb.Run] = {}
        """By the id of their content."""
        self.failure, self.failures, self.paused_until = "", 0, 0.0

    @property
    def down(self) -> bool:
        """Whether W&B is taken to be down, and nothing is tried."""
        return time.monotonic() < self.paused_until

    def check(self) -> None:
        if self.down:
            raise UploadFailed(self.failure)

    def open(self, content: WandbRun, *, stats: bool = False) -> None:
        """stats: let W&B record the load of the process that trains."""
        self.alive()
        environment_tags = [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag]
        with self._trying():
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
                    x_stats_pid=os.getppid(),
                    init_timeout=open_seconds(),
                ),
            )
            if run.id != content.id:  # some variables take precedence over the arguments
                run.finish(exit_code=1)
                raise UploadFailed(f"W&B opened {run.id} in place of {content.id}")
            self.opened[content.id] = run

    def log(self, run_id: str, history: History) -> None:
        """Send the steps that an open run does not have yet."""
        if run := self.opened.get(run_id):
            with self._trying():
                next_step = run.step
                for step, values in history:
                    if step >= next_step:
                        run.log(values, step=step, commit=True)

    def close(self, run_id: str, exit_code: int, *, interrupted: bool = False) -> None:
        """Close the run if it is open; this one does not raise. interrupted: it may be resumed."""
        if run := self.opened.pop(run_id, None):
            with suppress(UploadFailed), self._trying():
                if interrupted:
                    run.mark_preempting()
                run.finish(exit_code=exit_code)

    def send(self, content: WandbRun) -> str:
        """Send all of a run. Returns its address or folder."""
        if content.id not in self.opened:
            self.open(content)
        self.log(content.id, content.history)
        run = self.opened.pop(content.id)
        with self._trying():
            run.config.update(content.config, allow_val_change=True)  # type: ignore[no-untyped-call]
            run.summary.update(content.summary)
            self.alive()
            run.finish(exit_code=int(content.failed))
            if self.mode == "online":
                self._confirm(f"{run.entity}/{run.project}/{content.id}", content)
        self.failures = 0
        return str(run.url if self.mode == "online" else Path(run.settings.sync_dir).absolute())

    def _confirm(self, path: str, content: WandbRun) -> None:
        """Ask the server for the run: wandb drops silently what a server refuses."""
        until, state = time.monotonic() + CONFIRM_SECONDS, content.summary["state"]
        try:
            run = wandb.Api(timeout=int(CONFIRM_SECONDS)).run(path)
            while run.summary_metrics.get("state") != state and time.monotonic() < until:
                self.alive()
                time.sleep(0.5)
                run.load(force=True)
        except Exception:  # the server cannot be asked; what was sent has been received
            return
        if run.summary_metrics.get("state") != state:
            raise UploadFailed(f"W&B did not accept what was sent for {content.name}")

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """Turn any exception into `UploadFailed`; pause after several in a row."""
        try:
            yield
        except Exception as error:
            text = in_one_line(error)
            self.failure = text if isinstance(error, UploadFailed) else f"{type(error).__name__}: {text}"
            self.failures += 1
            if self.failures >= FAILURES_IN_A_ROW:
                self.paused_until = time.monotonic() + PAUSE_SECONDS
            self.opened.clear()
            with suppress(Exception):
                wandb.teardown(exit_code=1)  # wandb's service may have died, or hold the run's id
            raise UploadFailed(self.failure) from error


def resolve_mode(asked: str) -> tuple[str, str]:
    """online, offline or disabled, and why. Neither prompts nor uses the network."""
    if asked != "auto":
        return asked, f"wandb.mode={asked}"
    of_wandb = str(wandb.setup().settings.mode)
    if of_wandb in ("offline", "dryrun", "disabled"):
        source = "WANDB_MODE" if os.environ.get("WANDB_MODE") else "the settings of wandb"
        return of_wandb.replace("dryrun", "offline"), f"set by {source}"
    try:
        if wandb.login(prompt=False, verify=False):
            return "online", "logged in"
    except Exception as error:  # a key that cannot be one
        return "offline", in_one_line(error)
    return "offline", "not logged in: 'wandb login' or WANDB_API_KEY"


def in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
