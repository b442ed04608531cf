"""Signals that wait for a safe moment: the run is saved between two steps, then the earlier handlers are called."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn

# Ctrl-C; kill, and a scheduler that ends the job; a closed terminal; and what schedulers send as a warning.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(BaseException):
    """Raised at a safe moment after a signal. Not an `Exception`: code that handles failures must not swallow it."""


class SignalGuard:
    """Within its `with` block signals are only recorded, except a second Ctrl-C, which stops at once."""

    def __init__(self) -> None:
        self._noted: dict[int, FrameType | None] = {}
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "SignalGuard":
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
        if number == signal.SIGINT and number in self._noted:
            raise KeyboardInterrupt
        self._noted.setdefault(number, frame)

    @property
    def names(self) -> str:
        return " and ".join(signal.Signals(number).name for number in self._noted)

    def check(self) -> None:
        """Raises `Interrupted` if a signal has come."""
        if self._noted:
            raise Interrupted

    def forward(self) -> None:
        """Pass recorded signals on to the earlier handlers, for example one of a scheduler that requeues the job.

        Does nothing if there were none; returns if those handlers return, and then the run continues.
        """
        noted, self._noted = self._noted, {}
        for number, frame in noted.items():
            if callable(self._previous[number]):
                self._previous[number](number, frame)
        for number in noted:
            if not callable(self._previous[number]):  # else the system would end the process without a message
                raise SystemExit(128 + number)


@contextmanager
def heeded_at_once(check: Callable[[], None]) -> Iterator[None]:
    """Within its block a signal is followed by `check`, wherever the program is: for what takes long and has nothing to save."""
    previous: dict[int, Any] = {}

    def heed(number: int, frame: FrameType | None) -> None:
        previous[number](number, frame)
        check()

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if callable(signal.getsignal(number)):
                previous[number] = signal.getsignal(number)  # known before `heed` can be called
                signal.signal(number, heed)
    try:
        check()
        yield
    finally:
        for its, handler in previous.items():
            signal.signal(its, handler)


class Stopped(BaseException):
    """Other signals, as KeyboardInterrupt is SIGINT."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)


def stop_on_signals(first: Callable[[], object] = lambda: None) -> None:
    """From now on they do `first`, then raise `KeyboardInterrupt` or `Stopped`; those that are ignored, as a hang-up is under
    nohup, stay so."""

    def stop(number: int, _: object) -> NoReturn:
        first()
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)

    _hear(stop)


def end_on_signals(code: int) -> None:
    """From now on they end the process, with this exit code: for a command that has done all it had to, while libraries tidy up
    (torch waits for compilers that it has begun)."""

    def end(*_: object) -> NoReturn:
        with suppress(Exception):  # nobody may be reading, or this came amid such a write
            sys.stdout.flush()
        os._exit(code)

    _hear(end)


def _hear(handler: Callable[..., NoReturn]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
