"""How far all runs of a command are together."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from vld.machine.all_runs import STEP_LOG, AllRuns, RunSteps, StepLog
from vld.machine.terminal import CLEAR_LINE, AllRunsBar, Terminal


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_the_time_left_is_that_of_all_runs_at_the_pace_so_far(tmp_path: Path) -> None:
    """Here and in two other processes; what was made before, and runs that were finished before, do not count as pace."""
    clock = Clock()
    all_runs = AllRuns(count=4, steps=400, folder=tmp_path / "steps", clock=clock)
    others = [StepLog(all_runs.folder / f"{job}{STEP_LOG}") for job in range(2)] if all_runs.folder else []
    assert all_runs.now() == (0, 0, None)
    others[0].ended("a", 100)
    others[0]._written = -10.0  # it writes once a second
    others[0].at("b", 50)
    assert all_runs.now() == (1, 150, None)
    others[1].at("c", 0)
    all_runs.here.at("d", 0)
    all_runs.here.at("d", 1)
    assert all_runs.now() == (1, 151, None)  # from here on, the pace counts
    clock.seconds = 30.0
    for log, run, step in ((others[0], "b", 55), (others[1], "c", 10), (all_runs.here, "d", 16)):
        log._written = -10.0
        log.at(run, step)
    assert all_runs.now() == (1, 181, pytest.approx(219.0))  # 30 steps in 30 seconds
    others[1].ended("c", 100)  # it failed: nothing of it is left to do
    assert all_runs.now() == (2, 271, pytest.approx(129.0))


def test_logs_that_cannot_be_written_or_read_stop_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    StepLog(tmp_path / "file" / f"0{STEP_LOG}").ended("a", 1)
    (tmp_path / f"1{STEP_LOG}").mkdir()
    assert AllRuns(2, 10, tmp_path).now() == (0, 0, None)


def test_a_log_has_a_line_when_another_run_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    all_runs = AllRuns(count=3, steps=60, clock=clock)
    terminal = Terminal(steps=all_runs.here, all_runs=all_runs)
    for run in "abc":
        for step in range(21):
            all_runs.here.at(run, step)
            all_runs.now()
            clock.seconds += 1.0
        terminal.ended(run, 20)
    assert capsys.readouterr().out.splitlines() == [
        "1 of 3 runs done, about 0:42 left for all",
        "2 of 3 runs done, about 0:21 left for all",
    ]


def test_a_terminal_shows_a_row_for_all_runs() -> None:
    screen, clock = io.StringIO(), Clock()
    all_runs = AllRuns(count=2, steps=2000, clock=clock)
    terminal = Terminal(steps=all_runs.here, all_runs=all_runs)
    terminal.console = Console(file=screen, force_terminal=True, width=80)
    all_runs.here.ended("a", 1000)
    with terminal.training("neon", steps=1000, first_step=0, run_id="b") as progress:
        assert terminal.all_runs
        assert progress.bar
        for step in range(501):
            terminal.all_runs.looked = 0.0  # as if some time had passed
            progress.stepped(step, evaluating=False)
            clock.seconds += 0.5
        progress.bar.refresh()
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search(r"neon .* 500/1000 .* left\s*\nall +[━╸╺ ]+ 1500/2000 1 of 2 runs done 4:1\d +left", shown)
    assert "all" not in shown.splitlines()[-1]  # what stays is the run's own bar


def test_a_bar_that_jobs_write_over_fits_in_a_line() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    terminal = Terminal()
    terminal.console = console
    all_runs = AllRuns(count=5, steps=500)
    all_runs.here.runs["a"] = replace(RunSteps(), made=40, step=40)
    AllRunsBar(console, all_runs).draw(terminal._bar())
    start, line = screen.getvalue().split(CLEAR_LINE)
    assert not start
    assert len(line) == 79
    assert re.fullmatch(r"all [━╸╺ ]+ +40/500 0 of 5 runs done -:-- left", line)
