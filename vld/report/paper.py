"""The published numbers, beside ours."""

import math
from collections.abc import Sequence

import pandas as pd

from vld.config.names import dataset_name
from vld.data.catalog import CONTENTS
from vld.report.averages import looks_of, settings_columns
from vld.report.labels import NONE, described
from vld.report.points import cloud_range
from vld.report.series import Series
from vld.report.table import Table
from vld.runs.identity import RANDOM_WEIGHTS, WEIGHTS

READING_ERROR = 0.05

# Means of the clouds in the released figure of dropout rates (Figure 3), ResNet50 #2, at each of them: o.o.d. accuracy in
# percent, read off to ± 0.05. The figure's i.i.d. accuracies are of augmented images, and not comparable.
RATES = (0.0, 0.5, 0.9, 0.95)
CLOUD_MEANS = {
    "vlcs": (78.73, 79.57, 80.00, 79.86),
    "office_home": (70.81, 72.90, 73.44, 72.87),
    "pacs": (86.49, 87.52, 88.41, 88.53),
    "terra_incognita": (51.31, 53.12, 53.63, 52.31),
}

# Published o.o.d. accuracy in percent with weights like ResNet50 #1, for orientation, and our nearest method.
DATASETS = ("pacs", "vlcs", "office_home", "terra_incognita", "domain_net")
PUBLISHED = {
    "ERM": ("erm", (85.5, 77.5, 66.5, 46.1, 40.9)),
    "SWAD": ("weight_averaging", (88.1, 79.1, 70.6, 50.0, 46.5)),
    "DiWA uniform": ("model_soup", (88.7, 78.4, 72.1, 51.4, 47.4)),
    "DiWA restricted": ("greedy_soup", (88.0, 78.5, 71.5, 51.6, 47.7)),
}

# Runs are compared with the published numbers only if they have these settings.
COMPARABLE = {"image_size": (224,), "optim.steps": (10_000,)}
BACKBONE, BACKBONES = "backbone.name", ("resnet50", "resnet50_v1")
"""ResNet50 #2 and #1."""
# The other settings of the runs behind the cloud means, as far as they are known.
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
    within: whether the paper's number lies between them (± 0.05, the reading error), null if the cloud is a single point;
    unlike: how our runs are known to differ from the paper's.
    """
    rows = []
    for one in series:
        lowest, highest = cloud_range(one.grid)
        known = one.method == "erm" and one.dataset in CLOUD_MEANS and one.dropout in RATES
        if not known or _unlike(one, ("resnet50",)) or math.isnan(lowest):
            continue
        published, ours = CLOUD_MEANS[one.dataset][RATES.index(one.dropout or 0)], one.average("ood")[0]
        row = {"dataset": one.dataset, "dropout": one.dropout, **one.others, "paper": published, "ours": ours}
        row |= {"difference": ours - published, "lowest": lowest, "highest": highest}
        within = lowest - READING_ERROR <= published <= highest + READING_ERROR
        rows.append(row | {"within": within if lowest < highest else None, "unlike": unlike_the_paper(one)})
    return pd.DataFrame(rows)


def _unlike(one: Series, backbones: Sequence[str] = BACKBONES) -> dict[str, object]:
    """The settings that rule out a comparison with published numbers."""
    allowed = {BACKBONE: backbones, **COMPARABLE}
    return {name: one.settings[name] for name, values in allowed.items() if one.settings[name] not in values}


def not_compared(series: Sequence[Series]) -> str:
    """A line saying which results are not compared with the paper's clouds, and why; empty if all are compared."""
    erm = [one for one in series if one.method == "erm"]
    why = [dataset_name(one.dataset) for one in erm if one.dataset not in CLOUD_MEANS]
    why += [", ".join(described(_unlike(one, ("resnet50",)))) for one in erm if one.dataset in CLOUD_MEANS]
    reasons = [reason for reason in dict.fromkeys(why) if reason]
    return f"Not compared with the paper's clouds: {'; '.join(reasons)}." if reasons else ""


def unlike_the_paper(series: Series) -> str:
    """How these runs are known to differ from the paper's, in words; empty if in nothing."""
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
    """Published o.o.d. averages for orientation, beside those of our nearest method without dropout: a row per published method
    and complete series of ours that can be compared and leaves out every test domain, in percent."""
    rows = []
    for published, (method, accuracies) in PUBLISHED.items():
        for dataset, accuracy in zip(DATASETS, accuracies, strict=True):
            for one in series:
                same = (one.dataset, one.method, one.dropout) == (dataset, method, 0) and not _unlike(one)
                if same and one.grid.complete and set(one.grid.test_domains) == set(CONTENTS[dataset].domains):
                    ours = one.average("ood")[0]
                    row = {"dataset": dataset, "published": published, "paper": accuracy, "ours from": one.label}
                    rows.append(row | {"ours": ours, "difference": ours - accuracy})
    return pd.DataFrame(rows)


def readable_against_the_paper(table: pd.DataFrame) -> Table:
    """`against_the_paper` for people."""
    names = [str(name) for name in table]
    settings = names[names.index("dropout") : names.index("paper")]
    cloud = table.lowest < table.highest
    ranges = table.lowest.map("{:.1f}".format) + " to " + table.highest.map("{:.1f}".format)
    columns = [
        ("dataset", table.dataset.map(dataset_name)),
        *settings_columns(table, settings),
        ("paper", table.paper.map("{:.2f}".format)),
        ("ours", table.ours.map("{:.2f}".format)),
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
    columns = [
        ("dataset", table.dataset.map(dataset_name)),
        ("published", table.published),
        ("ours from", table["ours from"]),
        ("published %", table.paper.map("{:.1f}".format)),
        ("ours %", table.ours.map("{:.1f}".format)),
        ("difference", table.difference.map("{:+.1f}".format)),
    ]
    note = "o.o.d. accuracy in percent, for orientation: the published ones are of weights like ResNet50 #1 and other training."
    return Table.of(columns, 3, note=note, numbers=table)
