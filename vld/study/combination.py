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
from vld.machine.device import resolve_device, set_up
from vld.machine.lock import RunningElsewhere, hold
from vld.machine.terminal import Terminal
from vld.model.classifier import Classifier
from vld.runs.directory import RunDirectory
from vld.runs.environment import made_here
from vld.runs.identity import ADDED_LATER, run_id
from vld.runs.inputs import check_output_dir
from vld.runs.keep import read_logits
from vld.runs.networks import evaluated_network, load_weights
from vld.runs.once import SKIP_HINT, Listener, Outcome, explained
from vld.runs.record import accuracies
from vld.study.member_axes import CONNECTIVITY, ENSEMBLE_OF_RUNS, kept_file, member_configs
from vld.study.members import Member, find_members
from vld.study.planned import left_out_domains
from vld.study.runner import Datasets, decoded, run_all
from vld.training.connectivity import ALPHAS, REPRESENTATIONS, WEIGHTS, along_representations, between
from vld.training.evaluation import EvaluationSet, Scores, predict, score
from vld.training.soups import by_number_of_members, ensemble_of_runs, greedy_soup, outputs, uniform_soup

SUBSETS = 20
"""For accuracy against the number of members: about as many random subsets of each size."""


@dataclass(frozen=True)
class Combination:
    """The members of a combination, in the order of the axes, and the settings."""

    config: Config
    test_domain: str
    members: list[Member]

    @property
    def settings(self) -> dict[str, Any]:
        """Of its first member: what no members differ in."""
        return self.members[0].settings

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

    def weights_of(self, member: Member) -> dict[str, Tensor]:
        return load_weights(member.directory, kept_file(self.config))

    def row(self, scores: Scores) -> dict[str, Any]:
        """The one row of its result."""
        selection = self.config.method.member_step
        steps = {member.row(selection)["step"] for member in self.members}
        return {
            "method": self.config.method.name,
            "selection": selection,
            "step": steps.pop() if len(steps) == 1 else None,
            **accuracies(scores),
            "domain_acc": scores.domain_acc,
        }


def train_and_combine(config: Config, terminal: Terminal, listener: Listener) -> list[Outcome]:
    """Train the members that are not finished, and combine them for each test domain that has them all."""
    planned, needed = member_configs(config), kept_file(config)
    for _, member in planned:
        member.keep = list(dict.fromkeys([*member.keep, needed]))
    datasets: Datasets = {}
    trained = run_all([member for _, member in planned], terminal, listener, datasets, needed=needed)
    combinations = []
    for test_domain in dict.fromkeys(outcome.test_domain for outcome in trained):
        outcomes = [outcome for outcome in trained if outcome.test_domain == test_domain]
        members = [
            Member(outcome.directory, outcome.result, values)
            for outcome, (values, _) in zip(outcomes, planned, strict=True)
            if outcome.result is not None
        ]
        if missing := len(planned) - len(members):
            terminal.say(f"{test_domain}: not combined, since {missing} of {len(planned)} members are not finished")
        else:
            combinations.append(Combination(config, test_domain, members))
    unfinished = [outcome for outcome in trained if outcome.result is None]
    return unfinished + (_combine(combinations, datasets, terminal, listener) if combinations else [])


def combine_all(
    config: Config,
    terminal: Terminal,
    listener: Listener,
    options: Sequence[str] | None = None,
    datasets: Datasets | None = None,
) -> list[Outcome]:
    """Combine the finished runs that the settings identify, for each test domain.

    options: those of this command, to show the one that trains missing members. datasets: those already decoded. Raises
    `UserError` before anything is computed, with a line for every test domain whose members cannot be combined.
    """
    check_output_dir(Path(config.output_dir))
    combinations, problems = [], []
    for test_domain in left_out_domains(config):
        try:
            combinations.append(Combination(config, test_domain, find_members(config, test_domain, options)))
        except UserError as error:
            problems.append(error)
    if problems:
        raise problems[0] if len(problems) == 1 else UserError("\n".join(map(str, problems)))
    return _combine(combinations, {} if datasets is None else datasets, terminal, listener)


def _combine(
    combinations: list[Combination], datasets: Datasets, terminal: Terminal, listener: Listener
) -> list[Outcome]:
    """One combination after another; a failure does not stop the others."""
    config = combinations[0].config
    device = resolve_device(config.device)
    set_up(device, config.deterministic)
    todo = [combination for combination in combinations if not combination.directory.result_file.exists()]
    needs_images = todo and config.method.name != ENSEMBLE_OF_RUNS
    dataset = _members_dataset(todo, datasets, terminal) if needs_images else None
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
        if combination.settings["dataset.fingerprint"] != dataset.fingerprint
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
        if result := directory.result():
            directory.tidy()
            terminal.say(f"{test_domain}: already combined, skipped ({directory.path})")
            return Outcome(test_domain, directory.path, result)
        with hold(
            directory.path,
            wait=config.if_running == "wait",
            announce=lambda line: terminal.say(f"{test_domain}: {line}"),
            hint=SKIP_HINT,
        ):
            if (result := directory.result()) is None:  # not made by the process that this one waited for
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
    members, method = combination.members, combination.config.method
    if method.name == ENSEMBLE_OF_RUNS:
        made = _ensemble(combination)
    elif dataset is None:  # another process's result existed at the check, and was moved away since
        raise UserError("its result was removed while this command was running; run it again")
    else:
        weights, how = combination.weights_of(members[0]), combination.config.compile
        model, images = evaluated_network(combination.settings, weights, dataset, device, how, terminal.say)
        made = (_connectivity if method.name == CONNECTIVITY else _soup)(combination, model, images, terminal)
    rows = [member.row(method.member_step) for member in members]
    return {
        "run_id": combination.directory.path.name,
        "study": combination.config.study.name,
        "recipe": combination.config.recipe.name,
        "identity": combination.identity,
        "settings": _common_settings(members),
        **({"start": start} if (start := members[0].content.get("start")) else {}),
        "members": [member.run_id for member in members],
        "member_values": {member.run_id: member.values for member in members},
        "member_mean": {name: _over(statistics.fmean, [row[name] for row in rows]) for name in ("iid_acc", "ood_acc")},
        **made,
        **made_here(device, began),
    }


def _common_settings(members: list[Member]) -> dict[str, Any]:
    """The members' settings, None for those in which they differ."""
    settings = [member.settings for member in members]
    common = {name: value if all(s[name] == value for s in settings) else None for name, value in settings[0].items()}
    return {name: value for name, value in common.items() if not (name in ADDED_LATER and value == ADDED_LATER[name])}


def _over(statistic: Callable[[list[float]], float], accuracies: list[Any]) -> float | None:
    """None without held-out images, for i.i.d. accuracy."""
    return None if None in accuracies else statistic(accuracies)


def _ensemble(combination: Combination) -> dict[str, Any]:
    """From stored logits."""
    paths = [member.directory / f"{kept_file(combination.config)}.safetensors" for member in combination.members]
    stored = [read_logits(path) for path in paths]
    _, labels = stored[0]
    for path, (_, its) in zip(paths, stored, strict=True):
        if its.parts != labels.parts or not torch.equal(its.labels, labels.labels):
            raise UserError(f"{path}: its logits are not of the same images as those in {paths[0]}")
    given = [outputs(logits, combination.config.method.average) for logits, _ in stored]
    permutations = max(1, round(SUBSETS / len(given)))
    curve = by_number_of_members(given, lambda total: score(total, labels), permutations, seed=0)
    points = []
    for k, scored in enumerate(curve, 1):
        point: dict[str, Any] = {"members": k, "subsets": len(scored)}
        for name in ("iid_acc", "ood_acc"):
            values = [getattr(scores, name) for scores in scored]
            point |= {f"{name}_mean": _over(statistics.fmean, values), f"{name}_sd": _over(statistics.pstdev, values)}
        points.append(point)
    return {
        "results": [combination.row(score(ensemble_of_runs(given), labels))],
        "by_number_of_members": points,
    }


def _connectivity(
    combination: Combination, model: Classifier, images: EvaluationSet, terminal: Terminal
) -> dict[str, Any]:
    """Accuracies at every α along both lines; the result's row is that of the weights' midpoint."""
    first, second = map(combination.weights_of, combination.members)
    logits: dict[tuple[str, float], Tensor] = {}
    with terminal.counting(f"{combination.test_domain}: along the line") as progress:
        for done, alpha in enumerate(ALPHAS, 1):
            model.load_state_dict(between(first, second, alpha))
            logits[WEIGHTS, alpha] = predict([model], images)[0].logits
            progress(done, len(ALPHAS) + 1)
        other = copy.deepcopy(model)
        model.load_state_dict(first)
        other.load_state_dict(second)
        mixed = along_representations(model, other, images)
        logits |= {(REPRESENTATIONS, alpha): its for alpha, its in zip(ALPHAS, mixed, strict=True)}
    scores = {point: score(its, images) for point, its in logits.items()}
    return {
        "results": [combination.row(scores[WEIGHTS, 0.5])],
        "connectivity": [
            {"along": along, "alpha": alpha, **accuracies(of_point)} for (along, alpha), of_point in scores.items()
        ],
    }


def _soup(combination: Combination, model: Classifier, images: EvaluationSet, terminal: Terminal) -> dict[str, Any]:
    method, members = combination.config.method, {member.run_id: member for member in combination.members}

    def load(member: str) -> dict[str, Tensor]:
        return combination.weights_of(members[member])

    def evaluate(weights: Mapping[str, Tensor]) -> Scores:
        model.load_state_dict(weights)
        return score(predict([model], images)[0].logits, images)

    if method.name == "model_soup":
        return {"results": [combination.row(evaluate(uniform_soup(map(load, members))))]}
    with terminal.counting(f"{combination.test_domain}: evaluating candidates") as progress:
        evaluated = itertools.count()

        def evaluate_candidate(weights: Mapping[str, Tensor]) -> Scores:
            progress(next(evaluated), len(members))
            return evaluate(weights)

        by_iid_acc = [(name, member.row(method.member_step)["iid_acc"]) for name, member in members.items()]
        trace = greedy_soup(by_iid_acc, load, evaluate_candidate, method.accept)
    kept = [candidate for candidate in trace if candidate.kept]
    return {
        "results": [combination.row(kept[-1].scores)],
        "trace": [
            {"run_id": one.run_id, "kept": one.kept, "pooled_acc": float(one.scores.pooled)} | accuracies(one.scores)
            for one in trace
        ],
    }
