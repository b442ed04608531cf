"""The figures: each from the table of its points (`vld.report.clouds`), which is written next to it."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vld.colors import DATASET_NAMES, METHOD_MARKERS, METHOD_NAMES, series_color
from vld.report.tables import INCOMPLETE

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
    "savefig.dpi": 200,
}
IID, OOD = "i.i.d. accuracy (%)", "o.o.d. accuracy (%)"


@rc_context(STYLE)  # type: ignore[arg-type]
def clouds_figure(points: pd.DataFrame) -> Figure:
    """o.o.d. against i.i.d. accuracy, a panel per dataset: each series' cloud, its mean as a large mark (`cloud_points`)."""
    figure, panels = _panels(points.dataset.unique(), row_height=2.5)
    for dataset, axes in panels.items():
        here = points[points.dataset == dataset]
        seen: set[object] = set()
        marks = []
        for series, some in here.groupby("series", sort=False):
            method, dropout = some.method.iloc[0], _rate(some.dropout.iloc[0])
            color, marker = series_color(method, dropout), METHOD_MARKERS[method]
            filled = (method, dropout) not in seen
            seen.add((method, dropout))
            dots = some[some.kind == "cloud"]
            dot = 5 if len(dots) < 5_000 else 2
            faces: dict[str, Any] = (
                {"c": color, "linewidths": 0}
                if filled
                else {"facecolors": "none", "edgecolors": color, "linewidths": 0.4}
            )
            axes.scatter(dots.iid, dots.ood, s=dot, alpha=0.35, rasterized=True, zorder=2, **faces)
            marks.append((series, some, color, marker, filled))
        for series, some, color, marker, filled in marks:  # above every cloud
            mean = some[some.kind == "mean"].iloc[0]
            label = series if mean.complete else f"{series} {INCOMPLETE}"
            size = 11 if marker == "*" else 6.5
            faces = {"mfc": color, "mec": "white"} if filled else {"mfc": "white", "mec": color}
            edge = 0.8 if filled else 1.4
            axes.plot(mean.iid, mean.ood, marker, ms=size, mew=edge, label=label, zorder=3, ls="none", **faces)
        axes.set(title=DATASET_NAMES.get(dataset, dataset), xlabel=IID, ylabel=OOD)
    _legend(figure, panels.values())
    return figure


@rc_context(STYLE)  # type: ignore[arg-type]
def rates_figure(points: pd.DataFrame) -> Figure:
    """i.i.d. (above) and o.o.d. accuracy (below) against the dropout rate, a column per dataset (`rate_points`): means with their
    standard errors, and for o.o.d. accuracy the range of the cloud."""
    rates = sorted(points.dropout.unique())
    datasets = points.dataset.unique()
    columns = len(datasets)
    figure = Figure(figsize=(max(WIDTH, 1.75 * columns), 3.6), layout="constrained")
    grid = figure.subplots(2, columns, sharex=True, squeeze=False)
    for column, dataset in enumerate(datasets):
        here = points[points.dataset == dataset]
        for number, (curve, some) in enumerate(here.groupby("curve", sort=False)):
            some = some.sort_values("dropout")
            at = [rates.index(rate) for rate in some.dropout]
            method = some.method.iloc[0]
            look = {"color": series_color(method, 0.0), "marker": METHOD_MARKERS[method], "ms": 4}
            look |= {"ls": ("-", "--", ":", "-.")[number % 4] if method == "erm" else "-", "capsize": 2}
            for axes, name in zip(grid[:, column], ("iid", "ood"), strict=True):
                axes.errorbar(at, some[name], some[f"{name}_se"].fillna(0), label=curve, **look)
            grid[1, column].fill_between(at, some.lowest, some.highest, color=look["color"], alpha=0.12, lw=0)
        grid[0, column].set(title=DATASET_NAMES.get(dataset, dataset))
        grid[1, column].set(xlabel="dropout rate", xticks=range(len(rates)), xticklabels=[f"{r:g}" for r in rates])
    grid[0, 0].set(ylabel=IID)
    grid[1, 0].set(ylabel=OOD)
    _legend(figure, grid.flat)
    return figure


@rc_context(STYLE)  # type: ignore[arg-type]
def domains_figure(points: pd.DataFrame) -> Figure:
    """o.o.d. accuracy with each domain left out, a panel per dataset, a bar per series with its error (`domain_points`)."""
    figure, panels = _panels(points.dataset.unique(), row_height=1.7, wide=True)
    for dataset, axes in panels.items():
        here = points[points.dataset == dataset]
        domains = sorted(here.test_domain.unique())
        series = list(here.series.unique())
        width = 0.84 / len(series)
        seen: set[object] = set()
        for number, one in enumerate(series):
            some = here[here.series == one].set_index("test_domain").reindex(domains)
            method, dropout = (
                some.method.dropna().iloc[0],
                _rate(some.dropout.dropna().iloc[0] if some.dropout.notna().any() else None),
            )
            at = np.arange(len(domains)) + (number - (len(series) - 1) / 2) * width
            look: dict[str, Any] = {"color": series_color(method, dropout), "label": one}
            if method != "erm" and dropout:
                look |= {"hatch": "////", "edgecolor": "white", "lw": 0}
            if (method, dropout) in seen:
                look |= {"alpha": 0.5}
            seen.add((method, dropout))
            axes.bar(at, some.ood, width * 0.92, yerr=some.ood_se.fillna(0), error_kw={"lw": 0.8}, **look)
        axes.set(title=DATASET_NAMES.get(dataset, dataset), ylabel=OOD, xticks=range(len(domains)), xticklabels=domains)
        axes.grid(visible=False, axis="x")
        low, high = float(np.nanmin(here.ood)), float(np.nanmax(here.ood + here.ood_se.fillna(0)))
        bottom = max(0.0, 5 * math.floor((low - 3) / 5))
        axes.set_ylim(bottom, high + 0.05 * (high - bottom))
    _legend(figure, panels.values())
    return figure


@rc_context(STYLE)  # type: ignore[arg-type]
def members_figure(points: pd.DataFrame) -> Figure:
    """o.o.d. accuracy of ensembles of runs against the number of members, a panel per dataset (`member_points`)."""
    figure, panels = _panels(points.dataset.unique(), row_height=2.1)
    for dataset, axes in panels.items():
        for series, some in points[points.dataset == dataset].groupby("series", sort=False):
            rate = _rate(some.dropout.iloc[0])
            look: dict[str, Any] = {
                "color": series_color("erm", rate) if rate else series_color("ensemble_of_runs", rate)
            }
            axes.plot(some.members, some.ood, marker=METHOD_MARKERS["ensemble_of_runs"], ms=3.5, label=series, **look)
            axes.fill_between(some.members, some.ood - some.ood_sd, some.ood + some.ood_sd, alpha=0.15, lw=0, **look)
        axes.set(title=DATASET_NAMES.get(dataset, dataset), xlabel="members", ylabel=OOD)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, panels.values())
    return figure


@rc_context(STYLE)  # type: ignore[arg-type]
def learning_curves_figure(curves: pd.DataFrame) -> Figure:
    """Accuracy against the step, a panel per run, a colour per method: o.o.d. solid, i.i.d. dashed (`learning_curves`)."""
    figure, panels = _panels(curves.run.unique(), row_height=2.2)
    for run, axes in panels.items():
        here = curves[curves.run == run]
        for method, some in here.groupby("method", sort=False):
            color = series_color(str(method), 0.0)
            axes.plot(some.step, some.ood, color=color, label=f"{METHOD_NAMES[str(method)]}, o.o.d.")
            axes.plot(some.step, some.iid, color=color, ls="--", lw=1, label=f"{METHOD_NAMES[str(method)]}, i.i.d.")
        axes.set(title=run, xlabel="step", ylabel="accuracy (%)")
    _legend(figure, panels.values())
    return figure


@rc_context(STYLE)  # type: ignore[arg-type]
@rc_context(STYLE)  # type: ignore[arg-type]
def save_figure(figure: Figure, file: Path, kind: str) -> None:
    """As png or pdf, text as text."""
    figure.savefig(file, format=kind, metadata={"CreationDate": None} if kind == "pdf" else {})


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


def _legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """One for all panels, below them."""
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= {
            label: handle
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
            if label not in handles
        }
    inches = 0.45 + 0.052 * max(map(len, handles), default=0)  # of the longest entry, about
    columns = max(1, min(len(handles), int(figure.get_figwidth() / inches)))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False)


def _rate(dropout: float | None) -> float | None:
    return None if dropout is None or math.isnan(dropout) else float(dropout)
