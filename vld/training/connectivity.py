"""Linear connectivity (Figure 1): accuracy along the line between two networks' weights, and between their representations."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import linear

from vld.model.classifier import Classifier
from vld.training.evaluation import EvaluationSet, representations

ALPHAS = tuple(i / 10 for i in range(11))
WEIGHTS, REPRESENTATIONS = ("weights", "representations")


def between(first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """α θ₁ + (1−α) θ₂, backbone and head alike; what is no floating-point number is θ₁'s."""
    return {
        name: alpha * value + (1 - alpha) * second[name] if value.is_floating_point() else value
        for name, value in first.items()
    }


@torch.no_grad()
def along_representations(first: Classifier, second: Classifier, images: EvaluationSet) -> list[Tensor]:
    """For each of `ALPHAS` the logits, float32 [evaluation images, classes], of α Φ₁ + (1−α) Φ₂ under the head whose weights are
    interpolated likewise."""
    heads = [between(first.head.state_dict(), second.head.state_dict(), alpha) for alpha in ALPHAS]
    logits: list[list[Tensor]] = [[] for _ in ALPHAS]
    for phi_1, phi_2 in representations([first, second], images.images):
        for alpha, head, its_logits in zip(ALPHAS, heads, logits, strict=True):
            its_logits.append(linear(alpha * phi_1 + (1 - alpha) * phi_2, head["weight"], head["bias"]))
    return [torch.cat(chunks) for chunks in logits]
