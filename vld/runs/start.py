"""A run that starts from the weights of another one: what it must not have seen, and whose classes its last layer knows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from vld.config.errors import UserError
from vld.config.settings import Config
from vld.data.domains import left_out
from vld.model.backbones import LAST_LAYER
from vld.runs.identity import ADDED_LATER
from vld.runs.reading import read_json


def check_start(
    config: Config, weights: Mapping[str, Tensor] | None, classes: Sequence[str], test_domains: Sequence[str]
) -> None:
    """Raises `UserError` where `backbone.weights` are a finished run's that trained on what is left out or held out here, or
    whose last layer, with which this one would start, has other classes."""
    source = Path(config.backbone.weights or "none")
    path = (source if source.is_dir() else source.parent) / "result.json"
    if weights is None or not path.is_file():
        return
    run = read_json(path)
    its, begin = run.get("settings", {}), f"backbone.weights={source}: its run"
    if its.get("dataset.name") == config.dataset.name:
        allowed = left_out(its["test_domain"], run.get("domains", ()))
        needed = [domain for one in test_domains for domain in left_out(one, run.get("domains", ()))]
        if trained_on := [domain for domain in needed if domain not in allowed]:
            raise UserError(
                f"{begin} trained on {trained_on[0]}, which is left out here; it can start test_domain={its['test_domain']}"
            )
        held_out = its.get("holdout", ADDED_LATER["holdout"])  # the first images of the same shuffle
        if config.holdout and (its["split_seed"] != config.split_seed or held_out < config.holdout):
            raise UserError(
                f"{begin} trained on images that are held out here; it has split_seed={its['split_seed']} holdout={held_out:g}"
            )
    if f"{LAST_LAYER}.weight" in weights and (theirs := run.get("classes", list(classes))) != list(classes):
        raise UserError(
            f"{begin} has a last layer for {len(theirs)} other classes ({', '.join(theirs[:3])}, …);"
            " backbone.last_layer=new starts with one of its own"
        )
