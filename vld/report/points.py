"""Clouds (protocol: every way of picking one hyper-parameter pair for each test domain), and the points of every other figure."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vld.config.names import dataset_name
from vld.report.averages import mean_and_error, mean_there
from vld.report.grid import Grid, setting_names
from vld.report.labels import described, distinguishing, in_order, percent
from vld.report.series import Series
from vld.study.member_axes import CONNECTIVITY, ENSEMBLE_OF_RUNS

MOST_POINTS = 250_000
"""Of a cloud; of a larger one so many are drawn at random (six domains of six pairs have 46,656)."""


def cloud(grid: Grid) -> pd.DataFrame:
    """Every way of picking one pair for each test domain: iid_acc and ood_acc, the mean over test domains of the picked pairs'
    means over repeats, as fractions. The last domain's pair varies fastest: (pairs)^(domains) rows, fewer where a domain lacks
    pairs, none where one has no run; `MOST_POINTS` random ones of more."""
    choices = [np.flatnonzero(np.isfinite(of_domain).any(1)) for of_domain in grid.ood_acc]
    ways = math.prod(map(len, choices))
    if ways > MOST_POINTS:
        random = np.random.default_rng(0)
        picked = [random.choice(pairs, MOST_POINTS) for pairs in choices]
    else:
        picked = [pairs.ravel() for pairs in np.meshgrid(*choices, indexing="ij")]
    columns = {}
    for name in ("iid_acc", "ood_acc"):
        cells = mean_there(getattr(grid, name))
        columns[name] = sum(cells[d, pairs] for d, pairs in enumerate(picked)) / len(picked)
    return pd.DataFrame(columns)


def cloud_range(grid: Grid) -> tuple[float, float]:
    """The lowest and the highest o.o.d. accuracy of all points, in percent; NaN where there is none."""
    cells = mean_there(grid.ood_acc)
    if not np.isfinite(cells).any(1).all():
        return math.nan, math.nan
    return percent(float(np.nanmin(cells, 1).mean())), percent(float(np.nanmax(cells, 1).mean()))


def cloud_points(series: Sequence[Series]) -> pd.DataFrame:
    """The clouds of several series, and their means. A row per point: dataset, series (its label), method, dropout, kind
    (cloud or mean), complete, iid and ood in percent. A single point is no cloud: its mean alone is there."""
    frames = []
    for one in series:
        points = percent(cloud(one.grid).rename(columns={"iid_acc": "iid", "ood_acc": "ood"}))
        if points.empty:
            continue
        iid, ood = (mean_and_error(accuracy)[0] for accuracy in (one.grid.iid_acc, one.grid.ood_acc))
        mean = pd.DataFrame({"iid": [iid], "ood": [ood], "kind": "mean"})
        frame = pd.concat([points.assign(kind="cloud"), mean]) if len(points) > 1 else mean
        frames.append(frame.assign(**_about(one)))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _about(one: Series) -> dict[str, Any]:
    return {
        "dataset": one.dataset,
        "series": one.label,
        "method": one.method,
        "dropout": one.dropout,
        "selection": one.selection,
        "complete": one.grid.complete,
    }


def rate_points(series: Sequence[Series]) -> pd.DataFrame:
    """Accuracy against the dropout rate: dataset, series (but for its rate), method, dropout, complete; iid, iid_se, ood, ood_se
    in percent; lowest and highest o.o.d. accuracy of the cloud."""
    rows = []
    for one in series:
        lowest, highest = cloud_range(one.grid)
        if one.dropout is None or math.isnan(lowest):
            continue
        (iid, iid_se), (ood, ood_se) = mean_and_error(one.grid.iid_acc), mean_and_error(one.grid.ood_acc)
        row = _about(one) | {"series": ", ".join([one.name, *described(one.others)])}
        row |= {"lowest": lowest, "highest": highest, "iid": iid, "iid_se": iid_se, "ood": ood, "ood_se": ood_se}
        rows.append(row)
    return pd.DataFrame(rows)


def domain_points(series: Sequence[Series]) -> pd.DataFrame:
    """o.o.d. accuracy with each domain left out: dataset, series, method, dropout, complete, test_domain, ood and ood_se in
    percent."""
    rows = []
    for one in series:
        for domain, accuracy in zip(one.grid.test_domains, one.grid.ood_acc, strict=True):
            ood, error = mean_and_error(accuracy[None])
            rows.append(_about(one) | {"test_domain": domain, "ood": ood, "ood_se": error})
    return pd.DataFrame(rows)


def member_points(results: pd.DataFrame, series: Sequence[Series]) -> pd.DataFrame:
    """Accuracy of ensembles of runs against the number of members, averaged over random subsets, test domains and pairs: dataset,
    series, dropout, complete, members, iid, ood in percent, and ood_sd over subsets (averaged alike)."""
    rows = []
    ensembles = results[(results.method == ENSEMBLE_OF_RUNS) & results.by_number_of_members.notna()]
    for one in series:
        of_this = ensembles[ensembles.condition == one.condition]
        curves = pd.DataFrame([point for curve in of_this.by_number_of_members for point in curve])
        curves = curves.astype({"iid_acc_mean": float})  # null without held-out images
        means = percent(curves.groupby("members")[["iid_acc_mean", "ood_acc_mean", "ood_acc_sd"]].mean())
        for members, point in means.iterrows():
            accuracies = {"iid": point.iid_acc_mean, "ood": point.ood_acc_mean, "ood_sd": point.ood_acc_sd}
            rows.append(_about(one) | {"members": members} | accuracies)
    return pd.DataFrame(rows)


def connectivity_points(results: pd.DataFrame) -> pd.DataFrame:
    """Accuracy along the line between two networks, averaged over test domains, pairs and seeds: panel (dataset, and what tells
    the line from others there), along (weights or representations), alpha, iid and ood in percent, lines (so many averaged)."""
    rows = []
    for dataset, of_dataset in results[results.method == CONNECTIVITY].groupby("dataset"):
        lines = []
        for _, some in of_dataset.groupby("condition"):
            settings = some[setting_names(some)].iloc[0].to_dict()
            lines.append((settings | {"combination": some.combined.iloc[0], "between": some.member_axes.iloc[0]}, some))
        names = distinguishing([settings for settings, _ in lines], fewest=True)
        for settings, some in sorted(lines, key=lambda line: [in_order(line[0].get(name)) for name in names]):
            told = described({name: settings.get(name) for name in names})
            about = {"panel": ", ".join([dataset_name(str(dataset)), *told]), "dataset": dataset}
            about |= {"dropout": settings["dropout"], "between": settings["between"]}
            points = pd.DataFrame([point for line in some.connectivity for point in line]).astype({"iid_acc": float})
            means = percent(points.groupby(["along", "alpha"])[["iid_acc", "ood_acc"]].mean())
            for (along, alpha), mean in means.iterrows():
                row = about | {"along": along, "alpha": alpha, "iid": mean.iid_acc, "ood": mean.ood_acc}
                rows.append(row | {"lines": len(some)})
    return pd.DataFrame(rows)


def learning_curves(runs: Mapping[str, Path]) -> pd.DataFrame:
    """What runs' `metrics.jsonl` say: run (its label), method, step, iid and ood in percent."""
    rows = []
    for label, directory in runs.items():
        for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            point = {"run": label, "method": row["method"], "step": row["step"]}
            iid = math.nan if row["iid_acc"] is None else percent(row["iid_acc"])
            rows.append(point | {"iid": iid, "ood": percent(row["ood_acc"])})
    return pd.DataFrame(rows)
