"""What only a GPU can show: the same numbers by either way to it, no waiting for it, bf16 beside float32."""

import gc
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from run_command import train
from tiny import SEED, make_dataset, make_evaluation_set, make_model, settings

from vld.config.settings import AveragingConfig, EnsembleConfig
from vld.data.batches import TrainingBatches
from vld.data.split import split_indices
from vld.machine.device import MemoryBudget, set_up
from vld.training import compiled as compilation
from vld.training.evaluation import EvaluationSet, evaluation_set, predict
from vld.training.loop import Trajectory
from vld.training.loop import train as train_from

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def float32_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(torch.device("cuda"), deterministic=False)
    monkeypatch.setattr(compilation, "ANNOUNCED_SECONDS", threading.TIMEOUT_MAX)  # what is said is why it failed


OPTIONS = [
    "dataset=glyphs", "test_domain=chalk", "backbone=resnet18", "backbone.weights=none", "image_size=64",
    "batch_size=8", "dropout=0.5", "device=cuda", "wandb.mode=disabled",
]  # fmt: skip


def gpu_batches(device: str = "cuda", *, resident: bool = False) -> TrainingBatches:
    domains = make_dataset().domains
    indices = [split_indices(20, i, 0)[0] for i in range(2)]
    batches = TrainingBatches(domains[:2], indices, 4, 8, torch.device(device), SEED)
    if resident:
        batches.hold()
    return batches


def gpu_images(*, resident: bool) -> EvaluationSet:
    device = torch.device("cuda")
    return evaluation_set(make_dataset(), "c", 0, device, memory=MemoryBudget(device, print) if resident else None)


@pytest.mark.parametrize("resident", [True, False])
def test_batches_are_those_of_a_cpu(resident: bool) -> None:
    on_gpu, on_cpu = gpu_batches(resident=resident), gpu_batches("cpu")
    for step in (0, 1, 2, 9, 10, 3):
        images, labels = on_gpu.batch(step)
        expected, expected_labels = on_cpu.batch(step)
        assert torch.equal(labels.cpu(), expected_labels)
        torch.testing.assert_close(images.cpu(), expected, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("resident", [True, False])
def test_evaluation_is_that_of_a_cpu(resident: bool) -> None:
    on_gpu, on_cpu = gpu_images(resident=resident), make_evaluation_set()
    logits = [predict([make_model().to(e.labels.device)], e)[0].logits.cpu() for e in (on_gpu, on_cpu)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def compiled(how: str, trajectory: Trajectory, batches: TrainingBatches, images: EvaluationSet) -> None:
    said: list[str] = []
    compilation.compile_network(how, trajectory.model, images, said.append, (trajectory, batches))
    assert said == []
    assert trajectory.model.compiled == (how != "false")


@pytest.mark.parametrize("how", ["false", "true", "graphs"])
@pytest.mark.parametrize("resident", [True, False])
def test_nothing_between_evaluations_waits_for_the_gpu(resident: bool, how: str) -> None:
    """PyTorch raises where the host would wait."""
    model, batches = make_model().cuda(), gpu_batches(resident=resident)
    images = gpu_images(resident=resident)
    config = settings(steps=20, eval_every=20, averaging=AveragingConfig(2, 1), ensemble=EnsembleConfig(20, 20))
    trajectory = Trajectory(model, config)
    compiled(how, trajectory, batches, images)

    def on_step(step: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if 5 <= step < 20 else "default")

    try:
        evaluations = list(train_from(trajectory, batches, images, on_step=on_step))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [evaluation.step for evaluation in evaluations] == [0, 20]


@pytest.mark.parametrize(
    ("network", "changes"), [({}, {}), ({}, {"mixout": 0.5, "warm_start": 3}), ({"batch_norm": "trained"}, {})]
)
def test_recorded_steps_come_to_the_same_as_others(network: dict[str, Any], changes: dict[str, Any]) -> None:
    losses, logits = [], []
    for how in ("false", "graphs"):
        model, batches, images = make_model(**network).cuda(), gpu_batches(), gpu_images(resident=True)
        config = settings(averaging=AveragingConfig(2, 1), ensemble=EnsembleConfig(4, 4), **changes)
        trajectory = Trajectory(model, config)
        compiled(how, trajectory, batches, images)
        evaluations = list(train_from(trajectory, batches, images))
        losses.append([evaluation.train_loss for evaluation in evaluations[1:]])
        logits.append(evaluations[-1].logits)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for method, values in logits[0].items():
        torch.testing.assert_close(logits[1][method], values, rtol=1e-2, atol=1e-3)


def test_a_backbone_draws_anew_in_recorded_steps() -> None:
    """By the seed of the step, as it is set before each."""
    model, batches, images = make_model(dropout=0.0).cuda(), gpu_batches(), gpu_images(resident=True)
    model.backbone.append(torch.nn.Dropout(0.5))  # type: ignore[operator]
    compiled("graphs", Trajectory(model, settings()), batches, images)
    inputs, _ = batches.batch(0)

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model.zero_grad()
        made: torch.Tensor = model.train()(inputs)
        made.sum().backward()
        return made.detach().clone()

    made = [logits(seed) for seed in (0, 1, 2, 1, 0)]
    assert torch.equal(made[0], made[4])
    assert torch.equal(made[1], made[3])
    assert not torch.equal(made[1], made[2])


def test_recorded_networks_one_after_another_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the runs of a sweep in one process, each of which has 19 MB of weights; with room for those of two."""
    monkeypatch.setattr(compilation, "recorded", [])
    used: list[float] = []
    for _ in range(6):
        model, batches, images = make_model().cuda(), gpu_batches(), gpu_images(resident=True)
        model.backbone.extend([torch.nn.Linear(24, 100_000), torch.nn.Linear(100_000, 24)]).cuda()  # type: ignore[operator]
        room = 7 * sum(4 * parameter.numel() for parameter in model.parameters())
        monkeypatch.setattr(compilation, "KEPT", room / torch.cuda.get_device_properties("cuda").total_memory)
        trajectory = Trajectory(model, settings(steps=4, eval_every=2))
        compiled("graphs", trajectory, batches, images)
        list(train_from(trajectory, batches, images))
        batches.close()
        del model, batches, images, trajectory
        gc.collect()
        used.append(torch.cuda.memory_allocated() / 2**20)
    assert used[1] - used[0] > 15, used  # else there is no need to make room
    assert max(used[2:]) < used[1] + 5, used


def test_a_deterministic_run_is_the_same_again(tmp_path: Path) -> None:
    rows = []
    for name in ("a", "b"):
        output_dir = tmp_path / name
        done = train(
            *OPTIONS, "deterministic=true", "optim.steps=40", "eval_every=10", f"data_dir={tmp_path}",
            f"output_dir={output_dir}",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        [path] = output_dir.rglob("metrics.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        rows.append([{k: v for k, v in line.items() if "seconds" not in k} for line in lines])
    assert rows[0] == rows[1]


def test_bf16_and_float32_learn_alike(tmp_path: Path) -> None:
    """Three seeds each: the means of the training loss differ by less than the seeds do, with room for chance."""
    losses: dict[str, list[float]] = {"bf16": [], "fp32": []}
    for precision, values in losses.items():
        for seed in range(3):
            output_dir = tmp_path / f"{precision}{seed}"
            done = train(
                *OPTIONS, f"precision={precision}", f"seed={seed}", "optim.steps=200", "eval_every=100", "optim.lr=0.01",
                f"data_dir={tmp_path}", f"output_dir={output_dir}",
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            [path] = output_dir.rglob("metrics.jsonl")
            values.append(json.loads(path.read_text().splitlines()[-1])["train_loss"])
    bf16, fp32 = (torch.tensor(losses[name]) for name in ("bf16", "fp32"))
    spread = max(float(bf16.std()), float(fp32.std()), 0.02)
    assert abs(float(bf16.mean() - fp32.mean())) < 3 * spread
