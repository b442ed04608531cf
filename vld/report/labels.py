"""Which settings distinguish runs, and how settings, methods and numbers are written in tables, figures and sentences."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vld.config.names import dataset_name
from vld.runs.identity import CONTENT, differing, hashable

SHORT_NAMES = {
    "backbone.name": "backbone",
    "backbone.weights_fingerprint": "weights",
    "dataset.fingerprint": "data",
    "optim.last_layer_lr_factor": "last layer lr ×",
    "optim.steps": "steps",
    "image_size": "px",
}
"""Of the settings that a person would distinguish runs by."""
FORMATS = {"nll": ".2f", "rank": ".1f", "hours": ".2f", "paper": ".2f", "ours": ".2f", "difference": "+.2f"}
RECIPE = "recipe"
"""The name of settings that a recipe sets, in reports of a study that has recipes."""
INCOMPLETE, NOT_CONVERGED, NONE = "†", "‡", "–"
FOOTNOTES = {
    INCOMPLETE: "incomplete: averaged over the finished runs.",
    NOT_CONVERGED: "in some of its runs SWAD did not converge: there its weights are the average of the last segment.",
}


def distinguishing(settings: Sequence[Mapping[Any, Any]], *, fewest: bool = False) -> list[str]:
    """The names of the settings that distinguish these, except the test domain. Settings set by the dataset, backbone or
    recipe are left out in favour of its name. fewest: only as many as are needed."""

    def kinds(*names: str) -> int:
        return len({tuple(hashable(one.get(name)) for name in names) for one in settings})

    varied = [name for name in differing(settings) if name != "test_domain"]
    for of, its in (("dataset.name", "dataset."), ("backbone.name", "backbone."), (RECIPE, "")):
        if of in varied:
            by_name = kinds(of)
            varied = [n for n in varied if n == of or not n.startswith(its) or kinds(of, n) > by_name]
    if not fewest:
        return varied
    chosen: list[str] = []
    for name in sorted(varied, key=lambda name: (name not in SHORT_NAMES, -kinds(name), name)):
        if kinds(*chosen, name) > kinds(*chosen):
            chosen.append(name)
    return chosen


def text(name: str, value: Any) -> str:
    """The value of this setting or quantity: fractions in percent, a fingerprint by its first characters."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if name in CONTENT:
        return f"{value:.8}"
    if name.endswith(("acc", "ece")):
        return f"{percent(value):.1f}"
    if (last := name.split("_")[-1]) in FORMATS and not isinstance(value, str):
        return f"{value:{FORMATS[last]}}"
    if name == "dataset":
        return dataset_name(value)
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def percent(fraction: Any) -> Any:
    """Of a number, an array or a table of them."""
    return 100 * fraction


def short_name(setting: str) -> str:
    return SHORT_NAMES.get(setting, setting.replace(".", " ").replace("_", " "))


def described(settings: Mapping[Any, Any]) -> list[str]:
    """`last layer lr × 10`, …"""
    return [f"{short_name(name)} {text(name, value)}" for name, value in settings.items()]


def footnotes(cells: Iterable[str]) -> str:
    """A sentence on each mark in these, with a space before."""
    marked = " ".join(cells)
    return "".join(f" {mark} {meaning}" for mark, meaning in FOOTNOTES.items() if mark in marked)


def heading(name: str) -> str:
    """Of the table with that file name."""
    dataset = name.removeprefix("results_")
    return name.replace("_", " ").capitalize() if dataset == name else dataset_name(dataset)


def in_order(value: object) -> tuple[int, float, str]:
    """A key that sorts the values of any setting: numbers, then text and lists, then None."""
    if value is None:
        return 2, 0.0, ""
    return (0, value, "") if isinstance(value, int | float) else (1, 0.0, f"{value}")
