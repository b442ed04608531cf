"""Streams and home folders that cannot be used as they are."""

import io
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from run_command import TINY_NETWORK, script, start

from vld.machine.streams import place_caches
from vld.machine.terminal import Terminal
from vld.report.table import Table

TABLE = Table(
    headings=("method", "test domain", "art", "cartoon", "photo", "sketch", "average"),
    rows=[("moving average of all weights", "o.o.d.", *["81.25 ± 0.51"] * 5), ("erm", "i.i.d.", *["9.00 ± 0.10"] * 5)],
    left=2,
)
RUN = (
    "dataset=glyphs",
    *TINY_NETWORK,
    "optim.steps=1",
    "device=cpu",
    "wandb.mode=disabled",
    "test_domain=neon",
    "image_size=32",
)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_what_an_output_cannot_take_is_replaced(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    terminal = Terminal()
    terminal.show("domäne 画 \udce9", TABLE)
    text = written.getvalue().decode(encoding)
    assert "?" in text
    assert "+---" in text
    assert len(re.findall(r"81\.25 [±~] 0\.51", text)) == 5  # it looks alike


def test_closed_streams_are_as_good_as_devnull(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    Terminal().say("nobody reads this")
    print("nor this", file=sys.stderr)


@pytest.mark.parametrize("columns", [20, 40, 80, 300])
def test_a_narrow_terminal_shows_every_number(columns: int) -> None:
    console = Console(file=io.StringIO(), width=columns)
    console.print(TABLE, crop=False)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("81.25 ± 0.51") == text.count("9.00 ± 0.10") == 5
    assert "…" not in text


@pytest.mark.parametrize("columns", ["0", "1", "x"])
def test_a_width_that_is_none_hides_nothing(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    Terminal().show("a line", TABLE)
    shown = capsys.readouterr().out
    assert "a line" in shown
    assert shown.count("81.25 ± 0.51") == 5


def as_file(folder: Path) -> Path:
    folder.write_text("no folder")
    return folder


@pytest.mark.parametrize("unusable", [as_file, lambda _: Path("/proc/home"), lambda folder: as_file(folder) / "x"])
def test_caches_that_cannot_be_made_are_below_the_output(unusable: Callable[[Path], Path], tmp_path: Path) -> None:
    home = str(unusable(tmp_path / "home"))
    for environment in ({"HOME": home}, {"HOME": str(tmp_path), "XDG_CACHE_HOME": home}):
        place_caches(environment, tmp_path / "runs")
        assert environment["XDG_CACHE_HOME"] == str(tmp_path / "runs" / ".cache")
        assert environment["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "runs" / ".cache" / "vld" / "compiled")
    environment = {"HOME": home}
    place_caches(environment, Path(home) / "runs")
    assert environment["XDG_CACHE_HOME"].startswith(tempfile.gettempdir())
    assert not (tmp_path / "runs").exists()


def test_a_home_that_can_be_written_is_left_alone(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path)}
    place_caches(environment, tmp_path / "runs")
    assert environment == {
        "HOME": str(tmp_path),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / ".cache" / "vld" / "compiled"),
    }
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_commands_do_without_a_home_folder_and_in_ascii(tmp_path: Path) -> None:
    environment = {"HOME": "/proc/home", "XDG_CACHE_HOME": "", "PYTHONIOENCODING": "ascii", "MPLCONFIGDIR": ""}
    for name in ("train.py", "status.py"):
        done = script(name, *RUN, f"output_dir={tmp_path / 'work'}", env=environment, fresh=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_status_ends_after_its_reader(tmp_path: Path) -> None:
    watching = start("status.py", *RUN, f"output_dir={tmp_path}", "watch=true")
    assert watching.stdout
    watching.stdout.readline()
    watching.stdout.close()
    assert watching.wait(timeout=60) in (0, 1)
