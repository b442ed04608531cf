"""The published numbers, beside ours."""

import math
from collections.abc import Sequence

import pandas as pd

from vld.config.names import dataset_name
from vld.data.catalog import CONTENTS
from vld.report.averages import mean_and_error
from vld.report.points import cloud_range
from vld.report.series import Series
from vld.report.summary import Shown
from vld.report.table import NONE, short_name, shown_settings, shown_value
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

# What the runs behind the cloud means have in common, as far as it is known.
PAPERS_SETTINGS = {
    "backbone.name": "resnet50",
    "backbone.tuning": "full",
    "image_size": 224,
    "batch_size": 32,
    "optim.name": "sgd",
    "optim.momentum": 0.9,
    "optim.steps": 10_000,
    "optim.milestones": [5_000],
    "optim.gamma": 0.1,
    "optim.last_layer_lr_factor": 1.0,
    "dropout_schedule": "constant",
    "eval_every": 300,
}
PAPERS_PAIRS = {(lr, weight_decay) for lr in (1e-3, 5e-4) for weight_decay in (1e-4, 5e-5, 1e-5)}
PAPERS_REPEATS = 3


def against_the_paper(series: Sequence[Series]) -> pd.DataFrame:
    """ERM at the paper's dropout rates: a row per series, in percent.

    paper, ours: o.o.d. accuracy, the mean over the grid; difference: ours minus the paper's; lowest and highest: of our cloud;
    within: whether the paper's number lies among them (± 0.05, with which it was read off); unlike: what our runs do
    differently, empty where nothing is known to differ. The paper's i.i.d. accuracies are of augmented images: not compared.
    """
    rows = []
    for one in series:
        published = CLOUD_MEANS.get((one.dataset, one.dropout if one.dropout is not None else -1.0))
        if one.method != "erm" or published is None:
            continue
        lowest, highest = cloud_range(one.grid)
        if math.isnan(lowest):
            continue
        ours, paper = mean_and_error(one.grid.ood_acc)[0], published[1]
        row = {"dataset": one.dataset, "dropout": one.dropout, **one.others, "paper": paper, "ours": ours}
        row |= {"difference": ours - paper, "lowest": 100 * lowest, "highest": 100 * highest}
        within = row["lowest"] - READING_ERROR <= paper <= row["highest"] + READING_ERROR
        rows.append(row | {"within": within, "unlike": unlike_the_paper(one)})
    return pd.DataFrame(rows)


def unlike_the_paper(series: Series) -> str:
    settings = series.settings
    other = [name for name, value in PAPERS_SETTINGS.items() if settings.get(name) != value]
    differing = shown_settings({name: settings.get(name) for name in other})
    if settings.get(WEIGHTS) == RANDOM_WEIGHTS:
        differing.append("from scratch")
    pairs = set(series.grid.pairs)
    if pairs < PAPERS_PAIRS:
        differing.append(f"{len(pairs)} of {len(PAPERS_PAIRS)} pairs")
    elif pairs != PAPERS_PAIRS:
        differing.append("other (lr, weight decay) pairs")
    if len(series.grid.repeats) != PAPERS_REPEATS:
        differing.append(series.seeds)
    domains = CONTENTS[series.dataset].domains
    if set(series.grid.test_domains) != set(domains):
        differing.append(f"{', '.join(series.grid.test_domains)} left out of {len(domains)}")
    if series.selection != "iid":
        differing.append(f"selection {series.selection}")
    if not series.grid.complete:
        differing.append("incomplete")
    return ", ".join(differing)


def published_averages(series: Sequence[Series]) -> pd.DataFrame:
    """Published o.o.d. averages for orientation, beside the method of ours that comes nearest, without dropout: a row per
    published method and complete series of ours over all test domains, in percent."""
    rows = []
    for published, (method, accuracies) in PUBLISHED.items():
        for dataset, accuracy in zip(DATASETS, accuracies, strict=True):
            for one in series:
                ours = mean_and_error(one.grid.ood_acc)[0]
                whole = one.grid.complete and set(one.grid.test_domains) == set(CONTENTS[dataset].domains)
                if (one.dataset, one.method) != (dataset, method) or one.dropout != 0 or not whole:
                    continue
                row = {
                    "dataset": dataset,
                    "published": published,
                    "paper": accuracy,
                    "ours from": one.label,
                    "ours": ours,
                }
                rows.append(row | {"difference": ours - accuracy})
    return pd.DataFrame(rows)


def shown_against_the_paper(table: pd.DataFrame) -> Shown:
    names = [str(name) for name in table]
    settings = ["dropout", *names[names.index("dropout") + 1 : names.index("paper")]]
    numbers = ["paper", "ours", "difference", "our cloud", "within", "unlike the paper"]
    headings = ["dataset", *map(short_name, settings), *numbers]
    rows = []
    for row in table.to_dict("records"):
        ours = [f"{row['paper']:.2f}", f"{row['ours']:.2f}", f"{row['difference']:+.2f}"]
        cloud = [
            f"{row['lowest']:.1f} to {row['highest']:.1f}",
            "yes" if row["within"] else "no",
            row["unlike"] or NONE,
        ]
        rows.append([dataset_name(row["dataset"]), *(shown_value(name, row[name]) for name in settings), *ours, *cloud])
    note = (
        "o.o.d. accuracy in percent: the means of the paper's clouds (Figure 3, read off to ± 0.05) and of ours. Within: the"
        " paper's number lies between the lowest and the highest point of our cloud."
    )
    return Shown(headings, rows, len(settings) + 1, note)


def shown_averages(table: pd.DataFrame) -> Shown:
    headings = ["dataset", "published", "ours from", "published %", "ours %", "difference"]
    rows = [
        [
            dataset_name(row["dataset"]),
            row["published"],
            row["ours from"],
            f"{row['paper']:.1f}",
            f"{row['ours']:.1f}",
            f"{row['difference']:+.1f}",
        ]
        for row in table.to_dict("records")
    ]
    note = "o.o.d. accuracy in percent, for orientation: the published ones are of weights like ResNet50 #1 and other training."
    return Shown(headings, rows, 3, note)
