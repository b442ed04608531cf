"""Dropout: of the representation, before the last layer, which is the study's; and its counterparts within the backbone.

Everything here is active in training mode only. What is placed in a backbone draws from torch's global generator, which training
seeds in every step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torchvision.models import ResNet, SwinTransformer, VisionTransformer
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import StochasticDepth, stochastic_depth

from vld.config.errors import UserError
from vld.config.settings import BackboneConfig

RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")
# Of timm, by the names of their classes: their maps are [B, h, w, C], as those of torchvision's Swin.
CHANNELS_LAST = ("HieraDet", "VisionTransformerSAM")


class RepresentationDropout(nn.Module):
    """Inverted dropout of the penultimate representation, at a rate that may change over so many steps of training."""

    def __init__(self, rate: float, schedule: str = "constant", steps: int = 1) -> None:
        super().__init__()
        self.rate, self.schedule, self.steps = rate, schedule, steps

    def rate_at(self, step: int) -> float:
        """rising: rate · step / steps; falling: rate · (1 - step / steps)."""
        if self.schedule == "rising":
            return self.rate * step / self.steps
        if self.schedule == "falling":
            return self.rate * (1 - step / self.steps)
        return self.rate

    def forward(self, representation: Tensor, generator: torch.Generator | None, step: int | None) -> Tensor:
        """step: None for the highest rate."""
        if not self.training:
            return representation
        return inverted_dropout(representation, self.rate if step is None else self.rate_at(step), generator)


def inverted_dropout(values: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Zero each value with probability `rate` and scale the others by 1 / (1 - rate), so that the mean stays."""
    if rate == 0:
        return values
    kept = torch.empty_like(values).bernoulli_(1 - rate, generator=generator)
    return values * kept / (1 - rate)


def place_dropout(backbone: nn.Module, settings: BackboneConfig) -> None:
    """Add stage dropout and stochastic depth, as the settings say, to a network as its library builds it.

    Without stochastic depth in the settings there is none, whatever the library's default. Raises `UserError` for a network
    for which one of them is not known, and for another number of stages than rates.
    """
    if settings.stage_dropout:
        _place_stage_dropout(backbone, settings)
    _place_stochastic_depth(backbone, settings)


def stages_of(backbone: nn.Module) -> list[nn.Module] | None:
    """The parts of a network after which it may be dropped, in order: a ResNet's four layers, the children of `features`, a
    vision transformer's blocks, timm's `stages` or `blocks`. None where they are not known."""
    if all(hasattr(backbone, name) for name in RESNET_STAGES):
        return [backbone.get_submodule(name) for name in RESNET_STAGES]
    parts = [getattr(backbone, name, None) for name in ("features", "stages", "blocks")]
    if isinstance(backbone, VisionTransformer):
        parts = [backbone.encoder.layers]
    found = next((part for part in parts if isinstance(part, nn.Sequential | nn.ModuleList)), None)
    return None if found is None else list(found.children())


def _place_stage_dropout(backbone: nn.Module, settings: BackboneConfig) -> None:
    rates, name = settings.stage_dropout, settings.architecture
    stages = stages_of(backbone)
    if not stages:
        raise UserError(f"backbone.stage_dropout={rates}: the stages of {name} are unknown")
    if len(rates) == 1:
        rates = rates * len(stages)
    if len(rates) != len(stages):
        raise UserError(
            f"backbone.stage_dropout={rates}: {name} has {len(stages)} stages; give one rate for each, or one for all"
        )
    channels = settings.stage_dropout_kind == "channel"
    last = isinstance(backbone, SwinTransformer) or getattr(backbone, "output_fmt", "") == "NHWC"
    if channels and (last or type(backbone).__name__ in CHANNELS_LAST):
        raise UserError(
            f"backbone.stage_dropout_kind=channel: {name} has the channels of its maps last; element is what it can have"
        )
    for stage, rate in zip(stages, rates, strict=True):
        if rate:
            stage.register_forward_hook(StageDropout(backbone, rate, channels))


def _place_stochastic_depth(backbone: nn.Module, settings: BackboneConfig) -> None:
    rate = settings.stochastic_depth
    modules = list(backbone.modules())
    if settings.library == "timm":  # built with it
        found = any(type(module).__name__ == "DropPath" and module.drop_prob for module in modules)
    elif isinstance(backbone, ResNet):
        found = True
        blocks = [module for module in modules if isinstance(module, BasicBlock | Bottleneck)]
        for block, its_rate in zip(blocks, rising(rate, len(blocks)), strict=True):
            if its_rate:
                branch_end = block.bn3 if isinstance(block, Bottleneck) else block.bn2
                branch_end.register_forward_hook(BranchDropout(block, its_rate))
    else:
        branches = [module for module in modules if isinstance(module, StochasticDepth)]
        found = bool(branches)
        for branch, its_rate in zip(branches, rising(rate, len(branches)), strict=True):
            branch.p = its_rate
    if rate and not found:
        raise UserError(
            f"backbone.stochastic_depth={rate}: not known for {settings.architecture}; torchvision's ResNets, EfficientNets,"
            " ConvNeXts, Swin and MaxViT have it, and most of timm's networks with residual branches"
        )


def rising(rate: float, blocks: int) -> list[float]:
    """Linearly from 0 in the first of so many blocks to `rate` in the last."""
    return [rate * index / max(1, blocks - 1) for index in range(blocks)]


@dataclass(eq=False)
class StageDropout:
    """A forward hook: inverted dropout of what a stage returns, of single values or of whole channels.

    The mode that counts is the network's (a stage may be a frozen batch norm, which is never in training mode). A network
    that is copied takes its hooks along, and those then look at the copy.
    """

    network: nn.Module
    rate: float
    channels: bool

    def __call__(self, stage: nn.Module, inputs: object, output: object) -> Tensor | None:  # noqa: ARG002
        if not self.network.training:
            return None
        if not isinstance(output, Tensor):
            raise UserError(
                "backbone.stage_dropout: not possible with this network, whose stages return several tensors"
            )
        if not self.channels:
            return dropout(output, self.rate)
        return output * kept_channels(output, self.rate)


@dataclass(eq=False)
class BranchDropout:
    """A forward hook at the end of a residual branch: for each image the branch is dropped or scaled up."""

    block: nn.Module
    rate: float

    def __call__(self, branch_end: nn.Module, inputs: object, output: Tensor) -> Tensor:  # noqa: ARG002
        dropped: Tensor = stochastic_depth(output, self.rate, "row", self.block.training)
        return dropped


def kept_channels(values: Tensor, rate: float) -> Tensor:
    """0 or 1 / (1 - rate) for each image and channel: [B, C, 1, 1] for maps [B, C, h, w], [B, 1, C] for tokens [B, N, C]."""
    images, channels = len(values), values.shape[1 if values.ndim == 4 else -1]
    shape = (images, channels, 1, 1) if values.ndim == 4 else (images, 1, channels)
    kept = torch.empty(shape, dtype=values.dtype, device=values.device)
    return kept.bernoulli_(1 - rate).div_(1 - rate)
