"""Dropout at the ends of stages, stochastic depth, and rates that change over training: what is dropped, how much, and when."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from run_command import train
from tiny import make_batches, make_model
from tiny import settings as optim
from torch import Tensor, nn

from vld.config.errors import UserError
from vld.config.settings import AveragingConfig, BackboneConfig, Config
from vld.model.classifier import Classifier, build_classifier
from vld.model.dropout import RepresentationDropout, StageDropout, stages_of
from vld.runs import load_model
from vld.runs.networks import network
from vld.training.collapse import dropout_noise
from vld.training.loop import Trajectory, update
from vld.training.methods import WeightAverage

SIZE = 32


def settings(name: str = "resnet18", library: str = "torchvision", **changes: Any) -> BackboneConfig:
    return BackboneConfig(**{"name": name, "library": library, "architecture": name, "weights": "none", **changes})


def build(chosen: BackboneConfig, weights: dict[str, Tensor] | None = None, **changes: Any) -> Classifier:
    config = Config(backbone=chosen, **{"image_size": SIZE, "dropout": 0.5, **changes})
    return build_classifier(config, weights, classes=3)


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def drawn(model: Classifier, seed: int = 0) -> Tensor:
    """The representation, with the global generator at that seed."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return model.representation(images())


def of_stage(rate: float, kind: str, values: Tensor) -> Tensor:
    stage = nn.Identity()
    stage.register_forward_hook(StageDropout(stage.train(), rate, kind == "channel"))
    torch.manual_seed(5)
    return stage(values)


# What a stage's dropout does to values


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_single_values_are_dropped(rate: float) -> None:
    values = 1 + torch.rand(40, 50, 6, 6)
    dropped = of_stage(rate, "element", values)
    zero = dropped == 0
    assert abs(float(zero.double().mean()) - rate) < 4.5 * (rate * (1 - rate) / values.numel()) ** 0.5
    torch.testing.assert_close(dropped[~zero], values[~zero] / (1 - rate))
    assert 0 < int(zero[0, 0].sum()) + int(zero[1, 1].sum()) + int(zero[2, 2].sum()) < 3 * 36  # not whole maps


@pytest.mark.parametrize("shape", [(60, 70, 5, 5), (60, 9, 70)], ids=["maps", "tokens"])
def test_whole_channels_are_dropped(shape: tuple[int, ...]) -> None:
    values = 1 + torch.rand(shape)
    dropped = of_stage(0.3, "channel", values)
    by_channel = (dropped if len(shape) == 4 else dropped.transpose(1, 2)).flatten(2)  # [B, C, positions]
    zero = by_channel == 0
    assert torch.equal(zero.any(2), zero.all(2))
    assert abs(float(zero[..., 0].double().mean()) - 0.3) < 4.5 * (0.21 / (60 * 70)) ** 0.5
    assert len({tuple(row) for row in zero[..., 0].tolist()}) == 60  # images by themselves
    torch.testing.assert_close(dropped[dropped != 0], values[dropped != 0] / 0.7)


def test_no_dropout_of_a_stage_in_evaluation() -> None:
    stage = nn.Identity().eval()
    stage.register_forward_hook(StageDropout(stage, 0.9, False))
    assert torch.equal(stage(torch.ones(100)), torch.ones(100))


# Where it is


STAGES = {
    ("torchvision", "resnet18"): 4,
    ("torchvision", "efficientnet_b0"): 9,
    ("torchvision", "densenet121"): 12,
    ("torchvision", "vit_b_16"): 12,
    ("timm", "resnet10t"): 4,
    ("timm", "convnext_atto"): 4,
    ("timm", "vit_tiny_patch16_224"): 12,
    ("timm", "tf_efficientnet_lite0"): 7,
}


@pytest.mark.parametrize(("library", "name"), STAGES)
def test_stages_and_their_rates(library: str, name: str) -> None:
    """Every stage drops the fraction that its rate says, of the values that are not zero without."""
    stages = STAGES[library, name]
    rates = [round(0.1 + 0.6 * index / stages, 3) for index in range(stages)]
    rates[1] = 0.0
    model = build(settings(name, library, stage_dropout=rates)).train()
    assert model.state_dict().keys() == build(settings(name, library)).state_dict().keys()
    found = stages_of(model.backbone)
    assert found is not None
    before, after = [], []
    for stage, rate in zip(found, rates, strict=True):
        hooks = list(stage._forward_hooks.values())
        assert len(hooks) == (rate > 0)
        stage._forward_hooks.clear()
        stage.register_forward_hook(lambda _, __, output: before.append(output.detach().clone()))
        for hook in hooks:
            stage.register_forward_hook(hook)
        stage.register_forward_hook(lambda _, __, output: after.append(output.detach().clone()))
    drawn(model)
    assert len(before) == len(after) == stages
    for rate, without, with_it in zip(rates, before, after, strict=True):
        present = without != 0
        share = float((with_it[present] == 0).double().mean())
        assert abs(share - rate) < 5 * (rate * (1 - rate) / int(present.sum())) ** 0.5 + 1e-12
        kept = present & (with_it != 0)
        torch.testing.assert_close(with_it[kept], without[kept] / (1 - rate), rtol=1e-3, atol=1e-4)


def test_one_rate_is_of_every_stage() -> None:
    one, four = (build(settings(stage_dropout=rates)).train() for rates in ([0.2], [0.2] * 4))
    assert torch.equal(drawn(one), drawn(four))
    assert not torch.equal(drawn(one), drawn(build(settings()).train()))


def test_what_cannot_be_is_refused_in_one_line() -> None:
    refused = {
        "resnet18 has 4 stages; give one rate for each": settings(stage_dropout=[0.1, 0.2]),
        "the stages of regnet_y_400mf are unknown": settings("regnet_y_400mf", stage_dropout=[0.1]),
        "swin_t has the channels of its maps last": settings(
            "swin_t", stage_dropout=[0.1], stage_dropout_kind="channel"
        ),
        "stochastic_depth=0.1: not known for mobilenet_v2": settings("mobilenet_v2", stochastic_depth=0.1),
        "stochastic_depth=0.1: not known for vgg11": settings("vgg11", "timm", stochastic_depth=0.1),
    }
    for message, chosen in refused.items():
        with pytest.raises(UserError, match=message) as raised:
            build(chosen)
        assert str(raised.value).startswith("backbone.st")
        assert "\n" not in str(raised.value)
    build(settings("swin_t", stage_dropout=[0.1]))  # single values have no layout


def test_frozen_batch_norms_that_are_stages_drop_too() -> None:
    """densenet's second stage is one, and never in training mode where weights are pre-trained."""
    weights = build(settings("densenet121")).backbone.state_dict()
    plain, dropped = (
        build(settings("densenet121", stage_dropout=rates), weights).train()
        for rates in ([0.0] * 12, [0.0, 0.5, *[0.0] * 10])
    )
    norm = dropped.backbone.get_submodule("features.norm0")
    assert isinstance(norm, nn.BatchNorm2d)
    assert not norm.training
    assert not torch.equal(drawn(plain), drawn(dropped))


# When, and with which numbers


DRAWING = {
    "element": settings(stage_dropout=[0.0, 0.0, 0.3, 0.3]),
    "channel": settings(stage_dropout=[0.3], stage_dropout_kind="channel"),
    "depth": settings(stochastic_depth=0.8),
    "depth of a library's": settings("convnext_tiny", stochastic_depth=0.8),
    "depth of timm's": settings("vit_tiny_patch16_224", "timm", stochastic_depth=0.8),
}


@pytest.mark.parametrize("kind", DRAWING)
def test_training_draws_by_the_seed_and_evaluation_not_at_all(kind: str) -> None:
    chosen = DRAWING[kind]
    none = settings(chosen.name, chosen.library)
    weights = build(none).backbone.state_dict()
    model, plain = build(chosen, weights).train(), build(none, weights)
    assert model.state_dict().keys() == plain.state_dict().keys()
    first, again, other = (drawn(model, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        evaluated = model.eval()(images())
        assert torch.equal(evaluated, plain.eval()(images()))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first, plain.train().representation(images()))


@pytest.mark.parametrize("kind", DRAWING)
def test_a_copy_is_independent(kind: str) -> None:
    """As the weight average is one: each drops in its own mode."""
    model = build(DRAWING[kind]).train()
    average = WeightAverage(model, optim(steps=10, averaging=AveragingConfig(start=1)))
    average.after_step(1)
    copied = average.model
    assert copied is not None
    copied.eval()
    evaluated = drawn(copied, 0)
    assert torch.equal(evaluated, drawn(copied, 1))
    assert not torch.equal(drawn(model, 0), drawn(model, 1))
    copied.train()
    model.eval()
    assert not torch.equal(drawn(copied, 0), drawn(copied, 1))
    assert torch.equal(drawn(model, 0), drawn(model, 1))
    ours = {id(module) for module in model.modules()}
    for module in copied.modules():
        for hook in module._forward_hooks.values():
            [of] = [value for value in vars(hook).values() if isinstance(value, nn.Module)]
            assert id(of) not in ours


# Stochastic depth


@pytest.mark.parametrize(("name", "last", "blocks"), [("resnet18", "bn2", 8), ("resnet50", "bn3", 16)])
def test_branches_of_a_resnet_are_dropped_for_whole_images(name: str, last: str, blocks: int) -> None:
    """By frozen batch norms too. Of block i of n, with probability rate · i / (n - 1); the others are scaled up."""
    rate, n, rounds = 0.6, 200, 4
    weights = build(settings(name)).backbone.state_dict()
    weights = {key: torch.ones_like(value) if f"{last}.weight" in key else value for key, value in weights.items()}
    model = build(settings(name, stochastic_depth=rate), weights, image_size=16).train()
    ends = [module for path, module in model.backbone.named_modules() if path.endswith(f".{last}")]
    assert len(ends) == blocks
    shares: list[list[float]] = [[] for _ in ends]
    before: dict[int, Tensor] = {}
    for index, end in enumerate(ends):
        [*hooks] = end._forward_hooks.values()
        assert len(hooks) == (index > 0)
        assert not end.training
        end._forward_hooks.clear()

        def first(_: nn.Module, __: object, output: Tensor, index: int = index) -> None:
            before[index] = output.clone()

        def then(_: nn.Module, __: object, output: Tensor, index: int = index) -> None:
            zero = (output == 0).flatten(1)
            assert torch.equal(zero.any(1) & ~(before[index] == 0).flatten(1).any(1), zero.all(1))
            kept = ~zero.all(1)
            expected = before[index][kept] / (1 - rate * index / (blocks - 1))
            torch.testing.assert_close(output[kept], expected)
            shares[index].append(float(zero.all(1).double().mean()))

        end.register_forward_hook(first)
        for hook in hooks:
            end.register_forward_hook(hook)
        end.register_forward_hook(then)
    torch.manual_seed(0)
    with torch.no_grad():
        for number in range(rounds):
            model.representation(torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(number)))
    for index, share in enumerate(shares):
        probability = rate * index / (blocks - 1)
        spread = (probability * (1 - probability) / (n * rounds)) ** 0.5
        assert abs(sum(share) / rounds - probability) <= 4.5 * spread


@pytest.mark.parametrize(
    ("name", "blocks"), [("efficientnet_b0", 16), ("convnext_tiny", 18), ("swin_t", 12), ("swin_v2_t", 12)]
)
def test_networks_that_have_stochastic_depth_get_the_settings(name: str, blocks: int) -> None:
    for rate in (0.0, 0.3):
        model = build(settings(name, stochastic_depth=rate))
        found = [module.p for module in model.modules() if type(module).__name__ == "StochasticDepth"]
        assert found == pytest.approx([rate * index / (blocks - 1) for index in range(blocks)])
        assert {module.mode for module in model.modules() if type(module).__name__ == "StochasticDepth"} == {"row"}


def test_timm_s_networks_get_it_when_they_are_built() -> None:
    """vit_tiny's 12 blocks have two branches each; the first block drops nothing."""
    model = build(settings("vit_tiny_patch16_224", "timm", stochastic_depth=0.22))
    found = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert found == pytest.approx([0.02 * index for index in range(1, 12) for _ in range(2)])


# The rate over training


@pytest.mark.parametrize(
    ("schedule", "start", "middle", "end"),
    [("constant", 0.9, 0.9, 0.9), ("rising", 0.0, 0.45, 0.9), ("falling", 0.9, 0.45, 0.0)],
)
def test_schedules(schedule: str, start: float, middle: float, end: float) -> None:
    dropout = RepresentationDropout(0.9, schedule, 200)
    assert [dropout.rate_at(step) for step in (0, 100, 200)] == pytest.approx([start, middle, end])


@pytest.mark.parametrize("schedule", ["constant", "rising", "falling"])
def test_training_uses_the_rate_of_the_step(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []

    def counted(representation: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
        assert generator is not None
        used.append(rate)
        return representation

    monkeypatch.setattr("vld.model.dropout.inverted_dropout", counted)
    batches, model = make_batches(), make_model(dropout=0.8, schedule=schedule, steps=4)
    trajectory = Trajectory(model.train(), optim(steps=4, milestones=[]))
    for step in range(4):
        update(trajectory, *batches.batch(step), step)
    expected = {"constant": [0.8] * 4, "rising": [0.0, 0.2, 0.4, 0.6], "falling": [0.8, 0.6, 0.4, 0.2]}
    assert used == pytest.approx(expected[schedule])
    assert model.dropout.rate == 0.8  # what the noise is judged by


def test_the_noise_that_is_warned_about_is_the_same_again() -> None:
    model = build(settings(stage_dropout=[0.3], stochastic_depth=0.5))
    state = torch.random.get_rng_state()
    noise = dropout_noise(model, images())
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(123)
    assert dropout_noise(copy.deepcopy(model), images()) == noise


# As a command


def test_a_run_with_all_of_them_and_its_model(small_glyphs: Path, tmp_path: Path) -> None:
    options = (
        *("dataset=glyphs", "test_domain=0", "image_size=16", "batch_size=2", "optim.steps=2", "eval_every=1"),
        *(
            "backbone=resnet18",
            "backbone.weights=none",
            "backbone.stage_dropout=[0,0,0.1,0.2]",
            "dropout_schedule=rising",
        ),
        *("backbone.stage_dropout_kind=channel", "backbone.stochastic_depth=0.1", "averaging.start=1"),
        *(f"data_dir={small_glyphs}", f"output_dir={tmp_path}", "keep=[erm-last,weight_averaging-last]"),
    )
    done = train(*options)
    assert done.returncode == 0, done.stderr
    [result] = (tmp_path / "runs").rglob("result.json")
    model = load_model(result.parent)
    assert not model.training
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    assert sorted(hook.rate for hook in hooks) == pytest.approx(sorted([0.1, 0.2, *(0.1 * i / 7 for i in range(1, 8))]))
    assert torch.equal(model(images()), model(images()))
    assert load_model(result.parent, "weight_averaging-last")(images()).shape == (4, 2)
    again = train(*options)
    assert "already finished" in again.stdout
    plain = train(*(option for option in options if "stage_dropout" not in option))
    assert plain.returncode == 0, plain.stderr
    assert len(list((tmp_path / "runs").rglob("result.json"))) == 2


def test_what_the_command_refuses() -> None:
    done = train("backbone.stage_dropout=[0.1]", "backbone.tuning=linear")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("backbone.tuning=linear: ")


def test_a_vision_transformer_is_built_again_at_its_size() -> None:
    chosen = settings("vit_b_16", stage_dropout=[0.1])
    model = build(chosen, image_size=48).eval()
    identity: dict[str, Any] = {f"backbone.{name}": value for name, value in vars(chosen).items()}
    identity |= {"backbone.weights_fingerprint": "random", "image_size": 48, "dropout": 0.5, "head_seed": 0, "seed": 0}
    again = network(identity, model.state_dict())
    large = torch.rand(2, 3, 48, 48)
    assert torch.equal(again(large), model(large))
