"""Leave one domain out: check the inputs, decode the images once, fine-tune one run per test domain."""

import datetime
import platform
import traceback
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import vld
from vld.data.batches import TrainingBatches
from vld.data.images import Dataset, decode_dataset
from vld.data.picture import draw_picture
from vld.data.split import split_indices
from vld.device import describe, set_up
from vld.errors import UserError
from vld.evaluation import Scores, evaluation_images, evaluation_set
from vld.health import CollapseWatch, dropout_noise, noise_warning
from vld.inputs import Inputs, check_inputs, initial_classifier
from vld.methods import first_member
from vld.runs.atomic import write_atomically
from vld.runs.directory import RunDirectory, finite_or_none, metrics_rows, selected_rows
from vld.runs.identity import NOT_IDENTITY, flat_settings, run_id, run_identity, weights_fingerprint
from vld.runs.keep import bytes_per_run, check_disk, keep_tensors, megabytes, missing_files
from vld.settings import Config
from vld.terminal import Terminal
from vld.training import TrainingFailed, train


@dataclass(frozen=True)
class Outcome:
    """How one run ended: `result` is its result.json, or None when it failed with `failure`."""

    test_domain: str
    directory: Path
    result: dict[str, Any] | None
    failure: str | None = None


def run_all(config: Config, terminal: Terminal) -> list[Outcome]:
    """Fine-tune with each test domain left out in turn; a run that fails does not stop the others."""
    inputs = check_inputs(config)
    set_up(inputs.device, config.deterministic)
    output_dir = Path(config.output_dir)
    terminal.say(
        f"{config.dataset.name}, {config.backbone.name} at {config.image_size} px, dropout {config.dropout:g},"
        f" {config.optim.name} lr {config.optim.lr:g}, {config.optim.steps} steps of"
        f" {len(inputs.files.domains) - 1} x {config.batch_size} images, seed {config.seed};"
        f" on {describe(inputs.device)} in {inputs.precision}"
    )
    for method, start in (("weight_averaging", config.averaging.start), ("ensemble", config.ensemble.start)):
        if start > config.optim.steps:
            begins = first_member(start, config.optim.steps, config.eval_every)
            terminal.say(f"{method} begins at step {begins}, since its start ({start}) lies beyond the last step")
    with terminal.counting(f"decoding {config.dataset.name}") as progress:
        dataset = decode_dataset(inputs.files, config.image_size, config.dataset.store_size, progress)
    fingerprint = weights_fingerprint(inputs.weights)
    needed = _disk_needed(config, inputs, dataset, fingerprint)
    check_disk(needed, inputs.existing_folder)
    if needed:
        terminal.say(f"keeps up to {megabytes(needed)} in {output_dir}")
    picture = output_dir / "datasets" / f"{dataset.name}-{dataset.fingerprint[:8]}.png"
    if not picture.exists():
        write_atomically(picture, lambda path: draw_picture(dataset, path))
        terminal.say(f"a picture of the dataset: {picture}")
    return [_run(config, inputs, dataset, fingerprint, test_domain, terminal) for test_domain in inputs.test_domains]


def _disk_needed(config: Config, inputs: Inputs, dataset: Dataset, fingerprint: str) -> int:
    """Bytes that the runs which are not finished yet will keep, at most."""
    model = initial_classifier(config, inputs.weights, inputs.precision, len(dataset.classes))
    return sum(
        bytes_per_run(config.keep, model, evaluation_images(dataset, test_domain), len(dataset.classes))
        for test_domain in inputs.test_domains
        if not _directory(config, _identity(config, inputs, dataset, fingerprint, test_domain)).result_file.exists()
    )


def _run(
    config: Config, inputs: Inputs, dataset: Dataset, fingerprint: str, test_domain: str, terminal: Terminal
) -> Outcome:
    """One run, from its directory to its result; or the result that is there already. Whatever fails is its own failure."""
    identity = _identity(config, inputs, dataset, fingerprint, test_domain)
    directory = _directory(config, identity)
    try:
        finished = directory.result()
        if finished is not None:
            terminal.say(f"{test_domain}: finished before, not trained again ({directory.path})")
            if missing := missing_files(directory.path, config.keep):
                terminal.warn(
                    f"{test_domain}: that run did not keep {', '.join(missing)}; another output_dir trains it anew"
                )
            return Outcome(test_domain, directory.path, finished)
        directory.start(identity, {key: value for key, value in flat_settings(config).items() if key in NOT_IDENTITY})
        result = {"run_id": directory.path.name, "settings": identity} | _train_and_record(
            config, inputs, dataset, test_domain, directory, terminal
        )
        directory.finish(result)
    except Exception as error:
        failure = str(error) if isinstance(error, TrainingFailed | UserError) else f"{type(error).__name__}: {error}"
        terminal.fail(f"{test_domain}: {failure} ({directory.path})")
        with suppress(OSError):  # a full disk, say, which then is the failure
            directory.fail(
                {
                    "what": failure,
                    "where": traceback.format_exc(),
                    "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    "run_id": directory.path.name,
                    "settings": identity,
                }
            )
        return Outcome(test_domain, directory.path, None, failure)
    return Outcome(test_domain, directory.path, result)


def _identity(config: Config, inputs: Inputs, dataset: Dataset, fingerprint: str, test_domain: str) -> dict[str, Any]:
    return run_identity(
        config,
        test_domain,
        dataset_fingerprint=dataset.fingerprint,
        weights_fingerprint=fingerprint,
        precision=inputs.precision,
    )


def _directory(config: Config, identity: dict[str, Any]) -> RunDirectory:
    parts = ("runs", identity["dataset.name"], identity["test_domain"], run_id(identity))
    return RunDirectory(Path(config.output_dir).joinpath(*parts))


def _train_and_record(
    config: Config, inputs: Inputs, dataset: Dataset, test_domain: str, directory: RunDirectory, terminal: Terminal
) -> dict[str, Any]:
    """Train one run; write its metrics as they come and its weights and logits at the end; return its result."""
    model = initial_classifier(config, inputs.weights, inputs.precision, len(dataset.classes)).to(inputs.device)
    batches = training_batches(config, dataset, test_domain, inputs.device)
    images = evaluation_set(dataset, test_domain, config.split_seed, inputs.device)

    noise = dropout_noise(model, batches.batch(0)[0])
    if warning := noise_warning(noise, config.dropout, config.backbone.feature_scale):
        terminal.warn(f"{test_domain}: {warning}")

    rows: list[dict[str, Any]] = []
    history: dict[str, list[tuple[int, Scores]]] = {}
    collapses = CollapseWatch(config.backbone.feature_scale, model.pretrained)
    with terminal.training(test_domain, config.method.name, config.optim.steps, batches.images_per_step) as progress:
        for evaluation in train(
            model,
            batches,
            images,
            config.optim,
            eval_every=config.eval_every,
            averaging=config.averaging,
            ensemble=config.ensemble,
            seed=config.seed,
            on_step=progress.stepped,
        ):
            for method, scores in evaluation.scores.items():
                history.setdefault(method, []).append((evaluation.step, scores))
            rows += metrics_rows(evaluation)
            directory.write_metrics(rows)
            keep_tensors(directory, config.keep, evaluation, history, config.optim.steps)
            progress.evaluated(evaluation)
            if news := collapses.news(evaluation.step, evaluation.health):
                terminal.warn(f"{test_domain}: {news}")
    return {
        "results": selected_rows(history),
        "batch_norm_statistics": "frozen" if model.pretrained else "trained; averaged like the weights",
        "health": {
            "dropout_noise": finite_or_none(noise),
            "feature_sq_norm": finite_or_none(evaluation.health.feature_sq_norm),
            "collapse": collapses.lasting,
        },
        "images_per_second": round(config.optim.steps * batches.images_per_step / evaluation.train_seconds, 1),
        "seconds": round(evaluation.seconds, 1),
        "threads": torch.get_num_threads(),
        "device": describe(inputs.device),
        "software": software_versions(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def training_batches(config: Config, dataset: Dataset, test_domain: str, device: torch.device) -> TrainingBatches:
    """Batches of the *in* part of every domain but `test_domain`."""
    chosen = [(i, domain) for i, domain in enumerate(dataset.domains) if domain.name != test_domain]
    return TrainingBatches(
        domains=tuple(domain for _, domain in chosen),
        in_indices=tuple(split_indices(len(domain.labels), i, config.split_seed)[0] for i, domain in chosen),
        images_per_domain=config.batch_size,
        image_size=config.image_size,
        device=device,
        seed=config.seed,
    )


def software_versions() -> dict[str, str]:
    libraries = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {"vld": vld.__version__, "python": platform.python_version()} | {name: version(name) for name in libraries}
