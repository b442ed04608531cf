"""What Weights & Biases gets of a run directory or a combination: plain data, no wandb, no torch."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vld.config.errors import UserError
from vld.config.names import ACCURACIES, SETTING_COLUMNS
from vld.runs.quantities import read_analyses
from vld.runs.reading import read_json, stored_identity, stored_settings
from vld.runs.results import read

WITHIN_GROUP = ("test_domain", "seed")
"""Settings in which runs of a group may differ: the group's mean is then a number of the results table."""
History = list[tuple[int, dict[str, float]]]
"""(training step, what was measured then)."""


@dataclass(frozen=True)
class WandbRun:
    """One W&B run: a run directory × method, or a combination."""

    id: str
    name: str
    group: str
    job_type: str
    tags: list[str]
    config: dict[str, Any]
    history: History = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return self.summary.get("failure") is not None

    @property
    def digest(self) -> str:
        """Changes with anything that W&B would show."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def wandb_runs(directory: Path) -> list[WandbRun]:
    """One per method of a finished or failed run; a single one of a combination. Raises `UserError` for anything else."""
    try:
        if (directory / "result.json").exists():
            result = read(directory)
            if result.members is not None:
                return [_combination(result.content)]
            return _finished(result.content, read_metrics(directory), read_analyses(directory))
        if (directory / "failure.json").exists():
            return _failed(read_json(directory / "failure.json"), read_metrics(directory))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{directory}: damaged ({error!r})") from error
    raise UserError(f"{directory}: neither finished nor failed")


def wandb_run_in_training(directory: Path) -> WandbRun:
    """The W&B run of the network itself, before it has a result. Raises `UserError` where `config.yaml` is damaged."""
    settings, study = stored_identity(directory), stored_settings(directory).get("study.name")
    return _run({"settings": settings, "run_id": directory.name, "study": study}, "erm")


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, none if the file is missing."""
    path = directory / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def history_of(rows: Sequence[Mapping[str, Any]], method: str, batch_size: int) -> History:
    """A method's curve. images_per_second: since the evaluation before."""
    history = []
    before: Mapping[str, Any] | None = None
    for row in rows:
        if row["method"] != method:
            continue
        values = {name: row[name] for name in (*ACCURACIES, "train_loss", "lr", "feature_sq_norm")}
        values["val_loss"] = row.get("val_loss")  # which earlier runs do not have
        values |= _by_domain(row["domain_acc"])
        timed = before is not None and "train_seconds" in row and "train_seconds" in before
        if before is not None and timed and (seconds := row["train_seconds"] - before["train_seconds"]) > 0:
            trained = sum(parts["in"] is None for parts in row["domain_acc"].values())
            images = (row["step"] - before["step"]) * batch_size * trained
            values["images_per_second"] = round(images / seconds, 1)
        history.append((row["step"], {name: value for name, value in values.items() if value is not None}))
        before = row
    return history


def _accuracies(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}{name}": row[name] for name in (*ACCURACIES, "step")}


def _by_domain(domain_acc: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    return {
        f"domain/{domain}/{part}": value
        for domain, parts in domain_acc.items()
        for part, value in parts.items()
        if value is not None
    }


def _analysed(analyses: Mapping[str, Mapping[str, Any]], method: str) -> dict[str, float]:
    """analysis/last/ood/effective_rank, …: of this method's weights."""
    return {
        f"analysis/{weights.removeprefix(f'{method}-')}/{side}/{name}": value
        for weights, analysis in analyses.items()
        if weights.startswith(f"{method}-")
        for side in ("iid", "ood")
        for name, value in analysis[side].items()
    }


def _finished(
    result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], analyses: Mapping[str, Mapping[str, Any]]
) -> list[WandbRun]:
    runs = []
    for method in dict.fromkeys(row["method"] for row in result["results"]):
        selected = {row["selection"]: row for row in result["results"] if row["method"] == method}
        headline = selected.get("iid") or selected["last"]  # which is all that there is with holdout=0
        summary = _accuracies(headline)
        for selection, row in selected.items():
            summary |= _accuracies(row, f"{selection}/")
        [at_headline] = [row for row in rows if (row["method"], row["step"]) == (method, summary["step"])]
        summary |= _by_domain(headline.get("domain_acc") or at_headline["domain_acc"])
        summary |= {name: result[name] for name in ("images_per_second", "seconds", "device")}
        summary |= _analysed(analyses, method)
        summary |= {"collapse": result["health"]["collapse"], "state": "finished", "failure": None}
        runs.append(_run(result, method, summary, history_of(rows, method, result["settings"]["batch_size"])))
    return runs


def _failed(failure: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[WandbRun]:
    summary, batch_size = {"state": "failed", "failure": failure["what"]}, failure["settings"]["batch_size"]
    methods = dict.fromkeys(["erm", *(row["method"] for row in rows)])
    return [_run(failure, method, summary, history_of(rows, method, batch_size)) for method in methods]


def _combination(result: Mapping[str, Any]) -> WandbRun:
    how = {name: value for name, value in result["identity"].items() if name not in ("members", "protocol_version")}
    [row] = result["results"]
    summary = _accuracies(row) | _accuracies(row, f"{row['selection']}/")
    summary |= _by_domain(row["domain_acc"])
    summary |= {f"member_mean/{name}": value for name, value in result["member_mean"].items()}
    if "trace" in result:
        summary["members_kept"] = sum(candidate["kept"] for candidate in result["trace"])
    summary |= {"seconds": result["seconds"], "device": result["device"], "state": "finished", "failure": None}
    about = {"members": result["members"], "number_of_members": len(result["members"])}
    about |= {name: value for name, value in how.items() if name != "method"}
    values = sorted(json.dumps(values, sort_keys=True) for values in result["member_values"].values())
    return _run(result, how["method"], summary, about=about, group_by=[how, values])


def _run(
    source: Mapping[str, Any],
    method: str,
    summary: dict[str, Any] | None = None,
    history: History | None = None,
    about: Mapping[str, Any] | None = None,
    group_by: Any = None,
) -> WandbRun:
    """source: has settings, run_id and study, as a `result.json` does. about: further entries of the config."""
    settings, run_id = source["settings"], source["run_id"]
    dataset, test_domain, backbone = settings["dataset.name"], settings["test_domain"], settings["backbone.name"]
    dropout = settings["dropout"]
    config = {"dataset": dataset, "test_domain": test_domain, "method": method, "run_id": run_id}
    config |= {column: settings[name] for column, name in SETTING_COLUMNS.items()}
    named = {"dataset.name", "test_domain", *SETTING_COLUMNS.values()}
    config |= {name.replace(".", "_"): value for name, value in settings.items() if name not in named}
    config |= {"study": source.get("study")} | dict(about or {})
    shared = {name: value for name, value in settings.items() if name not in WITHIN_GROUP}
    group = hashlib.sha256(json.dumps([shared, group_by], sort_keys=True).encode()).hexdigest()[:6]
    shown_dropout = "" if dropout is None else f"-d{dropout:g}"
    shown_seed = "" if settings["seed"] is None else f"-s{settings['seed']}"
    return WandbRun(
        id=f"{run_id}-{method}",
        name=f"{dataset}-{test_domain}-{method}{shown_dropout}{shown_seed}-{run_id[:8]}",
        group=f"{dataset}-{backbone}{shown_dropout}-{group}",
        job_type=method,
        tags=[tag[:64] for tag in (dataset, test_domain, backbone, method)],
        config=config,
        history=history or [],
        summary=summary or {},
    )
