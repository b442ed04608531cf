"""Regularisers of the backbone's weights: in each training step, other weights stand in for them."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vld.config.names import WEIGHT_REGULARISERS
from vld.config.settings import Config
from vld.model.mixout import Mixout


class WeightRegulariser(Protocol):
    """Made of a backbone whose weights have their starting values. What it keeps on the device, an `nn.Module` has in buffers."""

    def __init__(self, backbone: nn.Module, config: Config) -> None: ...

    @staticmethod
    def check(backbone: nn.Module, config: Config) -> list[str]:
        """Lines for the user, before training. Raises `UserError` where the settings do not suit the backbone."""

    def drawn(self, generator: torch.Generator) -> list[Tensor]:
        """What is random in a step."""

    def __call__(self, backbone: nn.Module, drawn: list[Tensor], images: Tensor) -> Any:
        """The backbone's features of images, by the weights that stand in; the gradients are those of its own."""


OF_WEIGHTS: dict[str, type[WeightRegulariser]] = {"mixout": Mixout}
"""By the setting that asks for it."""

Drawn = tuple[WeightRegulariser, list[Tensor]]
"""A regulariser, and what it has drawn for a step."""


def check_weight_regulariser(backbone: nn.Module, config: Config) -> list[str]:
    """Lines for the user, before training. Raises `UserError` where the settings do not suit the backbone."""
    asked = _asked(config)
    return asked.check(backbone, config) if asked else []


def weight_regulariser(backbone: nn.Module, config: Config) -> WeightRegulariser | None:
    """What the settings ask for."""
    asked = _asked(config)
    return asked(backbone, config) if asked else None


def _asked(config: Config) -> type[WeightRegulariser] | None:
    """`vld.config.checked` allows one."""
    return next((OF_WEIGHTS[name] for name in WEIGHT_REGULARISERS if getattr(config, name)), None)
