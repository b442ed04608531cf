"""Published weights that are not on this machine yet: where they would come from, and their size, without fetching them."""

import os
from pathlib import Path
from urllib.parse import urlparse

from vld.config.settings import BackboneConfig

PRESETS = {
    "MobileNet_V2_Weights.IMAGENET1K_V2": ("mobilenet_v2-7ebf99e0.pth", 13.598),
    "ResNet18_Weights.IMAGENET1K_V1": ("resnet18-f37072fd.pth", 44.661),
    "ResNet50_Weights.IMAGENET1K_V1": ("resnet50-0676ba61.pth", 97.781),
    "ResNet50_Weights.IMAGENET1K_V2": ("resnet50-11ad3fa6.pth", 97.79),
    "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1": ("vit_b_16_swag-9ac1b537.pth", 331.398),
    "ViT_L_16_Weights.IMAGENET1K_SWAG_E2E_V1": ("vit_l_16_swag-4f3808c9.pth", 1164.258),
}
"""File and megabytes of the presets' weights, as torchvision says them: it takes seconds to import, and a dry run none."""


def weights_to_come(settings: BackboneConfig) -> str | None:
    """A line that says what will be downloaded before the first run; None where nothing will, or its name is wrong."""
    if settings.weights is not None:
        return None
    if settings.library == "torchvision":
        size = _of_torchvision(settings.published)
    else:
        size = _of_timm(settings.architecture) if settings.published == "timm" else None
    if size is None:
        return None
    return f"backbone={settings.name}: its weights are not there yet; {size:.0f} MB are downloaded before the first run"


def _of_torchvision(published: str | None) -> float | None:
    """Megabytes, unless they are in the cache of torch.hub."""
    name, megabytes = PRESETS.get(str(published)) or of_torchvision(str(published))
    return None if not name or (_hub() / name).exists() else megabytes


def of_torchvision(published: str) -> tuple[str, float]:
    """File and megabytes of weights; no file where there are none of that name."""
    import torchvision

    try:
        weights = torchvision.models.get_weight(published)
    except (ValueError, KeyError):
        return "", 0.0
    return Path(urlparse(weights.url).path).name, float(weights.meta["_file_size"])


def _hub() -> Path:
    """Where torch.hub keeps files."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("TORCH_HOME") or caches / "torch").expanduser() / "hub/checkpoints"


def _of_timm(name: str) -> float | None:
    """Megabytes (of the network's values), unless they are in the cache of torch.hub or of the Hugging Face hub."""
    import timm
    import torch
    from huggingface_hub import try_to_load_from_cache

    published = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if published is None or not published.has_weights:
        return None
    url_file = _hub() / Path(urlparse(str(published.url)).path).name
    if published.url and url_file.exists():
        return None
    files = ("model.safetensors", "pytorch_model.bin", published.hf_hub_filename)
    if published.hf_hub_id and any(
        isinstance(try_to_load_from_cache(published.hf_hub_id, file), str) for file in files if file
    ):
        return None
    with torch.device("meta"):
        model = timm.create_model(name)
    size: int = sum(value.nbytes for value in model.state_dict().values())
    return 1e-6 * size
