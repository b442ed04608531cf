"""What a GPU is spared, as far as it shows without one."""

import copy

import pytest
import torch
from tiny import CPU, make_batches, make_model, settings

from vld.config.settings import AveragingConfig
from vld.machine.device import set_up
from vld.training import loop
from vld.training.loop import Trajectory
from vld.training.methods import WeightAverage


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_device_decides_on_the_fused_step_whatever_the_checkpoint_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    begun = Trajectory(model, settings(name=name))
    loop.update(begun, *make_batches().batch(0), 0)
    state = copy.deepcopy(begun.state_dict())
    monkeypatch.setattr(loop, "_is_fused", lambda _: True)  # as on a GPU; a CPU has a fused step, too
    resumed = Trajectory(model, settings(name=name))
    resumed.load_state_dict(state)
    assert [group["fused"] for group in resumed.optimizer.param_groups] == [True, True]
    loop.update(resumed, *make_batches().batch(1), 1)


@pytest.mark.parametrize(("pretrained", "copies"), [(True, 0), (False, 1)])
def test_the_average_copies_counters_at_once_and_none_where_batch_norm_is_frozen(pretrained: bool, copies: int) -> None:
    model = make_model(pretrained=pretrained)
    average = WeightAverage(model, settings(averaging=AveragingConfig(1)))
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
