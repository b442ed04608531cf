"""Linear fine-tuning (equation 1) and the linear probe, against finite differences and the plain head on frozen features."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from run_command import train
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vld.config.errors import UserError
from vld.config.settings import BackboneConfig, Config
from vld.model.classifier import Classifier, build_classifier
from vld.model.linear import LinearBackbone, normalized
from vld.runs import load_model

LABELS = torch.tensor([0, 2, 1, 1])


@pytest.fixture(scope="module")
def resnet34() -> dict[str, Tensor]:
    """Random values, with running statistics that fit them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = torchvision.models.resnet34(weights=None)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        network.train()(torch.rand(8, 3, 48, 48))
    return dict(network.state_dict())


def build(weights: dict[str, Tensor], dropout: float = 0.0, **settings: object) -> Classifier:
    backbone = BackboneConfig(name="resnet34", architecture="resnet34", **settings)  # type: ignore[arg-type]
    return build_classifier(Config(backbone=backbone, dropout=dropout), weights, classes=3)


def images() -> Tensor:
    return torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def test_without_normalisation_it_begins_as_the_plain_head_on_frozen_features(resnet34: dict[str, Tensor]) -> None:
    linear, plain = build(resnet34, tuning="linear", normalize="none").eval(), build(resnet34).eval()
    assert isinstance(linear.backbone, LinearBackbone)
    assert linear.backbone.v.shape == (3, 512)
    assert linear.backbone.v.tolist() == [[1.0] * 512, [0.0] * 512, [0.0] * 512]
    torch.testing.assert_close(linear(images()), plain(images()), rtol=1e-5, atol=1e-6)


def test_it_mixes_the_pooled_normalised_outputs_of_the_last_three_blocks(resnet34: dict[str, Tensor]) -> None:
    """φ₁, φ₂, φ₃ by hooks on torchvision's own network."""
    network = torchvision.models.resnet34(weights=None)
    network.load_state_dict(resnet34)
    outputs: list[Tensor] = []
    for block in network.layer4:
        block.register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
    linear = build(resnet34, tuning="linear", normalize="l2").eval()
    with torch.no_grad():
        network.eval()((images() - linear.mean) / linear.std)
        assert isinstance(linear.backbone, LinearBackbone)
        linear.backbone.v.copy_(torch.rand(3, 512, generator=torch.Generator().manual_seed(2)))
        phi = [maps.mean((2, 3)) / maps.mean((2, 3)).norm(dim=1, keepdim=True) for maps in outputs[::-1]]
        expected = sum(v * features for v, features in zip(linear.backbone.v, phi, strict=True))
        assert len(phi) == 3
        torch.testing.assert_close(linear.representation(images()), expected, rtol=1e-4, atol=1e-6)


def test_gradients_of_the_vectors_are_those_of_finite_differences(resnet34: dict[str, Tensor]) -> None:
    model = build(resnet34, tuning="linear", normalize="layer").double().train()
    backbone = model.backbone
    assert isinstance(backbone, LinearBackbone)
    features = backbone.block_features(((images() - model.mean) / model.std).double()).double()

    def loss() -> Tensor:
        return cross_entropy(model.head((backbone.v * features).sum(1)), LABELS)

    loss().backward()  # type: ignore[no-untyped-call]
    assert backbone.v.grad is not None
    step = 1e-5
    for i, j in ((0, 3), (1, 100), (2, 511), (2, 0)):
        with torch.no_grad():
            backbone.v[i, j] += step
            above = loss()
            backbone.v[i, j] -= 2 * step
            below = loss()
            backbone.v[i, j] += step
        assert ((above - below) / (2 * step)).item() == pytest.approx(backbone.v.grad[i, j].item(), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("tuning", ["linear", "head"])
def test_only_what_is_tuned_gets_a_gradient_and_nothing_else_moves(tuning: str, resnet34: dict[str, Tensor]) -> None:
    model = build(resnet34, dropout=0.5, tuning=tuning).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(model(images(), torch.Generator().manual_seed(0)), LABELS).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"head.weight", "head.bias"} | ({"backbone.v"} if tuning == "linear" else set())
    assert not any(module.training for module in model.batch_norms())


def test_dropout_acts_on_the_mixture(resnet34: dict[str, Tensor]) -> None:
    model = build(resnet34, dropout=0.9, tuning="linear").train()
    with torch.no_grad():
        representation = model.representation(images())
        seen: list[Tensor] = []
        model.head.register_forward_hook(lambda *arguments: seen.append(arguments[1][0]))
        model(images(), torch.Generator().manual_seed(0))
    kept = seen[0] != 0
    torch.testing.assert_close(seen[0][kept], 10 * representation[kept])
    assert 0.05 < kept.float().mean() < 0.15


def test_normalisations() -> None:
    features = torch.rand(5, 64, generator=torch.Generator().manual_seed(0)) * 7
    torch.testing.assert_close(normalized(features, "l2").norm(dim=1), torch.ones(5))
    layer = normalized(features, "layer")
    torch.testing.assert_close(layer.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.var(1, unbiased=False), torch.ones(5), rtol=1e-4, atol=0)
    assert normalized(features, "none") is features


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v2"])
def test_a_network_without_three_equal_blocks_is_refused(architecture: str) -> None:
    settings = BackboneConfig(name=architecture, architecture=architecture, tuning="linear")
    weights = dict(torchvision.models.get_model(architecture, weights=None).state_dict())
    with pytest.raises(UserError, match=f"{architecture} has no three last residual blocks of equal width"):
        build_classifier(Config(backbone=settings), weights, classes=3)


def test_a_linear_run_trains_learns_and_is_loaded_again(
    resnet34: dict[str, Tensor], small_glyphs: Path, tmp_path: Path
) -> None:
    torch.save(resnet34, tmp_path / "resnet34.pth")
    places = (f"data_dir={small_glyphs}", f"output_dir={tmp_path}", f"backbone.weights={tmp_path / 'resnet34.pth'}")
    network = (
        "backbone=resnet18",
        "backbone.name=resnet34",
        "backbone.architecture=resnet34",
        "backbone.tuning=linear",
    )
    small = (
        "dataset=glyphs",
        "test_domain=0",
        "image_size=32",
        "batch_size=2",
        "optim.steps=4",
        "eval_every=2",
        "optim.lr=0.1",
    )
    done = train(*network, *small, *places)
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "runs").rglob("result.json")
    assert json.loads(path.read_text())["settings"]["backbone.tuning"] == "linear"
    model = load_model(path.parent)
    assert isinstance(model.backbone, LinearBackbone)
    assert not torch.equal(model.backbone.v[1], torch.zeros(512))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 2)
    refused = train(*network[:-1], "backbone.tuning=head", *small, *places[:2], "backbone.weights=none")
    assert refused.returncode == 2
    assert "backbone.tuning=head: random initial values" in refused.stderr
