"""Analyse finished runs, once: features of the images, the quantities of `vld.training.representation`, `analysis.json`."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vld.config.command_settings import AnalyseConfig
from vld.config.errors import UserError
from vld.config.settings import Config, DatasetConfig
from vld.data.folder import find_dataset
from vld.data.images import Dataset
from vld.machine.device import describe, resolve_device, set_up
from vld.machine.terminal import Terminal, counted
from vld.report.labels import text
from vld.report.table import Table
from vld.runs.directory import RunDirectory
from vld.runs.environment import now, software_versions
from vld.runs.networks import evaluated_network, load_weights
from vld.runs.once import explained
from vld.runs.quantities import ANALYSIS, MASKED, QUANTITIES, SIDES, add_analysis, read_analyses
from vld.runs.reading import stored_identity, stored_settings
from vld.study.probing import analysis_of
from vld.study.runner import Datasets, decoded
from vld.tracking.background import Publisher

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
        publisher.ended(one.directory)
    _show(found, terminal)
    with terminal.counting("uploading to W&B") as progress:
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
    comparable = [path for path in with_weights if stored_settings(path).get("holdout") != 0]
    if without := len(with_weights) - len(comparable):
        terminal.say(f"{counted(without, 'run')} with holdout=0, without i.i.d. images: left out")
    return comparable or with_weights


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
    if settings.get("holdout") == 0:
        raise UserError(
            f"{directory}: holdout=0: trained on all images of its training domains; no i.i.d. ones are left to analyse"
        )
    began = time.perf_counter()
    weights = load_weights(directory, config.weights)
    dataset = _runs_dataset(directory, settings, config, datasets, terminal)
    identity = stored_identity(directory)
    model, images = evaluated_network(identity, weights, dataset, device, config.compile, terminal.say)
    with terminal.counting(f"{test_domain}: features of {directory.name}") as progress:
        try:
            analysis = analysis_of(model, dataset, images, settings["split_seed"], progress)
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
        # Which runs from before they were settings do not have.
        truncated=settings.get("dataset.truncated", DatasetConfig.truncated),
        max_megapixels=settings.get("dataset.max_megapixels", DatasetConfig.max_megapixels),
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
