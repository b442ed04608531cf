"""Mixout and the warm start of the last layer, against their formulas."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from run_command import TINY_NETWORK, tiny_weights, train
from tiny import CPU, SEED, make_batches, make_model, settings
from torch import Tensor, nn

from vld.config.errors import UserError
from vld.config.settings import Config
from vld.machine.seeds import WEIGHTS, torch_generator
from vld.model.mixout import Mixout, masked_share, masked_weights
from vld.runs import load_results
from vld.training.loop import Trajectory, update

P = 0.8


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (
            nn.Sequential(nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.Flatten(), nn.Linear(40 * 36, 5)).double().eval()
        )


def at_rate(kind: str) -> Config:
    return Config(mixout=P, mixout_kind=kind)


def masked(weight: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """m: one for each row, or for each weight."""
    size = [len(weight), *[1] * (weight.dim() - 1)] if kind == "filter" else list(weight.shape)
    return torch.empty(torch.Size(size).numel()).bernoulli_(1 - P, generator=generator).view(size)


def generator() -> torch.Generator:
    return torch_generator(SEED, WEIGHTS, 3, CPU)


@pytest.mark.parametrize(("kind", "name"), [("filter", "0.weight"), ("point", "3.weight")])
def test_weights_and_gradients_are_the_formula_s(kind: str, name: str) -> None:
    backbone, images = (
        network(),
        torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    )
    initial = {key: value.clone() for key, value in backbone.state_dict().items()}
    mixout = Mixout(backbone, at_rate(kind))
    backbone.load_state_dict(network(1).state_dict())  # trained away from its start
    before = copy.deepcopy(backbone.state_dict())

    plain = network(1)
    w = plain.get_parameter(name)
    m = masked(w, kind, generator())
    mixed = (m * w + (1 - m) * initial[name] - P * initial[name]) / (1 - P)
    torch.func.functional_call(plain, {name: mixed}, images).square().sum().backward()

    assert mixout.places == {name: 0}
    factors = mixout.drawn(generator())
    features = mixout(backbone, factors, images)
    assert torch.allclose(features, torch.func.functional_call(plain, {name: mixed}, images), rtol=1e-12)
    features.square().sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    for key, parameter in backbone.named_parameters():
        assert torch.allclose(parameter.grad, plain.get_parameter(key).grad, rtol=1e-9)  # type: ignore[arg-type]
    assert 0 < (m == 0).sum() < m.numel()


def test_from_zero_it_is_dropout_on_weights() -> None:
    backbone = network()
    for parameter in backbone.parameters():
        nn.init.zeros_(parameter)
    mixout = Mixout(backbone, at_rate("point"))
    backbone.load_state_dict(network(1).state_dict())
    weight, bias, images = backbone[3].weight, backbone[3].bias, torch.ones(1, 3, 8, 8, dtype=torch.float64)
    dropped = weight * masked(weight, "point", generator()) / (1 - P)
    expected = nn.functional.linear(backbone[:3](images), dropped, bias)
    factors = mixout.drawn(generator())
    assert torch.allclose(mixout(backbone, factors, images), expected, rtol=1e-12)


def test_attention_s_input_projection_is_a_linear_layer() -> None:
    attention = nn.MultiheadAttention(8, 2)
    assert {id(w) for w in masked_weights(attention, "point")} == {
        id(attention.in_proj_weight),
        id(attention.out_proj.weight),
    }


@pytest.mark.parametrize("twice", [False, True])
def test_a_shared_weight_is_masked_once(twice: bool) -> None:
    """By two layers, or by one that is used twice."""
    layer = nn.Linear(3, 3)
    twin = layer if twice else nn.Linear(3, 3)
    twin.weight = layer.weight
    both = nn.Sequential(layer, twin)
    assert len(masked_weights(both, "point")) == 1
    before = dict(both.named_parameters())
    mixout = Mixout(both, at_rate("point"))
    with torch.no_grad():
        layer.weight += 1
    [factor] = mixout.drawn(generator())
    [initial] = mixout.buffers()
    mixed = (layer.weight - initial) * factor + initial
    expected = nn.functional.linear(nn.functional.linear(torch.ones(1, 3), mixed, layer.bias), mixed, twin.bias)
    assert torch.equal(mixout(both, [factor], torch.ones(1, 3)), expected)
    assert all(parameter is before[name] for name, parameter in both.named_parameters())


def test_a_kind_without_a_layer_is_refused() -> None:
    with pytest.raises(
        UserError, match="mixout_kind=point: this backbone has no linear layers; use mixout_kind=filter"
    ):
        masked_weights(make_model().backbone, "point")


def test_a_kind_that_masks_little_is_warned_of() -> None:
    assert masked_share(network(), "filter") == 1080 / (1080 + 40 + 80 + 7200 + 5)
    assert masked_share(network(), "point") == 7200 / (1080 + 40 + 80 + 7200 + 5)


def test_the_warning_says_how_little(small_glyphs: Path, tmp_path: Path) -> None:
    """Of a transformer `filter` masks the patches' convolution alone; `point` in bf16 trains, too."""
    vit = (
        "backbone=timm",
        "backbone.name=test_vit.r160_in1k",
        "backbone.weights=none",
        "dataset=glyphs",
        "image_size=32",
    )
    small = ("batch_size=2", "test_domain=0", "optim.steps=2", "device=cpu", f"data_dir={small_glyphs}")
    options = (*vit, *small, f"output_dir={tmp_path}", "mixout=0.8")
    warned, right = (train(*options, f"mixout_kind={kind}", "precision=bf16") for kind in ("filter", "point"))
    assert (warned.returncode, right.returncode) == (0, 0), warned.stderr + right.stderr
    assert "of the weights of test_vit.r160_in1k; filter is meant for networks of convolutions" in warned.stdout
    assert "is meant for" not in right.stdout
    assert load_results(tmp_path).iid_acc.notna().all()


def test_kept_is_one_copy_of_the_masked_weights() -> None:
    backbone = make_model().backbone
    kept = [tensor for tensor in Mixout(backbone, at_rate("filter")).buffers() if tensor.numel()]
    assert [tensor.shape for tensor in kept] == [weight.shape for weight in masked_weights(backbone, "filter")]
    assert not Mixout(backbone, at_rate("filter")).state_dict()  # it is in the weights that a run starts from


def begin(**choices: Any) -> Trajectory:
    return Trajectory(make_model(), settings(**choices))


def go(trajectory: Trajectory, first: int, end: int) -> dict[str, Tensor]:
    batches = make_batches()
    for step in range(first, end):
        update(trajectory, *batches.batch(step), step)
    return copy.deepcopy(trajectory.model.state_dict())


def test_a_resumed_run_is_the_same_to_the_bit() -> None:
    choices = {"mixout": P, "warm_start": 2}
    whole = go(begin(**choices), 0, 8)
    for step in (1, 2, 5):
        part, resumed = begin(**choices), begin(**choices)
        go(part, 0, step)
        resumed.load_state_dict(copy.deepcopy(part.state_dict()))
        assert all(torch.equal(value, whole[key]) for key, value in go(resumed, step, 8).items())
    assert not torch.equal(whole["backbone.0.weight"], go(begin(), 0, 8)["backbone.0.weight"])


def test_a_warm_start_trains_the_last_layer_alone_without_dropout() -> None:
    trajectory, start = begin(mixout=P, warm_start=3), make_model()
    optimizer = torch.optim.SGD(start.head.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    batches = make_batches()
    for step in range(3):
        images, labels = batches.batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(start.head(start.representation(images)), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    start.backbone.load_state_dict(make_model().backbone.state_dict())
    warmed = go(trajectory, 0, 3)
    for key, value in start.state_dict().items():
        assert torch.allclose(warmed[key], value, atol=1e-6), key
    assert trajectory.model.training
    assert not torch.equal(go(trajectory, 3, 4)["backbone.0.weight"], warmed["backbone.0.weight"])


def test_runs_with_them_are_runs_of_their_own(small_glyphs: Any, tmp_path: Any) -> None:
    options = ["dataset=glyphs", "test_domain=0", "image_size=16", "batch_size=1", "optim.steps=2", "eval_every=2"]
    places = [f"data_dir={small_glyphs}", f"output_dir={tmp_path}"]
    network = (*TINY_NETWORK[:2], tiny_weights(tmp_path))
    soup = ("method=model_soup", 'method.members=["mixout=0,0.8"]')  # of w itself, as of any members
    for one in (soup, ("warm_start=1",)):
        done = train(*options, *network, *places, *one)
        assert done.returncode == 0, done.stderr
    results = load_results(tmp_path)
    assert results[results.members.isna()].run_id.nunique() == 3
    assert results.members.dropna().map(len).tolist() == [2]
    refused = train(*options, *network, *places, "mixout=0.8", "mixout_kind=point")
    assert refused.returncode == 2
    assert "mixout_kind=point: this backbone has no linear layers" in refused.stderr
