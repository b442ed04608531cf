"""Clouds (protocol: every way of picking one hyper-parameter pair for each test domain), and the points of every other figure."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vld.report.grid import Array, Grid
from vld.report.tables import Series, results_table, short_name, shown_value


def cloud(grid: Grid) -> pd.DataFrame:
    """Every way of picking one pair for each test domain: iid_acc and ood_acc, the mean over test domains of the picked pairs'
    means over repeats, as fractions. The last domain's pair varies fastest: (pairs)^(domains) rows, fewer where a domain lacks
    pairs, none where one has no run."""
    there = np.isfinite(grid.ood_acc)
    columns = {}
    for name in ("iid_acc", "ood_acc"):
        values: Array = getattr(grid, name)
        sums = np.zeros(1)
        for of_domain, has in zip(values, there, strict=True):
            means = np.array([cell[some].mean() for cell, some in zip(of_domain, has, strict=True) if some.any()])
            sums = (sums[:, None] + means[None, :]).ravel()
        columns[name] = sums / len(values)
    return pd.DataFrame(columns)


def cloud_points(series: Sequence[Series]) -> pd.DataFrame:
    """The clouds of several series, and their means. A row per point: dataset, series (its label), method, dropout, kind
    (cloud or mean), complete, iid and ood in percent."""
    frames = []
    for one in series:
        points = 100 * cloud(one.grid).rename(columns={"iid_acc": "iid", "ood_acc": "ood"})
        if points.empty:
            continue
        mean = points.mean().to_frame().T.assign(kind="mean")
        frame = pd.concat([points.assign(kind="cloud"), mean]) if len(points) > 1 else mean
        about = {"dataset": one.dataset, "series": one.label, "method": one.method, "dropout": one.dropout}
        frames.append(frame.assign(**about, complete=one.grid.complete))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def rate_points(series: Sequence[Series]) -> pd.DataFrame:
    """Accuracy against the dropout rate: dataset, curve (the series but for its rate), method, dropout; iid, iid_se, ood, ood_se
    in percent; lowest and highest o.o.d. accuracy of the cloud."""
    rows = []
    for one in series:
        points = cloud(one.grid)
        if one.dropout is None or points.empty:
            continue
        row = results_table([one]).iloc[0]
        others = "".join(f", {short_name(name)} {shown_value(name, value)}" for name, value in one.others.items())
        rows.append(
            {"dataset": one.dataset, "curve": one.name + others, "method": one.method, "dropout": one.dropout}
            | {name: row[name] for name in ("iid", "iid_se", "ood", "ood_se")}
            | {"lowest": 100 * points.ood_acc.min(), "highest": 100 * points.ood_acc.max()}
        )
    return pd.DataFrame(rows)


def domain_points(series: Sequence[Series]) -> pd.DataFrame:
    """o.o.d. accuracy with each domain left out: dataset, series, method, dropout, test_domain, ood and ood_se in percent."""
    rows = []
    for one in series:
        row = results_table([one]).iloc[0]
        rows += [
            {"dataset": one.dataset, "series": one.label, "method": one.method, "dropout": one.dropout}
            | {"test_domain": domain, "ood": row[f"ood {domain}"], "ood_se": row[f"ood_se {domain}"]}
            for domain in one.grid.test_domains
        ]
    return pd.DataFrame(rows)


def member_points(results: pd.DataFrame, series: Sequence[Series]) -> pd.DataFrame:
    """Accuracy of ensembles of runs against the number of members, averaged over random subsets, test domains and pairs: dataset,
    series, dropout, members, iid, ood in percent, and ood_sd over subsets (averaged alike)."""
    rows = []
    ensembles = results[(results.method == "ensemble_of_runs") & results.by_number_of_members.notna()]
    for one in series:
        of_this = ensembles[(ensembles.condition == one.condition) & (ensembles.dataset == one.dataset)]
        if set(of_this.test_domain) != set(one.grid.test_domains):
            continue
        curves = pd.DataFrame([point for curve in of_this.by_number_of_members for point in curve])
        means = 100 * curves.groupby("members")[["iid_acc_mean", "ood_acc_mean", "ood_acc_sd"]].mean()
        for members, point in means.iterrows():
            rows.append(
                {"dataset": one.dataset, "series": one.label, "method": one.method, "dropout": one.dropout}
                | {"members": members, "iid": point.iid_acc_mean, "ood": point.ood_acc_mean, "ood_sd": point.ood_acc_sd}
            )
    return pd.DataFrame(rows)


def learning_curves(runs: Mapping[str, Path]) -> pd.DataFrame:
    """What runs' `metrics.jsonl` say: run (its label), method, step, iid and ood in percent."""
    rows = []
    for label, directory in runs.items():
        for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.append(
                {"run": label, "method": row["method"], "step": row["step"]}
                | {"iid": 100 * row["iid_acc"], "ood": 100 * row["ood_acc"]}
            )
    return pd.DataFrame(rows)
