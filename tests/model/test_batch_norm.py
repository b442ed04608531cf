"""`backbone.batch_norm=trained`: statistics of pre-trained weights that learn."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from run_command import SMALLEST, tiny_weights, train
from safetensors.torch import load_file
from tiny import make_batches, make_evaluation_set, make_model, settings

from vld.config.settings import AveragingConfig, EnsembleConfig, SwadConfig
from vld.runs.networks import load_model
from vld.training.loop import Trajectory, update
from vld.training.loop import train as training

MEAN = "backbone.1.running_mean"


def begin(warm_start: int = 0, **network: Any) -> Trajectory:
    model = make_model(**network)
    along: dict[str, Any] = {"averaging": AveragingConfig(2), "ensemble": EnsembleConfig(3, 3), "mixout": 0.5}
    swad = SwadConfig(enabled=True, start_evaluations=1)
    return Trajectory(model, settings(swad=swad, warm_start=warm_start, **along))


def test_trained_it_is_as_from_scratch_to_the_bit() -> None:
    """With the same first weights, in every method; frozen it is not."""
    outcomes = []
    for network in ({"batch_norm": "trained"}, {"pretrained": False}, {}):
        trajectory = begin(**network)
        *_, last = training(trajectory, make_batches(), make_evaluation_set())
        states = {
            (name, key): value for name, model in last.models.items() for key, value in model.state_dict().items()
        }
        outcomes.append({**last.logits, **{f"{name}-{key}": value for (name, key), value in states.items()}})
    trained, scratch, frozen = outcomes
    assert {"erm", "weight_averaging", "swad", "ensemble"} <= trained.keys()
    assert all(torch.equal(value, scratch[name]) for name, value in trained.items())
    for method in ("erm", "weight_averaging", "swad"):
        assert torch.equal(frozen[f"{method}-{MEAN}"], make_model().state_dict()[MEAN])
        assert not torch.equal(trained[f"{method}-{MEAN}"], frozen[f"{method}-{MEAN}"])


def test_a_warm_start_leaves_them_and_a_resumed_run_is_the_same_to_the_bit() -> None:
    def go(trajectory: Trajectory, first: int, end: int) -> dict[str, Any]:
        for step in range(first, end):
            update(trajectory, *make_batches().batch(step), step)
        return copy.deepcopy(trajectory.model.state_dict())

    network: dict[str, Any] = {"batch_norm": "trained", "warm_start": 2}
    whole = begin(**network)
    assert torch.equal(go(whole, 0, 2)[MEAN], make_model().state_dict()[MEAN])
    end = go(whole, 2, 6)
    assert not torch.equal(end[MEAN], make_model().state_dict()[MEAN])
    for step in (1, 4):
        part, resumed = begin(**network), begin(**network)
        go(part, 0, step)
        resumed.load_state_dict(copy.deepcopy(part.state_dict()))
        assert all(torch.equal(value, end[key]) for key, value in go(resumed, step, 6).items())


def test_runs_with_it_are_runs_of_their_own_and_make_soups(small_glyphs: Path, tmp_path: Path) -> None:
    options = [*SMALLEST, f"data_dir={small_glyphs}", f"output_dir={tmp_path}", "test_domain=chalk"]
    options += [tiny_weights(tmp_path), "optim.steps=2", "eval_every=2"]
    soup = ["method=model_soup", 'method.members=["seed=0,1"]', "keep=[erm-last]"]
    for more in ([], [*soup, "backbone.batch_norm=trained"]):
        shown = train(*options, *more)
        assert shown.returncode == 0, shown.stderr
    directories = sorted((tmp_path / "runs/glyphs/chalk").iterdir())
    results = [json.loads((directory / "result.json").read_text()) for directory in directories]
    trained = [result["batch_norm_statistics"].startswith("trained") for result in results]
    assert sorted(trained) == [False, True, True]
    for directory, learns in zip(directories, trained, strict=True):
        model = load_model(directory).train()
        assert [module.training for module in model.batch_norms()] == [learns] * len(model.batch_norms())
    means = [load_file(directory / "erm-last.safetensors")["backbone.bn1.running_mean"] for directory in directories]
    assert len({tuple(mean.tolist()) for mean in means}) == 3
    assert len(list((tmp_path / "combined/glyphs/chalk").iterdir())) == 1
    refused = train(*options, "backbone.batch_norm=trained", "backbone.tuning=head")
    assert refused.returncode == 2
    assert "backbone.batch_norm=trained: needs backbone.tuning=full" in refused.stderr
