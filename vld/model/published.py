"""Published weights that are not on this machine yet: where they would come from, and their size, without fetching them."""

from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision

from vld.config.settings import BackboneConfig


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
    try:
        weights = torchvision.models.get_weight(str(published))
    except (ValueError, KeyError):
        return None
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    return None if file.exists() else float(weights.meta["_file_size"])


def _of_timm(name: str) -> float | None:
    """Megabytes (of the network's values), unless they are in the cache of torch.hub or of the Hugging Face hub."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    published = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if published is None or not published.has_weights:
        return None
    url_file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(str(published.url)).path).name
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
