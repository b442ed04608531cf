"""What Weights & Biases gets of a run directory or a combination: plain data, no wandb, no torch."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vld.config.errors import UserError
from vld.config.names import ACCURACIES, SETTING_COLUMNS
from vld.runs.identity import ADDED_LATER, WEIGHTS
from vld.runs.quantities import read_analyses
from vld.runs.reading import read_json, stored_config
from vld.runs.results import RunResult, read

WITHIN_GROUP = ("test_domain", "seed")
"""Settings in which runs of a group may differ: the group's mean is then a number of the results table."""
CURVE = (*ACCURACIES, "train_loss", "val_loss", "lr", "feature_sq_norm")
INTERVAL = ("converged", "first_step", "last_step")
"""Of SWAD's average."""
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
            return list(_finished(result)) if result.members is None else [_combination(result.content)]
        if (directory / "failure.json").exists():
            return list(_failed(directory))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{directory}: damaged ({error!r})") from error
    raise UserError(f"{directory}: neither finished nor failed")


def wandb_run_in_training(directory: Path) -> WandbRun:
    """The W&B run of the network itself, before it has a result. Raises `UserError` where `config.yaml` is damaged."""
    return _of_method(directory)("erm")


def _of_method(directory: Path) -> Callable[[str], WandbRun]:
    """What is known of a run from its beginning, for each method along it."""
    settings, command = stored_config(directory)
    about = {name: command.get(f"{name}.name") for name in ("study", "recipe")} | _beyond_settings(command)
    return lambda method: _run(directory.name, method, settings, about)


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, none if the file is missing."""
    path = directory / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def history_of(rows: Sequence[Mapping[str, Any]], run: WandbRun) -> History:
    """The curve of the run's method. images_per_second: since the evaluation before."""
    history: History = []
    before: Mapping[str, Any] = {}
    for row in rows:
        if row["method"] != run.job_type:
            continue
        # Earlier runs have neither validation loss nor seconds of training.
        values = {name: row.get(name) for name in CURVE} | _by_domain(row["domain_acc"])
        if (seconds := row.get("train_seconds", 0) - before.get("train_seconds", math.inf)) > 0:
            trained = sum(parts["in"] is None for parts in row["domain_acc"].values())
            images = (row["step"] - before["step"]) * run.config["batch_size"] * trained
            values["images_per_second"] = round(images / seconds, 1)
        history.append((row["step"], {name: value for name, value in values.items() if value is not None}))
        before = row
    return history


def _accuracies(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}{name}": row[name] for name in (*ACCURACIES, "step")}


def _by_domain(domain_acc: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
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


def _finished(result: RunResult) -> Iterator[WandbRun]:
    rows, analyses = read_metrics(result.directory), read_analyses(result.directory)
    of_method = _of_method(result.directory)
    for headline in result.headline:
        method = headline["method"]
        summary = _accuracies(headline) | {name: headline[name] for name in INTERVAL if name in headline}
        for row in result.scores:
            if row["method"] == method:
                summary |= _accuracies(row, f"{row['selection']}/")
        [at_headline] = [row for row in rows if (row["method"], row["step"]) == (method, headline["step"])]
        summary |= _by_domain(headline.get("domain_acc") or at_headline["domain_acc"])
        summary |= {name: result.content[name] for name in ("images_per_second", "seconds", "device")}
        summary |= _analysed(analyses, method)
        summary |= {"collapse": result.content["health"]["collapse"], "state": "finished", "failure": None}
        run = of_method(method)
        yield replace(run, history=history_of(rows, run), summary=summary)


def _failed(directory: Path) -> Iterator[WandbRun]:
    summary = {"state": "failed", "failure": read_json(directory / "failure.json")["what"]}
    rows, of_method = read_metrics(directory), _of_method(directory)
    for method in dict.fromkeys(["erm", *(row["method"] for row in rows)]):
        run = of_method(method)
        yield replace(run, history=history_of(rows, run), summary=summary)


def _combination(result: Mapping[str, Any]) -> WandbRun:
    how = {name: value for name, value in result["identity"].items() if name not in ("members", "protocol_version")}
    [row] = result["results"]
    summary = _accuracies(row) | _accuracies(row, f"{row['selection']}/") | _by_domain(row["domain_acc"])
    summary |= {f"member_mean/{name}": value for name, value in result["member_mean"].items()}
    if "trace" in result:
        summary["members_kept"] = sum(candidate["kept"] for candidate in result["trace"])
    summary |= {"seconds": result["seconds"], "device": result["device"], "state": "finished", "failure": None}
    about = {"study": result.get("study"), "members": result["members"], "number_of_members": len(result["members"])}
    about |= _beyond_settings({**result, "left_out": [*row.get("ood_by_domain", [])]})
    about |= {name: value for name, value in how.items() if name != "method"}
    values = sorted(json.dumps(values, sort_keys=True) for values in result["member_values"].values())
    run = _run(result["run_id"], how["method"], result["settings"], about, group_by=[how, values])
    return replace(run, summary=summary)


def _beyond_settings(known: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of runs that start from other runs, each test domain from its own, or leave several domains out at once; and of
    combinations that follow a recipe."""
    return {name: known[name] for name in ("start", "left_out", "recipe") if known.get(name)}


def _run(
    run_id: str, method: str, settings: Mapping[str, Any], about: Mapping[str, Any], group_by: Any = None
) -> WandbRun:
    """settings: of the run's identity. about: further entries of the config. group_by: what else makes another group."""
    shared = {name: value for name, value in settings.items() if name not in WITHIN_GROUP}
    if start := about.get("start"):
        shared[WEIGHTS] = start
    if several := about.get("left_out"):
        shared["left_out"] = len(several)
    group = hashlib.sha256(json.dumps([shared, group_by], sort_keys=True).encode()).hexdigest()[:6]
    settings = {**ADDED_LATER, **settings}
    dataset, test_domain, backbone = settings["dataset.name"], settings["test_domain"], settings["backbone.name"]
    config = {"dataset": dataset, "test_domain": test_domain, "method": method, "run_id": run_id}
    config |= {column: settings[name] for column, name in SETTING_COLUMNS.items()}
    named = {"dataset.name", "test_domain", *SETTING_COLUMNS.values()}
    config |= {name.replace(".", "_"): value for name, value in settings.items() if name not in named}
    dropout = "" if settings["dropout"] is None else f"-d{settings['dropout']:g}"
    seed = "" if settings["seed"] is None else f"-s{settings['seed']}"
    tags = [dataset, test_domain, backbone, method, *filter(None, [about.get("recipe")])]
    return WandbRun(
        id=f"{run_id}-{method}",
        name=f"{dataset}-{test_domain}-{method}{dropout}{seed}-{run_id[:8]}",
        group=f"{dataset}-{backbone}{dropout}-{group}",
        job_type=method,
        tags=[tag[:64] for tag in tags],
        config={**config, **about},
    )
