"""Combine finished runs, once: find the members, make soup or ensemble, write `combined/…/result.json`."""

import datetime
import itertools
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vld import PROTOCOL_VERSION
from vld.combinations import by_number_of_members, ensemble_of_runs, greedy_soup, outputs, uniform_soup
from vld.data.folder import list_dataset, missing_dataset
from vld.data.images import Dataset, decode_dataset
from vld.device import describe, resolve_device, set_up
from vld.errors import UserError
from vld.evaluation import Scores, evaluation_set, predict, score
from vld.inputs import check_output_dir, resolve_test_domains
from vld.members import ENSEMBLE_OF_RUNS, Member, find_members, kept_file, member_configs
from vld.run import Outcome, software_versions
from vld.runs.claim import RunningElsewhere, claim
from vld.runs.directory import RunDirectory, read_json, read_result
from vld.runs.identity import run_id
from vld.runs.keep import read_logits
from vld.runs.record import accuracies
from vld.runs.results import load_weights, network
from vld.settings import Config
from vld.terminal import Terminal

# Random orders of the members, for accuracy against their number.
ORDERS = 50


def combine_all(config: Config, terminal: Terminal) -> list[Outcome]:
    """Combine the runs that the settings identify, for each test domain.

    Raises `UserError` with a line for every test domain whose members cannot be combined, before anything is computed.
    """
    check_output_dir(Path(config.output_dir))
    members: dict[str, list[Member]] = {}
    problems = []
    for test_domain in _test_domains(config):
        try:
            members[test_domain] = find_members(config, test_domain)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    device = resolve_device(config.device)
    set_up(device, config.deterministic)
    datasets: dict[str, Dataset] = {}
    return [
        _combine_once(config, test_domain, chosen, device, datasets, terminal)
        for test_domain, chosen in members.items()
    ]


def _test_domains(config: Config) -> tuple[str, ...]:
    """What `test_domain` stands for. The domains are those that finished runs know of: no dataset is needed."""
    runs = sorted((Path(config.output_dir) / "runs" / config.dataset.name).glob("*/*/result.json"))
    for path in runs:
        try:
            return resolve_test_domains(config.test_domain, tuple(sorted(read_json(path)["domains"])))
        except KeyError:
            continue
    raise UserError(
        f"method={config.method.name}: no finished runs of {config.dataset.name} in {config.output_dir}; python scripts/train.py"
        f" method={config.method.name} with the same settings trains and combines all {len(member_configs(config))} members"
    )


def _combine_once(
    config: Config,
    test_domain: str,
    members: list[Member],
    device: torch.device,
    datasets: dict[str, Dataset],
    terminal: Terminal,
) -> Outcome:
    """The combination of these members, or the result that is there already."""
    method = config.method
    identity = {
        "method": method.name,
        "member_step": method.member_step,
        "members": sorted(member.run_id for member in members),
        "protocol_version": PROTOCOL_VERSION,
    } | ({"average": method.average} if method.name == ENSEMBLE_OF_RUNS else {})
    parts = ("combined", config.dataset.name, test_domain, run_id(identity))
    directory = RunDirectory(Path(config.output_dir).joinpath(*parts))
    if result := _finished(directory):
        terminal.say(f"{test_domain}: combined before ({directory.path})")
        return Outcome(test_domain, directory.path, result)
    try:
        with claim(
            directory.path,
            wait=config.if_running == "wait",
            announce=lambda line: terminal.say(f"{test_domain}: {line}"),
        ):
            if result := _finished(directory):  # by the process that this one waited for
                return Outcome(test_domain, directory.path, result)
            began = time.perf_counter()
            if method.name == ENSEMBLE_OF_RUNS:
                combined = _ensemble(config, members)
            else:
                combined = _soup(config, test_domain, members, device, datasets, terminal)
            result = {
                "run_id": directory.path.name,
                "identity": identity,
                "settings": _common_settings(members),
                "members": [member.run_id for member in members],
                "member_values": {member.run_id: member.values for member in members},
                "member_mean": _member_mean(members, method.member_step),
                **combined,
                "seconds": round(time.perf_counter() - began, 1),
                "device": describe(device),
                "threads": torch.get_num_threads(),
                "software": software_versions(),
                "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            }
            directory.finish(result)
    except RunningElsewhere as elsewhere:
        terminal.say(f"{test_domain}: skipped: {elsewhere} ({directory.path})")
        return Outcome(test_domain, directory.path, None, skipped=str(elsewhere))
    return Outcome(test_domain, directory.path, result)


def _finished(directory: RunDirectory) -> dict[str, Any] | None:
    if not directory.result_file.exists():
        return None
    directory.tidy()
    return read_result(directory.result_file, "identity")


def _common_settings(members: list[Member]) -> dict[str, Any]:
    """The members' settings; None where they differ."""
    settings = [member.result["settings"] for member in members]
    return {name: value if all(s[name] == value for s in settings) else None for name, value in settings[0].items()}


def _member_mean(members: list[Member], selection: str) -> dict[str, float]:
    rows = [member.row(selection) for member in members]
    return {name: statistics.fmean(row[name] for row in rows) for name in ("iid_acc", "ood_acc")}


def _row(config: Config, members: list[Member], scores: Scores) -> dict[str, Any]:
    steps = {member.row(config.method.member_step)["step"] for member in members}
    return {
        "method": config.method.name,
        "selection": config.method.member_step,
        "step": steps.pop() if len(steps) == 1 else None,
        **accuracies(scores),
        "domain_acc": scores.domain_acc,
    }


def _ensemble(config: Config, members: list[Member]) -> dict[str, Any]:
    """From stored logits alone."""
    stored = [read_logits(member.path / f"{kept_file(config)}.safetensors") for member in members]
    labels = stored[0][1]
    for member, (_, others) in zip(members, stored, strict=True):
        if others.parts != labels.parts or not torch.equal(others.labels, labels.labels):
            raise UserError(f"{member.path}: its logits are of other images than {members[0].path}'s")
    given = [outputs(logits, config.method.average) for logits, _ in stored]
    numbers = by_number_of_members(given, lambda total: score(total, labels), ORDERS, seed=0)
    return {
        "results": [_row(config, members, score(ensemble_of_runs(given), labels))],
        "by_number_of_members": [
            {
                "members": k,
                "subsets": len(scored),
                **{
                    f"{name}_{kind}": function([getattr(scores, name) for scores in scored])
                    for name in ("iid_acc", "ood_acc")
                    for kind, function in (("mean", statistics.fmean), ("sd", statistics.pstdev))
                },
            }
            for k, scored in enumerate(numbers, 1)
        ],
    }


def _soup(
    config: Config,
    test_domain: str,
    members: list[Member],
    device: torch.device,
    datasets: dict[str, Dataset],
    terminal: Terminal,
) -> dict[str, Any]:
    settings = members[0].result["settings"]
    if not datasets:
        datasets[config.dataset.name] = _decoded(config, settings, terminal)
    images = evaluation_set(datasets[config.dataset.name], test_domain, settings["split_seed"], device)
    by_id = {member.run_id: member for member in members}
    autocast = settings["precision"] == "bf16"

    def load(member: str) -> dict[str, Tensor]:
        return load_weights(by_id[member].path, kept_file(config))

    def evaluate(weights: Mapping[str, Tensor]) -> Scores:
        model = network(settings, weights, autocast=autocast).to(device)
        return score(predict([model], images)[0].logits, images)

    if config.method.name == "model_soup":
        scores = evaluate(uniform_soup(map(load, by_id)))
        return {"results": [_row(config, members, scores)]}
    with terminal.counting(f"{test_domain}: tasting") as progress:
        tasted = itertools.count(1)

        def taste(weights: Mapping[str, Tensor]) -> Scores:
            scores = evaluate(weights)
            progress(next(tasted), len(members))
            return scores

        by_iid_acc = [(member.run_id, member.row(config.method.member_step)["iid_acc"]) for member in members]
        trace = greedy_soup(by_iid_acc, load, taste)
    kept = [taste for taste in trace if taste.kept]
    return {
        "results": [_row(config, members, kept[-1].scores)],
        "trace": [{"run_id": t.run_id, "kept": t.kept, **accuracies(t.scores)} for t in trace],
    }


def _decoded(config: Config, settings: Mapping[str, Any], terminal: Terminal) -> Dataset:
    """The dataset that the members were trained on, images decoded. Raises `UserError` where it is another one."""
    root = Path(config.data_dir) / config.dataset.folder
    if not root.is_dir():
        raise missing_dataset(config.dataset.name, root)
    with terminal.counting(f"decoding {config.dataset.name}") as progress:
        files = list_dataset(config.dataset.name, root)
        dataset = decode_dataset(files, config.image_size, config.dataset.store_size, progress)
    if dataset.fingerprint != settings["dataset.fingerprint"]:
        raise UserError(
            f"method={config.method.name}: the images in {root} are not those that the members were trained on"
            " (dataset.fingerprint)"
        )
    return dataset
