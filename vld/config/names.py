"""Names: of methods and datasets, with the label, colour and marker that they have in every table, figure and dashboard; of what
is selected, measured and kept. Colours are colour-blind safe (Okabe and Ito; an indigo of Tol's)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    name: str
    label: str
    color: str
    marker: str
    has_weights: bool = False
    """Along one run: whether it is one network; an ensemble has logits and no weights of its own."""
    on_request: bool = False
    """Along one run: whether it is accumulated only where its setting `<name>.enabled` says so."""
    combines: bool = False
    """Whether it is made from finished runs, its members, without training."""


ALL_METHODS = (
    Method("erm", "ERM", "#0072B2", "o", has_weights=True),
    Method("weight_averaging", "weight averaging", "#E69F00", "s", has_weights=True),
    Method("swad", "SWAD", "#332288", "h", has_weights=True, on_request=True),
    Method("ensemble", "ensemble", "#009E73", "D"),
    Method("model_soup", "model soup", "#D55E00", "*", combines=True),
    Method("greedy_soup", "greedy soup", "#CC79A7", "P", combines=True),
    Method("ensemble_of_runs", "ensemble of runs", "#56B4E9", "^", combines=True),
    Method("connectivity", "midpoint of weights", "#000000", "x", combines=True),
)
METHODS = tuple(method.name for method in ALL_METHODS if not method.combines)
"""How predictions are made along one run, accumulated while it trains."""
ON_REQUEST = tuple(method.name for method in ALL_METHODS if method.on_request)
WITH_WEIGHTS = tuple(method.name for method in ALL_METHODS if method.has_weights)
COMBINATIONS = tuple(method.name for method in ALL_METHODS if method.combines)
METHOD_NAMES = {method.name: method.label for method in ALL_METHODS}
METHOD_COLORS = {method.name: method.color for method in ALL_METHODS}
METHOD_MARKERS = {method.name: method.marker for method in ALL_METHODS}

WEIGHT_REGULARISERS = ("mixout",)
"""Settings, 0 for none: of what has other weights stand in for the backbone's in a training step. Further settings of one begin
with its name."""

SELECTIONS = ("iid", "last", "oracle_step")
"""Which evaluation step stands for a run."""
KEEPABLE = tuple(
    f"{method}-{selection}{kind}"
    for method in METHODS
    for selection in SELECTIONS
    for kind in ("", "-logits")
    if method in WITH_WEIGHTS or kind
)
"""What a finished run can keep of its weights and evaluation logits."""
KEPT_WEIGHTS = tuple(name for name in KEEPABLE if not name.endswith("-logits"))

ACCURACIES = ("iid_acc", "ood_acc", "ood_in_acc", "ood_out_acc")
"""Of a step, as fractions."""
SETTING_COLUMNS = {
    "backbone": "backbone.name",
    "dropout": "dropout",
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "last_layer_lr_factor": "optim.last_layer_lr_factor",
    "seed": "seed",
    "split_seed": "split_seed",
    "steps": "optim.steps",
}
"""What tables and W&B call the settings that a study is about."""

DATASET_NAMES = {
    "pacs": "PACS",
    "vlcs": "VLCS",
    "office_home": "OfficeHome",
    "terra_incognita": "TerraIncognita",
    "domain_net": "DomainNet",
}
"""As papers write them."""
# ERM with dropout, from light to dark with the rate (Tol's sand and wine, then black).
DROPOUT_COLORS = ((0.7, "#DDCC77"), (0.93, "#882255"), (1.0, "#000000"))


def dataset_name(name: str) -> str:
    """As papers write it; of other datasets the name is as it is."""
    return DATASET_NAMES.get(name, name)


def series_color(method: str, dropout: float | None) -> str:
    """A method's colour; ERM with dropout, which the study is about, has colours of its own."""
    if method == "erm" and dropout:
        return next(color for most, color in DROPOUT_COLORS if dropout <= most)
    return METHOD_COLORS[method]
