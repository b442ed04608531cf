"""Analyse finished runs, each once: the quantities of `vld.study.probing` go to `analysis.json` in the run's directory."""

import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from vld.config.command_settings import AnalyseConfig
from vld.config.errors import UserError
from vld.config.settings import Config, DatasetConfig
from vld.data.folder import find_dataset
from vld.data.images import Dataset
from vld.machine.device import resolve_device, set_up
from vld.machine.terminal import Terminal, counted
from vld.report.labels import text
from vld.report.table import Table
from vld.runs.directory import RunDirectory
from vld.runs.environment import made_here
from vld.runs.networks import evaluated_network, load_weights
from vld.runs.once import explained
from vld.runs.quantities import ANALYSIS, MASKED, QUANTITIES, SIDES, add_analysis, read_analyses
from vld.runs.reading import read_if_whole, stored_identity, stored_settings
from vld.study.probing import analysis_of
from vld.study.runner import Datasets, decoded
from vld.tracking.background import Publisher

SHOWN = ("acc", "effective_rank", "probe_acc", MASKED[0.9], "ece", "nll")
"""In the table of several runs."""


def analyse_all(config: AnalyseConfig, terminal: Terminal) -> int:
    """Analyse the runs that `run` names, unless they have been, and show the results. Returns how many could not be analysed.

    Raises `UserError` if none could, before anything is written.
    """
    publisher = Publisher(config.wandb, config.output_dir, say=terminal.say, warn=terminal.warn)
    device = resolve_device(config.device)
    set_up(device, deterministic=False)
    directories = _all_runs(config, terminal) if config.run == "all" else [_named_run(config)]
    datasets: Datasets = {}
    analyses: dict[Path, dict[str, Any]] = {}
    problems: dict[str, None] = {}
    for directory in directories:
        try:
            analyses[directory] = _analysed(directory, config, datasets, device, terminal)
        except UserError as error:
            problems[str(error)] = None
        except Exception as error:
            if config.run != "all":
                raise
            problems[f"{directory}: {'; '.join(filter(None, explained(error)))}"] = None
    if not analyses:
        raise UserError("\n".join(problems))
    for directory in analyses:
        publisher.ended(directory)
    _show(analyses, terminal)
    with terminal.counting("uploading to W&B") as progress:
        publisher.finish(progress)
    for problem in problems:
        terminal.fail(problem)
    return len(directories) - len(analyses)


def _named_run(config: AnalyseConfig) -> Path:
    """The directory of one run. Raises `UserError` unless it exists and the run is finished."""
    by_id = (path for path in Path(config.output_dir).glob("runs/*/*/*") if path.name == config.run)
    directory = next(by_id, Path(config.run).resolve())
    if not (directory / "config.yaml").is_file():
        raise UserError(
            f"run={config.run}: no run in output_dir={config.output_dir} has that id, and it is not a run directory either;"
            " use all, an id or a directory"
        )
    if RunDirectory(directory).result() is None:
        raise UserError(f"run={config.run}: not finished ({directory}); the command that trains it resumes it")
    return directory


def _all_runs(config: AnalyseConfig, terminal: Terminal) -> list[Path]:
    """All finished runs that kept the weights and held images out. Raises `UserError` if none did."""
    finished = [path.parent for path in sorted(Path(config.output_dir).glob("runs/*/*/*/result.json"))]
    if not finished:
        raise UserError(f"output_dir={config.output_dir}: no finished runs in it; train.py makes them")
    kept = [path for path in finished if (path / f"{config.weights}.safetensors").is_file()]
    if not kept:
        raise UserError(
            f"weights={config.weights}: none of the {len(finished)} finished runs in {config.output_dir} kept them (see keep)"
        )
    if without := len(finished) - len(kept):
        terminal.say(f"{without} of {len(finished)} finished runs did not keep {config.weights}: left out")
    held_out = [path for path in kept if read_if_whole(path / "result.json").get("settings", {}).get("holdout") != 0]
    if without := len(kept) - len(held_out):
        terminal.say(f"{counted(without, 'run')} with holdout=0, without i.i.d. images: left out")
    return held_out or kept


def _analysed(
    directory: Path, config: AnalyseConfig, datasets: Datasets, device: torch.device, terminal: Terminal
) -> dict[str, Any]:
    """The analysis in `analysis.json`; a new one is written to it. Raises `UserError` if the run cannot be analysed."""
    settings, path = stored_settings(directory), directory / ANALYSIS
    test_domain = settings["test_domain"]
    if analysis := read_analyses(directory).get(config.weights):
        terminal.say(f"{test_domain}: already analysed, skipped ({path})")
        return analysis
    if settings.get("holdout") == 0:
        raise UserError(
            f"{directory}: holdout=0: trained on all images of its training domains; no i.i.d. images are left to analyse"
        )
    began = time.perf_counter()
    weights = load_weights(directory, config.weights)
    dataset = _dataset_of(directory, settings, config, datasets, terminal)
    identity = stored_identity(directory)
    model, images = evaluated_network(identity, weights, dataset, device, config.compile, terminal.say)
    with terminal.counting(f"{test_domain}: features of {directory.name}") as progress:
        try:
            analysis = analysis_of(model, dataset, images, settings["split_seed"], progress)
        except FloatingPointError as error:
            raise UserError(f"{directory}: {error}; there is nothing to analyse") from error
    analysis |= {"dropout": settings["dropout"], **made_here(device, began)}
    add_analysis(directory, config.weights, analysis)
    terminal.say(f"{test_domain}: analysed in {analysis['seconds']} s ({path})")
    return analysis


def _dataset_of(
    directory: Path, settings: dict[str, Any], config: AnalyseConfig, datasets: Datasets, terminal: Terminal
) -> Dataset:
    """The dataset that the run was trained on, decoded. Raises `UserError` if `data_dir` does not have it."""
    names = {field.name: f"dataset.{field.name}" for field in fields(DatasetConfig)}
    # Old runs lack the settings that were added later.
    of_run = DatasetConfig(**{field: settings[name] for field, name in names.items() if name in settings})
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


def _show(analyses: dict[Path, dict[str, Any]], terminal: Terminal) -> None:
    """Of one run, a line per quantity. Of several, a line per run, with o.o.d. quantities only."""
    if len(analyses) == 1:
        [analysis] = analyses.values()
        rows = [
            [heading, *(text(name, analysis[side][name]) for side in SIDES)] for name, heading in QUANTITIES.items()
        ]
        terminal.show(Table(["quantity", *SIDES.values()], rows, left=1))
        return
    terminal.say("on the o.o.d. images; analysis.json has the i.i.d. images as well")
    headings = ["run", "dataset", "test domain", "dropout", *(QUANTITIES[name] for name in SHOWN)]
    rows = []
    for directory, analysis in analyses.items():
        settings = stored_settings(directory)
        run = [directory.name, settings["dataset.name"], settings["test_domain"], f"{settings['dropout']:g}"]
        rows.append([*run, *(text(name, analysis["ood"][name]) for name in SHOWN)])
    terminal.show(Table(headings, rows, left=4))
