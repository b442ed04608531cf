"""A run that starts from the weights of another one: what it must not have seen, and whose classes its last layer knows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from vld.config.errors import UserError
from vld.config.settings import Config
from vld.data.domains import left_out
from vld.model.backbones import LAST_LAYER
from vld.model.weights import KEPT_BY_RUNS
from vld.runs.identity import run_id
from vld.runs.reading import read_json
from vld.runs.results import RunResult


def check_start(
    config: Config, weights: Mapping[str, Tensor] | None, classes: Sequence[str], test_domains: Sequence[str]
) -> str | None:
    """What the starts from finished runs that differ in their test domain alone have in common, None if `backbone.weights` are
    no run's: each test domain needs a start of its own, and a report averages over them.

    Raises `UserError` if that run trained on what is left out or held out here, or if its last layer, with which this one would
    start, has other classes."""
    source = Path(config.backbone.weights or "none")
    folder = source if source.is_dir() else source.parent
    path = folder / "result.json"
    if weights is None or not path.is_file():
        return None
    run = RunResult(folder, read_json(path))  # the directory may have been renamed
    if "settings" not in run.content:  # a file of the user's own
        return None
    settings, domains, its_run = run.settings, run.domains, f"backbone.weights={source}: its run"
    if settings.get("dataset.name") == config.dataset.name:
        allowed = left_out(settings["test_domain"], domains)
        needed = [domain for one in test_domains for domain in left_out(one, domains)]
        if trained_on := [domain for domain in needed if domain not in allowed]:
            raise UserError(
                f"{its_run} trained on {trained_on[0]}, which is left out here; it can start"
                f" test_domain={settings['test_domain']}"
            )
        split_seed, holdout = settings["split_seed"], settings["holdout"]
        # A smaller held-out part is the beginning of a larger one.
        if config.holdout and (split_seed != config.split_seed or holdout < config.holdout):
            raise UserError(
                f"{its_run} trained on images that are held out here; it has split_seed={split_seed} holdout={holdout:g}"
            )
    if f"{LAST_LAYER}.weight" in weights and (theirs := run.content.get("classes", list(classes))) != list(classes):
        raise UserError(
            f"{its_run} has a last layer for {len(theirs)} other classes ({', '.join(theirs[:3])}, …);"
            " use backbone.last_layer=new to start with a new one"
        )
    given, file = f"{LAST_LAYER}.weight" in weights, f"{KEPT_BY_RUNS}.safetensors" if source.is_dir() else source.name
    its = {name: run.settings_in_reports[name] for name in run.content["settings"] if name != "test_domain"}
    return run_id(its | {"file": file, "last_layer": given})
