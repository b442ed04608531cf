"""The published numbers, beside ours."""

import math
from collections.abc import Sequence

import pandas as pd

from vld.config.names import WEIGHT_REGULARISERS, dataset_name
from vld.config.options import flat_settings
from vld.config.settings import Config
from vld.data.catalog import CONTENTS
from vld.report.labels import NONE, described
from vld.report.points import cloud_range
from vld.report.series import Series
from vld.report.table import Table
from vld.runs.identity import RANDOM_WEIGHTS, WEIGHTS, hashable

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

# Published o.o.d. accuracy in percent with weights like ResNet50 #1, for orientation, and our nearest methods.
DATASETS = ("pacs", "vlcs", "office_home", "terra_incognita", "domain_net")
PUBLISHED = {
    "ERM": (("erm",), (85.5, 77.5, 66.5, 46.1, 40.9)),
    "SWAD": (("swad", "weight_averaging"), (88.1, 79.1, 70.6, 50.0, 46.5)),
    "DiWA uniform": (("model_soup",), (88.7, 78.4, 72.1, 51.4, 47.4)),
    "DiWA restricted": (("greedy_soup",), (88.0, 78.5, 71.5, 51.6, 47.7)),
}

# Runs are compared with the published numbers only if they have these settings.
COMPARABLE = {"image_size": (224,), "optim.steps": (10_000,)}
BACKBONES = ("resnet50", "resnet50_v1")
"""ResNet50 #2 and #1."""
KNOWN = (
    *("backbone.tuning", "batch_size", "optim.name", "optim.momentum", "optim.milestones", "optim.gamma"),
    *("optim.schedule", "optim.warm_up", "optim.last_layer_lr_factor", "dropout_schedule", "warm_start"),
    *("backbone.batch_norm", "backbone.feature_scale", "backbone.stage_dropout", "backbone.stochastic_depth"),
    *("holdout", "eval_every", *WEIGHT_REGULARISERS),
)
"""The other settings of the runs behind the cloud means that are known: they are the defaults."""
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
        if not known or _unlike(one, BACKBONES[:1]) or math.isnan(lowest):
            continue
        published, ours = CLOUD_MEANS[one.dataset][RATES.index(one.dropout or 0)], one.average("ood")[0]
        row = {"dataset": one.dataset, "dropout": one.dropout, **one.others, "paper": published, "ours": ours}
        row |= {"difference": ours - published, "lowest": lowest, "highest": highest}
        within = lowest - READING_ERROR <= published <= highest + READING_ERROR
        rows.append(row | {"within": within if lowest < highest else None, "unlike": unlike_the_paper(one)})
    return pd.DataFrame(rows)


def _unlike(one: Series, backbones: Sequence[str] = BACKBONES) -> dict[str, object]:
    """The settings that rule out a comparison with published numbers."""
    allowed = {"backbone.name": backbones, **COMPARABLE}
    return {name: one.settings[name] for name, values in allowed.items() if one.settings[name] not in values}


def not_compared(series: Sequence[Series]) -> str:
    """A line saying which results are not compared with the paper's clouds, and why; empty if all are compared."""
    erm = [one for one in series if one.method == "erm"]
    why = [dataset_name(one.dataset) for one in erm if one.dataset not in CLOUD_MEANS]
    why += [", ".join(described(_unlike(one, BACKBONES[:1]))) for one in erm if one.dataset in CLOUD_MEANS]
    reasons = [reason for reason in dict.fromkeys(why) if reason]
    return f"Not compared with the paper's clouds: {'; '.join(reasons)}." if reasons else ""


def unlike_the_paper(series: Series) -> str:
    """How these runs are known to differ from the paper's, in words; empty if in nothing."""
    settings, grid = series.settings, series.grid
    pairs, domains = set(grid.pairs), CONTENTS[series.dataset].domains
    other_pairs = (
        f"{len(pairs)} of {len(PAPERS_PAIRS)} pairs" if pairs < PAPERS_PAIRS else "other (lr, weight decay) pairs"
    )
    others = {
        "from scratch": settings.get(WEIGHTS) == RANDOM_WEIGHTS,
        other_pairs: pairs != PAPERS_PAIRS,
        series.seeds: len(grid.repeats) != PAPERS_REPEATS,
        f"{', '.join(grid.test_domains)} left out of {len(domains)}": set(grid.test_domains) != set(domains),
        f"selection {series.selection}": series.selection != "iid",
        "incomplete": not grid.complete,
    }
    return ", ".join([*described(_of_its_own(series)), *(words for words, differs in others.items() if differs)])


def _of_its_own(series: Series) -> dict[str, object]:
    """The settings in which it differs from the paper's."""
    settings, papers = series.settings, flat_settings(Config())
    return {name: settings.get(name) for name in KNOWN if settings.get(name) != hashable(papers[name])}


def published_averages(series: Sequence[Series]) -> pd.DataFrame:
    """Published o.o.d. averages for orientation, beside those of our nearest methods without dropout: a row per published method
    and complete series of ours that can be compared and leaves out every test domain, in percent."""
    rows = []
    for published, (methods, accuracies) in PUBLISHED.items():
        for dataset, accuracy in zip(DATASETS, accuracies, strict=True):
            for one in series:
                same = (one.dataset, one.dropout) == (dataset, 0) and one.method in methods and not _unlike(one)
                if same and one.grid.complete and set(one.grid.test_domains) == set(CONTENTS[dataset].domains):
                    ours = one.average("ood")[0]
                    unnamed = {name: value for name, value in _of_its_own(one).items() if name not in one.others}
                    source = ", ".join([one.label, *described(unnamed)])
                    row = {"dataset": dataset, "published": published, "paper": accuracy, "ours from": source}
                    rows.append(row | {"ours": ours, "difference": ours - accuracy})
    return pd.DataFrame(rows)


def against_the_paper_tables(series: Sequence[Series]) -> dict[str, Table]:
    """`against_the_paper` and `published_averages` for people, where they have rows."""
    tables = {"against_the_paper": against_the_paper(series), "published_averages": published_averages(series)}
    readable = {"against_the_paper": readable_against_the_paper, "published_averages": readable_averages}
    return {name: readable[name](table) for name, table in tables.items() if len(table)}


def readable_against_the_paper(table: pd.DataFrame) -> Table:
    """`against_the_paper` for people."""
    names = [str(name) for name in table]
    settings = names[names.index("dropout") : names.index("paper")]
    ranges = table.lowest.map("{:.1f} to ".format) + table.highest.map("{:.1f}".format)
    shown = table.assign(
        method="erm", unlike=table.unlike.replace("", NONE), within=table.within.map({True: "yes", False: "no"})
    )
    shown["our cloud"] = ranges.where(table.lowest < table.highest, NONE)
    note = (
        "o.o.d. accuracy in percent: the means of the paper's clouds (Figure 3, read off to ± 0.05) and of ours. Within: the"
        " paper's number lies between the lowest and the highest point of our cloud."
    )
    columns = ["dataset", *settings, "paper", "ours", "difference", "our cloud", "within", "unlike"]
    return Table.of(shown, columns, len(settings) + 1, note, numbers=table)


def readable_averages(table: pd.DataFrame) -> Table:
    """`published_averages` for people."""
    note = "o.o.d. accuracy in percent, for orientation: the published ones are of weights like ResNet50 #1 and other training."
    one_digit = {"published %": table.paper.map("{:.1f}".format), "ours %": table.ours.map("{:.1f}".format)}
    shown = table.assign(**one_digit, difference=table.difference.map("{:+.1f}".format))
    columns = ["dataset", "published", "ours from", "published %", "ours %", "difference"]
    return Table.of(shown, columns, 3, note, numbers=table)
