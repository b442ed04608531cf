"""High-rate Mixout of a backbone's weights (Aminbeidokhti et al., arXiv 2510.06955; at low rates Lee et al., 1909.11299)."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vld.config.errors import UserError
from vld.config.settings import Config


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


class Mixout(nn.Module):
    """In each step w' = (m·w + (1−m)·w₀ − p·w₀) / (1−p) = w₀ + (w − w₀)·m/(1−p) stands in for each masked weight w.

    w₀: the value at construction. m ~ Bernoulli(1−p), the same for all images of a step: one for each output channel (`filter`)
    or each weight (`point`). So E[w'] = w. Evaluation, averages and what is saved have w itself.
    w' is computed within the network's own program: compiled, that takes no kernel of its own. Kept is w₀, a copy of the masked
    weights.
    """

    def __init__(self, backbone: nn.Module, config: Config) -> None:
        super().__init__()
        self.rate, self.kind = config.mixout, config.mixout_kind
        weights = masked_weights(backbone, self.kind)
        places = {id(weight): place for place, weight in enumerate(weights)}
        layers = list(backbone.named_modules())  # a layer that is used twice once
        named = [(f"{of}.{name}".lstrip("."), its) for of, layer in layers for name, its in layer._parameters.items()]
        self.places = {name: places[id(weight)] for name, weight in named if id(weight) in places}
        """Of each masked weight among w₀, by its names: one that two layers share has two."""
        # Buffers, since recorded programs (CUDA graphs) read those of a module where they are.
        for place, weight in enumerate(weights):
            self.register_buffer(f"initial_{place}", weight.detach().clone(), persistent=False)

    @staticmethod
    def check(backbone: nn.Module, config: Config) -> list[str]:
        """A line where little is masked. Raises `UserError` for a kind of which the backbone has no layer."""
        if (share := masked_share(backbone, config.mixout_kind)) >= 0.5:
            return []
        few = f"mixout_kind={config.mixout_kind}: masks {share:.1%} of the weights of {config.backbone.name}"
        return [f"{few}; filter is meant for networks of convolutions, point for transformers"]

    def drawn(self, generator: torch.Generator) -> list[Tensor]:
        """For a step: m/(1−p) of every masked weight, to be broadcast."""
        initial = list(self.buffers())
        shapes = [
            weight.shape if self.kind == "point" else (len(weight), *[1] * (weight.dim() - 1)) for weight in initial
        ]
        counts = [torch.Size(shape).numel() for shape in shapes]
        kept = torch.empty(sum(counts), device=initial[0].device).bernoulli_(1 - self.rate, generator=generator)
        factors = torch.split(kept / (1 - self.rate), counts)
        return [factor.view(shape) for factor, shape in zip(factors, shapes, strict=True)]

    def forward(self, backbone: nn.Module, factors: list[Tensor], images: Tensor) -> Tensor:
        """The features of images, by w'; the gradients are those of w.

        That is the true derivative, ∂w'/∂w = m/(1−p); the authors' code multiplies by m alone, which SGD feels as a learning rate
        1−p times as high.
        """
        weights = {place: backbone.get_parameter(name) for name, place in self.places.items()}
        mixed = [(weights[i] - initial) * factors[i] + initial for i, initial in enumerate(self.buffers())]
        by_name = {name: mixed[place] for name, place in self.places.items()}
        features: Tensor = functional_call(backbone, by_name, (images,), tie_weights=False)
        return features
