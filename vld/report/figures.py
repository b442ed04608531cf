"""The figures: each from the table of its points (`vld.report.points`), which is written next to it."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vld.config.names import METHOD_COLORS, METHOD_MARKERS, METHOD_NAMES, dataset_name, series_color
from vld.report.labels import INCOMPLETE, footnotes

WIDTH = 3.4
"""Inches: a column of a two-column paper."""
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e0e0e0",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # text stays text
    "text.parse_math": False,  # names of domains are no formulas
    "savefig.dpi": 200,
}
Fill = Literal["full", "none", "left", "right", "top", "bottom"]
"""Of the mark: what tells series of one colour and marker apart."""
LINES = ("-", "--", ":", "-.")
IID, OOD = "i.i.d. accuracy (%)", "o.o.d. accuracy (%)"


def styled(draw: Callable[[pd.DataFrame], Figure]) -> Callable[[pd.DataFrame], Figure]:
    """In the style of all figures, with one legend for all panels below them."""

    @wraps(draw)
    def drawn(points: pd.DataFrame) -> Figure:
        with rc_context(STYLE):  # type: ignore[arg-type]
            figure = draw(points)
            handles: dict[str, Any] = {}
            for axes in figure.axes:
                for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                    handles.setdefault(label, handle)
            inches = 0.45 + 0.052 * max(map(len, handles), default=0)  # of the longest entry, about
            columns = max(1, min(len(handles), int(figure.get_figwidth() / inches)))
            figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False)
        return figure

    return drawn


@dataclass(frozen=True)
class ReportFigure:
    """A figure, and the table of its points."""

    name: str
    title: str
    caption: str
    points: pd.DataFrame
    figure: Figure


def report_figure(
    name: str, title: str, caption: str, points: pd.DataFrame, draw: Callable[[pd.DataFrame], Figure]
) -> ReportFigure:
    """The caption ends with what the marks in legends and beside axes mean."""
    figure = draw(points)
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    texts += [text for axes in figure.axes for text in axes.get_yticklabels()]
    return ReportFigure(name, title, caption + footnotes(text.get_text() for text in texts), points, figure)


@styled
def clouds_figure(points: pd.DataFrame) -> Figure:
    """o.o.d. against i.i.d. accuracy, a panel per dataset: each series' cloud, its mean as a large mark (`cloud_points`).

    If two series share colour and marker, the second is hollow; further ones are half filled. Raises `ValueError` if there is
    nothing to draw.
    """
    if points.empty:
        raise ValueError("no points to draw: a cloud takes a finished run with each test domain left out")
    figure, parts = panels(points, "dataset", 2.5)
    for axes, here in parts:
        axes.set(xlabel=IID, ylabel=OOD)
        seen: Counter[tuple[str, str]] = Counter()
        for _, some in here.groupby("series", sort=False):
            color, marker, fill = own_look(some, seen)
            dots, mean = some[some.kind == "cloud"], some[some.kind == "mean"].iloc[0]
            dot: dict[str, Any] = {"c": color, "linewidths": 0}
            if fill == "none":
                dot = {"facecolors": "none", "edgecolors": color, "linewidths": 0.4}
            size = 5 if len(dots) < 5_000 else 2
            axes.scatter(dots.iid, dots.ood, s=size, alpha=0.35, rasterized=True, zorder=2, **dot)
            look = _mark(color, marker, fill, 6.5) | {"zorder": 3}  # above every cloud
            axes.plot(mean.iid, mean.ood, label=_label(some), **look)
    return figure


@styled
def rates_figure(points: pd.DataFrame) -> Figure:
    """i.i.d. (above) and o.o.d. accuracy (below) against the dropout rate, a column per dataset (`rate_points`): means with
    standard errors, and for o.o.d. accuracy the range of the cloud. If a method has two curves, the second is dashed."""
    rates = sorted(points.dropout.unique())
    figure, columns = _two_rows(points, "dataset")
    for iid, ood, here in columns:
        seen: Counter[str] = Counter()
        for _, some in here.groupby("series", sort=False):
            some = some.sort_values("dropout")
            method = str(some.method.iloc[0])
            at = [rates.index(rate) for rate in some.dropout]
            look = _look(method, ms=4, capsize=2, ls=LINES[seen[method] % 4])
            seen[method] += 1
            for axes, name in ((iid, "iid"), (ood, "ood")):
                axes.errorbar(at, some[name], _errors(some[f"{name}_se"]), label=_label(some), **look)
            ood.fill_between(at, some.lowest, some.highest, color=look["color"], alpha=0.12, lw=0)
        ood.set(xlabel="dropout rate", xticks=range(len(rates)), xticklabels=[f"{r:g}" for r in rates])
    return figure


@styled
def domains_figure(points: pd.DataFrame) -> Figure:
    """o.o.d. accuracy with each domain left out, a panel per dataset, a mark per series with its error (`domain_points`).

    No bars: the axis does not begin at 0, so their lengths would mislead.
    """
    figure, parts = panels(points, "dataset", 1.7, wide=True)
    for axes, here in parts:
        domains, count = sorted(here.test_domain.unique()), here.series.nunique()
        seen: Counter[tuple[str, str]] = Counter()
        for number, (_, some) in enumerate(here.groupby("series", sort=False)):
            color, marker, fill = own_look(some, seen)
            values = some.set_index("test_domain").reindex(domains)
            at = np.arange(len(domains)) + (number - (count - 1) / 2) * 0.7 / count
            look = _mark(color, marker, fill, 5) | {"ecolor": color, "elinewidth": 1, "capsize": 2}
            axes.errorbar(at, values.ood, _errors(values.ood_se), label=_label(some), **look)
        axes.set(ylabel=OOD, xticks=range(len(domains)), xticklabels=domains, xlim=(-0.5, len(domains) - 0.5))
        axes.set_xticks(np.arange(len(domains) - 1) + 0.5, minor=True)  # a line between two domains
        axes.tick_params(axis="x", which="both", length=0)
        axes.margins(y=0.12)
        axes.grid(visible=False, axis="x")
        axes.grid(visible=True, axis="x", which="minor")
    return figure


@styled
def members_figure(points: pd.DataFrame) -> Figure:
    """o.o.d. accuracy of ensembles of runs against the number of members, a panel per dataset (`member_points`)."""
    figure, parts = panels(points, "dataset", 2.1)
    for axes, here in parts:
        for number, (_, some) in enumerate(here.groupby("series", sort=False)):
            look = _look("ensemble_of_runs", ls=LINES[number % 4], ms=3.5)
            color = look["color"]
            axes.plot(some.members, some.ood, label=_label(some), mfc="white" if number % 2 else color, **look)
            low, high = some.ood - some.ood_sd, some.ood + some.ood_sd
            axes.fill_between(some.members, low, high, alpha=0.15, lw=0, color=color)
        axes.set(xlabel="members", ylabel=OOD)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@styled
def connectivity_figure(points: pd.DataFrame) -> Figure:
    """i.i.d. (above) and o.o.d. accuracy along the line between two networks, their weights or representations interpolated, a
    column per line (`connectivity_points`)."""
    looks = {
        "weights": _look("connectivity", ms=4),
        "representations": {"color": "#7f7f7f", "marker": "+", "ms": 4, "ls": "--"},  # no method's
    }
    figure, columns = _two_rows(points, "panel")
    for iid, ood, here in columns:
        for along, line in here.groupby("along", sort=False):
            look = {"label": f"{along} interpolated", **looks[str(along)]}
            iid.plot(line.alpha, line.iid, **look)
            ood.plot(line.alpha, line.ood, **look)
        ood.set(xlabel="α")
    return figure


@styled
def learning_curves_figure(curves: pd.DataFrame) -> Figure:
    """Accuracy against the step, a panel per run, a colour per method: o.o.d. solid, i.i.d. dashed (`learning_curves`, and each
    run's dropout)."""
    figure, parts = panels(curves, "run", 2.2)
    for axes, here in parts:
        for method, some in here.groupby("method", sort=False):
            name, color = METHOD_NAMES[str(method)], series_color(str(method), float(some.dropout.iloc[0]))
            axes.plot(some.step, some.ood, color=color, label=f"{name}, o.o.d.")
            axes.plot(some.step, some.iid, color=color, ls="--", lw=1, label=f"{name}, i.i.d.")
        axes.set(xlabel="step", ylabel="accuracy (%)")
    return figure


def save_figure(figure: Figure, file: Path, kind: str) -> None:
    """As png or pdf."""
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(file, format=kind, metadata={"CreationDate": None} if kind == "pdf" else {})


def own_look(series: pd.DataFrame, seen: Counter[tuple[str, str]]) -> tuple[str, str, Fill]:
    """The method's colour and marker, the same in every figure; and a fill that no other series of the panel with them has."""
    method, fills = str(series.method.iloc[0]), get_args(Fill)
    look = series_color(method, series.dropout.iloc[0]), METHOD_MARKERS[method]
    seen[look] += 1
    return *look, fills[(seen[look] - 1) % len(fills)]


def _look(method: str, **more: Any) -> dict[str, Any]:
    return {"color": METHOD_COLORS[method], "marker": METHOD_MARKERS[method], **more}


def _mark(color: str, marker: str, fill: Fill, size: float) -> dict[str, Any]:
    """A mark without a line; stars look larger than other marks of their size."""
    look: dict[str, Any] = {"ls": "none", "marker": marker, "ms": 1.7 * size if marker == "*" else size}
    if fill == "full":
        return look | {"mfc": color, "mec": "black", "mew": 0.7}
    half = {"fillstyle": fill, "mfc": color, "mfcalt": "white"}
    return look | ({"mfc": "white"} if fill == "none" else half) | {"mec": color, "mew": 1.6}


def _errors(errors: pd.Series) -> pd.Series | None:
    """None if there are no errors: then the legend shows no error bars either."""
    return errors if errors.notna().any() else None


def _label(series: pd.DataFrame) -> str:
    name = str(series.series.iloc[0])
    return name if series.complete.all() else f"{name} {INCOMPLETE}"


def panels(
    points: pd.DataFrame, by: str, row_height: float, *, wide: bool = False
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A panel, and its points, for each value: as wide as a column of the paper, two side by side; or as two columns (wide)."""
    parts = dict(iter(points.groupby(by, sort=False)))
    columns = 1 if wide else min(2, len(parts))
    rows = math.ceil(len(parts) / columns)
    figure = Figure(figsize=((2 if wide else columns) * WIDTH, rows * row_height + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for left_over in axes.flat[len(parts) :]:
        left_over.remove()
    for panel, name in zip(figure.axes, parts, strict=True):
        panel.set_title(dataset_name(str(name)))
    return figure, list(zip(figure.axes, parts.values(), strict=True))


def _two_rows(points: pd.DataFrame, by: str) -> tuple[Figure, list[tuple[Axes, Axes, pd.DataFrame]]]:
    """A column, and its points, for each value: i.i.d. accuracy above, o.o.d. accuracy below."""
    parts = dict(iter(points.groupby(by, sort=False)))
    figure = Figure(figsize=(max(WIDTH, 1.75 * len(parts)), 3.6), layout="constrained")
    above, below = figure.subplots(2, len(parts), sharex=True, squeeze=False)
    above[0].set(ylabel=IID)
    below[0].set(ylabel=OOD)
    for axes, name in zip(above, parts, strict=True):
        axes.set_title(dataset_name(str(name)).replace(", ", "\n"))  # columns are narrow
    return figure, list(zip(above, below, parts.values(), strict=True))
