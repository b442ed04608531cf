"""Which series each figure of the study shows."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from matplotlib.figure import Figure

from vld.config.names import METHODS, dataset_name
from vld.report.figures import clouds_figure, connectivity_figure, domains_figure, members_figure, rates_figure
from vld.report.points import cloud_points, connectivity_points, domain_points, member_points, rate_points
from vld.report.series import Series, large_rate
from vld.report.table import shown_settings, telling
from vld.runs.identity import RANDOM_WEIGHTS, WEIGHTS, differing
from vld.study.member_axes import ENSEMBLE_OF_RUNS

PLACEMENT = ("dropout_schedule", "backbone.stage_dropout", "backbone.stage_dropout_kind", "backbone.stochastic_depth")


@dataclass(frozen=True)
class Drawn:
    """A figure, and the table of its points."""

    name: str
    title: str
    caption: str
    points: pd.DataFrame
    figure: Figure


Choice = Callable[[list[Series]], list[Series]]


def methods_and_dropout(series: list[Series]) -> list[Series]:
    """Figure 2: without dropout every method, and its soup and ensemble of runs; with very large dropout ERM."""
    plain = [one for one in series if one.dropout == 0]
    rate = large_rate(one.dropout for one in series)
    with_dropout = [one for one in series if one.method == "erm" and rate and one.dropout == rate]
    return plain + with_dropout if plain else []


def plain_methods_and_erm(series: list[Series]) -> list[Series]:
    """Without dropout every method, with it ERM."""
    return [one for one in series if one.method == "erm" or one.dropout == 0]


def dropout_rates(series: list[Series]) -> list[Series]:
    """Figures 3, 4 and 5: ERM at every rate."""
    erm = [one for one in series if one.method == "erm"]
    return erm if len({one.dropout for one in erm}) > 1 else []


def dropout_curves(series: list[Series]) -> list[Series]:
    """The same and the other methods along a run, for curves."""
    return [one for one in series if one.method in METHODS] if dropout_rates(series) else []


def last_layer(series: list[Series]) -> list[Series]:
    """Figure 6: ERM with and without very large dropout, at each learning rate of the last layer."""
    factors = {one.others.get("optim.last_layer_lr_factor") for one in series}
    return (
        [one for one in series if one.method == "erm" and one.dropout in (0, large_rate(one.dropout for one in series))]
        if len(factors) > 1
        else []
    )


def dropout_and_averaging(series: list[Series]) -> list[Series]:
    """Figure 7: every method with very large dropout."""
    return [one for one in series if one.dropout and one.dropout == large_rate(one.dropout for one in series)]


def pretraining(series: list[Series]) -> list[Series]:
    """Figure 8: naive fine-tuning (ERM, no dropout, one learning rate) and all tricks (very large dropout, weight averaging, a
    last layer that learns faster where there are such runs), for each backbone."""
    series = [one for one in series if one.settings[WEIGHTS] != RANDOM_WEIGHTS]
    if len({one.others.get("backbone.name") for one in series}) < 2:
        return []
    factor = "optim.last_layer_lr_factor"
    factors = [value for one in series if (value := one.others.get(factor)) is not None]
    naive = [one for one in series if one.method == "erm" and one.dropout == 0 and one.others.get(factor, 1.0) == 1.0]
    rate = large_rate(one.dropout for one in series)
    tricks = [
        one
        for one in series
        if one.method == "weight_averaging"
        and one.dropout == rate
        and one.others.get(factor) == max(factors, default=None)
    ]
    return naive + tricks


def full_and_linear(series: list[Series]) -> list[Series]:
    """Figures 9 and 10: ERM at every dropout rate, fine-tuned in full and linearly."""
    erm = [one for one in series if one.method == "erm" and one.others.get("backbone.tuning") in ("full", "linear")]
    return erm if len({one.others["backbone.tuning"] for one in erm}) > 1 else []


def placements(series: list[Series]) -> list[Series]:
    """ERM with dropout in other places, or at other rates over training, than the study's."""
    erm = [one for one in series if one.method == "erm"]
    ways = {json.dumps([one.others.get(name) for name in PLACEMENT]) for one in erm}
    return erm if len(ways) > 1 else []


CLOUDS = (
    "i.i.d. against o.o.d. accuracy. A cloud has a point for every way of picking one (lr, weight decay) pair for each test"
    " domain, averaged over test domains and seeds; the large mark is its mean. "
)
SOUPS = " Star: the soup of all runs, triangle: their ensemble."


@dataclass(frozen=True)
class Kind:
    name: str
    title: str
    caption: str
    chosen: Choice
    points: Callable[[Sequence[Series]], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure]
    varying: tuple[str, ...] = ()
    """Beginnings of the settings, beside the dropout rate, that differ within one such figure."""


KINDS = (
    Kind(
        "methods",
        "Methods without dropout, and very large dropout",
        CLOUDS,
        methods_and_dropout,
        cloud_points,
        clouds_figure,
    ),
    Kind("dropout_rates", "Dropout rates", CLOUDS, dropout_rates, cloud_points, clouds_figure),
    Kind(
        "dropout_curves",
        "Accuracy against the dropout rate",
        "Means over the grid with standard errors over seeds; shaded: from the lowest to the highest point of the cloud.",
        dropout_curves,
        rate_points,
        rates_figure,
    ),
    Kind(
        "last_layer",
        "The last layer's learning rate",
        CLOUDS + "Hollow: the faster last layer.",
        last_layer,
        cloud_points,
        clouds_figure,
        ("optim.last_layer_lr_factor",),
    ),
    Kind(
        "averaging",
        "Very large dropout with averaging and ensembles",
        CLOUDS,
        dropout_and_averaging,
        cloud_points,
        clouds_figure,
    ),
    Kind(
        "pretraining",
        "Richness of the pre-trained representation",
        CLOUDS
        + "ERM without dropout against all tricks: very large dropout, a faster last layer, weight averaging; hollow: the"
        " second backbone of the legend.",
        pretraining,
        cloud_points,
        clouds_figure,
        ("optim.last_layer_lr_factor", "backbone."),
    ),
    Kind(
        "tuning",
        "Linear and full fine-tuning",
        CLOUDS + "Hollow: linear fine-tuning (equation 1).",
        full_and_linear,
        cloud_points,
        clouds_figure,
        ("backbone.tuning", "backbone.normalize"),
    ),
    Kind(
        "tuning_curves",
        "Linear and full fine-tuning against the dropout rate",
        "Means over the grid with standard errors over seeds; shaded: from the lowest to the highest point of the cloud.",
        full_and_linear,
        rate_points,
        rates_figure,
        ("backbone.tuning", "backbone.normalize"),
    ),
    Kind("placement", "Where dropout goes, and when", CLOUDS, placements, cloud_points, clouds_figure, PLACEMENT),
    Kind(
        "domains",
        "Each domain left out",
        "o.o.d. accuracy, means over the grid with standard errors over seeds. The axis need not begin at 0.",
        plain_methods_and_erm,
        domain_points,
        domains_figure,
    ),
)
CONNECTED = (
    "Accuracy between two networks, averaged over test domains, (lr, weight decay) pairs and seeds: of α θ₁ + (1−α) θ₂, and of"
    " α Φ₁ + (1−α) Φ₂ under the head whose weights are interpolated. Last steps. With members backbone.tuning=full,head α = 0"
    " is the pre-trained network with a linear probe, α = 1 the fine-tuned one."
)
OF_STUDY = {
    "figure1": (),
    "figure2": ("methods",),
    "figure3": ("dropout_rates", "dropout_curves"),
    "figure4": ("dropout_rates", "dropout_curves"),
    "figure5": ("dropout_rates", "dropout_curves"),
    "figure6": ("last_layer",),
    "figure7": ("averaging",),
    "figure8": ("pretraining",),
    "figure9": ("tuning", "tuning_curves"),
    "figure10": ("tuning", "tuning_curves"),
}
"""The kinds of figure that a study of the paper is for; of other studies, all."""


def drawn_figures(series: Sequence[Series], results: pd.DataFrame, study: str | None) -> Iterator[Drawn]:
    """The study's figure; or, of no study of the paper, every figure that the results allow."""
    kinds = OF_STUDY.get(study or "", tuple(kind.name for kind in KINDS))
    for kind in KINDS:
        if kind.name not in kinds:
            continue
        by_group = {key: kind.chosen(of_group) for key, of_group in _groups(series, kind.varying).items()}
        groups = {key: _told_apart(some) for key, some in by_group.items() if some}
        groups = dict(sorted(groups.items(), key=lambda group: -len(group[1])))
        apart = telling([json.loads(key) for key in groups])
        datasets = {
            key: tuple(dict.fromkeys(dataset_name(one.dataset) for one in some)) for key, some in groups.items()
        }
        differ = len(set(datasets.values())) > 1
        for number, (key, chosen) in enumerate(groups.items(), 1):
            points = kind.points(chosen)
            if points.empty:
                continue
            name = kind.name
            if study in OF_STUDY:
                name = f"{study}_curves" if kind.name.endswith("_curves") else str(study)
            settings = json.loads(key)
            of_group = ", ".join(
                [*datasets[key] * differ, *shown_settings({name: settings.get(name) for name in apart})]
            )
            title = f"{kind.title} ({of_group})" if of_group else kind.title
            incomplete = [one.label for one in chosen if not one.grid.complete]
            selections = ", ".join(dict.fromkeys(one.selection for one in chosen if not one.combined))
            caption = f"{kind.caption.strip()} Selection {selections}."
            caption += SOUPS if kind.draw == clouds_figure and any(one.combined for one in chosen) else ""
            caption += " † incomplete: drawn from the runs there are." if incomplete else ""
            yield Drawn(name if number == 1 else f"{name}-{number}", title, caption, points, kind.draw(points))
    if study == "figure1" or study not in OF_STUDY:
        points = connectivity_points(results)
        if not points.empty:
            name = study if study == "figure1" else "connectivity"
            yield Drawn(str(name), "Linear connectivity", CONNECTED, points, connectivity_figure(points))
    if study not in OF_STUDY:
        points = member_points(results, _told_apart([one for one in series if one.method == ENSEMBLE_OF_RUNS]))
        if not points.empty:
            caption = (
                "o.o.d. accuracy of ensembles of random subsets of the runs, averaged over subsets (shaded: their standard"
                " deviation) and test domains."
            )
            yield Drawn("members", "Accuracy against the number of members", caption, points, members_figure(points))


def _told_apart(series: list[Series]) -> list[Series]:
    """Named by those settings alone in which some of them differ."""
    names: set[str] = set()
    for dataset in {one.dataset for one in series}:
        here = [one.others for one in series if one.dataset == dataset]
        names.update(differing(here))
    return [replace(one, others={name: value for name, value in one.others.items() if name in names}) for one in series]


def _groups(series: Sequence[Series], varying: tuple[str, ...]) -> dict[str, list[Series]]:
    """Series that one figure can show: equal in all settings but the dataset's, the dropout rate and those that vary."""
    groups: dict[str, list[Series]] = {}
    for one in series:
        settings = {
            name: value
            for name, value in one.settings.items()
            if name not in ("dropout", "combined") and not name.startswith(("dataset.", *varying))
        }
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(one)
    return groups
