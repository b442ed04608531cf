"""Several jobs at a time on one machine."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.plugins import Plugins
from run_command import REPOSITORY, TINY_NETWORK, processes_of, start, train, wait_for

from vld.machine.device import keep_to_one_gpu
from vld.machine.terminal import CLEAR_LINE

TINY = ("-m", "dataset=glyphs", *TINY_NETWORK, "image_size=16", "batch_size=2", "keep=[]")
OPTIONS = (*TINY, "test_domain=0,1,2", "optim.steps=2", "eval_every=2")
ENDLESS = (*TINY, "test_domain=0,1", "optim.steps=1000000", "eval_every=1000000", "checkpoint_every=100000")
SIDE_BY_SIDE = ("hydra/launcher=parallel", "hydra.launcher.n_jobs=2")


def results(output_dir: Path) -> dict[str, Any]:
    return {
        path.parent.name: json.loads(path.read_text())["results"] for path in (output_dir / "runs").rglob("result.json")
    }


@pytest.mark.slow
def test_jobs_side_by_side_share_the_cores(small_glyphs: Path, tmp_path: Path) -> None:
    """Each has as many threads as its part of them."""
    command = [sys.executable, REPOSITORY / "scripts/train.py", *OPTIONS, *SIDE_BY_SIDE]
    env = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    subprocess.run([*command, f"data_dir={small_glyphs}", f"output_dir={tmp_path}"], env=env, check=True)
    threads = [json.loads(path.read_text())["threads"] for path in (tmp_path / "runs").rglob("result.json")]
    assert threads == 3 * [max(1, len(os.sched_getaffinity(0)) // 2)]


def test_jobs_side_by_side_come_to_the_same(small_glyphs: Path, tmp_path: Path) -> None:
    """A failing one among them stops no other; each line says whose it is; one table ends it."""
    in_turn = train(*OPTIONS, f"data_dir={small_glyphs}", f"output_dir={tmp_path / 'a'}")
    assert in_turn.returncode == 0, in_turn.stderr
    # The first run's directory holds what is no run: its job is refused, the others are not.
    chalk = next((tmp_path / "a/runs/glyphs/chalk").iterdir()).name
    output_dir = tmp_path / "b (2)"
    broken = output_dir / "runs/glyphs/chalk" / chalk
    broken.mkdir(parents=True)
    (broken / "config.yaml").write_text("identity: {seed: 5}\n")
    together = train(*OPTIONS, *SIDE_BY_SIDE, f"data_dir={small_glyphs}", f"output_dir='{output_dir}'")
    assert together.returncode == 1, together.stdout + together.stderr
    assert not list((tmp_path / "a").rglob("*.safetensors"))  # keep=[]
    expected = results(tmp_path / "a")
    assert len(expected) == 3
    assert results(output_dir) == {name: rows for name, rows in expected.items() if name != chalk}
    for job, domain in enumerate(("mosaic", "neon"), 1):
        assert re.search(rf"^\[{job}\] {domain}  step 2/2 ", together.stdout, re.MULTILINE)
    assert together.stdout.count("┏") == 1
    assert "failed: " in together.stdout
    assert chalk in together.stdout.split("┏")[1]
    # What is wrong is fixed, and the command that was shown for that job pasted.
    shutil.rmtree(broken)
    [again] = re.findall(r"to run just this job again: (python .*)", together.stdout)
    python, name, *options = shlex.split(again)
    assert (python, REPOSITORY / name) == ("python", REPOSITORY / "scripts/train.py")
    pasted = train(*options)
    assert pasted.returncode == 0, pasted.stdout + pasted.stderr
    assert results(output_dir) == expected
    assert "mosaic" not in pasted.stdout


def test_a_launcher_that_stops_shows_what_is_finished(
    small_glyphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its jobs returned is lost with it; of their runs one is finished, one has failed, one, of two jobs, is not there."""
    instantiate = Plugins.instantiate_launcher

    def to_be_killed(plugins: Plugins, **its: Any) -> Any:
        launcher = instantiate(plugins, **its)

        def launch(jobs: list[list[str]], initial_job_idx: int) -> None:
            inner(jobs[:2], initial_job_idx)
            raise RuntimeError("killed\nmore of it")

        inner, launcher.launch = launcher.launch, launch
        return launcher

    monkeypatch.setattr(Plugins, "instantiate_launcher", to_be_killed)
    rates = ("test_domain=0", "optim.lr=1e-3,1e30,1e-4,1e-4")
    stopped = train(*OPTIONS, *rates, f"data_dir={small_glyphs}", f"output_dir={tmp_path}")
    assert stopped.returncode == 1
    said, goes_on = stopped.stderr.splitlines()
    assert said == "the launcher stopped: RuntimeError: killed"
    assert "run the same command again" in goes_on
    assert stopped.stdout.split("┏")[-1].count("│ erm") == 1
    [failed] = re.findall(r"failed: (\S+): the training loss became", stopped.stdout.split("┏")[-1])
    assert (Path(failed) / "failure.json").exists()
    [again] = re.findall("to run just this job again: (.*)", stopped.stdout)
    assert "optim.lr=1e+30" in shlex.split(again)
    assert "failed: 2 of 4 jobs ended without a result" in stopped.stdout


@pytest.mark.slow
def test_jobs_side_by_side_share_a_terminal(small_glyphs: Path, tmp_path: Path) -> None:
    """Their lines are whole, and the bar is drawn anew below them."""
    ours, theirs = os.openpty()
    process = start(
        "train.py",
        *(*OPTIONS, *SIDE_BY_SIDE, "test_domain=0,1", "optim.steps=30"),
        *(f"data_dir={small_glyphs}", f"output_dir={tmp_path}"),
        env={"TERM": "xterm"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    pieces = []
    with suppress(OSError):  # when the other side is closed
        while piece := os.read(ours, 4096):
            pieces.append(piece)
    os.close(ours)
    shown = b"".join(pieces).decode()
    assert process.wait() == 0, shown
    lines = [line for text in shown.splitlines() for line in text.split(CLEAR_LINE[1:])]
    assert any(re.search(r"all.* of 2 runs done", line) for line in lines)
    for job, domain in enumerate(("chalk", "mosaic")):
        [line] = [line for line in lines if f"{domain}  step 30/30" in line]
        assert line.startswith(f"[{job}] {domain}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_saves_its_jobs_and_resumes(
    number: signal.Signals, small_glyphs: Path, tmp_path: Path
) -> None:
    """Each saves its run: Ctrl-C reaches every process of the terminal, another signal the command alone."""
    options = (*ENDLESS, *SIDE_BY_SIDE, f"data_dir={small_glyphs}", f"output_dir={tmp_path / 'outputs'}")
    for both_say in ("step 0/", "resuming at step"):
        process = start("train.py", *options, start_new_session=True)
        try:
            for _ in range(2):
                wait_for(process, both_say)
            assert len(processes_of(process.pid)) >= 3
            if number == signal.SIGINT:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            said, _ = process.communicate()
            assert process.returncode == 128 + number, said
            while processes_of(process.pid):
                time.sleep(0.05)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert len(list((tmp_path / "outputs").rglob("checkpoint.pt"))) == 2


@pytest.mark.parametrize(
    ("visible", "number", "expected"),
    [(None, 1, "1"), (None, 5, "1"), ("4,6,7", 1, "6"), ("GPU-ab,GPU-cd", 2, "GPU-ab"), ("3", 1, "3")],
)
def test_a_process_keeps_to_one_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, number: int, expected: str
) -> None:
    """Of those that it may see; one that sees a single GPU keeps to that."""
    if visible is None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # noted, so that it is as before in the end
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(visible.split(",")) if visible else 4)
    keep_to_one_gpu(number)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_a_gpu_that_is_in_use_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's second job: CUDA does not look at the variable again."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    keep_to_one_gpu(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.slow
def test_a_killed_job_lets_its_siblings_save(small_glyphs: Path, tmp_path: Path) -> None:
    """By SIGKILL, as where memory is short: joblib kills all others then."""
    options = (*ENDLESS, *SIDE_BY_SIDE, f"data_dir={small_glyphs}", f"output_dir={tmp_path / 'outputs'}")
    process = start("train.py", *options, start_new_session=True)
    try:
        for _ in range(2):
            wait_for(process, "step 0/")
        [first, _] = sorted((tmp_path / "outputs").rglob("*.running"))
        os.kill(int(first.read_text()), signal.SIGKILL)
        said, _ = process.communicate()
        assert process.returncode == 1, said
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert len(list((tmp_path / "outputs").rglob("checkpoint.pt"))) == 1, said
