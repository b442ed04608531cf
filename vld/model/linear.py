"""What of a pre-trained network is trained: all of it, the last layer alone, or linear fine-tuning (the paper's equation 1)."""

import torch
from torch import Tensor, nn

from vld.config.errors import UserError
from vld.config.settings import BackboneConfig

BLOCKS = 3
"""Residual blocks whose outputs linear fine-tuning mixes."""


class LinearBackbone(nn.Module):
    """Equation 1: Φ̃ = v₁⊙φ₁ + v₂⊙φ₂ + v₃⊙φ₃, with φᵢ the average-pooled, normalised output of a residual block, φ₁ of the last.

    Only v [3, d] is trained (and, in the classifier, the last layer V, b; dropout acts on Φ̃). It begins at (1, 0, 0): the
    pre-trained representation. The network stays as it was pre-trained, in evaluation mode.

    The paper does not say what “normalise” means. l2: to length 1, which is stable at the paper's learning rates: an update moves
    a logit by about lr · |φ|². layer: to mean 0 and variance 1 over a block's units (length √d). none: as it is.
    """

    def __init__(self, trunk: nn.Module, blocks: nn.ModuleList, width: int, normalize: str) -> None:
        super().__init__()
        self.trunk, self.blocks, self.normalize = trunk.requires_grad_(False), blocks.requires_grad_(False), normalize
        v = torch.zeros(BLOCKS, width)
        v[0] = 1
        self.v = nn.Parameter(v)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, h, w] to Φ̃, float32 [B, d]."""
        with torch.no_grad():
            features = self.block_features(images)
        return (self.v * features).sum(1)

    def block_features(self, images: Tensor) -> Tensor:
        """φ₁, φ₂, φ₃: float32 [B, 3, d]."""
        maps = self.trunk(images)
        pooled = []
        for block in self.blocks:
            maps = block(maps)
            pooled.append(normalized(maps.mean((2, 3)).float(), self.normalize))
        return torch.stack(pooled[::-1], 1)

    def train(self, mode: bool = True) -> "LinearBackbone":
        super().train(mode)
        self.trunk.eval()
        self.blocks.eval()
        return self


def normalized(features: Tensor, how: str) -> Tensor:
    """Features [B, d], each image's by itself."""
    if how == "l2":
        return nn.functional.normalize(features)
    if how == "layer":
        return nn.functional.layer_norm(features, features.shape[1:])
    return features


def tuned(backbone: nn.Module, settings: BackboneConfig, features: int) -> nn.Module:
    """The backbone of which that much is trained. Raises `UserError` for linear fine-tuning of a network without three last
    residual blocks of equal width."""
    if settings.tuning == "head":
        return backbone.requires_grad_(False)
    if settings.tuning == "linear":
        return _linear(backbone, settings, features)
    return backbone


def _linear(backbone: nn.Module, settings: BackboneConfig, features: int) -> LinearBackbone:
    children = dict(backbone.named_children())
    last = children.get("layer4")
    if not isinstance(last, nn.Sequential) or len(last) < BLOCKS:
        raise UserError(
            f"backbone.tuning=linear: {settings.name} has no three last residual blocks of equal width;"
            " resnet50 and other ResNets with as many blocks in their last stage have"
        )
    before = list(children.values())[: list(children).index("layer4")]
    trunk = nn.Sequential(*before, *last[: len(last) - BLOCKS])
    return LinearBackbone(trunk, nn.ModuleList(last[len(last) - BLOCKS :]), features, settings.normalize)
