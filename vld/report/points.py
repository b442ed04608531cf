"""The points of every figure. A cloud: every way of picking one hyper-parameter pair for each test domain."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vld.config.names import dataset_name
from vld.report.grid import Grid, average, mean_there
from vld.report.labels import described, distinguishing, in_order, percent
from vld.report.series import Series, setting_names
from vld.study.member_axes import CONNECTIVITY, ENSEMBLE_OF_RUNS

MOST_POINTS = 250_000
"""Of a cloud (six domains of six pairs have 46,656)."""


def cloud(grid: Grid) -> pd.DataFrame:
    """Every way of picking one pair for each test domain: iid_acc and ood_acc, the mean over test domains of the picked pairs'
    means over repeats, as fractions. The last domain's pair varies fastest: (pairs)^(domains) rows, fewer if a domain lacks
    pairs, none if one has no run; of more than `MOST_POINTS` so many at random."""
    choices = [np.flatnonzero(np.isfinite(of_domain).any(1)) for of_domain in grid.ood_acc]
    if math.prod(map(len, choices)) > MOST_POINTS:
        random = np.random.default_rng(0)
        picked = [random.choice(pairs, MOST_POINTS) for pairs in choices]
    else:
        picked = [pairs.ravel() for pairs in np.meshgrid(*choices, indexing="ij")]
    means = {f"{side}_acc": mean_there(accuracy) for side, accuracy in grid.accuracies.items()}
    return pd.DataFrame({name: sum(map(np.take, mean, picked)) / len(picked) for name, mean in means.items()})


def cloud_range(grid: Grid) -> tuple[float, float]:
    """The lowest and the highest o.o.d. accuracy of all points, in percent; NaN if there are no points."""
    cells = mean_there(grid.ood_acc)
    if not np.isfinite(cells).any(1).all():
        return math.nan, math.nan
    return percent(float(np.nanmin(cells, 1).mean())), percent(float(np.nanmax(cells, 1).mean()))


def cloud_points(series: Sequence[Series]) -> pd.DataFrame:
    """The clouds of several series, and their means. A row per point: dataset, series (its label), method, dropout, kind
    (cloud or mean), complete, iid and ood in percent. A cloud of a single point is left out, its mean stays."""
    frames = []
    for one in series:
        points = percent(cloud(one.grid)).set_axis(["iid", "ood"], axis=1).assign(kind="cloud")
        if len(points):
            mean = pd.DataFrame({"iid": one.average("iid")[:1], "ood": one.average("ood")[:1], "kind": "mean"})
            frames.append(pd.concat([points, mean][len(points) == 1 :]).assign(**_about(one)))
    return _together(frames)


def _about(one: Series) -> dict[str, Any]:
    about = {"dataset": one.dataset, "series": one.label, "method": one.method, "dropout": one.dropout}
    return about | {"selection": one.selection, "complete": one.grid.complete}


def _together(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    frames = list(frames)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _beside(about: Mapping[str, Any], points: pd.DataFrame) -> pd.DataFrame:
    """The points, each with the same columns before it."""
    return pd.DataFrame(dict(about), index=points.index).join(points)


def rate_points(series: Sequence[Series]) -> pd.DataFrame:
    """Accuracy against the dropout rate: dataset, series (without its rate), method, dropout, complete; iid, iid_se, ood, ood_se
    in percent; lowest and highest o.o.d. accuracy of the cloud."""
    rows = []
    for one in series:
        lowest, highest = cloud_range(one.grid)
        if one.dropout is None or math.isnan(lowest):
            continue
        row = _about(one) | {"series": ", ".join([one.name, *described(one.others)])}
        row |= {"lowest": lowest, "highest": highest}
        for side, accuracy in one.grid.accuracies.items():
            row |= average(side, accuracy)
        rows.append(row)
    return pd.DataFrame(rows)


def domain_points(series: Sequence[Series]) -> pd.DataFrame:
    """o.o.d. accuracy with each domain left out: dataset, series, method, dropout, complete, test_domain, ood and ood_se in
    percent."""
    return pd.DataFrame(
        [
            _about(one) | {"test_domain": domain} | average("ood", accuracy[None])
            for one in series
            for domain, accuracy in zip(one.grid.test_domains, one.grid.ood_acc, strict=True)
        ]
    )


def member_points(results: pd.DataFrame, series: Sequence[Series]) -> pd.DataFrame:
    """Accuracy of ensembles of runs against the number of members, averaged over random subsets, test domains and pairs: dataset,
    series, dropout, complete, members, iid, ood in percent, and ood_sd over subsets (averaged in the same way)."""
    frames = []
    columns = {"iid_acc_mean": "iid", "ood_acc_mean": "ood", "ood_acc_sd": "ood_sd"}
    ensembles = results[(results.method == ENSEMBLE_OF_RUNS) & results.by_number_of_members.notna()]
    for one in series:
        curves = ensembles.by_number_of_members[ensembles.condition == one.condition].explode().tolist()
        points = pd.DataFrame(curves).astype({"iid_acc_mean": float})  # null without held-out images
        means = percent(points.groupby("members")[[*columns]].mean()).rename(columns=columns)
        frames.append(_beside(_about(one), means.reset_index()))
    return _together(frames)


def connectivity_points(results: pd.DataFrame) -> pd.DataFrame:
    """Accuracy along the line between two networks, averaged over test domains, pairs and seeds: panel (dataset, and what
    distinguishes the line), along (weights or representations), alpha, iid and ood in percent, lines (how many are averaged)."""
    frames = []
    for dataset, of_dataset in results[results.method == CONNECTIVITY].groupby("dataset"):
        lines = []
        for _, some in of_dataset.groupby("condition"):
            settings = some[setting_names(some)].iloc[0].to_dict()
            lines.append((settings | {"combination": some.combined.iloc[0], "between": some.member_axes.iloc[0]}, some))
        names = distinguishing([settings for settings, _ in lines], fewest=True)
        for settings, some in sorted(lines, key=lambda line: [in_order(line[0].get(name)) for name in names]):
            which = described({name: settings.get(name) for name in names})
            about = {"panel": ", ".join([dataset_name(str(dataset)), *which]), "dataset": dataset}
            about |= {"dropout": settings["dropout"], "between": settings["between"]}
            points = pd.DataFrame(some.connectivity.explode().tolist()).astype({"iid_acc": float})
            means = percent(points.groupby(["along", "alpha"])[["iid_acc", "ood_acc"]].mean())
            means = means.set_axis(["iid", "ood"], axis=1).reset_index()
            frames.append(_beside(about, means.assign(lines=len(some))))
    return _together(frames)


def learning_curves(runs: Mapping[str, Path]) -> pd.DataFrame:
    """From runs' `metrics.jsonl`: run (its label), method, step, iid and ood in percent."""
    columns = {"method": "method", "step": "step", "iid_acc": "iid", "ood_acc": "ood"}
    frames = []
    for label, directory in runs.items():
        lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        points = pd.DataFrame([json.loads(line) for line in lines], columns=list(columns)).rename(columns=columns)
        frames.append(_beside({"run": label}, points.assign(**percent(points[["iid", "ood"]].astype(float)))))
    return _together(frames)
