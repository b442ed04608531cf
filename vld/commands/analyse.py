"""Analyse finished runs, once: features of the images, the quantities of `vld.training.representation`, `analysis.json`."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vld.config.errors import UserError
from vld.config.settings import AnalyseConfig, Config, DatasetConfig
from vld.data.folder import find_dataset
from vld.data.images import Dataset
from vld.data.split import split_indices
from vld.data.views import EvaluationViews
from vld.machine.device import describe, resolve_device, set_up
from vld.machine.terminal import Terminal
from vld.model.classifier import Classifier
from vld.report.labels import text
from vld.report.table import Table
from vld.runs.directory import RunDirectory
from vld.runs.environment import now, software_versions
from vld.runs.networks import load_weights, network
from vld.runs.once import explained
from vld.runs.quantities import ANALYSIS, MASKED, QUANTITIES, SIDES, add_analysis, read_analyses
from vld.runs.reading import stored_identity, stored_settings
from vld.study.runner import Datasets, decoded
from vld.tracking.background import Publisher
from vld.training.evaluation import IMAGES_AT_ONCE, EvaluationLabels, evaluation_set, score
from vld.training.representation import (
    BINS,
    PROBE_ITERATIONS,
    PROBE_L2,
    calibration_error,
    effective_rank,
    linear_probe,
    masked_logits,
    mc_dropout,
    negative_log_likelihood,
    probe_logits,
)

SEED = 0
"""Of masks and of dropout."""
MASKS = 10
"""For each share of masked units."""
PASSES = 20
"""With dropout left on."""
PROBE_IMAGES = 20_000
"""The probe is trained on at most so many, an equal share of each training domain."""
SHOWN = ("acc", "effective_rank", "probe_acc", MASKED[0.9], "ece", "nll")
"""In the table of several runs."""


@dataclass(frozen=True)
class Analysed:
    """A run and what its analysis says."""

    directory: Path
    settings: dict[str, Any]
    analysis: dict[str, Any]


def analyse_all(config: AnalyseConfig, terminal: Terminal) -> int:
    """Analyse what `run` names, unless that has been done, and show it. Returns how many of all runs could not be analysed.

    Raises `UserError` where there is nothing to analyse, or what there is cannot be, before anything is written.
    """
    publisher = Publisher(config.wandb, config.output_dir, say=terminal.say, warn=terminal.warn)
    device = resolve_device(config.device)
    set_up(device, deterministic=False)
    directories = _all_runs(config, terminal) if config.run == "all" else [_named_run(config)]
    datasets: Datasets = {}
    found: list[Analysed] = []
    problems: dict[str, None] = {}
    for directory in directories:
        try:
            found.append(_analysed(directory, config, datasets, device, terminal))
        except UserError as error:
            problems[str(error)] = None
        except Exception as error:
            if config.run != "all":
                raise
            problems[f"{directory}: {'; '.join(filter(None, explained(error)))}"] = None
    if not found:
        raise UserError("\n".join(problems))
    for one in found:
        publisher.publish(one.directory)
    _show(found, terminal)
    with terminal.counting("delivering to W&B") as progress:
        publisher.finish(progress)
    for problem in problems:
        terminal.fail(problem)
    return len(directories) - len(found)


def _named_run(config: AnalyseConfig) -> Path:
    """The directory of one run. Raises `UserError` unless it is there and finished."""
    directory = next((path for path in _run_directories(config) if path.name == config.run), Path(config.run).resolve())
    if not (directory / "config.yaml").is_file():
        raise UserError(
            f"run={config.run}: no run in output_dir={config.output_dir} has that id, and it is no run directory; say all, an id"
            " or a directory"
        )
    if RunDirectory(directory).result() is None:
        raise UserError(f"run={config.run}: not finished ({directory}); the command that trains it goes on with it")
    return directory


def _all_runs(config: AnalyseConfig, terminal: Terminal) -> list[Path]:
    """Every finished run with the weights. Raises `UserError` where there is none."""
    finished = [path for path in _run_directories(config) if RunDirectory(path).result_file.exists()]
    if not finished:
        raise UserError(f"output_dir={config.output_dir}: no finished runs in it; train.py makes them")
    with_weights = [path for path in finished if (path / f"{config.weights}.safetensors").is_file()]
    if not with_weights:
        raise UserError(
            f"weights={config.weights}: none of the {len(finished)} finished runs in {config.output_dir} kept them (see keep)"
        )
    if without := len(finished) - len(with_weights):
        terminal.say(f"{without} of {len(finished)} finished runs did not keep {config.weights}: left out")
    return with_weights


def _run_directories(config: AnalyseConfig) -> list[Path]:
    return sorted(Path(config.output_dir).glob("runs/*/*/*"))


def _analysed(
    directory: Path, config: AnalyseConfig, datasets: Datasets, device: torch.device, terminal: Terminal
) -> Analysed:
    """The analysis that is there, or a new one, written to `analysis.json`. Raises `UserError` where it cannot be made."""
    settings, path = stored_settings(directory), directory / ANALYSIS
    test_domain = settings["test_domain"]
    if there := read_analyses(directory).get(config.weights):
        terminal.say(f"{test_domain}: analysed before ({path})")
        return Analysed(directory, settings, there)
    began = time.perf_counter()
    weights = load_weights(directory, config.weights)
    dataset = _runs_dataset(directory, settings, config, datasets, terminal)
    model = network(stored_identity(directory), weights, autocast=settings["precision"] == "bf16").to(device)
    with terminal.counting(f"{test_domain}: features of {directory.name}") as progress:
        try:
            analysis = analysis_of(model, dataset, test_domain, settings["split_seed"], device, progress)
        except FloatingPointError as error:
            raise UserError(f"{directory}: {error}, so that there is nothing to analyse") from error
    seconds = round(time.perf_counter() - began, 1)
    analysis |= {
        "dropout": settings["dropout"],
        "device": describe(device),
        "threads": torch.get_num_threads(),
        "software": software_versions(),
        "seconds": seconds,
        "finished": now(),
    }
    add_analysis(directory, config.weights, analysis)
    terminal.say(f"{test_domain}: analysed in {seconds} s ({path})")
    return Analysed(directory, settings, analysis)


def _runs_dataset(
    directory: Path, settings: dict[str, Any], config: AnalyseConfig, datasets: Datasets, terminal: Terminal
) -> Dataset:
    """What the run was trained on, decoded. Raises `UserError` where `data_dir` has no such dataset, or other images."""
    of_run = DatasetConfig(
        name=settings["dataset.name"],
        folder=settings["dataset.folder"],
        csv=settings["dataset.csv"],
        store_size=settings["dataset.store_size"],
        truncated=settings.get("dataset.truncated", "refuse"),  # which runs of before do not have
        max_megapixels=settings.get("dataset.max_megapixels", 179),
    )
    files = find_dataset(of_run, Path(config.data_dir))
    like_run = Config(
        dataset=of_run, image_size=settings["image_size"], data_dir=config.data_dir, output_dir=config.output_dir
    )
    dataset = decoded(like_run, files, datasets, terminal)
    if dataset.fingerprint != settings["dataset.fingerprint"]:
        raise UserError(
            f"data_dir={config.data_dir}: the images in {files.root} are not those that run {directory.name} was trained on"
            " (dataset.fingerprint)"
        )
    return dataset


def analysis_of(
    model: Classifier,
    dataset: Dataset,
    test_domain: str,
    split_seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """The quantities of a network that was trained with `test_domain` left out, and the constants behind them.

    model: in eval mode, on the device. Averages over images are, i.i.d., unweighted means over the training domains of those over
    their *out* part, and o.o.d. over the whole left-out domain; the effective rank is of all those images together. Raises
    `FloatingPointError` for a representation that has come to no numbers.
    """
    evaluation = evaluation_set(dataset, test_domain, split_seed, device)
    views, labels = _probe_images(dataset, test_domain, split_seed, device)
    total = len(evaluation.images) + len(views)
    features = _features(model, evaluation.images, device, lambda done: progress(done, total))
    to_learn = _features(model, views, device, lambda done: progress(len(features) + done, total))
    if not (features.isfinite().all() and to_learn.isfinite().all()):
        raise FloatingPointError("the representation is not a number")
    ood = _domain_rows(evaluation)[test_domain]
    outside = torch.ones(len(features), dtype=torch.bool, device=device)
    outside[ood] = False
    sides: dict[str, dict[str, float]] = {
        "iid": {"effective_rank": effective_rank(features[outside])},
        "ood": {"effective_rank": effective_rank(features[ood])},
    }

    def add(name: str, values: tuple[float, float]) -> None:
        sides["iid"][name], sides["ood"][name] = values

    with torch.no_grad():
        logits = model.head(features)
    add("acc", _accuracies(logits, evaluation))
    probe = linear_probe(to_learn, labels, len(dataset.classes))
    add("probe_acc", _accuracies(probe_logits(probe, features), evaluation))
    masks = torch.Generator().manual_seed(SEED)
    for rate, name in MASKED.items():
        accuracies = [_accuracies(masked_logits(features, model.head, rate, masks), evaluation) for _ in range(MASKS)]
        iid, ood_accuracies = zip(*accuracies, strict=True)
        add(name, (statistics.fmean(iid), statistics.fmean(ood_accuracies)))
    passes = mc_dropout(features, model.head, model.dropout, PASSES, torch.Generator(device).manual_seed(SEED))
    add("mc_acc", _accuracies(passes, evaluation))
    for prefix, log_probabilities in (("", logits.double().log_softmax(1)), ("mc_", passes)):
        add(f"{prefix}ece", _over_domains(calibration_error, log_probabilities, evaluation))
        add(f"{prefix}nll", _over_domains(negative_log_likelihood, log_probabilities, evaluation))
    return {
        **{side: {name: values[name] for name in QUANTITIES} for side, values in sides.items()},
        "features": features.shape[1],
        "images": {"iid": int(outside.sum()), "ood": int((~outside).sum()), "probe": len(views)},
        "constants": {
            "seed": SEED,
            "masked_rates": list(MASKED),
            "masks": MASKS,
            "bins": BINS,
            "passes": PASSES,
            "probe_l2": PROBE_L2,
            "probe_iterations": PROBE_ITERATIONS,
            "probe_images_at_most": PROBE_IMAGES,
        },
    }


def _probe_images(
    dataset: Dataset, test_domain: str, split_seed: int, device: torch.device
) -> tuple[EvaluationViews, Tensor]:
    """Evaluation views of the *in* part of the training domains, and their classes, int64 [n].

    At most an equal share of `PROBE_IMAGES` of each domain: a fixed random choice, since the split has shuffled them.
    """
    share = PROBE_IMAGES // (len(dataset.domains) - 1)
    chosen = {
        i: torch.from_numpy(split_indices(len(domain.labels), i, split_seed)[0][:share])
        for i, domain in enumerate(dataset.domains)
        if domain.name != test_domain
    }
    views = EvaluationViews([dataset.domains[i].evaluation for i in chosen], list(chosen.values()), device)
    return views, torch.cat([dataset.domains[i].labels[rows] for i, rows in chosen.items()]).to(device)


@torch.no_grad()
def _features(
    model: Classifier, views: EvaluationViews, device: torch.device, progress: Callable[[int], None]
) -> Tensor:
    """The penultimate representation of all images, float32 [n, d], before dropout."""
    features: list[Tensor] = []
    done = 0
    for images in views.chunks(IMAGES_AT_ONCE[device.type]):
        features.append(model.representation(images))
        done += len(images)
        progress(done)
    return torch.cat(features)


def _domain_rows(evaluation: EvaluationLabels) -> dict[str, slice]:
    """Where each domain's images are."""
    rows: dict[str, slice] = {}
    for part in evaluation.parts:
        rows[part.domain] = slice(rows[part.domain].start if part.domain in rows else part.start, part.stop)
    return rows


def _accuracies(logits: Tensor, evaluation: EvaluationLabels) -> tuple[float, float]:
    """i.i.d. and o.o.d."""
    scores = score(logits, evaluation)
    return scores.iid_acc, scores.ood_acc


def _over_domains(
    quantity: Callable[[Tensor, Tensor], float], log_probabilities: Tensor, evaluation: EvaluationLabels
) -> tuple[float, float]:
    """An average over images: i.i.d. and o.o.d."""
    values = {
        domain: quantity(log_probabilities[rows], evaluation.labels[rows])
        for domain, rows in _domain_rows(evaluation).items()
    }
    ood = values.pop(evaluation.test_domain)
    return statistics.fmean(values.values()), ood


def _show(found: list[Analysed], terminal: Terminal) -> None:
    """One run: a line per quantity. Several: a line per run, o.o.d. alone."""
    if len(found) == 1:
        analysis = found[0].analysis
        rows = [
            [heading, *(text(name, analysis[side][name]) for side in SIDES)] for name, heading in QUANTITIES.items()
        ]
        terminal.show(Table(["quantity", *SIDES.values()], rows, left=1))
        return
    terminal.say("on the o.o.d. images; analysis.json has the i.i.d. ones as well")
    headings = ["run", "dataset", "test domain", "dropout", *(QUANTITIES[name] for name in SHOWN)]
    rows = [
        [
            one.directory.name,
            one.settings["dataset.name"],
            one.settings["test_domain"],
            f"{one.settings['dropout']:g}",
            *(text(name, one.analysis["ood"][name]) for name in SHOWN),
        ]
        for one in found
    ]
    terminal.show(Table(headings, rows, left=4))
