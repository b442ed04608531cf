"""Leave one domain out: check the inputs, decode the images once, fine-tune one run per test domain."""

import gc
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from vld.config.settings import Config
from vld.data.domains import left_out
from vld.data.folder import DatasetFiles
from vld.data.image_store import open_dataset
from vld.data.images import Dataset
from vld.data.samples import draw_samples
from vld.machine.atomic import write_atomically
from vld.machine.device import describe, set_up
from vld.machine.terminal import Terminal, size_text
from vld.runs.inputs import Inputs, check_inputs, inputs_key
from vld.runs.keep import check_kept
from vld.runs.once import Listener, Outcome, train_once
from vld.runs.run import Run
from vld.runs.space import needed_disk
from vld.training.methods import first_member

Datasets = dict[tuple[Path, int, int], Dataset]
"""Decoded datasets, by folder, image_size and dataset.store_size."""


def run_all(
    configs: Sequence[Config],
    terminal: Terminal,
    listener: Listener,
    datasets: Datasets | None = None,
    needed: str | None = None,
) -> list[Outcome]:
    """Fine-tune with these settings, each test domain left out in turn; a run that fails does not stop the others.

    All settings share device and output_dir. datasets: those already decoded; newly decoded ones are added. needed: an entry
    of `keep` that finished runs must have kept. Raises `UserError` before anything is trained if one did not.
    """
    datasets = {} if datasets is None else datasets
    runs = _runs(configs, datasets, terminal)
    if needed:
        check_kept([run.directory.path for run in runs if run.directory.result_file.exists()], needed)
    _check_disk(runs, terminal)
    for dataset in datasets.values():
        path = Path(configs[0].output_dir) / "datasets" / f"{dataset.name}-{dataset.fingerprint[:8]}.png"
        if not path.exists():
            write_atomically(path, partial(draw_samples, dataset))
            terminal.say(f"sample images: {path}")
    outcomes = []
    for before, run in zip([None, *runs], runs, strict=False):
        if before is None or before.config is not run.config:
            _announce(run, terminal)
        outcome = train_once(run, terminal, listener)
        gc.collect()  # a run refers to itself: its images would keep the device's memory from the next
        terminal.ended(run.directory.path.name, run.config.optim.steps)
        if not outcome.skipped:
            listener.ended(outcome.directory)
        outcomes.append(outcome)
    return outcomes


def _runs(configs: Sequence[Config], datasets: Datasets, terminal: Terminal) -> list[Run]:
    """For each settings a run per test domain. All inputs are checked before the first images are decoded."""
    inputs: dict[str, Inputs] = {}
    for config in configs:
        if inputs_key(config) not in inputs:
            its = inputs[inputs_key(config)] = check_inputs(config)
            for warning in its.warnings:
                terminal.warn(warning)
    set_up(inputs[inputs_key(configs[0])].device, configs[0].deterministic)
    runs = []
    for config in configs:
        its = inputs[inputs_key(config)]
        dataset = decoded(config, its.files, datasets, terminal)
        runs += [Run(config, its, dataset, test_domain) for test_domain in its.test_domains]
    return runs


def decoded(config: Config, files: DatasetFiles, datasets: Datasets, terminal: Terminal) -> Dataset:
    """The decoded dataset, shared by all settings that use it."""
    key = (files.root, config.image_size, config.dataset.store_size)
    if key not in datasets:
        places = [Path(config.data_dir) / "stores", Path(config.output_dir) / "stores"]
        with terminal.counting(f"decoding {config.dataset.name}") as progress:
            datasets[key] = open_dataset(
                files, places, config.image_size, config.dataset.store_size, progress, terminal.say
            )
    return datasets[key]


def _announce(run: Run, terminal: Terminal) -> None:
    """What is going to run, and on what."""
    config, sizes = run.config, run.dataset.sizes
    domains = len(sizes) - len(left_out(run.test_domain, sizes))
    terminal.say(
        f"{config.dataset.name}, {config.backbone.name} at {config.image_size} px, dropout {config.dropout:g},"
        f" {config.optim.name} lr {config.optim.lr:g}, {config.optim.steps} steps of"
        f" {domains} x {config.batch_size} images, seed {config.seed};"
        f" on {describe(run.inputs.device)} in {run.inputs.precision}"
    )
    for method, start in (("weight_averaging", config.averaging.start), ("ensemble", config.ensemble.start)):
        if start > config.optim.steps:
            begins = first_member(start, config)
            terminal.say(f"{method} begins at step {begins}, since its start ({start}) is after the last step")


def _check_disk(runs: list[Run], terminal: Terminal) -> None:
    """Say how much disk the unfinished runs need. Raises `UserError` if there is less."""
    unfinished = [run for run in runs if not run.directory.result_file.exists()]
    if not unfinished:
        return
    files = [path for run in unfinished for path in run.directory.path.glob("*")]
    held = 0
    for path in files:
        if path.suffix in (".pt", ".safetensors"):
            with suppress(FileNotFoundError):  # of a run that another process has just finished
                held += path.stat().st_size
    wanted = [(run.config, run.test_domain, run.dataset) for run in unfinished]
    output_dir = unfinished[0].config.output_dir
    kept, meanwhile = needed_disk(wanted, output_dir, held=held)
    terminal.say(
        f"keeps up to {size_text(kept)} in {output_dir}; checkpoints take up to {size_text(meanwhile)} meanwhile"
    )
