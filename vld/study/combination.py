"""Combine finished runs, once: find the members, make soup or ensemble, write `combined/…/result.json`."""

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vld import PROTOCOL_VERSION
from vld.config.errors import UserError
from vld.config.settings import Config
from vld.data.folder import find_dataset
from vld.data.images import Dataset
from vld.machine.device import describe, resolve_device, set_up
from vld.machine.lock import RunningElsewhere, hold
from vld.machine.terminal import Terminal
from vld.model.classifier import Classifier
from vld.runs.directory import RunDirectory
from vld.runs.environment import now, software_versions
from vld.runs.identity import ADDED_LATER, run_id
from vld.runs.inputs import check_output_dir
from vld.runs.keep import read_logits
from vld.runs.networks import evaluated_network, load_weights
from vld.runs.once import SKIP_HINT, Listener, Outcome, explained
from vld.runs.record import accuracies
from vld.runs.results import read
from vld.study.member_axes import CONNECTIVITY, ENSEMBLE_OF_RUNS, kept_file, member_configs
from vld.study.members import Member, find_members
from vld.study.planned import left_out_domains
from vld.study.runner import Datasets, decoded, run_all
from vld.training.connectivity import ALPHAS, REPRESENTATIONS, WEIGHTS, along_representations, between
from vld.training.evaluation import EvaluationSet, Scores, predict, score
from vld.training.soups import by_number_of_members, ensemble_of_runs, greedy_soup, outputs, uniform_soup

# For accuracy against the number of members: about as many random subsets of each size.
SUBSETS = 20


@dataclass(frozen=True)
class Combination:
    """The members of a combination, in the order of the axes, and the settings."""

    config: Config
    test_domain: str
    members: list[Member]

    @cached_property
    def identity(self) -> dict[str, Any]:
        method = self.config.method
        members = [member.run_id for member in self.members]
        how = {"average": method.average} if method.name == ENSEMBLE_OF_RUNS else {}
        how |= {"accept": "pooled"} if (method.name, method.accept) == ("greedy_soup", "pooled") else {}
        return {
            "method": method.name,
            "member_step": method.member_step,
            "members": members if method.name == CONNECTIVITY else sorted(members),  # α is the first member's share
            "protocol_version": PROTOCOL_VERSION,
        } | how

    @cached_property
    def directory(self) -> RunDirectory:
        parts = ("combined", self.config.dataset.name, self.test_domain, run_id(self.identity))
        return RunDirectory(Path(self.config.output_dir).joinpath(*parts))

    def result(self) -> dict[str, Any] | None:
        """Its `result.json`, None if there is none yet. Raises `UserError` if it is damaged."""
        if not self.directory.result_file.exists():
            return None
        self.directory.tidy()
        return read(self.directory.path).content


def train_and_combine(config: Config, terminal: Terminal, listener: Listener) -> list[Outcome]:
    """Train the members that are not finished, and combine them for each test domain that has them all."""
    planned = member_configs(config)
    for _, member in planned:
        member.keep = list(dict.fromkeys([*member.keep, kept_file(config)]))
    datasets: Datasets = {}
    trained = run_all([member for _, member in planned], terminal, listener, datasets, needed=kept_file(config))
    members: dict[str, list[Member]] = {outcome.test_domain: [] for outcome in trained}
    unfinished: list[Outcome] = []
    test_domains = len(members)
    for values, outcome in zip([v for v, _ in planned for _ in range(test_domains)], trained, strict=True):
        if outcome.result is None:
            unfinished.append(outcome)
        else:
            members[outcome.test_domain].append(Member(values, outcome.directory, outcome.result))
    for test_domain, finished in list(members.items()):
        if missing := len(planned) - len(finished):
            terminal.say(f"{test_domain}: not combined, since {missing} of {len(planned)} members are not finished")
            del members[test_domain]
    return unfinished + (_combine(config, members, datasets, terminal, listener) if members else [])


def combine_all(
    config: Config,
    terminal: Terminal,
    listener: Listener,
    options: Sequence[str] = (),
    datasets: Datasets | None = None,
) -> list[Outcome]:
    """Combine the finished runs that the settings identify, for each test domain.

    options: those of this command, to show the one that trains missing members. Raises `UserError` before anything is
    computed, with a line for every test domain whose members cannot be combined.
    """
    check_output_dir(Path(config.output_dir))
    members: dict[str, list[Member]] = {}
    problems = []
    for test_domain in left_out_domains(config):
        try:
            members[test_domain] = find_members(config, test_domain, options)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return _combine(config, members, {} if datasets is None else datasets, terminal, listener)


def _combine(
    config: Config, members: Mapping[str, list[Member]], datasets: Datasets, terminal: Terminal, listener: Listener
) -> list[Outcome]:
    """One combination after another; a failure does not stop the others."""
    device = resolve_device(config.device)
    set_up(device, config.deterministic)
    combinations = [Combination(config, test_domain, chosen) for test_domain, chosen in members.items()]
    dataset = None
    todo = [combination for combination in combinations if not combination.directory.result_file.exists()]
    if todo and config.method.name != ENSEMBLE_OF_RUNS:
        dataset = _members_dataset(todo, datasets, terminal)
    outcomes = []
    for combination in combinations:
        outcome = _combine_once(combination, dataset, device, terminal)
        if outcome.result is not None:
            listener.ended(outcome.directory)
        outcomes.append(outcome)
    return outcomes


def _members_dataset(combinations: list[Combination], datasets: Datasets, terminal: Terminal) -> Dataset:
    """The dataset that the members were trained on, images decoded. Raises `UserError` if it is another one."""
    config = combinations[0].config
    files = find_dataset(config.dataset, Path(config.data_dir))
    dataset = decoded(config, files, datasets, terminal)
    if other := [
        combination.test_domain
        for combination in combinations
        if combination.members[0].settings["dataset.fingerprint"] != dataset.fingerprint
    ]:
        raise UserError(
            f"method={config.method.name}: the images in {files.root} are not those that the members were trained on"
            f" (dataset.fingerprint; members with {', '.join(other)} left out)"
        )
    return dataset


def _combine_once(
    combination: Combination, dataset: Dataset | None, device: torch.device, terminal: Terminal
) -> Outcome:
    """Make a combination, or take the existing result. An error fails only this combination."""
    config, test_domain, directory = combination.config, combination.test_domain, combination.directory
    try:
        if result := combination.result():
            terminal.say(f"{test_domain}: already combined, skipped ({directory.path})")
            return Outcome(test_domain, directory.path, result)
        with hold(
            directory.path,
            wait=config.if_running == "wait",
            announce=lambda line: terminal.say(f"{test_domain}: {line}"),
            hint=SKIP_HINT,
        ):
            if (result := combination.result()) is None:  # not made by the process that this one waited for
                result = _made(combination, dataset, device, terminal)
                directory.finish(result)
        return Outcome(test_domain, directory.path, result)
    except RunningElsewhere as elsewhere:
        terminal.say(f"{test_domain}: skipped: {elsewhere} ({directory.path})")
        return Outcome(test_domain, directory.path, None, skipped=str(elsewhere))
    except Exception as error:
        failure = "; ".join(filter(None, explained(error)))
        with suppress(OSError):  # it may not be empty
            directory.path.rmdir()
        terminal.fail(f"{test_domain}: {failure} ({directory.path})")
        return Outcome(test_domain, directory.path, None, failure=failure)


def _made(
    combination: Combination, dataset: Dataset | None, device: torch.device, terminal: Terminal
) -> dict[str, Any]:
    """The content of a combination's `result.json`."""
    began = time.perf_counter()
    members = combination.members
    if combination.config.method.name == ENSEMBLE_OF_RUNS:
        combined = _ensemble(combination)
    else:
        make = _connectivity if combination.config.method.name == CONNECTIVITY else _soup
        if dataset is None:  # another process's result existed at the check, and was moved away since
            raise UserError("its result was removed while this command was running; run it again")
        combined = make(combination, dataset, device, terminal)
    return {
        "run_id": combination.directory.path.name,
        "study": combination.config.study.name,
        "identity": combination.identity,
        "settings": _common_settings(members),
        "members": [member.run_id for member in members],
        "member_values": {member.run_id: member.values for member in members},
        "member_mean": _member_mean(members, combination.config.method.member_step),
        **combined,
        "seconds": round(time.perf_counter() - began, 1),
        "device": describe(device),
        "threads": torch.get_num_threads(),
        "software": software_versions(),
        "finished": now(),
    }


def _common_settings(members: list[Member]) -> dict[str, Any]:
    """The members' settings, None for those in which they differ."""
    settings = [{**ADDED_LATER, **member.settings} for member in members]
    common = {name: value if all(s[name] == value for s in settings) else None for name, value in settings[0].items()}
    return {name: value for name, value in common.items() if not (name in ADDED_LATER and value == ADDED_LATER[name])}


def _member_mean(members: list[Member], selection: str) -> dict[str, float | None]:
    rows = [member.row(selection) for member in members]
    return {name: _over(statistics.fmean, [row[name] for row in rows]) for name in ("iid_acc", "ood_acc")}


def _over(statistic: Callable[[list[float]], float], accuracies: list[Any]) -> float | None:
    """None without held-out images, for i.i.d. accuracy."""
    return None if None in accuracies else statistic(accuracies)


def _network_and_images(
    combination: Combination, dataset: Dataset, device: torch.device, terminal: Terminal
) -> tuple[Classifier, EvaluationSet]:
    """A network for weights of the members, and what they are evaluated on."""
    config, first = combination.config, combination.members[0]
    weights = load_weights(first.path, kept_file(config))
    return evaluated_network(first.settings, weights, dataset, device, config.compile, terminal.say)


def _row(config: Config, members: list[Member], scores: Scores) -> dict[str, Any]:
    steps = {member.row(config.method.member_step)["step"] for member in members}
    return {
        "method": config.method.name,
        "selection": config.method.member_step,
        "step": steps.pop() if len(steps) == 1 else None,
        **accuracies(scores),
        "domain_acc": scores.domain_acc,
    }


def _ensemble(combination: Combination) -> dict[str, Any]:
    """From stored logits."""
    config, members = combination.config, combination.members
    read = [read_logits(member.path / f"{kept_file(config)}.safetensors") for member in members]
    labels = read[0][1]
    for member, (_, its_labels) in zip(members, read, strict=True):
        if its_labels.parts != labels.parts or not torch.equal(its_labels.labels, labels.labels):
            raise UserError(f"{member.path}: its logits are not of the same images as those of {members[0].path}")
    given = [outputs(logits, config.method.average) for logits, _ in read]
    permutations = max(1, round(SUBSETS / len(members)))
    curve = by_number_of_members(given, lambda total: score(total, labels), permutations, seed=0)
    return {
        "results": [_row(config, members, score(ensemble_of_runs(given), labels))],
        "by_number_of_members": [
            {
                "members": k,
                "subsets": len(scored),
                **{
                    f"{name}_{kind}": _over(function, [getattr(scores, name) for scores in scored])
                    for name in ("iid_acc", "ood_acc")
                    for kind, function in (("mean", statistics.fmean), ("sd", statistics.pstdev))
                },
            }
            for k, scored in enumerate(curve, 1)
        ],
    }


def _connectivity(
    combination: Combination, dataset: Dataset, device: torch.device, terminal: Terminal
) -> dict[str, Any]:
    """Accuracies at every α along both lines; the result's row is that of the weights' midpoint."""
    config = combination.config
    model, images = _network_and_images(combination, dataset, device, terminal)
    first, second = (load_weights(member.path, kept_file(config)) for member in combination.members)

    def with_weights(weights: Mapping[str, Tensor]) -> Classifier:
        model.load_state_dict(weights)
        return model

    logits: dict[tuple[str, float], Tensor] = {}
    with terminal.counting(f"{combination.test_domain}: along the line") as progress:
        for done, alpha in enumerate(ALPHAS, 1):
            [prediction] = predict([with_weights(between(first, second, alpha))], images)
            logits[WEIGHTS, alpha] = prediction.logits
            progress(done, len(ALPHAS) + 1)
        mixed = along_representations(copy.deepcopy(with_weights(first)), with_weights(second), images)
        logits |= {(REPRESENTATIONS, alpha): its for alpha, its in zip(ALPHAS, mixed, strict=True)}
    scores = {point: score(its, images) for point, its in logits.items()}
    return {
        "results": [_row(config, combination.members, scores[WEIGHTS, 0.5])],
        "connectivity": [
            {"along": along, "alpha": alpha, **accuracies(of_point)} for (along, alpha), of_point in scores.items()
        ],
    }


def _soup(combination: Combination, dataset: Dataset, device: torch.device, terminal: Terminal) -> dict[str, Any]:
    config, members = combination.config, combination.members
    model, images = _network_and_images(combination, dataset, device, terminal)
    by_id = {member.run_id: member for member in members}

    def load(member: str) -> dict[str, Tensor]:
        return load_weights(by_id[member].path, kept_file(config))

    def evaluate(weights: Mapping[str, Tensor]) -> Scores:
        model.load_state_dict(weights)
        return score(predict([model], images)[0].logits, images)

    if config.method.name == "model_soup":
        return {"results": [_row(config, members, evaluate(uniform_soup(map(load, by_id))))]}
    with terminal.counting(f"{combination.test_domain}: evaluating candidates") as progress:
        evaluated = itertools.count()

        def taste(weights: Mapping[str, Tensor]) -> Scores:
            progress(next(evaluated), len(members))
            return evaluate(weights)

        by_iid_acc = [(member.run_id, member.row(config.method.member_step)["iid_acc"]) for member in members]
        trace = greedy_soup(by_iid_acc, load, taste, config.method.accept)
    kept = [taste for taste in trace if taste.kept]
    return {
        "results": [_row(config, members, kept[-1].scores)],
        "trace": [
            {"run_id": t.run_id, "kept": t.kept, "pooled_acc": float(t.scores.pooled)} | accuracies(t.scores)
            for t in trace
        ],
    }
