"""Regularisers of the backbone's weights: in each training step, other weights stand in for them."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vld.config.names import WEIGHT_REGULARISERS
from vld.config.settings import Config
from vld.model.mixout import mixout


class WeightRegulariser(Protocol):
    """Made of a backbone whose weights have their starting values. What it keeps on the device, an `nn.Module` has in buffers."""

    remarks: tuple[str, ...]
    """Lines for the user, before training."""

    def drawn(self, generator: torch.Generator) -> list[Tensor]:
        """What is random in a step."""

    def __call__(self, backbone: nn.Module, drawn: list[Tensor], images: Tensor) -> Any:
        """The backbone's features of images, by the weights that stand in; the gradients are those of its own."""


OF_WEIGHTS: dict[str, Callable[[nn.Module, Config], WeightRegulariser]] = {"mixout": mixout}
"""By the setting that asks for it. Raise `UserError` where settings do not suit the backbone."""

Drawn = tuple[WeightRegulariser, list[Tensor]]
"""A regulariser, and what it has drawn for a step."""


def weight_regulariser(backbone: nn.Module, config: Config) -> WeightRegulariser | None:
    """What the settings ask for (`vld.config.checked` allows one). Raises `UserError` where it does not suit the backbone."""
    asked = (name for name in WEIGHT_REGULARISERS if getattr(config, name))
    return next((OF_WEIGHTS[name](backbone, config) for name in asked), None)
