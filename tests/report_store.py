"""Run directories with known accuracies, as training would have left them: nothing is trained.

`python tests/report_store.py FOLDER figure2 figure3 …` writes whole studies, for looking at what a report makes of them.
"""

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from composed import study_jobs

from vld.config.names import SELECTIONS
from vld.runs.identity import run_id, run_identity
from vld.study.planned import PlannedRun, domain_names, planned_runs
from vld.training.connectivity import ALPHAS, REPRESENTATIONS
from vld.training.connectivity import WEIGHTS as WEIGHTS_ALONG

FINGERPRINT = {"vlcs": "aa" * 32, "pacs": "bb" * 32, "office_home": "cc" * 32, "terra_incognita": "dd" * 32}
WEIGHTS = "ee" * 32
STEPS = (0, 300, 3000, 6000, 10000)
GAIN = {"erm": (0, 0), "weight_averaging": (0.2, 0.6), "ensemble": (0.3, 0.8)}
"""Of each method that every run has, over ERM."""
# Where accuracies lie, in percent: of a dataset, i.i.d. and o.o.d. without dropout.
LEVEL = {
    "vlcs": (87, 78),
    "pacs": (97, 86),
    "office_home": (85, 71),
    "terra_incognita": (91, 51),
    "domain_net": (60, 42),
}

Accuracies = Callable[[dict[str, Any], str, str], tuple[float, float]]
"""i.i.d. and o.o.d. accuracy of a run's settings, a method and a selection."""


def plausible(settings: dict[str, Any], method: str, selection: str) -> tuple[float, float]:
    """Looks like the paper's, with noise that is the same every time, and the same for all methods of a run."""
    iid, ood = LEVEL.get(settings["dataset.name"], (80, 60))
    rate = settings["dropout"]
    number = int(hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8], 16)
    noise = np.random.default_rng(number).normal(0, (0.5, 0.9))
    pair = np.random.default_rng(int(1e9 * (settings["optim.lr"] + 7 * settings["optim.weight_decay"]))).normal(
        0, (0.3, 0.6)
    )
    domain = np.random.default_rng(len(settings["test_domain"])).normal(0, (1.0, 6.0))
    gain = GAIN[method]
    with_dropout = {0: (0, 0), 0.5: (0.3, 1.0), 0.9: (0.1, 2.0), 0.95: (-0.4, 1.6)}.get(rate, (0, 0))
    later = {"iid": 0.0, "last": -0.2, "oracle_step": -0.1}[selection]
    scale = 1.0 if rate == 0 else 0.3
    values = [
        base + n + p + d + g * scale + w + later
        for base, n, p, d, g, w in zip((iid, ood), noise, pair, domain, gain, with_dropout, strict=True)
    ]
    return round(values[0] / 100, 6), round(values[1] / 100, 6)


@cache
def study_runs(study: str, *words: str) -> list[PlannedRun]:
    """The runs of a study of the paper, narrowed. To be changed as copies only: composed once for all tests."""
    return planned_runs(study_jobs(study, *words))


def identity_of(
    run: PlannedRun, *, fingerprint: str | None = None, weights: str | None = None, precision: str = "bf16"
) -> dict[str, Any]:
    weights = weights or (
        "random"
        if run.config.backbone.weights == "none"
        else hashlib.sha256(run.config.backbone.name.encode()).hexdigest()
    )
    return run_identity(
        run.config,
        run.test_domain,
        dataset_fingerprint=fingerprint or FINGERPRINT.get(run.config.dataset.name, "ff" * 32),
        weights_fingerprint=weights,
        precision=precision,
    )


def write_run(
    output_dir: Path,
    run: PlannedRun,
    *,
    accuracies: Accuracies = plausible,
    fingerprint: str | None = None,
    weights: str | None = None,
    precision: str = "bf16",
    domains: Iterable[str] = (),
    failure: str | None = None,
    curves: bool = True,
) -> Path:
    """A finished run's directory; or a failed one's."""
    settings = identity_of(run, fingerprint=fingerprint, weights=weights, precision=precision)
    folder = output_dir / "runs" / run.config.dataset.name / run.test_domain / run_id(settings)
    folder.mkdir(parents=True)
    # JSON is YAML.
    (folder / "config.yaml").write_text(json.dumps({"identity": settings, "other": {}}))
    if failure:
        about = {
            "what": failure,
            "how_to_go_on": "",
            "where": "",
            "when": "",
            "run_id": folder.name,
            "settings": settings,
        }
        (folder / "failure.json").write_text(json.dumps(about))
        return folder
    results, lines = [], []
    for method in GAIN:
        for selection in SELECTIONS:
            iid, ood = accuracies(settings, method, selection)
            row = {"method": method, "selection": selection, "step": 10_000, "iid_acc": iid, "ood_acc": ood}
            results.append(row | {"ood_in_acc": ood, "ood_out_acc": ood})
        for step in STEPS if curves else ():
            iid, ood = accuracies(settings, method, "last")
            learned = 0.15 + 0.85 * (1 - np.exp(-step / 2000))
            lines.append({"method": method, "step": step, "iid_acc": iid * learned, "ood_acc": ood * learned})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {
        "run_id": folder.name,
        "study": run.config.study.name,
        "settings": settings,
        "domains": sorted(domains or domain_names(run.config)),
        "results": results,
        "device": "NVIDIA H100",
        "software": {"vld": "0.1.0", "torch": "2.15.0"},
        "seconds": 1500.0,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_combination(
    output_dir: Path,
    method: str,
    runs: list[PlannedRun],
    axes: Iterable[str],
    iid_acc: float,
    ood_acc: float,
    step: str = "last",
) -> Path:
    """A soup or an ensemble of these runs, which differ in the axes and share their test domain; or the line between two, whose
    accuracies are `iid_acc` and `ood_acc` everywhere."""
    settings = [identity_of(run) for run in runs]
    members = [run_id(one) for one in settings]
    identity = {"method": method, "member_step": step, "members": members, "protocol_version": 2}
    if method != "connectivity":
        identity["members"] = sorted(members)
    common = {n: v if all(one[n] == v for one in settings) else None for n, v in settings[0].items()}
    folder = output_dir / "combined" / common["dataset.name"] / common["test_domain"] / run_id(identity)
    folder.mkdir(parents=True)
    row = {"method": method, "selection": step, "step": 10_000, "iid_acc": iid_acc, "ood_acc": ood_acc}
    result = {
        "run_id": folder.name,
        "study": "figure2",
        "identity": identity,
        "settings": common,
        "members": members,
        "member_values": {m: {a: one[a] for a in axes} for m, one in zip(members, settings, strict=True)},
        "member_mean": {"iid_acc": iid_acc, "ood_acc": ood_acc},
        "results": [row | {"ood_in_acc": ood_acc, "ood_out_acc": ood_acc}],
        "seconds": 1.0,
    }
    if method == "ensemble_of_runs":
        result["by_number_of_members"] = [
            {
                "members": k,
                "subsets": len(members),
                "iid_acc_mean": iid_acc - 0.02 / k,
                "iid_acc_sd": 0.01 / k,
                "ood_acc_mean": ood_acc - 0.03 / k,
                "ood_acc_sd": 0.012 / k,
            }
            for k in range(1, len(members) + 1)
        ]
    if method == "connectivity":
        result["connectivity"] = [
            {"along": along, "alpha": alpha, "iid_acc": iid_acc, "ood_acc": ood_acc}
            for along in (WEIGHTS_ALONG, REPRESENTATIONS)
            for alpha in ALPHAS
        ]
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_study(output_dir: Path, study: str, *words: str, accuracies: Accuracies = plausible) -> list[PlannedRun]:
    runs = study_runs(study, *words)
    for run in runs:
        write_run(output_dir, run, accuracies=accuracies)
    return runs


def write_combinations(output_dir: Path, runs: list[PlannedRun], accuracies: Accuracies = plausible) -> None:
    """For each dataset, dropout rate and test domain the soup and the ensemble of all runs, above the mean of their members."""
    axes = ("optim.lr", "optim.weight_decay", "seed")

    def kind(run: PlannedRun) -> tuple[str, float, str]:
        return run.config.dataset.name, run.config.dropout, run.test_domain

    for _, some in itertools.groupby(sorted(runs, key=kind), kind):
        members = list(some)
        means = np.mean([accuracies(identity_of(run), "erm", "last") for run in members], axis=0)
        for method, gain in (("model_soup", 0.012), ("ensemble_of_runs", 0.009)):
            write_combination(
                output_dir, method, members, axes, round(means[0] + gain / 3, 6), round(means[1] + gain, 6)
            )


if __name__ == "__main__":
    target, *studies = sys.argv[1:]
    for name in studies:
        written = write_study(Path(target), name)
        if name == "figure2":
            write_combinations(Path(target), written)
        print(f"{name}: {len(written)} runs")
