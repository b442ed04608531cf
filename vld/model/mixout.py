"""High-rate Mixout of a backbone's weights (Aminbeidokhti et al., arXiv 2510.06955; at low rates Lee et al., 1909.11299)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vld.config.errors import UserError


def masked_weights(backbone: nn.Module, kind: str) -> list[Tensor]:
    """The weights that Mixout masks: of convolutions (`filter`) or of linear layers, attention's included (`point`).

    Biases, normalisation and the last layer are never masked. Raises `UserError` where the network has no such layer.
    """
    layer = nn.modules.conv._ConvNd if kind == "filter" else nn.Linear
    found: list[Tensor] = [module.weight for module in backbone.modules() if isinstance(module, layer)]
    if kind == "point":
        attentions = [module for module in backbone.modules() if isinstance(module, nn.MultiheadAttention)]
        found += [module.in_proj_weight for module in attentions if module.in_proj_weight is not None]
    if not found:
        kinds = {"filter": "convolutions", "point": "linear layers"}
        other = "point" if kind == "filter" else "filter"
        raise UserError(f"mixout_kind={kind}: this backbone has no {kinds[kind]}; use mixout_kind={other}")
    return list(dict.fromkeys(found))  # a shared weight once


def masked_share(backbone: nn.Module, kind: str) -> float:
    """Of all the backbone's weights."""
    masked = sum(weight.numel() for weight in masked_weights(backbone, kind))
    return masked / sum(parameter.numel() for parameter in backbone.parameters())


class Mixout:
    """In each step w' = (m·w + (1−m)·w₀ − p·w₀) / (1−p) = w₀ + (w − w₀)·m/(1−p) stands in for each masked weight w.

    w₀: the value at construction. m ~ Bernoulli(1−p), the same for all images of a step: one for each output channel (`filter`)
    or each weight (`point`). So E[w'] = w. Evaluation, averages and what is saved have w itself.
    Costs two copies of the masked weights.
    """

    def __init__(self, backbone: nn.Module, rate: float, kind: str) -> None:
        self.rate, self.kind = rate, kind
        self.weights = masked_weights(backbone, kind)
        self.initial = [weight.detach().clone() for weight in self.weights]
        self.own = [torch.empty_like(weight) for weight in self.weights]
        """w, while w' stands in for it. Both are held in all steps, and changed together: a few kernels for all weights."""

    @contextmanager
    def mixed(self, generator: torch.Generator) -> Iterator[None]:
        """The weights are w' inside; gradients that were computed there are those of w after it.

        That is the true derivative, ∂w'/∂w = m/(1−p); the authors' code multiplies by m alone, which SGD feels as a learning rate
        1−p times as high.
        """
        factors = self._factors(generator)
        with torch.no_grad():
            torch._foreach_copy_(self.own, self.weights)
            torch._foreach_sub_(self.weights, self.initial)
            torch._foreach_mul_(self.weights, factors)
            torch._foreach_add_(self.weights, self.initial)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.own)
        trained = [
            (weight.grad, factor)
            for weight, factor in zip(self.weights, factors, strict=True)
            if weight.grad is not None
        ]
        if trained:
            torch._foreach_mul_(*map(list, zip(*trained, strict=True)))

    def _factors(self, generator: torch.Generator) -> list[Tensor]:
        """m/(1−p) of every masked weight, to be broadcast."""
        shapes = [
            weight.shape if self.kind == "point" else (len(weight), *[1] * (weight.dim() - 1))
            for weight in self.weights
        ]
        counts = [torch.Size(shape).numel() for shape in shapes]
        kept = torch.empty(sum(counts), device=self.weights[0].device).bernoulli_(1 - self.rate, generator=generator)
        drawn = torch.split(kept / (1 - self.rate), counts)
        return [factor.view(shape) for factor, shape in zip(drawn, shapes, strict=True)]
