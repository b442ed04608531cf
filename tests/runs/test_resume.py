"""A run that is interrupted anywhere goes on exactly; nothing that was finished is lost or repeated."""

import fcntl
import io
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soak
import torch
import yaml
from run_command import (
    DOCUMENTATION,
    SMALLEST,
    TINY_NETWORK,
    before_step,
    script,
    start,
    stopped_at,
    tiny_weights,
    train,
    wait_for,
)
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import make_batches, make_evaluation_set, make_model, settings

from vld.config.errors import UserError
from vld.config.settings import AveragingConfig, EnsembleConfig
from vld.machine import lock
from vld.machine.atomic import write_atomically
from vld.machine.signals import SIGNALS
from vld.runs import load_results
from vld.runs.checkpoint import read_checkpoint, write_checkpoint
from vld.runs.directory import RunDirectory
from vld.runs.record import Record
from vld.study import runner
from vld.study.runner import run_all
from vld.training import loop as training
from vld.training.evaluation import predict
from vld.training.loop import TrainingFailed, Trajectory
from vld.training.loop import train as train_from

STEPS = 12


class Stopped(Exception):  # noqa: N818
    pass


def begin(**choices: Any) -> tuple[Trajectory, Record]:
    model = make_model(pretrained=choices.get("pretrained", True))
    every = {"averaging": AveragingConfig(2, 1), "ensemble": EnsembleConfig(start=3, every=3)}
    config = settings(steps=STEPS, name=choices.get("optim", "sgd"), lr=0.01, **every)
    return Trajectory(model, config), Record()


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

    evaluations = train_from(trajectory, make_batches(), make_evaluation_set(), on_step=on_step, check=check)
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
    """In all that a checkpoint holds, and in what was selected, but for times."""

    def content(trajectory: Trajectory, record: Record) -> dict[str, Any]:
        times = ("seconds", "train_seconds")
        rows = [{name: value for name, value in row.items() if name not in times} for row in record.rows]
        return trajectory.state_dict() | {"clock": None, "rows": rows, "selected": record.selected_rows()}

    assert equal(content(*a), content(*b))


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(value, b[name]) for name, value in a.items())
    return len(a) == len(b) and all(map(equal, a, b)) if isinstance(a, list | tuple) else bool(a == b)


@pytest.mark.parametrize(
    "choices", [{}, {"pretrained": False}, {"optim": "adam"}], ids=["sgd", "trained batch-norm", "adam"]
)
def test_going_on_from_any_step_changes_nothing(tmp_path: Path, choices: dict[str, Any]) -> None:
    """Of several attempts, each of which is interrupted; and of one that was interrupted again and again."""
    whole = begin(**choices)
    go_on(*whole)
    often = begin(**choices)
    for step in range(STEPS + 1):
        once = begin(**choices)
        for part in (once, often):
            with pytest.raises(Stopped):
                go_on(*part, until=step)
        resumed, often = (through_a_file(tmp_path / "checkpoint.pt", *part, **choices) for part in (once, often))
        assert resumed[0].step == step
        go_on(*resumed)
        assert_same(resumed, whole)
    go_on(*often)
    assert_same(often, whole)


def test_a_checkpoint_from_before_the_table_of_methods_is_read() -> None:
    whole, part = begin(), begin()
    go_on(*whole)
    with pytest.raises(Stopped):
        go_on(*part, until=7)
    state = part[0].state_dict()
    methods = state.pop("methods")
    state |= {"average": methods["weight_averaging"], "ensemble": methods["ensemble"]}
    fresh, _ = begin()
    fresh.load_state_dict(state)
    go_on(fresh, part[1])
    assert_same((fresh, part[1]), whole)


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


def test_times_add_up_over_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second whenever it is looked at."""
    looks = itertools.count()
    monkeypatch.setattr("vld.training.loop.time", SimpleNamespace(perf_counter=lambda: float(next(looks))))
    trajectory, record = begin()
    with pytest.raises(Stopped):
        go_on(trajectory, record, until=2)
    state = trajectory.clock.state_dict()
    fresh, _ = begin()
    fresh.clock.load_state_dict({"seconds": state["seconds"] + 100, "aside": state["aside"] + 30})
    assert fresh.clock.seconds() == state["seconds"] + 100 + 1
    assert fresh.clock.train_seconds() == (state["seconds"] - state["aside"]) + 70 + 2


def test_compiling_is_no_training(monkeypatch: pytest.MonkeyPatch, small_glyphs: Path, tmp_path: Path) -> None:
    """A million seconds of it are not in the time that the run took, nor in its speed."""

    def slow(*given: Any) -> None:
        trajectory, _ = given[4]
        trajectory.clock.load_state_dict({"seconds": 1e6, "aside": 0.0})

    monkeypatch.setattr("vld.runs.run.compile_network", slow)
    places = [f"data_dir={small_glyphs}", f"output_dir={tmp_path}", "wandb.mode=disabled"]
    done = train(*SMALLEST, *places, "test_domain=0", "optim.steps=2", "optim.milestones=[1]")
    assert done.returncode == 0, done.stderr
    [path] = tmp_path.rglob("result.json")
    assert json.loads(path.read_text())["seconds"] < 1e6


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


def saved(**state: Any) -> bytes:
    file = io.BytesIO()
    torch.save({"run_id": "x", "weights": torch.arange(10_000.0), **state}, file)
    return file.getvalue()


WHOLE = saved()
HALF = len(WHOLE) // 2


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(WHOLE[:HALF], ".+", id="truncated"),
        pytest.param(b"", ".+", id="empty"),
        pytest.param(WHOLE[:HALF] + bytes([WHOLE[HALF] ^ 1]) + WHOLE[HALF + 1 :], ".+", id="a flipped bit"),
        pytest.param(b"not a checkpoint", ".+", id="something else"),
        pytest.param(saved(run_id="y"), "it belongs to run y", id="another run's"),
        pytest.param(saved(evil=Evil()), ".+", id="code"),
    ],
)
def test_a_damaged_checkpoint_is_named(
    content: bytes, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing in it is executed."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    remedy = "remove it to start the run again from step 0"
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}: damaged \({why}\); {remedy}"):
        read_checkpoint(path, "x")
    assert list(tmp_path.iterdir()) == [path]


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


# The command, at which a step takes about 10 ms.
RUN = (
    "dataset=glyphs",
    "test_domain=0",
    *TINY_NETWORK,
    "image_size=16",
    "batch_size=2",
    "dropout=0.5",
    "optim.steps=40",
    "eval_every=10",
    "averaging.start=5",
    "ensemble.start=5",
    "ensemble.every=5",
)
# A process of the command that does something of its own before a step.
ACTING = """
import os, signal
from vld.machine import lock
from vld.commands import main as cli
from vld.training import loop as training
update = training.update
def acting(trajectory, *arguments):
    if trajectory.step == 15:
        {act}
    return update(trajectory, *arguments)
training.update = acting
{before}
cli.train()
"""
STAND_STILL = "os.kill(os.getpid(), signal.SIGSTOP)"


@pytest.fixture
def command(small_glyphs: Path, tmp_path: Path) -> tuple[str, ...]:
    """Its options."""
    return (*RUN, f"data_dir={small_glyphs}", f"output_dir={tmp_path / 'outputs'}")


@pytest.fixture(scope="module")
def whole(small_glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an uninterrupted run."""
    output_dir = tmp_path_factory.mktemp("whole")
    done = train(*RUN, f"data_dir={small_glyphs}", f"output_dir={output_dir}")
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


@pytest.fixture
def hang_ups_are_heard() -> Iterator[None]:
    """Under nohup as well."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_checkpoints_are_so_many_seconds_apart(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a step takes a second and a quarter."""
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
    done = train(*command, "optim.steps=20", "eval_every=20", "checkpoint_every=5", "keep=[]")
    assert done.returncode == 0, done.stderr
    assert saved_at == [(4, 5.0), (8, 10.0), (12, 15.0), (16, 20.0), (20, 25.0)]


@pytest.mark.usefixtures("hang_ups_are_heard")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_the_run_and_the_same_command_goes_on(
    number: signal.Signals, command: tuple[str, ...], tmp_path: Path, whole: Path
) -> None:
    stopped = stopped_at(15, *command, by=number)
    assert stopped.returncode == 128 + number, stopped.stderr
    run_dir = the_run(tmp_path / "outputs")
    assert f"{number.name}: saved in {run_dir}" in stopped.stdout
    assert stopped.stderr == f"interrupted ({number.name}); run the same command again to resume\n"
    assert sorted(path.name for path in run_dir.iterdir()) == ["checkpoint.pt", "config.yaml", "metrics.jsonl"]
    again = train(*command)
    assert again.returncode == 0, again.stderr
    assert re.search(r"resuming at step 16 of 40 \(saved 20", again.stdout)
    assert len(re.findall(r"^chalk  step (?:20|30)/40 .*  \d+:\d\d left$", again.stdout, re.M)) == 2
    assert same_run(run_dir, whole)


def acting(folder: Path, act: str, before: str = "") -> str:
    """The script of a command that does `act` before step 15, and something when it begins."""
    path = folder / "acting.py"
    path.write_text(ACTING.format(act=act, before=before))
    return str(path)


def test_a_killed_command_goes_on(command: tuple[str, ...], tmp_path: Path, whole: Path) -> None:
    """A process of its own, killed for real, bit for bit."""
    at_once = acting(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    killed = script(at_once, *command, "checkpoint_every=0", fresh=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = train(*command)
    assert again.returncode == 0, again.stderr
    assert "resuming at step 15 of 40" in again.stdout
    assert same_run(the_run(tmp_path / "outputs"), whole)


def test_a_second_ctrl_c_saves_nothing(command: tuple[str, ...], tmp_path: Path) -> None:
    def impatient() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with before_step(15, impatient):
        stopped = train(*command)
    assert stopped.returncode == 130
    assert stopped.stderr == "interrupted (SIGINT); run the same command again to resume\n"
    assert not list((tmp_path / "outputs").rglob("checkpoint.pt"))


def test_a_scheduler_s_handler_is_called_when_the_run_is_saved(
    command: tuple[str, ...], tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit: its handler of SIGTERM returns, for the run to go on; that of its warning signal requeues and exits."""

    def requeue(*_: object) -> None:
        [checkpoint] = tmp_path.rglob("checkpoint.pt")
        assert not list(tmp_path.rglob("running.lock"))
        print("requeued with", checkpoint.stat().st_size > 0)
        sys.exit(17)

    def runs(*arguments: Any) -> object:
        signal.signal(signal.SIGTERM, lambda *_: print("bypassed"))
        signal.signal(signal.SIGUSR2, requeue)
        return run_all(*arguments)

    monkeypatch.setattr(runner, "run_all", runs)
    with before_step(15, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        stopped = stopped_at(25, *command, by=signal.SIGUSR2)
    assert stopped.returncode == 17, stopped.stderr
    assert re.search(r"bypassed\n.*resuming at step 16 .*step 20/40.*requeued with True\n", stopped.stdout, re.S)
    assert train(*command).returncode == 0
    assert same_run(the_run(tmp_path / "outputs"), whole)


Background = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def background(command: tuple[str, ...]) -> Iterator[Background]:
    """Start the command, or a script of its own, in the background; it ends with the test."""
    processes = []

    def begin(name: str = "train.py", **popen: Any) -> "subprocess.Popen[str]":
        processes.append(start(name, *command, **popen))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def wait_until_it_stands_still(process: "subprocess.Popen[str]") -> None:
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])


@pytest.mark.slow
def test_two_starts_at_once_train_once(
    background: Background, command: tuple[str, ...], tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE_SECONDS", 1e6)  # the first is not given up, however long the others take
    path = acting(tmp_path, STAND_STILL, before="lock.LEASE_SECONDS = 1e6")
    first = background(path)
    wait_until_it_stands_still(first)
    skipped = train(*command, "if_running=skip")
    assert skipped.returncode == 0, skipped.stderr
    assert re.search(rf"skipped: process {first.pid} on \S+ holds the lock", skipped.stdout)
    second = background(path)
    wait_for(second, f"process {first.pid} on ")
    first.send_signal(signal.SIGCONT)
    shown, _ = second.communicate()
    first.communicate()
    assert (first.returncode, second.returncode) == (0, 0)
    assert "already finished, skipped" in shown
    assert "step 0/40" not in shown
    assert "│ erm " in shown
    assert same_run(the_run(tmp_path / "outputs"), whole)


def test_a_full_disk_is_a_clear_failure_and_loses_nothing(
    command: tuple[str, ...], tmp_path: Path, whole: Path
) -> None:
    """Files of at most 3 MB: the network's weights (2 MB) fit, its checkpoints (6 MB) do not."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, limits[1]))
    try:
        full = train(*command, "checkpoint_every=0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full.returncode == 1
    assert "the disk is full, or a limit is reached" in full.stdout
    assert "make room; the same command starts it again" in full.stdout
    assert "Traceback" not in full.stdout + full.stderr
    run_dir = the_run(tmp_path / "outputs")
    failure = json.loads((run_dir / "failure.json").read_text())
    assert failure.keys() == {"what", "how_to_go_on", "where", "when", "run_id", "study", "settings"}
    assert "make room" in failure["how_to_go_on"]
    assert sorted(path.name for path in run_dir.iterdir()) == ["config.yaml", "failure.json", "metrics.jsonl"]
    assert train(*command).returncode == 0
    assert same_run(run_dir, whole)


def test_a_damaged_checkpoint_or_foreign_directory_is_refused_and_nothing_lost(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    stopped_at(15, *command)
    run_dir = the_run(tmp_path / "outputs")
    checkpoint = (run_dir / "checkpoint.pt").read_bytes()
    (run_dir / "checkpoint.pt").write_bytes(checkpoint[:-1000])
    refused = train(*command)
    assert refused.returncode == 1
    assert f"failed: chalk: {run_dir}/checkpoint.pt: damaged" in refused.stdout
    assert (run_dir / "checkpoint.pt").read_bytes() == checkpoint[:-1000]
    assert (run_dir / "metrics.jsonl").stat().st_size > 0
    assert not (run_dir / "failure.json").exists()

    (run_dir / "checkpoint.pt").write_bytes(checkpoint)
    stored = yaml.safe_load((run_dir / "config.yaml").read_text())
    stored["identity"]["dropout"] = 0.7
    (run_dir / "config.yaml").write_text(yaml.safe_dump(stored))
    refused = train(*command)
    assert refused.returncode == 1
    assert f"{run_dir}/config.yaml: its settings are not those of run {run_dir.name}" in refused.stdout
    assert (run_dir / "checkpoint.pt").read_bytes() == checkpoint


def still(folder: Path) -> tuple[str, str]:
    """Options of a run that hardly moves, its batch-norm statistics frozen: the first evaluation stays the selected one."""
    return tiny_weights(folder), "optim.lr=1e-9"


def selected_steps(run_dir: Path) -> dict[str, int]:
    rows = json.loads((run_dir / "result.json").read_text())["results"]
    return {row["selection"]: row["step"] for row in rows if row["method"] == "erm"}


def test_kept_weights_are_those_of_the_selected_step(command: tuple[str, ...], tmp_path: Path) -> None:
    """An attempt that came further than its checkpoint, on a machine with other numbers, has left a later step's weights."""
    options = still(tmp_path)
    stopped_at(15, *command, "keep=[erm-iid,erm-last]", *options)
    run_dir = the_run(tmp_path / "outputs")
    path = run_dir / "erm-iid.safetensors"
    with safe_open(path, framework="pt") as file:
        weights, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert json.loads(about["about"])["step"] == 0
    save_file(weights, path, {"about": '{"step": 20}'})
    (run_dir / "notes.safetensors").write_bytes(b"the user's")
    done = train(*command, "keep=[erm-iid]", *options)
    assert done.returncode == 0
    assert selected_steps(run_dir)["iid"] == 0
    assert "lacks erm-iid" in done.stdout
    assert not path.exists()
    assert not (run_dir / "erm-last.safetensors").exists()
    assert (run_dir / "notes.safetensors").read_bytes() == b"the user's"


def test_another_keep_in_between_costs_nothing(command: tuple[str, ...], tmp_path: Path) -> None:
    options = (*command, *still(tmp_path))
    for keep, step in (("[erm-oracle_step]", 15), ("[erm-last]", 25)):
        assert stopped_at(step, *options, f"keep={keep}").returncode == 143
    done = train(*options, "keep=[erm-oracle_step]")
    assert done.returncode == 0
    assert "lacks" not in done.stdout
    run_dir = the_run(tmp_path / "outputs")
    assert selected_steps(run_dir)["oracle_step"] == 0
    assert (run_dir / "erm-oracle_step.safetensors").exists()


def test_a_run_that_goes_on_elsewhere_says_so_and_leaves_what_others_left(
    command: tuple[str, ...], tmp_path: Path, whole: Path
) -> None:
    stopped_at(15, *command)
    run_dir = the_run(tmp_path / "outputs")
    (run_dir / ".ipynb_checkpoints").mkdir()
    (run_dir / ".notes").write_text("mine")
    (run_dir / ".checkpoint.pt.ab12").write_text("half of one")
    state = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    state["environments"][0]["software"]["torch"] = "1.0"
    torch.save(state, run_dir / "checkpoint.pt")
    done = train(*command)
    assert done.returncode == 0, done.stdout
    assert "warning: chalk: begun with another device or other software (earlier_environments" in done.stdout
    result = json.loads((run_dir / "result.json").read_text())
    assert result["software"]["torch"] == version("torch")
    assert [environment["software"]["torch"] for environment in result["earlier_environments"]] == ["1.0"]
    assert not (run_dir / ".checkpoint.pt.ab12").exists()
    assert (run_dir / ".notes").read_text() == "mine"
    (run_dir / ".notes").unlink()
    (run_dir / ".ipynb_checkpoints").rmdir()
    assert same_run(run_dir, whole)


def test_while_it_is_compiled_an_interrupted_run_has_its_evaluations(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes minutes, in which it may be killed: those of its checkpoint, not those after it."""
    stopped_at(15, *command)
    metrics = the_run(tmp_path / "outputs") / "metrics.jsonl"
    before = metrics.read_text()
    assert {json.loads(line)["step"] for line in before.splitlines()} == {0, 10}
    metrics.write_text(before + before.splitlines()[-1].replace('"step": 10', '"step": 20') + "\n")
    monkeypatch.setattr("vld.runs.run.compile_network", lambda *_: pytest.fail("compiles"))
    train(*command)
    assert metrics.read_text() == before


def test_an_interrupted_run_needs_no_more_disk_than_it_has(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk of 12 MiB, of which its checkpoint takes so much that another run does not fit."""
    stopped_at(15, *command)
    taken = sum(path.stat().st_size for path in (tmp_path / "outputs").rglob("checkpoint.pt"))
    monkeypatch.setattr("vld.machine.disk.free_disk", lambda _: 12 * 2**20 - taken)
    assert train(*command, "seed=1").returncode == 2
    done = train(*command)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.slow
def test_a_terminal_shows_the_time_left_and_saves_the_run_when_closed(background: Background, tmp_path: Path) -> None:
    """Before step 15 it waits until its terminal is closed."""

    def in_its_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup, under which tests may run, has ignored

    ours, theirs = os.openpty()
    process = background(
        acting(tmp_path, "try: os.read(0, 1)\n        except OSError: pass"),
        env={"TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=in_its_terminal,
    )
    os.close(theirs)
    shown = b""
    while not re.search(rb"15/40.*\d:\d\d\S* \S*left", shown):
        shown += os.read(ours, 4096)
    os.close(ours)
    assert process.wait() == 129
    assert (the_run(tmp_path / "outputs") / "checkpoint.pt").exists()


@pytest.mark.slow
def test_signals_while_waiting_end_with_their_codes(background: Background, tmp_path: Path, whole: Path) -> None:
    with lock.hold(tmp_path / "outputs/runs/glyphs/chalk" / whole.name, wait=False, announce=print):
        for number in (signal.SIGTERM, signal.SIGUSR1):
            process = background()
            wait_for(process, "waiting")
            process.send_signal(number)
            said, _ = process.communicate()
            assert process.returncode == 128 + number
            assert f"interrupted ({number.name})" in said


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


@pytest.mark.slow
def test_a_process_that_stood_still_for_too_long_leaves_the_run_to_the_other(
    background: Background, command: tuple[str, ...], tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = background(acting(tmp_path, STAND_STILL, before="lock.LEASE_SECONDS = 3.0"))
    wait_until_it_stands_still(first)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 3.0)

    def awake() -> None:
        first.send_signal(signal.SIGCONT)
        wait_for(first, "lost its lock")

    with before_step(25, awake):
        second = train(*command)
    assert second.returncode == 0, second.stderr
    assert f"process {first.pid} on " in second.stdout
    output, _ = first.communicate()
    assert first.returncode == 0
    assert "already finished, skipped" in output
    assert same_run(the_run(tmp_path / "outputs"), whole)


def test_a_sweep_that_was_stopped_goes_on_where_it_was(command: tuple[str, ...], tmp_path: Path) -> None:
    sweep = (*command, "-m", "dropout=0,0.5")
    acts = iter([lambda: None, lambda: os.kill(os.getpid(), signal.SIGINT)])
    with before_step(15, lambda: next(acts)()):
        stopped = train(*sweep)
    assert stopped.returncode == 130
    again = train(*sweep)
    assert again.returncode == 0
    assert again.stdout.count("already finished") == 1
    assert again.stdout.count("resuming at step 16 of 40") == 1
    assert len(list((tmp_path / "outputs").rglob("result.json"))) == 2


@pytest.mark.slow
def test_soak(tmp_path: Path, small_glyphs: Path) -> None:
    """A kill in each phase; `python tests/soak.py` makes as many as the README says."""
    assert soak.KILLS_OF_A_SOAK == 20
    assert "`python tests/soak.py` kills a run at twenty moments" in DOCUMENTATION
    kills = soak.soak(tmp_path, kills=5, seed=0, say=print, data_dir=small_glyphs)
    assert sum(kill.landed for kill in kills) >= 5
    assert {kill.phase for kill in kills} == set(soak.PHASES)
    shutil.rmtree(tmp_path)
