"""The published numbers, beside ours."""

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from vld.config.names import dataset_name
from vld.data.catalog import CONTENTS
from vld.report.averages import looks_of, mean_and_error
from vld.report.labels import NONE, described, short_name, text
from vld.report.points import cloud_range
from vld.report.series import Series
from vld.report.table import Table
from vld.runs.identity import RANDOM_WEIGHTS, WEIGHTS

READING_ERROR = 0.05

# Means of the clouds in the released figure of dropout rates (Figure 3), ResNet50 #2: i.i.d. and o.o.d. accuracy in percent,
# read off to ± 0.05.
CLOUD_MEANS = {
    ("vlcs", 0.0): (87.38, 78.73),
    ("vlcs", 0.5): (87.59, 79.57),
    ("vlcs", 0.9): (87.38, 80.00),
    ("vlcs", 0.95): (87.31, 79.86),
    ("office_home", 0.0): (84.86, 70.81),
    ("office_home", 0.5): (85.94, 72.90),
    ("office_home", 0.9): (85.86, 73.44),
    ("office_home", 0.95): (85.13, 72.87),
    ("pacs", 0.0): (97.52, 86.49),
    ("pacs", 0.5): (97.69, 87.52),
    ("pacs", 0.9): (97.81, 88.41),
    ("pacs", 0.95): (97.87, 88.53),
    ("terra_incognita", 0.0): (91.33, 51.31),
    ("terra_incognita", 0.5): (90.08, 53.12),
    ("terra_incognita", 0.9): (87.86, 53.63),
    ("terra_incognita", 0.95): (86.60, 52.31),
}

# Published o.o.d. accuracy in percent with weights like ResNet50 #1, for orientation, and the method of ours that comes nearest.
DATASETS = ("pacs", "vlcs", "office_home", "terra_incognita", "domain_net")
PUBLISHED = {
    "ERM": ("erm", (85.5, 77.5, 66.5, 46.1, 40.9)),
    "SWAD": ("weight_averaging", (88.1, 79.1, 70.6, 50.0, 46.5)),
    "DiWA uniform": ("model_soup", (88.7, 78.4, 72.1, 51.4, 47.4)),
    "DiWA restricted": ("greedy_soup", (88.0, 78.5, 71.5, 51.6, 47.7)),
}

# What runs must have in common with those behind the published numbers, to be compared at all; …
COMPARABLE = {"image_size": 224, "optim.steps": 10_000}
BACKBONE, BACKBONES = "backbone.name", ("resnet50", "resnet50_v1")
"""ResNet50 #2 and #1."""
# … and what else the runs behind the cloud means have in common, as far as it is known.
PAPERS_SETTINGS = {
    "backbone.tuning": "full",
    "batch_size": 32,
    "optim.name": "sgd",
    "optim.momentum": 0.9,
    "optim.milestones": (5_000,),
    "optim.gamma": 0.1,
    "optim.schedule": "milestones",
    "optim.warm_up": 0,
    "optim.last_layer_lr_factor": 1.0,
    "dropout_schedule": "constant",
    "mixout": 0.0,
    "warm_start": 0,
    "backbone.batch_norm": "frozen",
    "holdout": 0.2,
    "eval_every": 300,
}
PAPERS_PAIRS = {(lr, weight_decay) for lr in (1e-3, 5e-4) for weight_decay in (1e-4, 5e-5, 1e-5)}
PAPERS_REPEATS = 3


def against_the_paper(series: Sequence[Series]) -> pd.DataFrame:
    """ERM at the paper's dropout rates: a row per series that can be compared (`not_compared`), in percent.

    paper, ours: o.o.d. accuracy, the mean over the grid; difference: ours minus the paper's; lowest and highest: of our cloud;
    within: whether the paper's number lies among them (± 0.05, with which it was read off), null where a single point makes no
    cloud; unlike: what our runs do differently, empty where nothing is known to differ. The paper's i.i.d. accuracies are of
    augmented images: not compared.
    """
    rows = []
    for one in series:
        published = _published(one)
        lowest, highest = cloud_range(one.grid)
        if published is None or _unlike(one, ("resnet50",)) or math.isnan(lowest):
            continue
        ours = mean_and_error(one.grid.ood_acc)[0]
        row = {"dataset": one.dataset, "dropout": one.dropout, **one.others, "paper": published, "ours": ours}
        row |= {"difference": ours - published, "lowest": lowest, "highest": highest}
        within = lowest - READING_ERROR <= published <= highest + READING_ERROR
        rows.append(row | {"within": within if lowest < highest else None, "unlike": unlike_the_paper(one)})
    return pd.DataFrame(rows)


def _published(one: Series) -> float | None:
    """The paper's o.o.d. accuracy of that dataset and dropout rate."""
    if one.method != "erm" or one.dropout is None:
        return None
    return CLOUD_MEANS.get((one.dataset, one.dropout), (0.0, None))[1]


def _unlike(one: Series, backbones: Sequence[str] = BACKBONES) -> dict[str, object]:
    """The settings for which a series can be compared with no published number."""
    settings = one.settings
    unlike = {} if settings[BACKBONE] in backbones else {BACKBONE: settings[BACKBONE]}
    return unlike | {name: settings[name] for name, value in COMPARABLE.items() if settings[name] != value}


def not_compared(series: Sequence[Series]) -> str:
    """A line that says which results are not compared with the paper's clouds, and why; empty where all of its datasets are."""
    known = {dataset for dataset, _ in CLOUD_MEANS}
    erm = [one for one in series if one.method == "erm"]
    why = dict.fromkeys(dataset_name(one.dataset) for one in erm if one.dataset not in known)
    why |= dict.fromkeys(", ".join(described(_unlike(one, ("resnet50",)))) for one in erm if one.dataset in known)
    reasons = [reason for reason in why if reason]
    return f"Not compared with the paper's clouds: {'; '.join(reasons)}." if reasons else ""


def unlike_the_paper(series: Series) -> str:
    settings, grid = series.settings, series.grid
    differing = described({n: settings.get(n) for n, value in PAPERS_SETTINGS.items() if settings.get(n) != value})
    if settings.get(WEIGHTS) == RANDOM_WEIGHTS:
        differing.append("from scratch")
    pairs = set(grid.pairs)
    if pairs < PAPERS_PAIRS:
        differing.append(f"{len(pairs)} of {len(PAPERS_PAIRS)} pairs")
    elif pairs != PAPERS_PAIRS:
        differing.append("other (lr, weight decay) pairs")
    if len(grid.repeats) != PAPERS_REPEATS:
        differing.append(series.seeds)
    domains = CONTENTS[series.dataset].domains
    if set(grid.test_domains) != set(domains):
        differing.append(f"{', '.join(grid.test_domains)} left out of {len(domains)}")
    if series.selection != "iid":
        differing.append(f"selection {series.selection}")
    if not grid.complete:
        differing.append("incomplete")
    return ", ".join(differing)


def published_averages(series: Sequence[Series]) -> pd.DataFrame:
    """Published o.o.d. averages for orientation, beside the method of ours that comes nearest, without dropout: a row per
    published method and complete series of ours over all test domains that can be compared, in percent."""
    rows = []
    for published, (method, accuracies) in PUBLISHED.items():
        for dataset, accuracy in zip(DATASETS, accuracies, strict=True):
            for one in series:
                if (one.dataset, one.method, one.dropout) != (dataset, method, 0) or _unlike(one):
                    continue
                if not one.grid.complete or set(one.grid.test_domains) != set(CONTENTS[dataset].domains):
                    continue
                ours = mean_and_error(one.grid.ood_acc)[0]
                row = {"dataset": dataset, "published": published, "paper": accuracy, "ours from": one.label}
                rows.append(row | {"ours": ours, "difference": ours - accuracy})
    return pd.DataFrame(rows)


def readable_against_the_paper(table: pd.DataFrame) -> Table:
    """`against_the_paper` for people."""
    names = [str(name) for name in table]
    settings = names[names.index("dropout") : names.index("paper")]
    cloud = table.lowest < table.highest
    columns: list[tuple[str, Iterable[str]]] = [("dataset", table.dataset.map(dataset_name))]
    columns += [(short_name(name), [text(name, value) for value in table[name]]) for name in settings]
    columns += [(name, table[name].map("{:.2f}".format)) for name in ("paper", "ours")]
    ranges = table.lowest.map("{:.1f}".format) + " to " + table.highest.map("{:.1f}".format)
    columns += [
        ("difference", table.difference.map("{:+.2f}".format)),
        ("our cloud", ranges.where(cloud, NONE)),
        ("within", table.within.map({True: "yes", False: "no"}).where(cloud, NONE)),
        ("unlike the paper", table.unlike.replace("", NONE)),
    ]
    note = (
        "o.o.d. accuracy in percent: the means of the paper's clouds (Figure 3, read off to ± 0.05) and of ours. Within: the"
        " paper's number lies between the lowest and the highest point of our cloud."
    )
    return Table.of(columns, len(settings) + 1, note=note, numbers=table, looks=looks_of(table.assign(method="erm")))


def readable_averages(table: pd.DataFrame) -> Table:
    """`published_averages` for people."""
    columns = [("dataset", table.dataset.map(dataset_name)), ("published", table.published)]
    columns += [("ours from", table["ours from"]), ("published %", table.paper.map("{:.1f}".format))]
    columns += [("ours %", table.ours.map("{:.1f}".format)), ("difference", table.difference.map("{:+.1f}".format))]
    note = "o.o.d. accuracy in percent, for orientation: the published ones are of weights like ResNet50 #1 and other training."
    return Table.of(columns, 3, note=note, numbers=table)
