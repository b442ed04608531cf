"""The disk space of runs: what they keep, and their checkpoints while they train."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from vld.config.checked import accumulated
from vld.config.errors import UserError
from vld.config.names import KEPT_WEIGHTS
from vld.config.settings import Config
from vld.data.folder import DatasetFiles
from vld.data.images import Dataset
from vld.machine.terminal import megabytes
from vld.runs.inputs import initial_classifier
from vld.runs.keep import LOGITS
from vld.training.evaluation import evaluation_images

TEXT_BYTES = 200_000
"""Of a run's config.yaml, metrics.jsonl and result.json, generously."""


def disk_of_runs(runs: Iterable[tuple[Config, str, Dataset | DatasetFiles]]) -> tuple[int, int]:
    """Bytes that all runs (settings, test domain, dataset) keep; and the most that one needs besides while it trains."""
    networks: dict[str, nn.Module] = {}
    kept = meanwhile = 0
    for config, test_domain, dataset in runs:
        images, classes = evaluation_images(dataset.sizes, test_domain, holdout=config.holdout), len(dataset.classes)
        key = repr((config.backbone, config.image_size, classes))
        if key not in networks:
            networks[key] = initial_classifier(config, None, "fp32", classes)
        kept += bytes_kept(config.keep, networks[key], images, classes)
        meanwhile = max(meanwhile, bytes_meanwhile(config, networks[key]))
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


def check_disk(kept: int, meanwhile: int, there_already: int, output_dir: Path) -> None:
    """Raises `UserError` if `output_dir` has too little free disk, not counting what interrupted runs already hold."""
    free = shutil.disk_usage(output_dir).free + there_already
    if kept + meanwhile > free:
        raise UserError(
            f"output_dir={output_dir}: {megabytes(free)} of disk are free; runs need {megabytes(kept)} for what they keep"
            f" (none with keep=[]) and {megabytes(meanwhile)} for checkpoints while they train"
        )
