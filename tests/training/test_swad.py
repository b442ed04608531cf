"""SWAD: the interval against hand-made losses, the average against the weights of every step, resumption, a run."""

import copy
import json
import random
import re
from pathlib import Path

import pytest
import torch
from run_command import SMALLEST, train
from test_methods import copied
from tiny import make_batches, make_evaluation_set, make_model, settings
from torch import Tensor, nn

from vld.config.settings import AveragingConfig, EnsembleConfig, SwadConfig
from vld.tracking.content import wandb_runs
from vld.training.evaluation import predict
from vld.training.loop import Trajectory
from vld.training.loop import train as training
from vld.training.methods import Swad

ON = SwadConfig(enabled=True)


def by_definition(losses: list[float], n_s: int, n_e: int, r: float) -> tuple[int, int] | None:
    """The first and last segment (from 1), read off the finished curve."""
    for start in range(len(losses) - n_s + 1):
        coming = losses[start : start + n_s]
        if losses[start] == min(coming):
            threshold, end = r * sum(coming) / n_s, start
            while end + 1 < len(losses) and min(losses[end + 1 : end + 1 + n_e]) <= threshold:
                end += 1
            return start + 1, end + 1
    return None


def curve(losses: list[float], swad: SwadConfig = ON) -> Swad:
    """SWAD over these losses, evaluated every second step; the weights of a step are its number."""
    model, steps = make_model(), 2 * len(losses)
    method = Swad(model, settings(steps=steps, swad=swad))
    method.evaluated(0, 0.1)
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.head.weight.fill_(step)
        method.after_step(step)
        if step % 2 == 0:
            method.evaluated(step, losses[step // 2 - 1])
    return method


@pytest.mark.parametrize(
    ("losses", "interval"),
    [
        ([9, 8, 7, 6, 5, 4], None),
        ([1, 2], None),
        ([5, 4, 1, 1.2, 1.1, *[3.0] * 9], (3, 5)),  # the valley dies
        ([5, 4, 1, 1.2, 1.1, 1.2, 1.1], (3, 7)),  # training ends inside it
        ([5, 4, 1, 1.2, 1.1, 3, 3, 3], (3, 5)),  # training ends outside, before it has died
        ([1, 2, 2, *[9.0] * 5, 2, *[9.0] * 6, 1], (1, 9)),  # five above are waited for, six are not
        ([1, 1, 1, 1, 1], (1, 5)),
        ([3, 1, 50, 60, 1], (2, 5)),  # what follows the start may itself lie above the threshold
        ([3, 1, 100, 2, *[90.0] * 7], (2, 4)),
        ([float("nan"), 2, 1, 2, 2], (3, 5)),
    ],
)
def test_the_interval(losses: list[float], interval: tuple[int, int] | None) -> None:
    method = curve(losses)
    about = method.about()
    first, last = interval or (len(losses), len(losses))
    assert about["converged"] == (interval is not None)
    assert (about["first_step"], about["last_step"]) == (2 * first - 1, 2 * last)
    assert method.model is not None
    assert torch.allclose(method.model.head.weight, torch.tensor((2 * first - 1 + 2 * last) / 2))


def test_the_interval_of_any_curve_is_that_of_the_definition() -> None:
    draw = random.Random(0)
    for _ in range(100):
        losses = [draw.choice([1.0, 1.1, 1.2, 1.5, 2, 3]) for _ in range(draw.randint(1, 20))]
        n_s, n_e, r = draw.randint(1, 4), draw.randint(1, 4), draw.choice([1.0, 1.15, 1.4])
        about = curve(losses, SwadConfig(True, n_s, n_e, r)).about()
        found = ((about["first_step"] + 1) // 2, about["last_step"] // 2) if about["converged"] else None
        assert found == by_definition(losses, n_s, n_e, r), (losses, n_s, n_e, r)


def begin(*, pretrained: bool) -> Trajectory:
    swad = SwadConfig(enabled=True, start_evaluations=2, end_evaluations=2, threshold=1.01)
    config = settings(lr=0.5, eval_every=2, averaging=AveragingConfig(2), ensemble=EnsembleConfig(3, 3), swad=swad)
    return Trajectory(make_model(pretrained=pretrained), config)


@pytest.mark.parametrize("pretrained", [True, False], ids=["frozen batch-norm", "trained batch-norm"])
def test_the_average_is_that_of_the_weights_of_its_steps(pretrained: bool) -> None:
    trajectory = begin(pretrained=pretrained)
    weights: dict[int, dict[str, Tensor]] = {}
    images = make_evaluation_set()
    keep = lambda step: weights.update({step: copied(trajectory.model)})  # noqa: E731
    evaluations = list(training(trajectory, make_batches(), images, on_step=keep))
    assert [evaluation.step for evaluation in evaluations if "swad" in evaluation.scores] == [12]

    held_out = torch.cat([torch.arange(part.start, part.stop) for part in images.parts if part.domain != "c"])
    for evaluation in evaluations:
        loss = nn.functional.cross_entropy(evaluation.logits["erm"].double()[held_out], images.labels[held_out])
        assert evaluation.val_loss == pytest.approx(loss.item(), rel=1e-5)
    interval = by_definition([evaluation.val_loss for evaluation in evaluations[1:]], 2, 2, 1.01)
    assert interval is not None
    steps = range(2 * interval[0] - 1, 2 * interval[1] + 1)
    expected = make_model(pretrained=pretrained)
    mean = {key: torch.stack([weights[step][key].double() for step in steps]).mean(0) for key in weights[0]}
    expected.load_state_dict(mean)
    average = evaluations[-1].models["swad"]
    for key, value in average.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected.state_dict()[key], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        evaluations[-1].logits["swad"], predict([expected], images)[0].logits, rtol=1e-4, atol=1e-5
    )


class StoppedError(Exception):
    pass


def test_a_resumed_run_is_the_same_to_the_bit_also_from_within_its_last_evaluation() -> None:
    batches, images = make_batches(), make_evaluation_set()
    whole = begin(pretrained=False)
    *_, expected = training(whole, batches, images)
    for stop, call in (*((step, 1) for step in (3, 4, 7, 9, 11)), (12, 2), (12, 3)):
        part, resumed = begin(pretrained=False), begin(pretrained=False)
        calls: list[int] = []

        def check(part: Trajectory = part, stop: int = stop, call: int = call, calls: list[int] = calls) -> None:
            calls.append(part.step)
            if calls.count(stop) == call:  # before a step, in the pass of all, in SWAD's own
                raise StoppedError

        with pytest.raises(StoppedError):
            list(training(part, batches, images, check=check))
        resumed.load_state_dict(copy.deepcopy(part.state_dict()))
        *_, last = training(resumed, batches, images)
        assert torch.equal(last.logits["swad"], expected.logits["swad"])
        assert torch.equal(last.logits["ensemble"], expected.logits["ensemble"])
        assert last.train_loss == expected.train_loss
        assert resumed.methods["swad"].about() == whole.methods["swad"].about()


def test_a_run_with_it(small_glyphs: Path, tmp_path: Path) -> None:
    """Kept, in the result and the table, and said where it does not converge; the other methods do not change."""
    options = [*SMALLEST, f"data_dir={small_glyphs}", f"output_dir={tmp_path}", "test_domain=chalk"]
    options += ["optim.steps=4", "eval_every=1", "dataset.curve_images=2"]
    asked = ["swad.enabled=true", "swad.start_evaluations=9", "method=swad", "keep=[swad-last,swad-iid-logits]"]
    plain, shown = train(*options), train(*options, *asked)
    assert plain.returncode == shown.returncode == 0, plain.stderr + shown.stderr
    told = " ".join((shown.stdout + shown.stderr).split())
    assert "swad did not converge: its result is the average of steps 4 to 4" in told
    assert re.search(r"│ swad │ chalk[^│]* \(not converged\) │", told)
    histories, results = [], []
    for directory in (tmp_path / "runs/glyphs/chalk").iterdir():
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        assert all(row["val_loss"] > 0 for row in rows)
        histories.append([(row["method"], row["ood_acc"], row["val_loss"]) for row in rows if row["method"] != "swad"])
        rows = json.loads((directory / "result.json").read_text())["results"]
        mine = [row for row in rows if row["method"] == "swad"]
        assert {"swad-last.safetensors", "swad-iid-logits.safetensors"} <= {
            path.name for path in directory.iterdir()
        } or not mine
        results += mine
        copies = {run.job_type: run for run in wandb_runs(directory)}
        if "swad" in copies:
            assert [step for step, _ in copies["swad"].history] == [4]
            assert {"converged": False, "first_step": 4, "last_step": 4}.items() <= copies["swad"].summary.items()
            assert copies["erm"].config["swad_start_evaluations"] == 9
    assert histories[0] == histories[1]
    assert [(row["step"], row["converged"], row["evaluated_on"]) for row in results] == [(4, False, "all")] * 3
    for one in ("method=swad", "keep=[swad-iid]"):
        refused = train(*options, one)
        assert refused.returncode == 2
        assert "needs swad.enabled=true" in refused.stderr
