"""Compiled, a run computes the same; where compiling fails, it goes on without and says so."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest
import torch
from run_command import ENVIRONMENT, REPOSITORY, SMALLEST, processes_of
from tiny import make_batches, make_evaluation_set, make_model, settings
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.utils import clear_caches

from vld.config.settings import AveragingConfig, EnsembleConfig
from vld.data.augment import augment_together, draw_parameters
from vld.data.batches import TrainingBatches
from vld.data.views import CHUNKS_AHEAD, EvaluationViews
from vld.model.classifier import Classifier
from vld.training import compiled as compilation
from vld.training.evaluation import predict
from vld.training.loop import Evaluation, Trajectory, train

HEADERS = Path(sysconfig.get_path("include")) / "Python.h"
COMPILER = shutil.which("g++") is not None and HEADERS.exists()


def compiler(test: Callable[..., None]) -> Callable[..., None]:
    """A test that compiles, for real."""
    return pytest.mark.skipif(not COMPILER, reason="compiling on a CPU needs g++ and Python's headers")(
        pytest.mark.slow(test)
    )


@pytest.fixture(scope="module")
def programs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs of all tests here are: most compile the same network."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(autouse=True)
def own_cache(programs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(programs_dir))
    monkeypatch.setattr(compilation, "ANNOUNCED_SECONDS", threading.TIMEOUT_MAX)
    torch._dynamo.reset()
    compilation._compiled.cache_clear()


def in_training(model: Classifier) -> tuple[Trajectory, TrainingBatches]:
    return Trajectory(model, settings()), make_batches()


def trained(
    *, compiled: bool, mixout: float = 0.0, warm_start: int = 0, **network: Any
) -> tuple[list[Evaluation], list[str], int]:
    """Evaluations without dropout (its masks are drawn outside), what was said, and the programs made after the trial."""
    model, batches, images, said = (
        make_model(**network, dropout=0),
        make_batches(),
        make_evaluation_set(),
        [],
    )
    along = {"averaging": AveragingConfig(1, 1), "ensemble": EnsembleConfig(4, 4)}
    trajectory = Trajectory(model, settings(steps=8, **along, mixout=mixout, warm_start=warm_start))
    if compiled:
        compilation.compile_network("true", model, images, said.append, (trajectory, batches))
    programs = counters["stats"]["unique_graphs"]
    evaluations = list(train(trajectory, batches, images))
    assert model.compiled == (compiled and not said)
    return evaluations, said, counters["stats"]["unique_graphs"] - programs


@compiler
@pytest.mark.parametrize(
    "network", [{}, {"pretrained": False}, {"batch_norm": "trained", "mixout": 0.5}, {"mixout": 0.5, "warm_start": 3}]
)
def test_a_compiled_run_has_the_same_logits_and_compiles_nothing_on_the_way(network: dict[str, Any]) -> None:
    eager, _, _ = trained(compiled=False, **network)
    compiled, said, programs = trained(compiled=True, **network)
    assert said == []
    assert programs == 0
    for one, other in zip(eager, compiled, strict=True):
        assert one.logits.keys() == other.logits.keys()
        for method, logits in one.logits.items():
            torch.testing.assert_close(other.logits[method], logits, rtol=1e-3, atol=1e-4)


@compiler
def test_the_next_job_finds_what_the_first_one_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On disk: of what a process knows of its programs, the second has nothing."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled, found, libraries = [], [], []
    for _ in range(2):
        torch._dynamo.reset()
        compilation._compiled.cache_clear()
        clear_caches()
        counters.clear()
        compilation.compile_network("true", make_model(), make_evaluation_set(), print, in_training(make_model()))
        compiled.append(counters["inductor"]["fxgraph_cache_miss"])
        found.append(counters["inductor"]["fxgraph_cache_hit"])
        libraries.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")})
    assert compiled[0] == found[1] > 0
    assert compiled[1] == found[0] == 0
    assert libraries[0] == libraries[1] != {}


@compiler
def test_trying_leaves_the_network_as_it_was() -> None:
    """Batch-norm statistics too, which learn from scratch, and the random state."""
    model = make_model(pretrained=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    compilation.compile_network("true", model, make_evaluation_set(), print, in_training(model))
    assert model.compiled
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@compiler
@pytest.mark.parametrize(("resident", "ahead"), [(False, 0), (True, 0), (False, 2)])
def test_the_last_chunk_is_filled_up_and_cut_again(monkeypatch: pytest.MonkeyPatch, resident: bool, ahead: int) -> None:
    """By the program that the trial has made, wherever the images come from."""
    monkeypatch.setattr("vld.training.evaluation.IMAGES_AT_ONCE", {"cpu": 8})
    model, images = make_model(), make_evaluation_set()
    monkeypatch.setitem(CHUNKS_AHEAD, "cpu", ahead)
    everything = [torch.cat(list(images.images.chunks(99)))]
    views = EvaluationViews(everything, [torch.arange(28)], torch.device("cpu"), resident=resident)
    images = replace(images, images=views)
    eager = predict([model], images)[0]
    assert len(images.images) % 8
    compilation.compile_network("true", model, images, print, in_training(model))
    programs = counters["stats"]["unique_graphs"]
    compiled = predict([model], images)[0]
    assert counters["stats"]["unique_graphs"] == programs
    torch.testing.assert_close(compiled.logits, eager.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(compiled.squared_norms, eager.squared_norms, rtol=1e-3, atol=1e-4)


@compiler
def test_augmentation_compiles_whole() -> None:
    """Without a break in the graph, at which a GPU would wait for the host; and computes the same."""
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (6, 40, 50, 3), dtype=np.uint8))
    stored = torch.tensor([[40, 50]] * 6)
    original = torch.tensor([[40, 50]] * 3 + [[80, 75]] * 3)
    drawn = draw_parameters(original.numpy(), random)
    compiled = torch.compile(augment_together, dynamic=False, fullgraph=True)
    expected = augment_together(pixels, stored, original, drawn, 24)
    torch.testing.assert_close(compiled(pixels, stored, original, drawn, 24), expected, rtol=0.0, atol=1e-4)


def test_without_a_compiler_a_run_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing compiled before is there
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nonexistent/g++",))
    eager, _, _ = trained(compiled=False)
    other, said, _ = trained(compiled=True)
    [line] = said
    assert line.startswith("not compiled, which is slower and changes nothing else (")
    assert "\n" not in line
    for one, same in zip(eager, other, strict=True):
        assert all(torch.equal(same.logits[method], logits) for method, logits in one.logits.items())


@pytest.mark.parametrize("part", ["copy.deepcopy", "predict"])
def test_no_memory_for_the_trial_may_be_enough_for_the_run(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(f"vld.training.compiled.{part}", full)
    monkeypatch.setattr(compilation, "_compiled", lambda function, graphs=False: function)  # noqa: ARG005
    model, images, said = make_model(), make_evaluation_set(), []
    training = in_training(model)
    compilation.compile_network("true", model, images, said.append, training)
    assert not model.compiled
    assert "OutOfMemoryError: full" in said[0]


def test_what_takes_long_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    heard = threading.Event()

    def slow(*_: object, **__: object) -> None:
        assert heard.wait(60)

    def say(line: str) -> None:
        said.append(line)
        heard.set()

    monkeypatch.setattr(compilation, "ANNOUNCED_SECONDS", 0)
    monkeypatch.setattr(compilation, "predict", slow)
    monkeypatch.setattr(compilation, "_compiled", lambda function, graphs=False: function)  # noqa: ARG005
    model = make_model()
    compilation.compile_network("true", model, make_evaluation_set(), say, in_training(model))
    assert [line.split()[0] for line in said] == ["compiling,", "compiled"]


@pytest.mark.parametrize(
    ("wanted", "device", "deterministic", "expected"),
    [
        ("auto", "cuda", False, ("graphs", "true")),
        ("auto", "cuda", True, ()),
        ("auto", "cpu", False, ()),
        ("true", "cpu", True, ("true",)),
        ("true", "cuda", False, ("true",)),
        ("false", "cuda", False, ()),
        ("graphs", "cuda", True, ("graphs", "true")),
    ],
)
def test_who_compiles_and_how(
    wanted: str, device: str, deterministic: bool, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.are_deterministic_algorithms_enabled", lambda: deterministic)
    assert compilation.ways(wanted, torch.device(device)) == expected


def noted(called: list[str], failure: Exception | None = None) -> Callable[..., Callable[..., Tensor]]:
    """In place of `_compiled`: what would have been called; and what is to be recorded fails."""

    def made(function: Callable[..., Tensor], graphs: bool = False) -> Callable[..., Tensor]:
        def compute(*inputs: Any) -> Tensor:
            called.append("recorded" if graphs else "compiled")
            if graphs and failure:
                raise failure
            return function(*inputs)

        return compute

    return made


def test_what_cannot_be_recorded_is_compiled_and_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    called: list[str] = []
    monkeypatch.setattr(compilation, "_compiled", noted(called, RuntimeError("no graph\nat all")))
    model, images = make_model(), make_evaluation_set()
    trajectory, batches = in_training(model)
    compilation.compile_network("graphs", model, images, said.append, (trajectory, batches))
    assert said == ["not launched as CUDA graphs, which is slower and changes nothing else (RuntimeError: no graph)"]
    assert model.compiled
    called.clear()
    list(train(trajectory, batches, images))
    assert set(called) == {"compiled"}


def test_a_graph_is_of_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried twice, first its program, then its recording. Neither an evaluation nor a warm start is recorded."""
    called: list[str] = []
    monkeypatch.setattr(compilation, "_compiled", noted(called))
    model, batches, images = make_model(), make_batches(), make_evaluation_set()
    trajectory = Trajectory(model, settings(steps=3, eval_every=3, warm_start=1, averaging=AveragingConfig(1, 1)))
    compilation.compile_network("graphs", model, images, print, (trajectory, batches))
    assert called == ["compiled", "recorded"] * 2 + ["compiled"]
    called.clear()
    list(train(trajectory, batches, images))
    assert called == ["compiled", "compiled", "recorded", "recorded", "compiled", "compiled"]


@compiler
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_compiles_it_stops_at_once(
    number: signal.Signals, tmp_path: Path, small_glyphs: Path
) -> None:
    """As a terminal and `timeout` do it: the compiler's processes get the signal, too."""
    places = [f"data_dir={small_glyphs}", f"output_dir={tmp_path}"]
    options = [*SMALLEST, "test_domain=0", "compile=true", "wandb.mode=disabled", *places]
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *options]
    programs = tmp_path / "programs"
    env = os.environ | ENVIRONMENT | {"TORCHINDUCTOR_CACHE_DIR": str(programs)}

    def compiles_a_kernel() -> bool:
        """And no longer what tells torch about the machine, whose processes the signal may miss: they begin and end at once."""
        return any(programs.glob("*/*.main.cpp")) and "cc1plus" in processes_of(started.pid)

    with subprocess.Popen(command, env=env, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True) as started:
        while started.poll() is None and not compiles_a_kernel():
            time.sleep(0.01)
        os.killpg(started.pid, number)
        out, err = started.communicate()
    assert started.returncode == 128 + number, err
    assert f"{number.name}: stopped before its first step in {tmp_path}" in out
    assert "not compiled" not in out
    assert err == f"interrupted ({number.name}); run the same command again to resume\n"
    assert processes_of(started.pid) == []


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"])
def test_compiled_programs_stay_in_the_users_cache(variable: str, tmp_path: Path) -> None:
    """As torch sees it after a command has begun, in a process that had not imported it; torch's own choice is below /tmp."""
    code = """
import contextlib, sys
import vld.commands.main
sys.argv = ["train.py", "--help"]
with contextlib.suppress(SystemExit):
    vld.commands.main.train()
import torchvision
from torch._inductor.runtime.cache_dir_utils import cache_dir
print(cache_dir())
"""
    env = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | {variable: str(tmp_path)}, capture_output=True, text=True, check=True
    )
    expected = tmp_path / "vld" / "compiled" if variable == "XDG_CACHE_HOME" else tmp_path
    assert done.stdout.splitlines()[-1] == str(expected)
