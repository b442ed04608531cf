"""Which series each figure of the study shows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from vld.config.names import METHODS, dataset_name
from vld.report.figures import (
    ReportFigure,
    clouds_figure,
    connectivity_figure,
    domains_figure,
    members_figure,
    rates_figure,
    report_figure,
)
from vld.report.labels import described, distinguishing
from vld.report.points import cloud_points, connectivity_points, domain_points, member_points, rate_points
from vld.report.series import Series, large_rate
from vld.runs.identity import RANDOM_WEIGHTS, WEIGHTS
from vld.study.member_axes import ENSEMBLE_OF_RUNS

LAST_LAYER = "optim.last_layer_lr_factor"
PLACEMENT = ("dropout_schedule", "backbone.stage_dropout", "backbone.stage_dropout_kind", "backbone.stochastic_depth")
TUNING = ("backbone.tuning", "backbone.normalize")

CLOUDS = (
    "i.i.d. against o.o.d. accuracy. A cloud has a point for every way of picking one (lr, weight decay) pair for each test"
    " domain, averaged over test domains and seeds; the large mark is its mean."
)
NO_CLOUDS = "i.i.d. against o.o.d. accuracy, averaged over test domains, (lr, weight decay) pairs and seeds."
SOUPS = "Star: the soup of all runs, triangle: their ensemble."
RATES = "Means over test domains, (lr, weight decay) pairs and seeds."
RANGES = "Shaded: from the lowest to the highest point of the cloud."
DOMAINS = "o.o.d. accuracy with each domain left out, means over (lr, weight decay) pairs and seeds."
ERRORS = "Error bars: standard errors over seeds."
FASTER = "Hollow: the faster last layer."
LINEAR = "Hollow: linear fine-tuning (equation 1)."
TRICKS = (
    "ERM without dropout against all tricks: very large dropout, a faster last layer, weight averaging; hollow: the second"
    " backbone of the legend."
)
CONNECTED = (
    "Accuracy between two networks, averaged over test domains, (lr, weight decay) pairs and seeds: of α θ₁ + (1−α) θ₂, and of"
    " α Φ₁ + (1−α) Φ₂ under the head whose weights are interpolated. Last steps. With members backbone.tuning=full,head α = 0"
    " is the pre-trained network with a linear probe, α = 1 the fine-tuned one."
)
MEMBERS = (
    "o.o.d. accuracy of ensembles of random subsets of the runs, averaged over subsets (shaded: their standard deviation) and"
    " test domains."
)


def erm(series: Sequence[Series], *rates: float | None) -> list[Series]:
    """ERM, at these dropout rates if any are named."""
    return [one for one in series if one.method == "erm" and (not rates or one.dropout in rates)]


def varied(series: list[Series], *names: str) -> list[Series]:
    """All of them if some differ in these settings, else none: a figure of one alone compares nothing."""
    return series if len({tuple(one.settings.get(name) for name in names) for one in series}) > 1 else []


def very_large(series: list[Series]) -> float | None:
    return large_rate(one.dropout for one in series)


def methods_and_dropout(series: list[Series]) -> list[Series]:
    """Every method without dropout, soups and ensembles included, and ERM with very large dropout."""
    plain = [one for one in series if one.dropout == 0]
    return plain + erm(series, very_large(series)) if plain else []


def plain_methods_and_erm(series: list[Series]) -> list[Series]:
    """Every method without dropout, and ERM with dropout."""
    return [one for one in series if one.method == "erm" or one.dropout == 0]


def dropout_curves(series: list[Series]) -> list[Series]:
    """Every method along a run at every rate."""
    return [one for one in series if one.method in METHODS] if varied(erm(series), "dropout") else []


def last_layer(series: list[Series]) -> list[Series]:
    """ERM with and without very large dropout, at each learning rate of the last layer."""
    return erm(series, 0, very_large(series)) if varied(series, LAST_LAYER) else []


def dropout_and_averaging(series: list[Series]) -> list[Series]:
    """Every method with very large dropout."""
    rate = very_large(series)
    return [one for one in series if rate and one.dropout == rate]


def pretraining(series: list[Series]) -> list[Series]:
    """Naive fine-tuning (ERM, no dropout, one learning rate) and all tricks (very large dropout, weight averaging, a last layer
    that learns faster where there are such runs), for each backbone."""
    series = varied([one for one in series if one.settings[WEIGHTS] != RANDOM_WEIGHTS], "backbone.name")
    factors = [value for one in series if (value := one.settings.get(LAST_LAYER)) is not None]
    naive = [one for one in erm(series, 0) if one.settings[LAST_LAYER] == 1]
    averaged = [one for one in series if one.method == "weight_averaging" and one.dropout == very_large(series)]
    return naive + [one for one in averaged if one.settings[LAST_LAYER] == max(factors)]


def full_and_linear(series: list[Series]) -> list[Series]:
    """ERM at every dropout rate, fine-tuned in full and linearly, of datasets that have both."""
    both = [one for one in erm(series) if one.others.get("backbone.tuning") in ("full", "linear")]
    return varied(both, "backbone.tuning")


IN_CLOUDS, AGAINST_RATES, BY_DOMAIN = (
    (cloud_points, clouds_figure),
    (rate_points, rates_figure),
    (domain_points, domains_figure),
)


@dataclass(frozen=True)
class FigureKind:
    name: str
    title: str
    chosen: Callable[[list[Series]], list[Series]]
    studies: tuple[str, ...] = ()
    """The paper's figures that this is."""
    caption: str = ""
    """Comes after that of all figures drawn alike."""
    varying: tuple[str, ...] = ()
    """Beginnings of the settings, beside the dropout rate, that differ within one such figure."""
    drawn: tuple[Callable[[Sequence[Series]], pd.DataFrame], Callable[[pd.DataFrame], Figure]] = IN_CLOUDS
    """What makes the points, and what draws them."""


OF_RATES, OF_TUNING = ("figure3", "figure4", "figure5"), ("figure9", "figure10")
RICHNESS, CURVES = "Richness of the pre-trained representation", "Linear and full fine-tuning against the dropout rate"
KINDS = (
    FigureKind("methods", "Methods without dropout, and very large dropout", methods_and_dropout, ("figure2",)),
    FigureKind("dropout_rates", "Dropout rates", lambda series: varied(erm(series), "dropout"), OF_RATES),
    FigureKind("dropout_curves", "Accuracy against the dropout rate", dropout_curves, OF_RATES, drawn=AGAINST_RATES),
    FigureKind("last_layer", "The last layer's learning rate", last_layer, ("figure6",), FASTER, (LAST_LAYER,)),
    FigureKind("averaging", "Very large dropout with averaging and ensembles", dropout_and_averaging, ("figure7",)),
    FigureKind("pretraining", RICHNESS, pretraining, ("figure8",), TRICKS, (LAST_LAYER, "backbone.")),
    FigureKind("tuning", "Linear and full fine-tuning", full_and_linear, OF_TUNING, LINEAR, TUNING),
    FigureKind("tuning_curves", CURVES, full_and_linear, OF_TUNING, varying=TUNING, drawn=AGAINST_RATES),
    FigureKind(
        "placement", "Where dropout goes, and when", lambda series: varied(erm(series), *PLACEMENT), varying=PLACEMENT
    ),
    FigureKind("domains", "Each domain left out", plain_methods_and_erm, drawn=BY_DOMAIN),
)
OF_PAPER = {"figure1", *(study for kind in KINDS for study in kind.studies)}


def drawn_figures(series: Sequence[Series], results: pd.DataFrame, study: str | None) -> Iterator[ReportFigure]:
    """The figure of a study of the paper; otherwise every figure that the results allow."""
    of_paper = study if study in OF_PAPER else None
    for kind in KINDS:
        if of_paper is None or of_paper in kind.studies:
            yield from _figures(kind, series, of_paper)
    if of_paper in (None, "figure1") and not (points := connectivity_points(results)).empty:
        name = of_paper or "connectivity"
        yield report_figure(name, "Linear connectivity", CONNECTED, points, connectivity_figure)
    ensembles = distinguished([one for one in series if one.method == ENSEMBLE_OF_RUNS])
    if of_paper is None and not (points := member_points(results, ensembles)).empty:
        yield report_figure("members", "Accuracy against the number of members", MEMBERS, points, members_figure)


def _figures(kind: FigureKind, series: Sequence[Series], of_paper: str | None) -> Iterator[ReportFigure]:
    """One for every group of series that one figure can show, the largest group first."""
    by_settings = {key: kind.chosen(some) for key, some in _groups(series, kind.varying).items()}
    groups = [(dict(key), distinguished(some)) for key, some in by_settings.items() if some]
    groups.sort(key=lambda group: -len(group[1]))
    apart = distinguishing([settings for settings, _ in groups], fewest=True)
    datasets = [", ".join(dict.fromkeys(dataset_name(one.dataset) for one in chosen)) for _, chosen in groups]
    name = of_paper + "_curves" * kind.name.endswith("_curves") if of_paper else kind.name
    make_points, draw = kind.drawn
    for number, ((settings, chosen), of) in enumerate(zip(groups, datasets, strict=True), 1):
        points = make_points(chosen)
        if points.empty:
            continue
        which = [of] * (len(set(datasets)) > 1) + described({name: settings.get(name) for name in apart})
        title = f"{kind.title} ({', '.join(which)})" if which else kind.title
        numbered = name if number == 1 else f"{name}-{number}"
        yield report_figure(numbered, title, _caption(kind, chosen, points), points, draw)


def _caption(kind: FigureKind, series: Sequence[Series], points: pd.DataFrame) -> str:
    """A single point is no cloud, and is not called one."""
    if clouds := kind.drawn == IN_CLOUDS:
        parts = [CLOUDS if (points.kind == "cloud").any() else NO_CLOUDS]
    else:
        parts = [RATES if kind.drawn == AGAINST_RATES else DOMAINS]
        parts += [RANGES] * ("lowest" in points and bool((points.lowest < points.highest).any()))
        parts += [ERRORS] * bool(points.ood_se.notna().any())
    selections = ", ".join(dict.fromkeys(one.selection for one in series if not one.combined))
    parts += [kind.caption] * bool(kind.caption) + [f"Selection {selections}."]
    return " ".join(parts + [SOUPS] * (clouds and any(one.combined for one in series)))


def distinguished(series: Sequence[Series]) -> list[Series]:
    """Named only by the settings in which they differ."""
    datasets = {one.dataset for one in series}
    names = {n for dataset in datasets for n in distinguishing([s.others for s in series if s.dataset == dataset])}
    return [replace(one, others={name: value for name, value in one.others.items() if name in names}) for one in series]


def _groups(series: Sequence[Series], varying: tuple[str, ...]) -> dict[tuple[tuple[str, Any], ...], list[Series]]:
    """Series that one figure can show: equal in all settings except the dataset's, the dropout rate and those that vary."""
    groups: dict[tuple[tuple[str, Any], ...], list[Series]] = {}
    for one in series:
        same = [n for n in one.settings if n != "dropout" and not n.startswith(("dataset.", *varying))]
        groups.setdefault(tuple((name, one.settings[name]) for name in same), []).append(one)
    return groups
