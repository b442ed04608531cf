"""The figures: each from the table of its points (`vld.report.points`), which is written next to it."""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vld.config.names import METHOD_COLORS, METHOD_MARKERS, METHOD_NAMES, dataset_name, series_color
from vld.report.labels import INCOMPLETE

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
FILLS: tuple[Fill, ...] = ("full", "none", "left", "right", "top", "bottom")
"""Of the mark: what tells series of one colour and marker apart."""
LINES = ("-", "--", ":", "-.")
IID, OOD = "i.i.d. accuracy (%)", "o.o.d. accuracy (%)"


@rc_context(STYLE)  # type: ignore[arg-type]
def clouds_figure(points: pd.DataFrame) -> Figure:
    """o.o.d. against i.i.d. accuracy, a panel per dataset: each series' cloud, its mean as a large mark (`cloud_points`).

    Of two series with one colour and marker the second is hollow; further ones are half filled. Raises `ValueError` where there
    is nothing to draw.
    """
    if points.empty:
        raise ValueError("no points to draw: a cloud takes a finished run with each test domain left out")
    figure, panels = _panels(points.dataset.unique(), row_height=2.5)
    for dataset, axes in panels.items():
        seen: Counter[tuple[str, str]] = Counter()
        for _, some in points[points.dataset == dataset].groupby("series", sort=False):
            color, marker, fill = own_look(some, seen)
            dots, mean = some[some.kind == "cloud"], some[some.kind == "mean"].iloc[0]
            dot: dict[str, Any] = {"c": color, "linewidths": 0}
            if fill == "none":
                dot = {"facecolors": "none", "edgecolors": color, "linewidths": 0.4}
            size = 5 if len(dots) < 5_000 else 2
            axes.scatter(dots.iid, dots.ood, s=size, alpha=0.35, rasterized=True, zorder=2, **dot)
            look = _mark(color, marker, fill, 6.5) | {"ls": "none", "zorder": 3}  # above every cloud
            axes.plot(mean.iid, mean.ood, label=_label(some), **look)
        axes.set(title=dataset_name(dataset), xlabel=IID, ylabel=OOD)
    legend_below(figure, panels.values())
    return figure


@rc_context(STYLE)  # type: ignore[arg-type]
def rates_figure(points: pd.DataFrame) -> Figure:
    """i.i.d. (above) and o.o.d. accuracy (below) against the dropout rate, a column per dataset (`rate_points`): means with their
    standard errors, and for o.o.d. accuracy the range of the cloud. Of two curves of one method the second is dashed."""
    rates = sorted(points.dropout.unique())
    figure, columns = _two_rows(points.dataset.unique())
    for dataset, (iid, ood) in columns.items():
        seen: Counter[str] = Counter()
        for _, some in points[points.dataset == dataset].groupby("series", sort=False):
            some = some.sort_values("dropout")
            method = str(some.method.iloc[0])
            at = [rates.index(rate) for rate in some.dropout]
            look: dict[str, Any] = {"color": METHOD_COLORS[method], "marker": METHOD_MARKERS[method], "ms": 4}
            look |= {"capsize": 2, "ls": LINES[seen[method] % 4]}
            seen[method] += 1
            for axes, name in ((iid, "iid"), (ood, "ood")):
                axes.errorbar(at, some[name], _errors(some[f"{name}_se"]), label=_label(some), **look)
            ood.fill_between(at, some.lowest, some.highest, color=look["color"], alpha=0.12, lw=0)
        ood.set(xlabel="dropout rate", xticks=range(len(rates)), xticklabels=[f"{r:g}" for r in rates])
    legend_below(figure, figure.axes)
    return figure


@rc_context(STYLE)  # type: ignore[arg-type]
def domains_figure(points: pd.DataFrame) -> Figure:
    """o.o.d. accuracy with each domain left out, a panel per dataset, a mark per series with its error (`domain_points`).

    No bars: their lengths would mislead, since the axis does not begin at 0.
    """
    figure, panels = _panels(points.dataset.unique(), row_height=1.7, wide=True)
    for dataset, axes in panels.items():
        here = points[points.dataset == dataset]
        domains, count = sorted(here.test_domain.unique()), here.series.nunique()
        seen: Counter[tuple[str, str]] = Counter()
        for number, (_, some) in enumerate(here.groupby("series", sort=False)):
            color, marker, fill = own_look(some, seen)
            values = some.set_index("test_domain").reindex(domains)
            at = np.arange(len(domains)) + (number - (count - 1) / 2) * 0.7 / count
            look = _mark(color, marker, fill, 5) | {"ls": "none", "ecolor": color, "elinewidth": 1, "capsize": 2}
            axes.errorbar(at, values.ood, _errors(values.ood_se), label=_label(some), **look)
        axes.set(title=dataset_name(dataset), ylabel=OOD, xticks=range(len(domains)), xticklabels=domains)
        axes.set_xticks(np.arange(len(domains) - 1) + 0.5, minor=True)  # a line between two domains
        axes.tick_params(axis="x", which="both", length=0)
        axes.set_xlim(-0.5, len(domains) - 0.5)
        axes.margins(y=0.12)
        axes.grid(visible=False, axis="x")
        axes.grid(visible=True, axis="x", which="minor")
    legend_below(figure, panels.values())
    return figure


@rc_context(STYLE)  # type: ignore[arg-type]
def members_figure(points: pd.DataFrame) -> Figure:
    """o.o.d. accuracy of ensembles of runs against the number of members, a panel per dataset (`member_points`)."""
    figure, panels = _panels(points.dataset.unique(), row_height=2.1)
    for dataset, axes in panels.items():
        for number, (_, some) in enumerate(points[points.dataset == dataset].groupby("series", sort=False)):
            color = METHOD_COLORS["ensemble_of_runs"]
            look: dict[str, Any] = {"color": color, "marker": METHOD_MARKERS["ensemble_of_runs"]}
            look |= {"ls": LINES[number % 4], "ms": 3.5, "mfc": "white" if number % 2 else color}
            axes.plot(some.members, some.ood, label=_label(some), **look)
            axes.fill_between(
                some.members, some.ood - some.ood_sd, some.ood + some.ood_sd, alpha=0.15, lw=0, color=color
            )
        axes.set(title=dataset_name(dataset), xlabel="members", ylabel=OOD)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, panels.values())
    return figure


@rc_context(STYLE)  # type: ignore[arg-type]
def connectivity_figure(points: pd.DataFrame) -> Figure:
    """Accuracy along the line between two networks, their weights interpolated and their representations, a column per line,
    i.i.d. accuracy above (`connectivity_points`)."""
    looks: dict[str, dict[str, Any]] = {
        "weights": {"color": METHOD_COLORS["connectivity"], "marker": METHOD_MARKERS["connectivity"], "ms": 4},
        "representations": {"color": "#7f7f7f", "marker": "+", "ms": 4, "ls": "--"},  # no method's
    }
    figure, columns = _two_rows(points.panel.unique())
    for panel, (iid, ood) in columns.items():
        for along, line in points[points.panel == panel].groupby("along", sort=False):
            iid.plot(line.alpha, line.iid, label=f"{along} interpolated", **looks[str(along)])
            ood.plot(line.alpha, line.ood, label=f"{along} interpolated", **looks[str(along)])
        ood.set(xlabel="α")
    legend_below(figure, figure.axes)
    return figure


@rc_context(STYLE)  # type: ignore[arg-type]
def learning_curves_figure(curves: pd.DataFrame) -> Figure:
    """Accuracy against the step, a panel per run, a colour per method: o.o.d. solid, i.i.d. dashed (`learning_curves`, and each
    run's dropout)."""
    figure, panels = _panels(curves.run.unique(), row_height=2.2)
    for run, axes in panels.items():
        for method, some in curves[curves.run == run].groupby("method", sort=False):
            color = series_color(str(method), float(some.dropout.iloc[0]))
            axes.plot(some.step, some.ood, color=color, label=f"{METHOD_NAMES[str(method)]}, o.o.d.")
            axes.plot(some.step, some.iid, color=color, ls="--", lw=1, label=f"{METHOD_NAMES[str(method)]}, i.i.d.")
        axes.set(title=run, xlabel="step", ylabel="accuracy (%)")
    legend_below(figure, panels.values())
    return figure


def save_figure(figure: Figure, file: Path, kind: str) -> None:
    """As png or pdf, text as text."""
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(file, format=kind, metadata={"CreationDate": None} if kind == "pdf" else {})


def own_look(series: pd.DataFrame, seen: Counter[tuple[str, str]]) -> tuple[str, str, Fill]:
    """Colour and marker, the method's in every figure, and how the mark is filled: none that another series of the panel has."""
    method = str(series.method.iloc[0])
    look = series_color(method, series.dropout.iloc[0]), METHOD_MARKERS[method]
    before = seen[look]
    seen[look] += 1
    return *look, FILLS[before % len(FILLS)]


def _mark(color: str, marker: str, fill: Fill, size: float) -> dict[str, Any]:
    """How a line's mark is drawn; stars are smaller than other marks of their size."""
    look: dict[str, Any] = {"marker": marker, "ms": 1.7 * size if marker == "*" else size}
    if fill == "full":
        return look | {"mfc": color, "mec": "black", "mew": 0.7}
    half = {"fillstyle": fill, "mfc": color, "mfcalt": "white"}
    return look | ({"mfc": "white"} if fill == "none" else half) | {"mec": color, "mew": 1.6}


def _errors(errors: pd.Series) -> pd.Series | None:
    """None where there are none: the legend then shows no error bars either."""
    return errors if errors.notna().any() else None


def _label(series: pd.DataFrame) -> str:
    name = str(series.series.iloc[0])
    return name if series.complete.all() else f"{name} {INCOMPLETE}"


def _panels(names: Iterable[str], row_height: float, *, wide: bool = False) -> tuple[Figure, dict[str, Axes]]:
    """Panels of the width of a column, two beside each other; or of two columns (wide)."""
    names = list(names)
    columns = 1 if wide else min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=((2 if wide else columns) * WIDTH, rows * row_height + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for left_over in axes.flat[len(names) :]:
        left_over.remove()
    return figure, dict(zip(names, axes.flat, strict=False))


def _two_rows(names: Iterable[str]) -> tuple[Figure, dict[str, tuple[Axes, Axes]]]:
    """For each name a column: i.i.d. accuracy above, o.o.d. accuracy below."""
    names = list(names)
    figure = Figure(figsize=(max(WIDTH, 1.75 * len(names)), 3.6), layout="constrained")
    grid = figure.subplots(2, len(names), sharex=True, squeeze=False)
    grid[0, 0].set(ylabel=IID)
    grid[1, 0].set(ylabel=OOD)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(dataset_name(name).replace(", ", "\n"))  # columns are narrow
    return figure, {name: (grid[0, column], grid[1, column]) for column, name in enumerate(names)}


def legend_below(figure: Figure, panels: Iterable[Axes]) -> None:
    """One for all panels, below them."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    inches = 0.45 + 0.052 * max(map(len, handles), default=0)  # of the longest entry, about
    columns = max(1, min(len(handles), int(figure.get_figwidth() / inches)))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False)
