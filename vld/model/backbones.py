"""The networks that can be a backbone: any torchvision classifier and any timm model, up to what their last layer sees."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from vld.config.errors import UserError, first_line
from vld.config.settings import BackboneConfig

# Where torchvision's and timm's classifiers have their last layer: left out, since ours takes its place.
CLASSIFIER_NAMES = ("fc", "classifier", "head", "heads")
LAST_LAYER = "last_layer"
"""What ours is called among weights that it is to start with."""
# What weights files have beyond the network: classifiers and the auxiliary heads of googlenet, inception_v3 and distilled ViTs.
BEYOND = (*CLASSIFIER_NAMES, LAST_LAYER, "head_dist", "aux1", "aux2", "AuxLogits")

# Names in published files of torchvision's ViTs and DenseNets, and what they have become.
OLD_NAMES = (
    (r"\.mlp\.linear_1\.", ".mlp.0."),
    (r"\.mlp\.linear_2\.", ".mlp.3."),
    (r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2."),
)


def build_backbone(settings: BackboneConfig, image_size: int) -> tuple[nn.Module, int]:
    """The network without its last linear layer and without the dropout before it, and that layer's number of inputs.

    Hidden layers of its classifier stay. image_size: of networks that are made for one size. Raises `UserError` for an
    architecture that the library does not have, that has no linear layer, or that cannot be made for that size.
    """
    if settings.library == "timm":
        return _of_timm(settings, image_size)
    name = settings.architecture
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"backbone.architecture={name}: torchvision has no such classifier")
    try:
        network = torchvision.models.get_model(name, weights=None, **_torchvision_options(name, image_size))
    except (AssertionError, ValueError) as error:
        raise _wrong_size(name, image_size, error) from error
    for attribute in CLASSIFIER_NAMES:
        layers = [
            path
            for path, module in network.named_modules()
            if isinstance(module, nn.Linear) and path.split(".")[0] == attribute
        ]
        if layers:
            features: int = network.get_submodule(layers[-1]).in_features
            network.set_submodule(layers[-1], nn.Identity())
            for path, module in list(network.named_modules()):
                # googlenet and inception_v3 have theirs beside the classifier.
                if isinstance(module, nn.Dropout) and path.split(".")[0] in (attribute, "dropout"):
                    network.set_submodule(path, nn.Identity())
            return network, features
    raise UserError(f"backbone.architecture={name}: its classifier has no linear layer, which ours could replace")


def _torchvision_options(name: str, image_size: int) -> dict[str, Any]:
    if name in ("googlenet", "inception_v3"):
        # Their published weights were trained on other statistics than ImageNet's, from which they translate.
        return {"aux_logits": False, "init_weights": True, "transform_input": True}
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    return {}


def _of_timm(settings: BackboneConfig, image_size: int) -> tuple[nn.Module, int]:
    import timm  # takes seconds, and most runs do without it

    name = settings.architecture
    check_timm_has(name)
    options: dict[str, Any] = {"img_size": image_size, "drop_rate": 0.0, "drop_path_rate": settings.stochastic_depth}
    while True:
        try:
            network = timm.create_model(name, pretrained=False, num_classes=0, **options)
            break
        except TypeError as error:  # each network takes some of these options; nothing says which
            refused = re.search(r"keyword argument '(\w+)'", str(error))
            if refused is None or refused[1] not in options:
                raise
            del options[refused[1]]
        except (AssertionError, ValueError, RuntimeError) as error:
            if "img_size" not in options:
                raise
            raise _wrong_size(name, image_size, error) from error
    # Some have a hidden layer between what is pooled and the last one.
    return network, int(getattr(network, "head_hidden_size", None) or network.num_features)  # type: ignore[arg-type]


def check_timm_has(name: str) -> None:
    """Raises `UserError` for a name that is not one of timm's, with or without the tag of one of its pre-trainings."""
    import timm

    try:
        if timm.is_model(name):
            timm.get_pretrained_cfg(name)
            return
    except RuntimeError:  # no such tag
        pass
    raise UserError(f"backbone.architecture={name}: timm has no such model (timm.list_models() lists them)")


def _wrong_size(name: str, image_size: int, error: Exception) -> UserError:
    reason = first_line(error)
    return UserError(f"image_size={image_size}: {name} cannot be made for it ({reason})")


def current_name(key: str) -> str:
    """What a tensor is called now, of an older file of torchvision's."""
    for old, new in OLD_NAMES:
        key = re.sub(old, new, key)
    return key


def at_image_size(
    network: nn.Module, weights: Mapping[str, Tensor], image_size: int
) -> tuple[dict[str, Tensor], int | None]:
    """The weights of a vision transformer for a network that was built for `image_size`; and the size that they are of, where
    that is another one.

    A position embedding [1, tokens, d] has a token for each patch, after a few more. The patches' are resized as timm does.
    """
    own = network.state_dict()
    patch = getattr(network, "patch_size", None) or getattr(getattr(network, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) else patch
    for name in ("encoder.pos_embedding", "pos_embed"):
        theirs, ours = weights.get(name), own.get(name)
        if not isinstance(side, int) or theirs is None or ours is None or theirs.ndim != 3 or ours.ndim != 3:
            continue
        more = ours.shape[1] - (image_size // side) ** 2
        patches = theirs.shape[1] - more
        across = math.isqrt(max(0, patches))
        if theirs.shape[1] != ours.shape[1] and theirs.shape[2] == ours.shape[2] and 0 < across**2 == patches:
            grid = theirs[:, more:].reshape(1, across, across, -1).permute(0, 3, 1, 2)
            resized = functional.interpolate(grid, size=(image_size // side,) * 2, mode="bicubic", antialias=True)
            return {**weights, name: torch.cat([theirs[:, :more], resized.flatten(2).mT], 1)}, across * side
    return dict(weights), None
