"""Signals that wait for a safe moment: a run is saved between two steps, and whoever was there before is heard."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# Ctrl-C, kill and a scheduler's end, a closed terminal, and what schedulers send as a warning.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(BaseException):
    """Raised at a safe moment after a signal came. Not an `Exception`: nothing that handles failures may swallow it."""


class Interruption:
    """Within its `with` a signal is only noted, but for a second Ctrl-C, which stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._frame: FrameType | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # others cannot have handlers
            for number in SIGNALS:
                previous = signal.getsignal(number)
                if previous not in (signal.SIG_IGN, None):  # under nohup a hang-up is to be ignored
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal, self._frame = number, frame

    @property
    def name(self) -> str:
        return signal.Signals(self.signal).name if self.signal is not None else "no signal"

    def check(self) -> None:
        """Raises `Interrupted` if a signal has come."""
        if self.signal is not None:
            raise Interrupted

    def hand_over(self) -> None:
        """Let the handler that was there before have its signal, say a scheduler's that requeues the job.

        Does nothing where no signal came; returns where that handler returns, which means to go on.
        """
        if self.signal is None:
            return
        previous = self._previous[self.signal]
        if not callable(previous):  # the system's default action, which would end the process without a word
            raise SystemExit(128 + self.signal)
        number, self.signal = self.signal, None
        previous(number, self._frame)
