"""One run: from its directory to its result, through any number of interruptions."""

import datetime
import errno
import platform
import time
import traceback
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import vld
from vld.config.errors import UserError
from vld.config.names import WITH_WEIGHTS
from vld.config.options import flat_settings
from vld.config.settings import Config
from vld.data.batches import TrainingBatches
from vld.data.images import Dataset
from vld.data.split import split_indices
from vld.machine.device import MemoryBudget, describe
from vld.machine.lock import Claim, ClaimLost, RunningElsewhere, claim
from vld.machine.signals import Interrupted, Interruption
from vld.machine.terminal import Terminal
from vld.runs.directory import RunDirectory
from vld.runs.identity import NOT_IDENTITY, run_id, run_identity
from vld.runs.inputs import Inputs, initial_classifier
from vld.runs.keep import drop_stale, keep_tensors, missing_files
from vld.runs.record import Record, finite_or_none, selected_rows
from vld.runs.reevaluate import SUBSET, evaluate_in_full, kept_meanwhile
from vld.tracking.background import Publisher
from vld.training import compiled as compilation
from vld.training.collapse import CollapseWatch, dropout_noise, noise_warning
from vld.training.evaluation import EvaluationSet, evaluation_images, evaluation_set
from vld.training.loop import Evaluation, TrainingFailed, Trajectory, is_evaluated, train

SKIP_HINT = " (if_running=skip does not)"


@dataclass(frozen=True)
class Outcome:
    """How one run ended: `result` is its result.json, or None when it failed or was left to another process."""

    test_domain: str
    directory: Path
    result: dict[str, Any] | None
    failure: str | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Run:
    """What a run is made from."""

    config: Config
    inputs: Inputs
    dataset: Dataset
    weights_fingerprint: str
    test_domain: str

    @cached_property
    def identity(self) -> dict[str, Any]:
        return run_identity(
            self.config,
            self.test_domain,
            dataset_fingerprint=self.dataset.fingerprint,
            weights_fingerprint=self.weights_fingerprint,
            precision=self.inputs.precision,
        )

    @cached_property
    def directory(self) -> RunDirectory:
        parts = ("runs", self.config.dataset.name, self.test_domain, run_id(self.identity))
        return RunDirectory(Path(self.config.output_dir).joinpath(*parts))


def train_once(run: Run, terminal: Terminal, publisher: Publisher) -> Outcome:
    """Train a run to its end; or take the result that is there already. Whatever fails is the run's own failure.

    A signal is answered when the run is saved: by the handler that was there before, which may end the process.
    """
    while True:
        interruption = Interruption()
        try:
            if finished := _finished(run, terminal):
                return finished
            waiting = run.config.if_running == "wait"
            with claim(
                run.directory.path, wait=waiting, announce=lambda line: _say(run, line, terminal), hint=SKIP_HINT
            ) as mine:
                if finished := _finished(run, terminal):  # by the process that this one waited for
                    return finished
                try:
                    with interruption:
                        result = _train(run, mine, interruption, terminal, publisher)
                    outcome = Outcome(run.test_domain, run.directory.path, result)
                except Exception as error:
                    if not mine.holds():  # whatever failed, the files may be another process's now
                        raise ClaimLost("not renewed") from error
                    outcome = _failed(run, error, terminal)
        except Interrupted:
            _say(run, f"{interruption.names}: saved in {run.directory.path}", terminal)
            interruption.hand_over()
            continue  # those handlers want the run to go on
        except ClaimLost as lost:
            publisher.leave(run.directory.path)
            _say(run, f"lost its lock ({lost}); looking who trains it now", terminal)
            interruption.hand_over()
            continue  # through the front door: finished, training elsewhere, or on from the last checkpoint
        except RunningElsewhere as elsewhere:
            _say(run, f"skipped: {elsewhere} ({run.directory.path})", terminal)
            return Outcome(run.test_domain, run.directory.path, None, skipped=str(elsewhere))
        except Exception as error:
            outcome = _failed(run, error, terminal)
        interruption.hand_over()  # signals that came too late to interrupt this run
        return outcome


def _finished(run: Run, terminal: Terminal) -> Outcome | None:
    """A run that is finished is not trained again."""
    result = run.directory.result()
    if result is None:
        return None
    run.directory.tidy()
    _say(run, f"finished before, not trained again ({run.directory.path})", terminal)
    if missing := missing_files(run.directory.path, run.config.keep):
        terminal.warn(
            f"{run.test_domain}: that run did not keep {', '.join(missing)}; another output_dir trains it anew"
        )
    return Outcome(run.test_domain, run.directory.path, result)


def _train(
    run: Run, mine: Claim, interruption: Interruption, terminal: Terminal, publisher: Publisher
) -> dict[str, Any]:
    """Train a run from its checkpoint or its beginning to its result. Raises `Interrupted` when all is saved."""
    memory = MemoryBudget(run.inputs.device, lambda line: _say(run, line, terminal))
    images = run_evaluation_set(run, memory, limit=run.config.dataset.curve_images)
    with closing(training_batches(run, memory)) as batches:
        return _train_on(batches, images, run, mine, interruption, terminal, publisher)


def _train_on(
    batches: TrainingBatches,
    images: EvaluationSet,
    run: Run,
    mine: Claim,
    interruption: Interruption,
    terminal: Terminal,
    publisher: Publisher,
) -> dict[str, Any]:
    config, device, directory = run.config, run.inputs.device, run.directory
    other_settings = {name: value for name, value in flat_settings(config).items() if name in NOT_IDENTITY}
    saved = directory.start(run.identity, other_settings)
    publisher.follow(directory.path)

    model = initial_classifier(config, run.inputs.weights, run.inputs.precision, len(run.dataset.classes)).to(device)
    in_part = len(images.images) < evaluation_images(run.dataset.sizes, run.test_domain)
    record = Record()
    noise = dropout_noise(model, batches.batch(0)[0]) if saved is None else saved["dropout_noise"]
    collapses = CollapseWatch(config.backbone.feature_scale, config.dropout, noise, model.pretrained)
    if saved is None and (warning := noise_warning(noise, config.dropout, config.backbone.feature_scale)):
        terminal.warn(f"{run.test_domain}: {warning}")
    if compilation.is_wanted(config, device):
        compilation.compile_run(model, batches, images, lambda line: _say(run, line, terminal))
    environments = [environment_now(device, config.deterministic, model.compiled)]
    trajectory = Trajectory(
        model,
        config.optim,
        eval_every=config.eval_every,
        averaging=config.averaging,
        ensemble=config.ensemble,
        dropout_schedule=config.dropout_schedule,
    )
    if saved is not None:
        trajectory.load_state_dict(saved["trajectory"])
        record.load_state_dict(saved["record"])
        collapses.load_state_dict(saved["collapses"])
        directory.write_metrics(record.rows)
        _say(run, f"goes on from step {trajectory.step} of {config.optim.steps}, saved {saved['when']}", terminal)
        if environments[0] not in saved["environments"]:
            terminal.warn(
                f"{run.test_domain}: begun on {_described(saved['environments'][0])}, now on {_described(environments[0])}:"
                " its numbers may differ in the last digits from those of a run without interruption"
            )
        environments += [other for other in saved["environments"] if other != environments[0]]
    drop_stale(directory, record)
    first_step, saved_at = trajectory.step, time.monotonic()

    def save() -> None:
        nonlocal saved_at
        with trajectory.clock.aside():
            directory.write_checkpoint(
                {
                    "trajectory": trajectory.state_dict(),
                    "record": record.state_dict(),
                    "collapses": collapses.state_dict(),
                    "dropout_noise": noise,
                    "environments": environments,
                    "when": now(),
                }
            )
        saved_at = time.monotonic()

    def on_step(step: int) -> None:
        progress.stepped(step, is_evaluated(step, config.optim.steps, config.eval_every))
        mine.check()
        due = time.monotonic() - saved_at >= config.checkpoint_every
        if step > first_step and (due or (in_part and step == config.optim.steps)):  # its last evaluations take a while
            save()

    images_per_step = batches.images_per_step
    kept = kept_meanwhile(config.keep) if in_part else config.keep
    with terminal.training(
        run.test_domain, config.method.name, config.optim.steps, images_per_step, first_step, directory.path.name
    ) as progress:
        try:
            for evaluation in train(
                trajectory, batches, images, seed=config.seed, on_step=on_step, check=interruption.check
            ):
                record.add(evaluation)
                directory.write_metrics(record.rows)
                keep_tensors(directory, kept, evaluation, record, config.optim.steps, images)
                progress.evaluated(evaluation)
                if news := collapses.news(evaluation.step, evaluation.health):
                    terminal.warn(f"{run.test_domain}: {news}")
        except Interrupted:
            save()
            raise
    rows = selected_rows(record.history)
    if in_part:
        everything = run_evaluation_set(run, MemoryBudget(device, lambda line: _say(run, line, terminal)))
        with terminal.counting(f"{run.test_domain}: evaluating in full") as counted:
            arguments = (rows, directory, config.keep, model, everything)
            rows = evaluate_in_full(*arguments, interruption.check, counted)
        if part := [row for row in rows if row["evaluated_on"] == SUBSET and row["method"] in WITH_WEIGHTS]:
            terminal.warn(
                f"{run.test_domain}: {len(part)} results are of a part of the images: their weights were replaced before the"
                " interruption"
            )
    if not mine.holds():
        raise ClaimLost("not renewed")
    result = {
        "run_id": directory.path.name,
        "study": config.study.name,
        "settings": run.identity,
        "domains": list(run.dataset.sizes),
        "classes": list(run.dataset.classes),
        "results": rows,
        "batch_norm_statistics": "frozen" if model.pretrained else "trained; averaged like the weights",
        "health": _health(evaluation, noise, collapses),
        "images_per_second": round(config.optim.steps * images_per_step / evaluation.train_seconds, 1),
        "seconds": round(evaluation.seconds, 1),
        **environments[0],
        "threads": torch.get_num_threads(),
        "earlier_environments": environments[1:],
        "finished": now(),
    }
    directory.finish(result)
    # Only now: what was kept to be evaluated in full is needed until there is a result.
    drop_stale(directory, record, config.keep)
    if missing := missing_files(directory.path, config.keep):
        terminal.warn(
            f"{run.test_domain}: lacks {', '.join(missing)}, chosen before the interruption and not kept then"
        )
    return result


def _health(evaluation: Evaluation, noise: float, collapses: CollapseWatch) -> dict[str, Any]:
    return {
        "dropout_noise": finite_or_none(noise),
        "feature_sq_norm": finite_or_none(evaluation.health.feature_sq_norm),
        "collapse": collapses.lasting,
    }


def _failed(run: Run, error: Exception, terminal: Terminal) -> Outcome:
    """Put a failure on record: what, where, when, and how to go on."""
    what, how = explained(error)
    if not isinstance(error, TrainingFailed | UserError):  # their messages say what to do
        goes_on = "goes on from its last checkpoint" if run.directory.checkpoint_file.exists() else "starts it again"
        how = "; ".join(filter(None, (how, f"the same command {goes_on}")))
    message = f"{what}; {how}" if how else what
    if not isinstance(error, UserError):  # what the user must mend is left as it is
        with suppress(OSError):  # a full disk, say, which then is the failure
            run.directory.fail(
                {
                    "what": what,
                    "how_to_go_on": how or what,
                    "where": traceback.format_exc(),
                    "when": now(),
                    "run_id": run.directory.path.name,
                    "study": run.config.study.name,
                    "settings": run.identity,
                }
            )
    terminal.fail(f"{run.test_domain}: {message} ({run.directory.path})")
    return Outcome(run.test_domain, run.directory.path, None, failure=message)


def explained(error: Exception) -> tuple[str, str]:
    """What failed, and what would mend it where that is known (or an empty text)."""
    if isinstance(error, TrainingFailed | UserError):
        return str(error), ""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk is full, or a limit is reached ({text})", "make room"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return f"out of memory ({text})", "a smaller batch_size or image_size takes less"
    return text, ""


def _say(run: Run, line: str, terminal: Terminal) -> None:
    terminal.say(f"{run.test_domain}: {line}")


def environment_now(device: torch.device, deterministic: bool, compiled: bool) -> dict[str, Any]:
    """What the last digits of a run's numbers depend on, beside its identity."""
    how = {"device": describe(device), "deterministic": deterministic, "compiled": compiled}
    return how | {"software": software_versions()}


def _described(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in environment["software"].items())
    how = ", ".join(f"{name}={str(environment[name]).lower()}" for name in ("deterministic", "compiled"))
    return f"{environment['device']} ({versions}, {how})"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def training_batches(run: Run, memory: MemoryBudget) -> TrainingBatches:
    """Batches of the *in* part of every domain but the test domain."""
    config, device = run.config, run.inputs.device
    chosen = [(i, domain) for i, domain in enumerate(run.dataset.domains) if domain.name != run.test_domain]
    return TrainingBatches(
        domains=[domain for _, domain in chosen],
        in_indices=[split_indices(len(domain.labels), i, config.split_seed)[0] for i, domain in chosen],
        images_per_domain=config.batch_size,
        image_size=config.image_size,
        device=device,
        seed=config.seed,
        resident=memory.on_device("training images", sum(domain.pixels.numel() for _, domain in chosen)),
        resize_dtype=torch.float16 if device.type == "cuda" and run.inputs.precision == "bf16" else torch.float32,
    )


def run_evaluation_set(run: Run, memory: MemoryBudget, limit: int | None = None) -> EvaluationSet:
    """What the run is evaluated on; with a limit, a fixed part of it."""
    size = evaluation_images(run.dataset.sizes, run.test_domain, limit) * run.config.image_size**2 * 3
    resident = memory.on_device("evaluation images", size)
    arguments = (run.dataset, run.test_domain, run.config.split_seed, run.inputs.device)
    return evaluation_set(*arguments, limit=limit, resident=resident)


def software_versions() -> dict[str, str]:
    libraries = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {"vld": vld.__version__, "python": platform.python_version()} | {name: version(name) for name in libraries}
