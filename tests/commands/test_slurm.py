"""A study on a real SLURM of one node: one array, jobs warned, killed and failing, a launcher killed, all completed."""

import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from run_command import REPOSITORY, script, train

NEEDED = ("sbatch", "slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")
ABSENT = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(ABSENT), reason=f"needs SLURM ({', '.join(ABSENT)} not installed)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="starting SLURM needs root"),
]

STUDY = """
# @package _global_
study:
  name: mine
  combinations: [ensemble_of_runs]
  members: [seed]

image_size: 16
batch_size: 1
eval_every: 200
optim:
  steps: 2400
  milestones: [1800]
keep: [erm-last-logits]

hydra:
  mode: MULTIRUN
  sweeper:
    params:
      dataset: glyphs
      backbone: timm
      backbone.name: test_resnet.r160_in1k
      backbone.weights: none
      dropout: 0.5
      optim.lr: 1e-3
      seed: 0,1
      test_domain: 0,1
"""
LAUNCHER = [
    "hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=null", "hydra.launcher.timeout_min=30", "hydra.launcher.signal_delay_s=60",
]  # fmt: skip


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    """A cluster. A machine has one at a time (its ports, /etc/slurm): another of pytest's processes waits until this is gone."""
    # Not in pytest's folder, which other users, such as mysql's, cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    command = ["bash", str(REPOSITORY / "scripts/slurm.sh"), str(folder)]
    with (Path(tempfile.gettempdir()) / "vld-tests-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            started = subprocess.run(command, capture_output=True, text=True, check=False)
            assert started.returncode == 0, started.stdout + started.stderr
            yield
        finally:
            subprocess.run([*command, "stop"], check=True)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def study(tmp_path: Path, small_glyphs: Path) -> list[str]:
    """The options of a custom study: a file of a folder."""
    (tmp_path / "conf/study").mkdir(parents=True)
    (tmp_path / "conf/study/mine.yaml").write_text(STUDY.lstrip())
    return [
        *("--config-dir", str(tmp_path / "conf"), "study=mine"),
        *(f"data_dir={small_glyphs}", f"output_dir={tmp_path / 'outputs'}"),
    ]


def until(condition: Callable[[], Any], what: str, seconds: float = 400) -> Any:
    began = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() - began < seconds, f"waited in vain for {what}: {squeue()}"
        time.sleep(0.3)
    return value


def squeue(*options: str) -> str:
    return subprocess.run(["squeue", "--noheader", *options], capture_output=True, text=True, check=True).stdout.strip()


def running_jobs() -> list[str]:
    return sorted(squeue("--states=RUNNING", "--array", "--format=%i").split())


def send(number: str, job: str) -> None:
    """scancel does not come back where the signal makes the job go into the queue again."""
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(["scancel", f"--signal={number}", job], check=False, capture_output=True, timeout=5)


def status(study: list[str]) -> tuple[int, dict[str, Any]]:
    done = script("status.py", *study, "format=json", fresh=True)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def start(study: list[str], log: Path, cwd: Path | None = None, **env: str) -> "subprocess.Popen[bytes]":
    """`python scripts/train.py` of the study on SLURM."""
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "scripts/train.py"), *study, *LAUNCHER], cwd=cwd, stdin=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"} | env, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip


def kill(launcher: "subprocess.Popen[bytes]") -> None:
    if launcher.poll() is None:
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()


def begin(job: str) -> None:
    """SLURM lets a requeued job wait for two minutes."""
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False, capture_output=True)


def check_as_without_an_interruption(run_dir: Path, options: list[str], alone: Path) -> None:
    done = train(*options, f"output_dir={alone}")
    assert done.returncode == 0, done.stdout + done.stderr
    [whole] = alone.glob("runs/glyphs/*/*")
    assert whole.name == run_dir.name
    assert metrics(run_dir) == metrics(whole)
    interrupted, straight = (json.loads((path / "result.json").read_text()) for path in (run_dir, whole))
    assert interrupted["results"] == straight["results"]


@pytest.mark.usefixtures("slurm")
def test_a_study_survives_everything(study: list[str], tmp_path: Path) -> None:
    code, before = status(study)
    assert code == 1
    assert before["counts"] == {"finished": 0, "running": 0, "interrupted": 0, "failed": 0, "missing": 4}

    launcher = start(study, tmp_path / "launcher.log")
    try:
        # One array of four jobs; two of them train.
        until(lambda: len(squeue("--array", "--format=%i").split()) == 4, "four jobs")
        assert len({job.split("_")[0] for job in squeue("--array", "--format=%i").split()}) == 1
        runs = tmp_path / "outputs/runs/glyphs"
        until(lambda: len(list(runs.glob("*/*/metrics.jsonl"))) >= 2, "two runs that train")
        now = until(lambda: (shown := status(study)[1])["counts"]["running"] and shown, "a status with a running one")
        assert sum(now["counts"].values()) == 4
        assert not now["complete"]
        first, second = until(lambda: len(r := running_jobs()) > 1 and r, "two jobs at a time")[:2]
        # A killed job (SLURM says SIGTERM first, and SIGKILL seconds later), and then a killed launcher.
        send("KILL", second)
        assert launcher.poll() is None
    finally:
        kill(launcher)
    # SLURM is told to warn.
    [submission] = (tmp_path / "outputs").rglob("*submission.sh")
    assert {"#SBATCH --signal=USR2@60", "#SBATCH --time=30"} <= set(submission.read_text().splitlines())

    # The warning signal: saved, requeued under the same number.
    send("USR2", first)
    [log] = (tmp_path / "outputs").rglob(f"{first}_0_log.out")
    saved = Path(until(lambda: re.search(r"SIGUSR2: saved in (\S+)", log.read_text()), "a checkpoint")[1])
    until(lambda: first not in running_jobs(), "the requeue")

    # The same command waits for what still runs, trains what is missing, and nothing twice.
    again = start(study, tmp_path / "again.log")

    try:
        until(lambda: begin(first) or (saved / "result.json").exists(), "the end of what was requeued")
        assert not (saved / "checkpoint.pt").exists()
        # What was requeued is the same as without an interruption.
        [there] = [run for run in now["runs"] if run["directory"] == str(saved)]
        check_as_without_an_interruption(saved, [*study, *there["overrides"]], tmp_path / "alone")
        until(lambda: again.poll() is not None, "the end of the second command")
    finally:
        kill(again)
    shown = (tmp_path / "again.log").read_text()
    assert again.returncode == 0, shown
    assert re.search(r"mine: 4 runs, \d finished, [1-4] to do", shown)
    assert shown.count("│ erm") == 2  # a line for each seed in the table at the end
    logs = "".join(path.read_text() for path in (tmp_path / "outputs").rglob("*_log.out"))
    assert logs.count("step 2400/2400") == 4  # whichever of a run's two jobs came first, it was trained once
    until(lambda: begin(first) or not squeue(), "an empty queue")
    code, complete = status(study)
    assert code == 0
    assert complete["counts"]["finished"] == 4

    combined = script("combine.py", *study)
    assert combined.returncode == 0, combined.stdout + combined.stderr
    assert len(list((tmp_path / "outputs/combined/glyphs").glob("*/*/result.json"))) == 2

    # A job that fails among others that succeed: on record, with its reason and the command that tries just it again.
    mixed = train(*study, *LAUNCHER, "optim.lr=1e-3,1e30", "test_domain=0", "seed=0", fresh=True)
    assert mixed.returncode == 1
    assert "became" in mixed.stdout or "no longer finite" in mixed.stdout
    [again_line] = [line for line in mixed.stdout.splitlines() if "to run just this job again: " in line]
    assert "optim.lr=1e+30" in again_line
    words = shlex.split(again_line.split(": ", 1)[1])
    assert words[:3] == ["python", str(REPOSITORY / "scripts/train.py"), "--config-dir"]
    assert "hydra/launcher=slurm" in words
    code, failed = status([*study, "optim.lr=1e-3,1e30", "test_domain=0", "seed=0"])
    assert code == 1
    assert failed["counts"] == {"finished": 1, "running": 0, "interrupted": 0, "failed": 1, "missing": 0}
    [reason] = [run["reason"] for run in failed["runs"] if run["state"] == "failed"]
    assert "at step" in reason


@pytest.mark.usefixtures("slurm")
def test_a_preempted_job_goes_on_exactly(study: list[str], tmp_path: Path) -> None:
    """By a job of a partition that goes before, which wants the whole node; on a cluster that gives jobs next to no environment,
    in a folder whose modules have the names of others."""
    options = [*study, "seed=0", "test_domain=0"]
    (tmp_path / "here").mkdir()
    for name in ("queue", "wandb"):
        (tmp_path / f"here/{name}.py").write_text("raise ImportError('not this one')")
    launcher = start(options, tmp_path / "launcher.log", tmp_path / "here", SBATCH_EXPORT="OMP_NUM_THREADS")
    try:
        runs = tmp_path / "outputs/runs/glyphs"
        [rows] = until(lambda: list(runs.glob("*/*/metrics.jsonl")), "a run that trains")
        [job] = running_jobs()
        urgent = ["sbatch", "--parsable", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true"]
        before = subprocess.run(urgent, check=True, capture_output=True, text=True).stdout.strip()
        until(lambda: before not in squeue("--format=%i").split(), "the end of what went before")
        assert (rows.parent / "checkpoint.pt").exists()
        assert not (rows.parent / "result.json").exists()
        until(lambda: begin(job) or launcher.poll() is not None, "the end of what was preempted")
    finally:
        kill(launcher)
    assert launcher.returncode == 0, (tmp_path / "launcher.log").read_text()
    [log] = (tmp_path / "outputs").rglob(f"{job}_0_log.out")
    assert re.search(r"resuming at step [1-9]\d* of 2400", log.read_text())
    check_as_without_an_interruption(rows.parent, options, tmp_path / "alone")


@pytest.mark.usefixtures("slurm")
def test_the_command_of_a_split_study_may_be_killed(study: list[str], tmp_path: Path) -> None:
    """`hydra.sweeper.max_batch_size` jobs at a time, one array after the other; the command is killed while its first array
    runs, and ends by itself when a job of its second array is killed."""
    options = [*study, "seed=0", "test_domain=0,1,2", "hydra.sweeper.max_batch_size=2"]
    runs = tmp_path / "outputs/runs/glyphs"
    first = start(options, tmp_path / "first.log")
    try:
        until(lambda: len(list(runs.glob("*/*/metrics.jsonl"))) == 2, "two runs that train")
    finally:
        kill(first)
    assert len(squeue("--array", "--format=%i").split()) == 2  # of the second array nothing was submitted

    second = start(options, tmp_path / "second.log")
    try:
        third_run = until(lambda: list(runs.glob("neon/*/metrics.jsonl")), "the second array")[0].parent
        assert len(list(runs.glob("*/*/result.json"))) == 2
        [job] = running_jobs()
        send("KILL", job)
        until(lambda: second.poll() is not None, "the command to end by itself")
    finally:
        kill(second)
    assert second.returncode == 1
    said = (tmp_path / "second.log").read_text()
    assert "the launcher stopped: " in said
    assert "run the same command again to start what is missing" in said
    assert said.count("│ erm") == 1  # the table of what there is
    assert not (third_run / "result.json").exists()
    jobs = subprocess.run(
        ["sacct", "--noheader", "--allocations", "--format=JobID", "--starttime=now-1hour"], capture_output=True, text=True
    ).stdout.split()  # fmt: skip
    arrays = sorted({job.split("_")[0] for job in jobs}, key=int)[-2:]
    assert [len([job for job in jobs if job.split("_")[0] == array]) for array in arrays] == [2, 1]

    done = train(*options, *LAUNCHER, fresh=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mine: 3 runs, 2 finished, 1 to do" in done.stdout
    assert (third_run / "result.json").exists()
