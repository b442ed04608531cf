"""Signals wait for a safe moment and then reach whoever was there before."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from vld.machine.signals import SIGNALS, Interrupted, SignalGuard, heeded_at_once


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_until_it_is_asked_for(number: int) -> None:
    """The handler that was there before then gets it, with its frame."""
    heard: list[tuple[int, bool]] = []
    signal.signal(number, lambda number, frame: heard.append((number, isinstance(frame, FrameType))))
    guard = SignalGuard()
    with guard:
        guard.check()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted):
            guard.check()
        assert heard == []
    guard.forward()
    assert heard == [(number, True)]
    guard.check()  # forwarded once
    os.kill(os.getpid(), number)
    assert heard == [(number, True)] * 2


@pytest.mark.parametrize("number", SIGNALS)
def test_what_has_nothing_to_save_is_left_at_once(number: int) -> None:
    guard, reached = SignalGuard(), []
    signal.signal(number, lambda *_: reached.append("its handler"))
    with guard:
        with pytest.raises(Interrupted), heeded_at_once(guard.check):
            os.kill(os.getpid(), number)
            reached.append("what follows")
        with pytest.raises(Interrupted), heeded_at_once(guard.check):  # the signal came before
            reached.append("what follows")
    assert reached == []
    guard.forward()
    assert reached == ["its handler"]
    with guard:
        with heeded_at_once(guard.check):
            pass
        os.kill(os.getpid(), number)  # waits again
    with pytest.raises(Interrupted):
        guard.check()


def test_a_signal_is_heeded_as_soon_as_its_handler_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """One comes with each handler that is installed, before anything else is done."""
    install, heard = signal.signal, list[int]()

    def install_and_send(number: int, handler: Any) -> Any:
        before = install(number, handler)
        os.kill(os.getpid(), number)
        return before

    def check() -> None:
        if heard:
            raise Interrupted

    signal.signal(SIGNALS[0], lambda number, _: heard.append(number))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(signal, "signal", install_and_send)
        with heeded_at_once(check):
            pytest.fail("goes on")
    assert heard == [SIGNALS[0]]


def test_without_a_handler_the_process_ends_with_the_signal_s_exit_code() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    guard = SignalGuard()
    with guard:
        os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(SystemExit) as ended:
        guard.forward()
    assert ended.value.code == 128 + signal.SIGUSR1


def test_an_ignored_signal_stays_ignored() -> None:
    """nohup ignores the hang-up."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    guard = SignalGuard()
    with guard:
        os.kill(os.getpid(), signal.SIGHUP)
        guard.check()
    guard.forward()


@pytest.mark.parametrize("first", [(), (signal.SIGTERM,)])
def test_a_second_ctrl_c_stops_at_once(first: tuple[int, ...]) -> None:
    """The first one waits, also after another signal."""
    with SignalGuard():
        for number in (*first, signal.SIGINT):
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_every_signal_reaches_its_handler() -> None:
    """A scheduler may send its warning and SIGTERM at once: only one of the handlers requeues the job."""
    heard: list[int] = []
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda number, _: heard.append(number))
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    guard = SignalGuard()
    with guard:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert guard.names == "SIGUSR1 and SIGTERM and SIGUSR2"
    with pytest.raises(SystemExit):
        guard.forward()
    assert heard == [signal.SIGTERM, signal.SIGUSR2]


def test_in_a_thread_nothing_is_taken_over() -> None:
    failures: list[BaseException] = []

    def enter() -> None:
        try:
            with SignalGuard() as guard:
                guard.check()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert failures == []


LINGERING = """
import atexit, sys, time
def tidy_up():
    print("its last line", file=sys.stderr, flush=True)
    time.sleep(600)
atexit.register(tidy_up)
from vld.commands.main import train
sys.argv = ["train.py", *{words}]
train()
"""


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["nothing=1"], 2)])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_that_is_done_ends_at_once_with_its_own_code(number: int, words: list[str], code: int) -> None:
    """Though a library tidies up: without a traceback, and with all that it has said."""
    command = [sys.executable, "-c", LINGERING.format(words=words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        said = iter(process.stderr.readline, "its last line\n")
        errors = list(said)
        process.send_signal(number)
        out, after = process.communicate()
    assert process.returncode == code
    assert after == ""
    assert ("nothing" in "".join(errors)) == (code == 2)
    assert ("compile" in out) == (code == 0)
