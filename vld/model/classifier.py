"""The classifier that is fine-tuned: backbone, pooled representation, dropout, one linear layer."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from vld.config.settings import BackboneConfig, Config
from vld.model.backbones import build_backbone
from vld.model.dropout import RepresentationDropout, place_dropout
from vld.model.linear import tuned
from vld.model.regularisers import Drawn, check_weight_regulariser
from vld.model.weights import load_into, load_last_layer


class Classifier(nn.Module):
    """`backbone` maps normalised images to d features; the head is one linear layer, always in float32.

    Images are float [B, 3, h, w] in [0, 1]: the pre-processing statistics belong to the backbone. Inverted dropout acts on
    the penultimate representation in training mode, with masks from the generator that is passed. With
    `frozen_batch_norm`, batch-norm statistics stay as they are in training mode too (their affine parameters learn).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Linear,
        dropout: RepresentationDropout,
        settings: BackboneConfig,
        *,
        pretrained: bool,
        autocast: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.dropout = backbone, head, dropout
        self.feature_scale, self.batch_norm = settings.feature_scale, settings.batch_norm
        self.pretrained, self.autocast = pretrained, autocast
        self.resized_from: int | None = None
        """The image size that its weights are of, where their position embeddings were resized."""
        self.compute: Callable[[nn.Module, Tensor, Tensor, Tensor, float, bool, Drawn | None], Tensor] = represent
        """`represent`, or what it was compiled to."""
        self.register_buffer("mean", torch.tensor(settings.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(settings.std).view(1, 3, 1, 1), persistent=False)
        self.train()

    @property
    def frozen_batch_norm(self) -> bool:
        return self.pretrained and self.batch_norm == "frozen"

    @property
    def compiled(self) -> bool:
        return self.compute is not represent

    def representation(self, images: Tensor, drawn: Drawn | None = None) -> Tensor:
        """The penultimate representation, float32 [B, d], before dropout."""
        return self.compute(self.backbone, images, self.mean, self.std, self.feature_scale, self.autocast, drawn)

    def forward(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        step: int | None = None,
        drawn: Drawn | None = None,
    ) -> Tensor:
        """Logits, float32 [B, classes]. step: of training, where the rate of dropout depends on it. drawn: of a regulariser."""
        logits: Tensor = self.head(self.dropout(self.representation(images, drawn), generator, step))
        return logits

    def logits_of_frozen_backbone(self, images: Tensor) -> Tensor:
        """Logits, float32 [B, classes], whose gradient reaches the last layer alone: backbone as in evaluation, no dropout."""
        self.backbone.eval()
        with torch.no_grad():
            representation = self.representation(images)
        self.train(self.training)
        logits: Tensor = self.head(representation)
        return logits

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        if self.frozen_batch_norm:
            for module in self.batch_norms():
                module.eval()
        return self

    def batch_norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def represent(
    backbone: nn.Module,
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    feature_scale: float,
    autocast: bool,
    drawn: Drawn | None = None,
) -> Tensor:
    """Images, float [B, 3, h, w] in [0, 1] or as they are stored (uint8 [B, h, w, 3]), to features, float32 [B, d].

    A function of its own, so that what it is compiled to serves all networks of one architecture.
    """
    if images.dtype == torch.uint8:
        images = images.permute(0, 3, 1, 2).float() / 255
    normalised = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        features: Tensor = drawn[0](backbone, drawn[1], normalised) if drawn else backbone(normalised)
    return features.float() * feature_scale


def seeded_linear(features: int, classes: int, seed: int) -> nn.Linear:
    """PyTorch's default initial values, uniform in ±1/√d, from a generator of their own."""
    layer: nn.Linear = nn.Linear(features, classes, device="meta").to_empty(device="cpu")  # draws no random numbers
    generator = torch.Generator().manual_seed(seed)
    bound = features**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def build_classifier(
    config: Config, weights: Mapping[str, Tensor] | None, classes: int, precision: str = "fp32"
) -> Classifier:
    """The classifier at step 0: backbone weights as loaded, or from `seed` where they are None; the head from
    `head_seed`, unless the weights bring theirs.

    Raises `UserError` for an architecture that the library does not have or that settings do not suit (Mixout's kind among
    them), and for weights that do not fit it.
    """
    settings = config.backbone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone, features = build_backbone(settings, config.image_size)
    head = seeded_linear(features, classes, config.head_seed)
    resized_from = None
    if weights is not None:
        resized_from = load_into(backbone, weights, settings, config.image_size)
        load_last_layer(head, weights, settings)
    check_weight_regulariser(backbone, config)
    place_dropout(backbone, settings)
    backbone = tuned(backbone, settings, features).to(memory_format=torch.channels_last)
    dropout = RepresentationDropout(config.dropout, config.dropout_schedule, config.optim.steps)
    model = Classifier(backbone, head, dropout, settings, pretrained=weights is not None, autocast=precision == "bf16")
    model.resized_from = resized_from
    return model
