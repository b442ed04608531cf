"""The process that talks to Weights & Biases, and all that can go wrong around it. Nothing is trained."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from run_command import TINY_NETWORK, script, train
from wandb_server import WandbServer, read_offline, serving

from vld.commands.publish import finished_directories
from vld.config.settings import WandbConfig
from vld.runs.identity import run_id
from vld.tracking import background as publisher_module
from vld.tracking.background import Publisher


@pytest.fixture(scope="module")
def run(small_glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's directory."""
    output_dir = tmp_path_factory.mktemp("outputs")
    options = "dataset=glyphs test_domain=0 image_size=16 batch_size=1 optim.steps=4 eval_every=2 keep=[]"
    done = train(*options.split(), *TINY_NETWORK, f"data_dir={small_glyphs}", f"output_dir={output_dir}")
    assert done.returncode == 0, done.stderr
    [path] = output_dir.glob("runs/glyphs/*/*")
    return path


@pytest.fixture
def runs(run: Path, tmp_path: Path) -> list[Path]:
    """Directories of three runs in tmp_path."""
    made = []
    result, config = json.loads((run / "result.json").read_text()), yaml.safe_load((run / "config.yaml").read_text())
    for seed in range(3):
        settings = result["settings"] | {"seed": seed}
        directory = tmp_path / "runs/glyphs/chalk" / run_id(settings)
        shutil.copytree(run, directory)
        (directory / "result.json").write_text(json.dumps(result | {"run_id": directory.name, "settings": settings}))
        (directory / "config.yaml").write_text(yaml.safe_dump(config | {"identity": settings}))
        made.append(directory)
    return sorted(made)


def standing_still(tmp_path: Path) -> Publisher:
    """Of a process that does nothing until SIGCONT."""
    publisher = new_publisher(tmp_path, "offline")
    publisher.connect()
    assert publisher.process is not None
    publisher.process.send_signal(signal.SIGSTOP)
    return publisher


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with serving() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(Publisher, "down_until", 0.0)
        yield server


def new_publisher(tmp_path: Path, mode: str = "online") -> Publisher:
    return Publisher(WandbConfig(mode=mode), str(tmp_path), say=print, warn=print)


def published(tmp_path: Path, *directories: Path, mode: str = "online") -> Publisher:
    publisher = new_publisher(tmp_path, mode)
    for directory in directories:
        publisher.ended(directory)
    publisher.finish()
    return publisher


def copies_of(run: Path) -> list[str]:
    """Those that there have to be."""
    return [f"{run.name}-{method}" for method in ("ensemble", "erm", "weight_averaging")]


def copies(tmp_path: Path) -> list[str]:
    """The ids of the offline runs that are there."""
    return sorted(path.name.split("-", 3)[3] for path in (tmp_path / "wandb").glob("offline-run-*"))


@pytest.mark.slow
def test_what_the_server_refuses_is_not_delivered(server: WandbServer, runs: list[Path], tmp_path: Path) -> None:
    """wandb itself says nothing of it."""
    server.refuses_stream = 403
    refused = published(tmp_path, runs[0])
    assert "W&B did not accept what was sent" in refused.not_uploaded[str(runs[0])]
    assert not (runs[0] / "wandb.json").exists()
    server.refuses_stream = None
    assert published(tmp_path, runs[0]).not_uploaded == {}
    assert server.runs[f"{runs[0].name}-erm"].summary["state"] == "finished"


@pytest.mark.slow
def test_runs_that_were_offline_are_published_online(server: WandbServer, runs: list[Path], tmp_path: Path) -> None:
    published(tmp_path, *runs, mode="offline")
    offline = copies(tmp_path)
    assert len(offline) == 9
    assert not server.runs
    done = script("publish.py", f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert sorted(server.runs) == offline
    for run in server.runs.values():
        assert (run.summary["state"], run.exit_code) == ("finished", 0)
    assert [row["_step"] for row in server.runs[f"{runs[0].name}-erm"].rows()] == [0, 2, 4]
    lines = server.lines
    assert script("publish.py", f"output_dir={tmp_path}").returncode == 0
    assert server.lines == lines  # once


@pytest.mark.slow
def test_one_refused_run_does_not_stop_the_others(server: WandbServer, runs: list[Path], tmp_path: Path) -> None:
    server.refused = (runs[0].name, 400)
    publisher = published(tmp_path, *runs)
    assert list(publisher.not_uploaded) == [str(runs[0])]
    assert sorted(publisher.uploaded) == [str(runs[1]), str(runs[2])]
    assert len(server.runs) == 6


@pytest.mark.slow
def test_a_server_that_refuses_two_in_a_row_is_left_alone(
    server: WandbServer, runs: list[Path], tmp_path: Path
) -> None:
    """Also by later jobs of the process."""
    server.refused = ("", 400)
    assert len(published(tmp_path, *runs).not_uploaded) == 3
    assert set(published(tmp_path, *runs).not_uploaded.values()) == {"W&B was down a moment ago"}
    assert server.refusals == 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_run_that_succeeds_later_replaces_its_failure(
    mode: str, server: WandbServer, runs: list[Path], tmp_path: Path
) -> None:
    result = json.loads((runs[0] / "result.json").read_text())
    (runs[0] / "failure.json").write_text(json.dumps({"what": "diverged"}))
    (runs[0] / "result.json").unlink()
    assert finished_directories(tmp_path) == [runs[1], runs[2], runs[0]]
    for failure in ("diverged", None):
        assert published(tmp_path, runs[0], mode=mode).not_uploaded == {}
        states = {
            "online": [(run.summary, run.exit_code) for run in server.runs.values()],
            "offline": [(run["summary"], run["exit_code"]) for run in read_offline(tmp_path)],
        }
        assert len(states[mode]) == 3
        for summary, exit_code in states[mode]:
            assert (summary.get("failure"), exit_code) == (failure, int(failure is not None))
        (runs[0] / "failure.json").unlink(missing_ok=True)
        (runs[0] / "result.json").write_text(json.dumps(result))


@pytest.mark.slow
def test_a_followed_run_that_another_process_delivered_ends_well(
    server: WandbServer, runs: list[Path], tmp_path: Path
) -> None:
    first = new_publisher(tmp_path)
    (runs[0] / "result.json").rename(tmp_path / "result.json")
    first.started(runs[0])
    while f"{runs[0].name}-erm" not in server.runs:
        assert first.process is not None
        assert first.process.poll() is None
        time.sleep(0.05)
    (tmp_path / "result.json").rename(runs[0] / "result.json")
    assert published(tmp_path, runs[0]).not_uploaded == {}
    first.ended(runs[0])
    first.finish()
    assert first.not_uploaded == {}
    assert {run.exit_code for run in server.runs.values()} == {0}


@pytest.mark.slow
def test_a_run_that_is_left_may_go_on(server: WandbServer, runs: list[Path], tmp_path: Path) -> None:
    publisher = new_publisher(tmp_path)
    (runs[0] / "result.json").rename(tmp_path / "result.json")
    publisher.started(runs[0])
    publisher.ended(runs[0])
    publisher.ended(runs[1])
    publisher.finish()
    (tmp_path / "result.json").rename(runs[0] / "result.json")
    assert server.runs[f"{runs[0].name}-erm"].exit_code == 1
    assert server.runs[f"{runs[1].name}-erm"].exit_code == 0
    assert published(tmp_path, runs[0]).not_uploaded == {}
    assert server.runs[f"{runs[0].name}-erm"].exit_code == 0
    steps = [row["_step"] for row in server.runs[f"{runs[0].name}-erm"].rows()]
    assert steps == [0, 2, 4]


def test_an_empty_mode_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "")
    publisher = new_publisher(tmp_path, "offline")
    publisher.connect()
    assert (publisher.mode, publisher.why) == ("offline", "wandb.mode=offline")
    publisher.finish()


@pytest.mark.slow
def test_a_killed_process_leaves_one_copy_of_each(runs: list[Path], tmp_path: Path) -> None:
    publisher = new_publisher(tmp_path, "offline")
    for directory in runs:
        publisher.ended(directory)
    while not copies(tmp_path):
        time.sleep(0.01)
    assert publisher.process is not None
    publisher.process.kill()
    publisher.finish()
    assert publisher.not_uploaded[str(runs[2])] == "its process ended without an answer"
    assert published(tmp_path, *runs, mode="offline").not_uploaded == {}
    assert len(copies(tmp_path)) == 9


@pytest.mark.slow
def test_what_was_delivered_is_made_again_once_it_is_gone(runs: list[Path], tmp_path: Path) -> None:
    """The note of it, or the copies."""
    published(tmp_path, runs[0], mode="offline")
    (runs[0] / "wandb.json").write_text("{")
    publisher = published(tmp_path, runs[0], runs[1], mode="offline")
    assert publisher.not_uploaded == {}
    assert len(copies(tmp_path)) == 6
    shutil.rmtree(tmp_path / "wandb")
    published(tmp_path, runs[0], mode="offline")
    assert copies(tmp_path) == copies_of(runs[0])


@pytest.mark.slow
def test_a_stuck_process_holds_nobody_up(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = standing_still(tmp_path)
    monkeypatch.setattr(publisher_module.variables, "patience_seconds", lambda: 2.0)
    for number in range(3000):
        publisher.started(tmp_path / f"runs/glyphs/chalk/{number}")
        publisher.ended(runs[number % 3])
    assert len(publisher.waiting) == 3
    process = publisher.process
    assert process is not None
    publisher.finish()
    assert process.poll() is not None
    assert sorted(publisher.not_uploaded) == sorted(map(str, runs))
    assert set(publisher.not_uploaded.values()) == {"its process has not responded for 2 s"}


def test_many_directories(tmp_path: Path) -> None:
    """Those that are unreadable are answered at once, so this takes no time."""
    publisher = new_publisher(tmp_path, "offline")
    for number in range(150):
        directory = tmp_path / f"runs/glyphs/chalk/{number:012d}"
        directory.mkdir(parents=True)
        (directory / "result.json").write_text("[]")
        publisher.ended(directory)
    seen: list[tuple[int, int]] = []
    publisher.finish(lambda done, total: seen.append((done, total)))
    assert len(publisher.not_uploaded) == 150
    assert all("damaged" in why for why in publisher.not_uploaded.values())
    assert seen[-1] == (150, 150)
    assert seen == sorted(seen)


def test_no_process_can_be_started(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(publisher_module.subprocess, "Popen", refuse)
    publisher = published(tmp_path, runs[0], mode="offline")
    assert "cannot be started" in publisher.not_uploaded[str(runs[0])]


@pytest.mark.slow
def test_what_was_asked_for_is_said_when_interrupted(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publisher = standing_still(tmp_path / "with space (1)")
    for directory in runs:
        publisher.ended(directory)
    process = publisher.process
    assert process is not None
    publisher.abandon()
    process.send_signal(signal.SIGCONT)
    said = re.search(
        r"W&B: 3 of 3 run directories were not uploaded \(interrupted\); to upload them: (.*)", capsys.readouterr().out
    )
    assert said is not None
    process.wait()
    assert len(copies(tmp_path / "with space (1)")) <= 1  # what it was at, and no more
    # The command can be pasted.
    (tmp_path / "with space (1)").mkdir(exist_ok=True)
    shutil.move(tmp_path / "runs", tmp_path / "with space (1)/runs")
    _, name, *options = shlex.split(said[1])
    pasted = script(Path(name).name, *options, "wandb.mode=offline", env={"WANDB_MODE": "offline"})
    assert pasted.returncode == 0, pasted.stderr
    assert len(copies(tmp_path / "with space (1)")) == 9


@pytest.mark.slow
def test_two_processes_deliver_a_directory_once(runs: list[Path], tmp_path: Path) -> None:
    both = [new_publisher(tmp_path, "offline") for _ in range(2)]
    for publisher in both:
        for directory in runs:
            publisher.ended(directory)
    for publisher in both:
        publisher.finish()
        assert publisher.not_uploaded == {}
    assert len(copies(tmp_path)) == 9


@pytest.mark.slow
def test_signals_to_all_processes_of_a_job_do_not_end_it(runs: list[Path], tmp_path: Path) -> None:
    publisher = new_publisher(tmp_path, "offline")
    publisher.connect()
    assert publisher.process is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        publisher.process.send_signal(number)
    publisher.ended(runs[0])
    publisher.finish()
    assert publisher.not_uploaded == {}
    assert copies(tmp_path) == copies_of(runs[0])


MODES = {
    "dryrun": ("offline", "set by WANDB_MODE"),
    "offline": ("offline", "set by WANDB_MODE"),
    "disabled": ("disabled", "set by WANDB_MODE"),
    "online": ("offline", "not logged in"),
    "shared": ("offline", "not logged in"),
}
SAY_MODES = """
import os, sys, wandb
from vld.tracking.client import resolve_mode
for of_wandb in sys.argv[1:]:
    os.environ["WANDB_MODE"] = of_wandb
    wandb.teardown()  # what was read of the environment
    wandb.setup(wandb.Settings(silent=True))
    print(*resolve_mode("auto"), sep=": ")
"""


def test_modes_of_wandb(tmp_path: Path) -> None:
    nobody = {name: str(tmp_path / "nobody") for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR")} | {"WANDB_API_KEY": ""}
    done = subprocess.run(
        [sys.executable, "-c", SAY_MODES, *MODES], env=os.environ | nobody, capture_output=True, text=True, check=True
    )
    for line, (mode, why) in zip(done.stdout.splitlines(), MODES.values(), strict=True):
        assert line.startswith(f"{mode}: {why}")


@pytest.mark.parametrize(("of_wandb", "asked"), [("disabled", "auto"), ("online", "disabled")])
def test_disabled_starts_no_process(
    of_wandb: str, asked: str, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", of_wandb)
    publisher = new_publisher(tmp_path, asked)
    publisher.ended(runs[0])
    publisher.connect()
    assert publisher.mode == "disabled"
    publisher.finish()
    assert publisher.process is None
    assert publisher.not_uploaded == {}


def test_an_address_that_is_none_is_said_at_once(runs: list[Path], tmp_path: Path) -> None:
    assert len(runs) == 3
    refused = script(
        "publish.py", f"output_dir={tmp_path}", env={"WANDB_BASE_URL": "localhost:8080", "WANDB_MODE": "online"}
    )
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "URL" in refused.stderr
    assert "localhost" in refused.stderr


@pytest.mark.slow
def test_the_dashboard_s_view_is_saved_and_replaced(server: WandbServer, runs: list[Path], tmp_path: Path) -> None:
    assert len(runs) == 3
    for _ in range(2):
        done = script("publish.py", f"output_dir={tmp_path}", "workspace=true")
        assert done.returncode == 0, done.stderr
        assert f"W&B: the view of the dashboard is at {server.url}/team/vld" in done.stdout
    first, second = server.views
    assert (first["entityName"], first["projectName"]) == ("team", "vld")
    assert "id" not in first
    assert second["id"] == "view-1"
    assert second["name"] == first["name"]
    for saved in server.views:
        assert sorted(json.loads(saved["spec"])["section"]["customRunColors"]) == sorted(server.runs)
