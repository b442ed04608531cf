"""What a GPU is spared, as far as it shows without one."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CPU, SEED, make_batches, make_dataset, make_model, settings

from vld.config.settings import AveragingConfig, EnsembleConfig
from vld.data.batches import TrainingBatches
from vld.data.prefetch import copied
from vld.data.split import split_indices
from vld.machine.device import MemoryBudget, set_up
from vld.training import loop
from vld.training.loop import Trajectory
from vld.training.methods import Schedule, WeightAverage


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_device_decides_on_the_fused_step_whatever_the_checkpoint_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    options: dict[str, Any] = {"eval_every": 1, "averaging": AveragingConfig(), "ensemble": EnsembleConfig()}
    begun = Trajectory(model, settings(name=name), **options)
    loop.update(begun, *make_batches().batch(0), SEED, 0)
    state = copy.deepcopy(begun.state_dict())
    monkeypatch.setattr(loop, "_is_fused", lambda _: True)  # as on a GPU; a CPU has a fused step, too
    resumed = Trajectory(model, settings(name=name), **options)
    resumed.load_state_dict(state)
    assert [group["fused"] for group in resumed.optimizer.param_groups] == [True, True]
    loop.update(resumed, *make_batches().batch(1), SEED, 1)


@pytest.mark.parametrize(("pretrained", "copies"), [(True, 0), (False, 1)])
def test_the_average_copies_counters_at_once_and_none_where_batch_norm_is_frozen(pretrained: bool, copies: int) -> None:
    model = make_model(pretrained=pretrained)
    average = WeightAverage(model, Schedule(9, 1, AveragingConfig(start=1), EnsembleConfig()))
    average.after_step(1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        average.after_step(2)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["aten::_foreach_lerp_"] == 1
    assert counts.get("aten::_foreach_copy_", 0) == copies


@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_tries_its_algorithms_unless_the_numbers_must_be_the_same(deterministic: bool) -> None:
    try:
        set_up(CPU, deterministic)
        assert torch.backends.cudnn.benchmark is not deterministic
    finally:
        set_up(CPU, deterministic=False)


def test_only_what_is_drawn_is_held() -> None:
    domains = make_dataset().domains[:2]
    indices = [split_indices(20, i, 0)[0] for i in range(2)]
    held = TrainingBatches(domains, indices, 4, 8, CPU, SEED, resident=True)
    assert [len(pixels) for pixels in held._pixels] == [16, 16]
    for step in range(4):
        for one, other in zip(held.batch(step), make_batches().batch(step), strict=True):
            assert torch.equal(one, other)


def test_rows_of_a_map_are_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("vld.data.prefetch.COPIED_AT_ONCE", 3)
    advised: list[int] = []
    monkeypatch.setattr("vld.data.prefetch._madvise", _counting(advised))
    np.arange(7 * 5000, dtype=np.uint8).tofile(tmp_path / "map")
    source = torch.from_numpy(np.memmap(tmp_path / "map", np.uint8, "c", shape=(7, 50, 100)))
    rows = torch.tensor([6, 0, 3, 1, 1])
    assert torch.equal(copied(source, rows, CPU), source[rows])
    assert advised == [0] * 5  # taken


def _counting(results: list[int]) -> Any:
    from vld.data.prefetch import _madvise

    return lambda *arguments: results.append(_madvise(*arguments))


def test_what_does_not_fit_is_said_with_the_size_at_which_it_would() -> None:
    said: list[str] = []
    memory = MemoryBudget(CPU, said.append)
    memory.device, memory.budget = torch.device("cuda"), 25 * 10**9
    assert not memory.on_device("training images", 100 * 10**9, 256)
    assert memory.on_device("evaluation images", 5 * 10**9)
    assert said == [
        "100.0 GB of training images: read as they are needed"
        " (GPU memory has 25.0 GB left for them; with dataset.store_size=128 they would fit)",
        "5.0 GB of evaluation images: in GPU memory",
    ]
