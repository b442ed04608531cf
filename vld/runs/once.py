"""Train a run once: lock its directory, take the existing result or make it, and record a failure."""

import errno
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from vld.config.errors import UserError
from vld.machine.lock import LockLost, RunningElsewhere, hold
from vld.machine.signals import Interrupted, SignalGuard
from vld.machine.terminal import Terminal
from vld.runs.environment import now
from vld.runs.keep import missing_files
from vld.runs.run import Run, Session
from vld.training.loop import TrainingFailed

SKIP_HINT = " (if_running=skip does not)"


@dataclass(frozen=True)
class Outcome:
    """How one run ended: `result` is its result.json, or None when it failed or was left to another process."""

    test_domain: str
    directory: Path
    result: dict[str, Any] | None
    failure: str | None = None
    skipped: str | None = None


class Listener(Protocol):
    """Follows what happens in the directories of runs and combinations, which it may read."""

    def started(self, directory: Path) -> None:
        """A run trains from now on, from its beginning or its checkpoint."""

    def ended(self, directory: Path) -> None:
        """This process is done with the directory: there is a result or a failure, or another process trains the run."""


def train_once(run: Run, terminal: Terminal, listener: Listener) -> Outcome:
    """Train a run to its end, or take the existing result. An error fails only this run.

    A signal is handled once the run is saved, by the handler that was installed before, which may end the process.
    """
    while True:
        guard = SignalGuard()
        try:
            outcome = _attempt(run, guard, terminal, listener)
        except Interrupted:
            done = "saved" if run.directory.checkpoint_file.exists() else "stopped before its first step"
            _say(run, f"{guard.names}: {done} in {run.directory.path}", terminal)
            guard.forward()
            continue  # that handler returned: the run continues
        except LockLost as lost:
            listener.ended(run.directory.path)
            _say(run, f"lost its lock ({lost}); checking whether another process trains it", terminal)
            guard.forward()
            continue  # it is finished, trained elsewhere, or resumed from the last checkpoint
        except RunningElsewhere as elsewhere:
            _say(run, f"skipped: {elsewhere} ({run.directory.path})", terminal)
            return Outcome(run.test_domain, run.directory.path, None, skipped=str(elsewhere))
        except Exception as error:
            outcome = _failed(run, error, terminal)
        guard.forward()  # signals that came too late to interrupt this run
        return outcome


def _attempt(run: Run, guard: SignalGuard, terminal: Terminal, listener: Listener) -> Outcome:
    """Raises `Interrupted`, `LockLost`, `RunningElsewhere`, and what prevents the run from starting."""
    if finished := _finished(run, terminal):
        return finished
    with hold(
        run.directory.path,
        wait=run.config.if_running == "wait",
        announce=lambda line: _say(run, line, terminal),
        hint=SKIP_HINT,
    ) as lock:
        if finished := _finished(run, terminal):  # by the process that this one waited for
            return finished
        try:
            with guard:
                result = Session(run, lock, guard.check, terminal).complete(listener.started)
        except Exception as error:
            if not lock.holds():  # whatever the error, the files may now be another process's
                raise LockLost("not renewed") from error
            return _failed(run, error, terminal)
    return Outcome(run.test_domain, run.directory.path, result)


def _finished(run: Run, terminal: Terminal) -> Outcome | None:
    """The outcome of a finished run, which is not trained again; otherwise None."""
    result = run.directory.result()
    if result is None:
        return None
    run.directory.tidy()
    _say(run, f"already finished, skipped ({run.directory.path})", terminal)
    if missing := missing_files(run.directory.path, run.config.keep):
        terminal.warn(
            f"{run.test_domain}: the finished run did not keep {', '.join(missing)}; use another output_dir to train it again"
        )
    return Outcome(run.test_domain, run.directory.path, result)


def _failed(run: Run, error: Exception, terminal: Terminal) -> Outcome:
    """Record a failure: what, where, when, and how to continue."""
    what, how = explained(error)
    if not isinstance(error, TrainingFailed | UserError):  # their messages say what to do
        goes_on = "resumes from its last checkpoint" if run.directory.checkpoint_file.exists() else "starts it again"
        how = "; ".join(filter(None, (how, f"the same command {goes_on}")))
    message = f"{what}; {how}" if how else what
    if not isinstance(error, UserError):  # what the user has to fix is left as it is
        failure = {
            "what": what,
            "how_to_go_on": how or what,
            "where": traceback.format_exc(),
            "when": now(),
            "run_id": run.directory.path.name,
            "study": run.config.study.name,
            "settings": run.identity,
        }
        with suppress(OSError):  # a full disk, say, which then is the failure
            run.directory.fail(failure)
    terminal.fail(f"{run.test_domain}: {message} ({run.directory.path})")
    return Outcome(run.test_domain, run.directory.path, None, failure=message)


def explained(error: Exception) -> tuple[str, str]:
    """What failed, and how to fix it where that is known (else an empty text)."""
    if isinstance(error, TrainingFailed | UserError):
        return str(error), ""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk is full, or a limit is reached ({text})", "make room"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return f"out of memory ({text})", "a smaller batch_size or image_size takes less"
    return text, ""


def _say(run: Run, line: str, terminal: Terminal) -> None:
    terminal.say(f"{run.test_domain}: {line}")
