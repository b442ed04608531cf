"""Networks of every kind take a training step; hidden classifier layers, older names and other resolutions of weights files."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from run_command import script, train
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional

from vld.config.errors import UserError
from vld.config.settings import BackboneConfig, Config
from vld.model.backbones import build_backbone
from vld.model.classifier import Classifier, build_classifier
from vld.model.weights import load_backbone_weights

# Each library, name and image size, and how many features the network's own last layer sees.
NETWORKS = {
    ("torchvision", "resnet18", 32): 512,
    ("torchvision", "mobilenet_v3_small", 32): 1024,
    ("torchvision", "efficientnet_b0", 32): 1280,
    ("torchvision", "convnext_tiny", 32): 768,
    ("torchvision", "densenet121", 32): 1024,
    ("torchvision", "vgg11", 32): 4096,
    ("torchvision", "regnet_y_400mf", 32): 440,
    ("torchvision", "shufflenet_v2_x0_5", 32): 1024,
    ("torchvision", "mnasnet0_5", 32): 1280,
    ("torchvision", "googlenet", 32): 1024,
    ("torchvision", "swin_t", 32): 768,
    ("torchvision", "vit_b_16", 32): 768,
    ("timm", "vit_tiny_patch16_224", 32): 192,
    ("timm", "convnext_atto", 32): 320,
    ("timm", "mobilenetv4_conv_small", 32): 1280,
    ("timm", "resnet10t", 32): 512,
    ("timm", "deit_tiny_patch16_224", 48): 192,
    ("timm", "swin_tiny_patch4_window7_224", 32): 768,
    ("timm", "ghostnet_050", 32): 1280,
}


def settings(name: str, library: str = "torchvision", **changes: Any) -> BackboneConfig:
    return BackboneConfig(**{"name": name, "library": library, "architecture": name, "weights": "none", **changes})


def build(chosen: BackboneConfig, weights: dict[str, Tensor] | None = None, image_size: int = 32) -> Classifier:
    return build_classifier(Config(backbone=chosen, image_size=image_size, dropout=0.5), weights, classes=3)


def images(n: int = 4, size: int = 32) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def state_of(architecture: str, **options: Any) -> dict[str, Tensor]:
    """Of torchvision's own network with its classifier, from random values; a plain dictionary, as a file gives it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        return dict(torchvision.models.get_model(architecture, weights=None, **options).state_dict())


@pytest.mark.parametrize(("library", "name", "size"), NETWORKS)
def test_a_training_step(library: str, name: str, size: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # googlenet's about its initial values, say
        model = build(settings(name, library), image_size=size).train()
    assert model.head.in_features == NETWORKS[library, name, size]
    assert [module for module in model.modules() if isinstance(module, nn.Dropout | nn.Dropout2d) and module.p] == []
    torch.manual_seed(0)
    logits = model(images(size=size), torch.Generator().manual_seed(0))
    assert (logits.shape, logits.dtype) == ((4, 3), torch.float32)
    loss = functional.cross_entropy(logits, torch.tensor([0, 2, 1, 0]))
    assert torch.isfinite(loss)
    loss.backward()
    gradients = {key: value.grad for key, value in model.named_parameters()}
    assert [key for key, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    assert model.eval().representation(images(2, size)).shape == (2, model.head.in_features)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_nothing_is_drawn_by_a_network_as_it_is_built(library: str) -> None:
    """Although torchvision's efficientnet_b0 and timm's Swin come with stochastic depth, and ghostnet with dropout."""
    for name in {
        "torchvision": ("efficientnet_b0", "googlenet"),
        "timm": ("ghostnet_050", "swin_tiny_patch4_window7_224"),
    }[library]:
        model = build(settings(name, library)).train()
        torch.manual_seed(3)
        state = torch.random.get_rng_state()
        model.representation(images())
        assert torch.equal(torch.random.get_rng_state(), state), name


@pytest.mark.parametrize("architecture", ["mobilenet_v3_small", "vgg11", "convnext_tiny"])
def test_hidden_layers_of_the_classifier_are_loaded(architecture: str) -> None:
    """What our head sees is what the pre-trained network's last layer saw, in evaluation."""
    weights = state_of(architecture)
    [path, *_] = [key.removesuffix(".weight") for key in reversed(weights) if key.endswith(".weight")]
    model = build(settings(architecture), weights).eval()
    with torch.random.fork_rng(devices=[]):
        network = torchvision.models.get_model(architecture, weights=None)
    network.load_state_dict(weights)
    seen: list[Tensor] = []
    network.get_submodule(path).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (model.mean.flatten().tolist(), model.std.flatten().tolist())
    )
    with torch.no_grad():
        network.eval()((images() - mean) / std)
        torch.testing.assert_close(model.representation(images()), seen[0], rtol=1e-4, atol=1e-4)
    assert float(seen[0].std()) > 0
    hidden = [key for key in weights if key.startswith("classifier.") and not key.startswith(f"{path}.")]
    assert hidden
    assert all(torch.equal(model.backbone.state_dict()[key], weights[key]) for key in hidden)
    assert not any(key.startswith(f"{path}.") for key in model.backbone.state_dict())


def test_a_hidden_layer_may_not_be_missing() -> None:
    weights = {key: value for key, value in state_of("mobilenet_v3_small").items() if key.startswith("features.")}
    with pytest.raises(UserError, match=r"does not fit mobilenet_v3_small: lacks classifier\.0\.weight and 1 more$"):
        build(settings("mobilenet_v3_small"), weights)


def test_files_of_mnasnet_are_loaded_although_they_are_without_versions() -> None:
    weights = state_of("mnasnet0_5")
    loaded = build(settings("mnasnet0_5"), weights).backbone.state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in loaded)


def test_auxiliary_heads_are_neither_built_nor_loaded() -> None:
    weights = state_of("googlenet", aux_logits=True, init_weights=False)
    assert any(key.startswith("aux1.") for key in weights)
    model = build(settings("googlenet"), weights)
    assert not any("aux" in key for key in model.state_dict())
    assert torch.equal(model.backbone.state_dict()["conv1.conv.weight"], weights["conv1.conv.weight"])


@pytest.mark.parametrize(
    ("architecture", "pattern", "old", "options"),
    [
        ("densenet121", r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", {}),
        ("vit_b_16", r"\.mlp\.(0|3)\.", lambda match: f".mlp.linear_{1 + int(match[1]) // 3}.", {"image_size": 32}),
    ],
)
def test_the_names_of_older_files_are_known(architecture: str, pattern: str, old: Any, options: dict[str, int]) -> None:
    """torchvision itself loads such files, which it publishes."""
    weights = state_of(architecture, **options)
    file = {re.sub(pattern, old, key): value for key, value in weights.items()}
    assert len(file.keys() - weights.keys()) > 20
    loaded = build(settings(architecture), file).backbone.state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in loaded)
    if architecture == "vit_b_16":
        torchvision.models.get_model(architecture, **options).load_state_dict(file)


@pytest.mark.parametrize(
    ("library", "name", "embedding", "more"),
    [
        ("torchvision", "vit_b_16", "encoder.pos_embedding", 1),
        ("timm", "vit_tiny_patch16_224", "pos_embed", 1),
        ("timm", "vit_small_patch14_reg4_dinov2", "pos_embed", 0),  # embeds patches alone
    ],
)
def test_position_embeddings_of_another_resolution_are_resized_as_timm_does(
    library: str, name: str, embedding: str, more: int
) -> None:
    patch = 14 if "14" in name else 16
    weights = build_backbone(settings(name, library), 5 * patch)[0].state_dict()
    weights[embedding] = torch.randn(weights[embedding].shape, generator=torch.Generator().manual_seed(0))
    for across in (5, 2, 7):
        model = build(settings(name, library, weights="file.pth"), weights, image_size=across * patch)
        expected = resample_abs_pos_embed(weights[embedding], [across, across], num_prefix_tokens=more)
        torch.testing.assert_close(model.backbone.state_dict()[embedding], expected, rtol=0, atol=1e-6)
        assert model.resized_from == (None if across == 5 else 5 * patch)
        assert model.eval()(images(1, across * patch)).isfinite().all()


def test_a_line_says_that_position_embeddings_are_resized(small_glyphs: Path, tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save(build_backbone(settings("vit_tiny_patch16_224", "timm"), 48)[0].state_dict(), path)
    options = [
        "dataset=glyphs",
        f"data_dir={small_glyphs}",
        f"output_dir={tmp_path}",
        "test_domain=chalk",
        "batch_size=1",
    ]
    options += ["backbone=timm", "backbone.name=vit_tiny_patch16_224", "optim.steps=1", "eval_every=1", "image_size=32"]
    shown = train(*options, f"backbone.weights={path}")
    assert shown.returncode == 0, shown.stderr
    said = " ".join((shown.stdout + shown.stderr).split())
    assert said.count("weights of 48 pixel images; position embeddings resized to image_size=32 (bicubic)") == 1


def test_a_size_that_a_network_cannot_have_is_refused_in_one_line() -> None:
    for name in ("vit_b_16", "maxvit_t"):
        with pytest.raises(UserError, match=rf"^image_size=40: {name} cannot be made for it \(.*\)$"):
            build(settings(name), image_size=40)


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(UserError, match=r"backbone\.architecture=squeezenet1_0: its classifier has no linear layer"):
        build(settings("squeezenet1_0"))


@pytest.mark.parametrize("name", ["no_such_network", "resnet50.no_such_tag", "hf-hub:timm/resnet18.a1_in1k"])
def test_a_name_that_timm_does_not_have(name: str) -> None:
    for attempt in (build, load_backbone_weights):
        with pytest.raises(UserError, match=re.escape(f"backbone.architecture={name}: timm has no such model")):
            attempt(
                settings(name, "timm", published="timm", weights=None if attempt is load_backbone_weights else "none")
            )


def test_a_network_of_timm_without_weights() -> None:
    with pytest.raises(UserError, match=r"^backbone\.weights=null: timm has no weights for resnetv2_50d_frn; "):
        load_backbone_weights(settings("resnetv2_50d_frn", "timm", published="timm", weights=None))


def test_what_timm_downloads_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With timm's download replaced by a network made here."""
    import timm

    create, asked = timm.create_model, []

    def downloaded(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        asked.append((name, pretrained))
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", downloaded)
    chosen = settings("resnet10t", "timm", published="timm", weights=None)
    state = torch.random.get_rng_state()
    weights = load_backbone_weights(chosen)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert asked == [("resnet10t", True)]
    assert weights is not None
    loaded = build(chosen, weights).backbone.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weights[key]) for key in loaded)


# The presets as commands


def test_any_network_of_timm_by_its_name(small_glyphs: Path, tmp_path: Path) -> None:
    """Its statistics come with the name; its download fails in one line where there is no network."""
    options = ["dataset=glyphs", f"data_dir={small_glyphs}", f"output_dir={tmp_path}", "test_domain=0", "image_size=32"]
    few = ["batch_size=1", "optim.steps=1", "keep=[]", "backbone=timm"]
    done = train(*options, *few, "backbone.name=vit_tiny_patch16_224", "backbone.weights=none")
    assert done.returncode == 0, done.stderr
    [stored] = (tmp_path / "runs").rglob("config.yaml")
    assert "backbone.architecture: vit_tiny_patch16_224" in stored.read_text()
    assert re.search(r"backbone\.mean:\s+- 0\.5\s+- 0\.5\s+- 0\.5", stored.read_text())
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = script("train.py", *options, *few, "backbone.name=resnet10t", env=offline, fresh=True)
    assert done.returncode == 2
    assert done.stderr.startswith("backbone.name=resnet10t: timm cannot download its weights (")
    assert done.stderr.count("\n") == 1


def test_a_name_has_to_be_said() -> None:
    done = train("backbone=timm")
    assert (done.returncode, done.stderr) == (2, "backbone.name: a value is needed, set backbone.name=…\n")
