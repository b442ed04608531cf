"""A run that is interrupted anywhere goes on exactly; nothing that was finished is lost or repeated."""

import fcntl
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soak
import torch
import yaml
from commands import REPOSITORY, TINY_NETWORK, tiny_weights, train
from hydra import compose, initialize_config_dir
from prepared import Started, prepared_process
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import SEED, make_batches, make_evaluation_set, make_model, settings

from vld.config.checks import typed_config
from vld.config.errors import UserError
from vld.config.settings import AveragingConfig, Config, EnsembleConfig
from vld.data import glyphs
from vld.machine.atomic import write_atomically
from vld.machine.terminal import Terminal
from vld.runs import load_results
from vld.runs.checkpoint import read_checkpoint, write_checkpoint
from vld.runs.directory import RunDirectory
from vld.runs.record import Record, selected_rows
from vld.study.runner import run_all
from vld.tracking.background import Publisher
from vld.training import loop as training
from vld.training.evaluation import predict
from vld.training.loop import TrainingFailed, Trajectory
from vld.training.loop import train as train_from

STEPS = 12


class Stopped(Exception):  # noqa: N818
    pass


def begin(**choices: Any) -> tuple[Trajectory, Record]:
    model = make_model(pretrained=choices.get("pretrained", True))
    optim = settings(steps=STEPS, name=choices.get("optim", "sgd"), lr=0.01)
    trajectory = Trajectory(
        model, optim, eval_every=4, averaging=AveragingConfig(2, 1), ensemble=EnsembleConfig(start=3, every=3)
    )
    return trajectory, Record()


def go_on(trajectory: Trajectory, record: Record, until: int = STEPS + 1, check_calls: int = 10**9) -> None:
    """Train until that step, or until check() has been called so often: evaluations call it too."""
    calls = 0

    def on_step(step: int) -> None:
        if step == until:
            raise Stopped

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == check_calls:
            raise Stopped

    evaluations = train_from(trajectory, make_batches(), make_evaluation_set(), seed=SEED, on_step=on_step, check=check)
    for evaluation in evaluations:
        record.add(evaluation)


def through_a_file(path: Path, trajectory: Trajectory, record: Record, **choices: Any) -> tuple[Trajectory, Record]:
    """What a new process has that goes on from the checkpoint."""
    write_checkpoint(
        path, {"run_id": "x", "trajectory": trajectory.state_dict(), "record": record.state_dict(), "none": None}
    )
    saved = read_checkpoint(path, "x")
    fresh, empty = begin(**choices)
    fresh.load_state_dict(saved["trajectory"])
    empty.load_state_dict(saved["record"])
    return fresh, empty


def assert_same(a: tuple[Trajectory, Record], b: tuple[Trajectory, Record]) -> None:
    (one, its_record), (other, other_record) = a, b

    def without_times(record: Record) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in row.items() if key not in ("seconds", "train_seconds")} for row in record.rows
        ]

    assert without_times(its_record) == without_times(other_record)
    assert selected_rows(its_record.history) == selected_rows(other_record.history)
    for name, method in one.methods.items():
        left, right = method.model, other.methods[name].model
        if left is None or right is None:
            assert left is right is None
            continue
        for name, value in left.state_dict().items():
            assert torch.equal(value, right.state_dict()[name]), name
    assert one.ensemble.sum is not None
    assert other.ensemble.sum is not None
    assert torch.equal(one.ensemble.sum, other.ensemble.sum)
    assert (one.average.members, one.ensemble.members) == (other.average.members, other.ensemble.members)


@pytest.mark.parametrize(
    "choices", [{}, {"pretrained": False}, {"optim": "adam"}], ids=["sgd", "trained batch-norm", "adam"]
)
def test_going_on_from_any_step_changes_nothing(tmp_path: Path, choices: dict[str, Any]) -> None:
    whole = begin(**choices)
    go_on(*whole)
    for step in range(STEPS + 1):
        part = begin(**choices)
        with pytest.raises(Stopped):
            go_on(*part, until=step)
        resumed = through_a_file(tmp_path / "checkpoint.pt", *part, **choices)
        assert resumed[0].step == step
        go_on(*resumed)
        assert_same(resumed, whole)


def test_an_interrupted_evaluation_is_redone(tmp_path: Path) -> None:
    whole = begin()
    go_on(*whole)
    checks, interrupted_in_evaluation = 1, 0
    while True:
        part = begin()
        try:
            go_on(*part, check_calls=checks)
        except Stopped:
            resumed = through_a_file(tmp_path / "checkpoint.pt", *part)
            go_on(*resumed)
            assert_same(resumed, whole)
            evaluated = {row["step"] for row in part[1].rows}
            interrupted_in_evaluation += part[0].step % 4 == 0 and part[0].step not in evaluated
            checks += 1
        else:
            break
    assert checks > STEPS + 4
    assert interrupted_in_evaluation > 4


def test_checkpoints_are_so_many_seconds_apart(
    small_glyphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a step takes a second and a quarter."""
    options = [*RUN, "optim.steps=20", "eval_every=20", "checkpoint_every=5", "keep=[]", "device=cpu"]
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        places = [f"data_dir={small_glyphs}", f"output_dir={tmp_path}"]
        config = typed_config(compose("train", overrides=[*options, *places]), Config)
    seconds, saved_at = 0.0, []
    update_weights = training.update

    def update(*arguments: Any) -> torch.Tensor:
        nonlocal seconds
        seconds += 1.25
        return update_weights(*arguments)

    def write_checkpoint(_: RunDirectory, state: dict[str, Any]) -> None:
        saved_at.append((state["trajectory"]["step"], seconds))

    monkeypatch.setattr(training, "update", update)
    monkeypatch.setattr("vld.runs.run.time", SimpleNamespace(monotonic=lambda: seconds))
    monkeypatch.setattr(RunDirectory, "write_checkpoint", write_checkpoint)
    [outcome] = run_all([config], Terminal(), Publisher(config.wandb, str(tmp_path), say=print, warn=print))
    assert outcome.result is not None, outcome.failure
    assert saved_at == [(4, 5.0), (8, 10.0), (12, 15.0), (16, 20.0), (20, 25.0)]


def test_interrupted_again_and_again(tmp_path: Path) -> None:
    whole = begin()
    go_on(*whole)
    part = begin()
    for step in range(1, STEPS + 1):
        with pytest.raises(Stopped):
            go_on(*part, until=step)
        part = through_a_file(tmp_path / "checkpoint.pt", *part)
    go_on(*part)
    assert_same(part, whole)


def test_a_stopped_evaluation_leaves_the_models_in_their_modes() -> None:
    model = make_model(pretrained=False).train()

    def check() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        predict([model], make_evaluation_set(), check)
    assert model.training


def test_weights_that_are_not_finite_are_not_saved() -> None:
    trajectory, _ = begin()
    with torch.no_grad():
        trajectory.model.head.weight[0, 0] = torch.nan
    with pytest.raises(TrainingFailed, match="no longer finite"):
        trajectory.state_dict()


def test_times_add_up_over_attempts() -> None:
    trajectory, record = begin()
    with pytest.raises(Stopped):
        go_on(trajectory, record, until=2)
    state = trajectory.clock.state_dict()
    fresh, _ = begin()
    fresh.clock.load_state_dict({"seconds": state["seconds"] + 100, "aside": state["aside"] + 30})
    assert 100 <= fresh.clock.seconds() < 160
    assert 70 <= fresh.clock.train_seconds() < 130


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "a flipped bit": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
    ),
    "something else": lambda _: b"not a checkpoint",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"run_id": "x", "weights": torch.arange(10_000.0)})
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}: damaged \(.+\); without that file .* from step 0"):
        read_checkpoint(path, "x")


def test_another_run_s_checkpoint_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint.pt", {"run_id": "y"})
    with pytest.raises(UserError, match="it belongs to run y"):
        read_checkpoint(tmp_path / "checkpoint.pt", "x")


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


def test_a_checkpoint_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"run_id": "x", "evil": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(tmp_path / "checkpoint.pt", "x")
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"run_id": "x", "weights": torch.zeros(1000)})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_checkpoint(path, {"run_id": "x", "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_write_that_is_stopped_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write)
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


# The command: a network at which a step takes about 10 ms; most of its steps come after the line that tests wait for.
RUN = (
    "dataset=glyphs",
    "test_domain=0",
    *TINY_NETWORK,
    "image_size=16",
    "batch_size=2",
    "dropout=0.5",
    "optim.steps=120",
    "eval_every=30",
    "averaging.start=10",
    "ensemble.start=10",
    "ensemble.every=10",
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Glyphs of few images, so that evaluations take no time."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "CLASSES", ("A", "E"))
        patch.setattr(glyphs, "IMAGES_PER_CLASS", 20)
        glyphs.draw_glyphs(folder / "glyphs")
    return folder


@pytest.fixture(scope="module")
def whole(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an uninterrupted run."""
    output_dir = tmp_path_factory.mktemp("whole")
    done = train(*RUN, f"data_dir={data_dir}", f"output_dir={output_dir}")
    assert done.returncode == 0, done.stderr
    return the_run(output_dir)


def the_run(output_dir: Path) -> Path:
    [run_dir] = (output_dir / "runs/glyphs").glob("*/*")
    return run_dir


def same_run(a: Path, b: Path) -> bool:
    def rows(run_dir: Path) -> str:
        return re.sub(r'"(train_)?seconds": [\d.]+', "", (run_dir / "metrics.jsonl").read_text())

    weights = [(run_dir / "erm-last.safetensors").read_bytes() for run_dir in (a, b)]
    names = [sorted(path.name for path in run_dir.iterdir()) for run_dir in (a, b)]
    return rows(a) == rows(b) and weights[0] == weights[1] and names[0] == names[1]


Start = Callable[..., Started]


@pytest.fixture
def start(data_dir: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start the command in the background, by a script of its own if need be; it ends with the test."""
    processes = []

    def start(*options: str, script: Path = REPOSITORY / "scripts/train.py") -> Started:
        here = (*RUN, f"data_dir={data_dir}", f"output_dir={tmp_path / 'outputs'}")
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        said = tmp_path_factory.mktemp("said")
        process = prepared_process().start(script, [*here, *options], REPOSITORY, env, said)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait(60)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_run_and_the_same_command_goes_on(
    number: signal.Signals, code: int, start: Start, tmp_path: Path, whole: Path
) -> None:
    process = start()
    process.wait_for("step 30/120")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    run_dir = the_run(tmp_path / "outputs")
    assert f"{number.name}: saved in {run_dir}" in output
    assert errors == f"stopped by {number.name}; the same command goes on, and does nothing twice\n"
    assert sorted(path.name for path in run_dir.iterdir()) == ["checkpoint.pt", "config.yaml", "metrics.jsonl"]
    again = start()
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert re.search(r"goes on from step (?:[3-9]\d|1[01]\d) of 120, saved 20", output)
    between = re.findall(r"^chalk  step (?:60|90)/120 .*$", output, re.M)
    assert all(re.search(r"  \d+:\d\d left$", line) for line in between), between
    assert same_run(run_dir, whole)


def test_a_second_ctrl_c_saves_nothing(start: Start, tmp_path: Path) -> None:
    script = tmp_path / "impatient.py"
    script.write_text(
        "import os, signal\n"
        "from vld.commands import main as cli, training\n"
        "update = training.update\n"
        "def interrupted(trajectory, inputs, labels, seed, step):\n"
        "    if step == 12:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return update(trajectory, inputs, labels, seed, step)\n"
        "training.update = interrupted\n"
        "cli.train()\n"
    )
    process = start(script=script)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors == "stopped by SIGINT; the same command goes on, and does nothing twice\n"
    assert not list((tmp_path / "outputs").rglob("checkpoint.pt"))


def test_a_scheduler_s_handler_is_called_when_the_run_is_saved(start: Start, tmp_path: Path, whole: Path) -> None:
    """submitit: its handler of SIGTERM returns, for the run to go on; that of its warning signal requeues and exits."""
    script = tmp_path / "job.py"
    script.write_text(
        "import pathlib, signal, sys\n"
        "from vld.commands import main as cli\n"
        f"outputs = pathlib.Path({str(tmp_path / 'outputs')!r})\n"
        "def requeue(number, frame):\n"
        "    [checkpoint] = outputs.rglob('checkpoint.pt')\n"
        "    assert not list(outputs.rglob('running.lock'))\n"
        "    print('requeued with', checkpoint.stat().st_size > 0, flush=True)\n"
        "    sys.exit(17)\n"
        "def bypass(number, frame):\n"
        "    print('bypassed', flush=True)\n"
        "original = signal.signal\n"
        "original(signal.SIGUSR2, requeue)\n"
        "def job(composed):\n"
        "    original(signal.SIGTERM, bypass)\n"
        "    return inner(composed)\n"
        "inner, cli._train_job = cli._train_job, job\n"
        "cli.train()\n"
    )
    process = start(script=script)
    process.wait_for("step 30/120")
    process.send_signal(signal.SIGTERM)
    process.wait_for("bypassed")
    process.wait_for("goes on from step")
    process.wait_for("step 60/120")
    process.send_signal(signal.SIGUSR2)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 17, errors
    assert "requeued with True" in output
    again = start(script=script)
    assert again.wait(timeout=120) == 0
    assert same_run(the_run(tmp_path / "outputs"), whole)


def test_two_starts_at_once_train_once(start: Start, tmp_path: Path, whole: Path) -> None:
    first = start()
    first.wait_for("step 0/120")
    first.send_signal(signal.SIGSTOP)
    second, third = start(), start("if_running=skip")
    output, errors = third.communicate(timeout=120)
    assert third.returncode == 0, errors
    assert re.search(rf"skipped: process {first.pid} on \S+ is working on it", output)
    second.wait_for(f"process {first.pid} on ")
    first.send_signal(signal.SIGCONT)
    shown, _ = second.communicate(timeout=120)
    assert first.wait(timeout=10) == 0
    assert second.returncode == 0
    assert "finished before, not trained again" in shown
    assert "step 0/120" not in shown
    assert "│ erm " in shown
    assert same_run(the_run(tmp_path / "outputs"), whole)


def test_a_full_disk_is_a_clear_failure_and_loses_nothing(data_dir: Path, tmp_path: Path, whole: Path) -> None:
    """Files of at most 3 MB: the network's weights (2 MB) fit, its checkpoints (6 MB) do not."""
    options = [*RUN, f"data_dir={data_dir}", f"output_dir={tmp_path}"]

    def limited(size: int) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, f"{REPOSITORY}/scripts/train.py", *options, "checkpoint_every=0"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
            capture_output=True,
            text=True,
            check=False,
        )

    full = limited(3_000_000)
    assert full.returncode == 1
    assert "the disk is full, or a limit is reached" in full.stdout
    assert "make room; the same command starts it again" in full.stdout
    assert "Traceback" not in full.stdout + full.stderr
    run_dir = the_run(tmp_path)
    failure = json.loads((run_dir / "failure.json").read_text())
    assert failure.keys() == {"what", "how_to_go_on", "where", "when", "run_id", "study", "settings"}
    assert "make room" in failure["how_to_go_on"]
    assert sorted(path.name for path in run_dir.iterdir()) == ["config.yaml", "failure.json", "metrics.jsonl"]
    again = train(*options)
    assert again.returncode == 0
    assert same_run(run_dir, whole)


def interrupted(start: Start, tmp_path: Path) -> Path:
    process = start()
    process.wait_for("step 30/120")
    process.terminate()
    process.communicate(timeout=60)
    return the_run(tmp_path / "outputs")


def test_a_damaged_checkpoint_or_foreign_directory_is_refused_and_nothing_lost(start: Start, tmp_path: Path) -> None:
    run_dir = interrupted(start, tmp_path)
    checkpoint = (run_dir / "checkpoint.pt").read_bytes()
    (run_dir / "checkpoint.pt").write_bytes(checkpoint[:-1000])
    refused = start()
    output, _ = refused.communicate(timeout=120)
    assert refused.returncode == 1
    assert f"failed: chalk: {run_dir}/checkpoint.pt: damaged" in output
    assert (run_dir / "checkpoint.pt").read_bytes() == checkpoint[:-1000]
    assert (run_dir / "metrics.jsonl").stat().st_size > 0
    assert not (run_dir / "failure.json").exists()

    (run_dir / "checkpoint.pt").write_bytes(checkpoint)
    stored = yaml.safe_load((run_dir / "config.yaml").read_text())
    stored["identity"]["dropout"] = 0.7
    (run_dir / "config.yaml").write_text(yaml.safe_dump(stored))
    refused = start()
    output, _ = refused.communicate(timeout=120)
    assert refused.returncode == 1
    assert f"{run_dir}/config.yaml: its settings are not those of run {run_dir.name}" in output
    assert (run_dir / "checkpoint.pt").read_bytes() == checkpoint


def still(folder: Path) -> tuple[str, str]:
    """Options of a run that hardly moves, its batch-norm statistics frozen: the first evaluation stays the selected one."""
    return tiny_weights(folder), "optim.lr=1e-9"


def selected_steps(run_dir: Path) -> dict[str, int]:
    rows = json.loads((run_dir / "result.json").read_text())["results"]
    return {row["selection"]: row["step"] for row in rows if row["method"] == "erm"}


def test_kept_weights_are_those_of_the_selected_step(start: Start, tmp_path: Path) -> None:
    """An attempt that came further than its checkpoint, on a machine with other numbers, has left a later step's weights."""
    options = still(tmp_path)
    process = start("keep=[erm-iid,erm-last]", *options)
    process.wait_for("step 30/120")
    process.terminate()
    process.communicate(timeout=60)
    run_dir = the_run(tmp_path / "outputs")
    path = run_dir / "erm-iid.safetensors"
    with safe_open(path, framework="pt") as file:
        weights, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert json.loads(about["about"])["step"] == 0
    save_file(weights, path, {"about": '{"step": 60}'})
    (run_dir / "notes.safetensors").write_bytes(b"the user's")
    process = start("keep=[erm-iid]", *options)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert selected_steps(run_dir)["iid"] == 0
    assert "lacks erm-iid" in output
    assert not path.exists()
    assert not (run_dir / "erm-last.safetensors").exists()
    assert (run_dir / "notes.safetensors").read_bytes() == b"the user's"


def test_another_keep_in_between_costs_nothing(start: Start, tmp_path: Path) -> None:
    options = still(tmp_path)
    for keep, step in (("[erm-oracle_step]", 30), ("[erm-last]", 60)):
        process = start(f"keep={keep}", *options)
        process.wait_for(f"step {step}/120")
        process.terminate()
        process.communicate(timeout=60)
    process = start("keep=[erm-oracle_step]", *options)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "lacks" not in output
    run_dir = the_run(tmp_path / "outputs")
    assert selected_steps(run_dir)["oracle_step"] == 0
    assert (run_dir / "erm-oracle_step.safetensors").exists()


def test_a_run_that_goes_on_elsewhere_says_so_and_leaves_what_others_left(
    start: Start, tmp_path: Path, whole: Path
) -> None:
    run_dir = interrupted(start, tmp_path)
    (run_dir / ".ipynb_checkpoints").mkdir()
    (run_dir / ".notes").write_text("mine")
    (run_dir / ".checkpoint.pt.ab12").write_text("half of one")
    state = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    state["environments"][0]["software"]["torch"] = "1.0"
    torch.save(state, run_dir / "checkpoint.pt")
    process = start()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert re.search(r"warning: chalk: begun on CPU .*torch 1\.0.*, now on CPU .*last digits", output)
    result = json.loads((run_dir / "result.json").read_text())
    assert result["software"]["torch"] == version("torch")
    assert [environment["software"]["torch"] for environment in result["earlier_environments"]] == ["1.0"]
    assert not (run_dir / ".checkpoint.pt.ab12").exists()
    assert (run_dir / ".notes").read_text() == "mine"
    (run_dir / ".notes").unlink()
    (run_dir / ".ipynb_checkpoints").rmdir()
    assert same_run(run_dir, whole)


def test_an_interrupted_run_needs_no_more_disk_than_it_has(start: Start, tmp_path: Path) -> None:
    disk = tmp_path / "outputs"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("tmpfs cannot be mounted here")
    try:
        interrupted(start, tmp_path)
        process = start()
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors + output
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_log_that_cannot_be_written_stops_nothing(data_dir: Path, tmp_path: Path, whole: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, f"{REPOSITORY}/scripts/train.py", *RUN, f"data_dir={data_dir}", f"output_dir={tmp_path}"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert same_run(the_run(tmp_path), whole)


def test_a_terminal_shows_the_time_left_and_saves_the_run_when_closed(data_dir: Path, tmp_path: Path) -> None:
    options = [*RUN, "optim.steps=4000", f"data_dir={data_dir}", f"output_dir={tmp_path}"]
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, f"{REPOSITORY}/scripts/train.py", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    shown = b""
    while not re.search(rb"\d/4000.*\d:\d\d\S* \S*left", shown):
        assert select.select([ours], [], [], 60)[0], shown
        shown += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(timeout=60) == 129
    assert (the_run(tmp_path) / "checkpoint.pt").exists()


def test_signals_while_waiting_end_with_their_codes(start: Start) -> None:
    first = start("optim.steps=40000")
    first.wait_for("step 0/40000")
    for number in (signal.SIGTERM, signal.SIGUSR1):
        second = start("optim.steps=40000")
        second.wait_for("waiting")
        second.send_signal(number)
        _, errors = second.communicate(timeout=60)
        assert second.returncode == 128 + number
        assert f"stopped by {number.name}" in errors
    assert first.poll() is None


def test_a_damaged_finished_run_is_named(whole: Path, tmp_path: Path) -> None:
    def named(name: str, old: str, new: str) -> str:
        """What reading it says, with that replaced in one of its files."""
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        run_dir = tmp_path / "runs/glyphs/chalk" / whole.name
        shutil.copytree(whole, run_dir)
        assert RunDirectory(run_dir).result() is not None
        text = (run_dir / name).read_text()
        assert old in text
        (run_dir / name).write_text(text.replace(old, new))
        with pytest.raises(UserError) as damaged:
            RunDirectory(run_dir).result()
        assert str(damaged.value).startswith(f"{run_dir / name}: ")
        return str(damaged.value)

    others = f"its settings are not those of run {whole.name}"
    assert others in named("config.yaml", "dropout: 0.5", "dropout: 0.7")
    assert others in named("result.json", '"dropout": 0.5', '"dropout": NaN')
    assert len(load_results(tmp_path)) == 0
    assert "damaged (it lacks results)" in named("result.json", '"results"', '"resluts"')
    assert len(load_results(tmp_path)) == 0


def test_a_process_that_stood_still_for_too_long_leaves_the_run_to_the_other(
    start: Start, tmp_path: Path, whole: Path
) -> None:
    script = tmp_path / "short.py"
    script.write_text(
        "from vld.machine import lock as claim\nclaim.LEASE_SECONDS = 3.0\nfrom vld.commands.main import train\ntrain()\n"
    )
    first = start(script=script)
    first.wait_for("step 30/120")
    first.send_signal(signal.SIGSTOP)
    second = start(script=script)
    second.wait_for("waiting")
    second.wait_for("step 30/120")
    first.send_signal(signal.SIGCONT)
    output, _ = first.communicate(timeout=120)
    assert second.wait(timeout=120) == 0
    assert first.returncode == 0
    assert re.search(r"chalk: lost its lock \([\w -]+\); looking who trains it now", output)
    assert "finished before, not trained again" in output
    assert same_run(the_run(tmp_path / "outputs"), whole)


def test_a_sweep_that_was_stopped_goes_on_where_it_was(start: Start, tmp_path: Path) -> None:
    process = start("-m", "dropout=0,0.5")
    process.wait_for("step 120/120")
    process.wait_for("step 30/120")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    again = start("-m", "dropout=0,0.5")
    output, _ = again.communicate(timeout=180)
    assert again.returncode == 0
    assert output.count("finished before") == 1
    assert len(re.findall(r"goes on from step (?:[3-9]\d|1[01]\d) of 120", output)) == 1
    assert len(list((tmp_path / "outputs").rglob("result.json"))) == 2


def test_soak(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in each phase; `python tests/soak.py` makes as many as the README says."""
    assert soak.KILLS_OF_A_SOAK == 20
    assert "`python tests/soak.py` kills a run at twenty moments" in (REPOSITORY / "README.md").read_text()
    monkeypatch.setitem(soak.LENGTHS, "evaluation", 0.1)  # on so few images
    began = time.monotonic()
    kills = soak.soak(tmp_path, kills=5, seed=0, say=print, data_dir=data_dir)
    assert sum(kill.landed for kill in kills) >= 5, f"after {time.monotonic() - began:.0f} s"
    assert {kill.phase for kill in kills} == set(soak.PHASES)
    shutil.rmtree(tmp_path)
