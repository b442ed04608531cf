"""The disk space of runs: what they keep, and their checkpoints while they train."""

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from vld.config.checked import accumulated
from vld.config.names import KEPT_WEIGHTS
from vld.config.settings import Config
from vld.data.folder import DatasetFiles
from vld.data.images import Dataset
from vld.machine.disk import check_room
from vld.machine.terminal import size_text
from vld.model.classifier import build_classifier
from vld.runs.inputs import check_output_dir
from vld.runs.keep import LOGITS
from vld.training.evaluation import evaluation_images

TEXT_BYTES = 200_000
"""Of a run's config.yaml, metrics.jsonl and result.json, generously."""


def needed_disk(
    runs: Iterable[tuple[Config, str, Dataset | DatasetFiles]], output_dir: str, *, held: int = 0, at_once: int = 1
) -> tuple[int, int]:
    """Bytes that all runs (settings, test domain, dataset) keep in output_dir; and the most that they need besides meanwhile.

    held: bytes that interrupted attempts at them already hold. at_once: how many runs train at a time. Raises `UserError` if
    less is free.
    """
    networks: dict[str, nn.Module] = {}
    kept = meanwhile = 0
    for config, test_domain, dataset in runs:
        images, classes = evaluation_images(dataset.sizes, test_domain, holdout=config.holdout), len(dataset.classes)
        key = repr((config.backbone, config.image_size, classes))
        if key not in networks:
            networks[key] = build_classifier(config, None, classes)
        kept += bytes_kept(config.keep, networks[key], images, classes)
        meanwhile = max(meanwhile, at_once * bytes_meanwhile(config, networks[key]))
    what = f"what the runs keep ({size_text(kept)}; none with keep=[]) and checkpoints while they train"
    existing = check_output_dir(Path(output_dir))
    check_room(f"output_dir={output_dir}", existing, kept + meanwhile, what, held=held)
    return kept, meanwhile


def bytes_kept(keep: Iterable[str], model: nn.Module, evaluation_images: int, classes: int) -> int:
    logits = evaluation_images * (classes * 2 + 4)  # and the labels
    return TEXT_BYTES + sum(logits if name.endswith(LOGITS) else _bytes(model) for name in keep)


def bytes_meanwhile(config: Config, model: nn.Module) -> int:
    """Weights, their average, momentum (two in Adam), SWAD's, a new checkpoint beside the old; and the weights to evaluate in
    full."""
    copies = 3 if config.optim.name == "sgd" else 4
    if config.swad.enabled:
        copies += max(config.swad.start_evaluations, 3)
    in_full = [name for name in KEPT_WEIGHTS if name.split("-")[0] in accumulated(config)]
    return 2 * copies * _bytes(model) + (0 if config.dataset.curve_images is None else bytes_kept(in_full, model, 0, 0))


def _bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
