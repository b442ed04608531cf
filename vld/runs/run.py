"""One run: its inputs, and one attempt at it, from its directory to its result."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vld.config.names import WITH_WEIGHTS
from vld.config.options import flat_settings
from vld.config.settings import Config
from vld.data.batches import TrainingBatches
from vld.data.domains import left_out
from vld.data.images import Dataset
from vld.data.split import split_indices
from vld.machine.device import MemoryBudget
from vld.machine.lock import LockLost, RunLock
from vld.machine.signals import Interrupted
from vld.machine.terminal import Terminal
from vld.model.classifier import build_classifier
from vld.runs.directory import RunDirectory
from vld.runs.environment import environment_now, now
from vld.runs.identity import NOT_IDENTITY, run_id, run_identity, runs_folder
from vld.runs.inputs import Inputs
from vld.runs.keep import drop_stale, missing_files, save_kept
from vld.runs.record import Record, finite_or_none
from vld.runs.reevaluate import SUBSET, evaluate_in_full, kept_while_training
from vld.training.collapse import CollapseWatch, dropout_noise, noise_warning
from vld.training.compiled import compile_network
from vld.training.evaluation import EvaluationSet, evaluation_images, evaluation_set, predict
from vld.training.loop import Clock, Evaluation, Trajectory, is_evaluated, train


@dataclass(frozen=True)
class Run:
    """What a run is made from."""

    config: Config
    inputs: Inputs
    dataset: Dataset
    test_domain: str

    @cached_property
    def identity(self) -> dict[str, Any]:
        return run_identity(
            self.config,
            self.test_domain,
            dataset_fingerprint=self.dataset.fingerprint,
            weights_fingerprint=self.inputs.weights_fingerprint,
            precision=self.inputs.precision,
        )

    @cached_property
    def directory(self) -> RunDirectory:
        return RunDirectory(runs_folder(self.config, self.test_domain) / run_id(self.identity))


def training_batches(run: Run, memory: MemoryBudget | None = None) -> TrainingBatches:
    """Batches of the *in* part of every domain that is not left out. memory: of the device that may hold their images."""
    config, device = run.config, run.inputs.device
    outside = left_out(run.test_domain, run.dataset.sizes)
    chosen = [(i, domain) for i, domain in enumerate(run.dataset.domains) if domain.name not in outside]
    in_indices = [split_indices(len(domain.labels), i, config.split_seed, config.holdout)[0] for i, domain in chosen]
    batches = TrainingBatches(
        domains=[domain for _, domain in chosen],
        in_indices=in_indices,
        images_per_domain=config.batch_size,
        image_size=config.image_size,
        device=device,
        seed=config.seed,
        resize_dtype=torch.float16 if (device.type, run.inputs.precision) == ("cuda", "bf16") else torch.float32,
    )
    if memory:
        batches.hold_if_it_fits(memory)
    return batches


def run_evaluation_set(run: Run, memory: MemoryBudget, limit: int | None = None) -> EvaluationSet:
    """The images that the run is evaluated on; with a limit, a fixed subset of them."""
    arguments = (run.dataset, run.test_domain, run.config.split_seed, memory.device)
    return evaluation_set(*arguments, holdout=run.config.holdout, limit=limit, memory=memory)


def results_line(evaluation: Evaluation, method: str, images_per_step: int) -> str:
    """What a person sees of an evaluation: the method's accuracies, or before it begins, those of ERM."""
    scores = evaluation.scores.get(method) or evaluation.scores["erm"]
    loss = "" if evaluation.train_loss is None else f"loss {evaluation.train_loss:.3f}  "
    iid = "–" if scores.iid_acc is None else f"{100 * scores.iid_acc:.1f}"
    line = f"{loss}i.i.d. {iid}  o.o.d. {100 * scores.ood_acc:.1f}"
    if evaluation.train_seconds > 0 and evaluation.step:
        line += f"  {evaluation.step * images_per_step / evaluation.train_seconds:.0f} images/s"
    return line


class Session:
    """One attempt at a run, by the process that holds its directory: from its checkpoint or the beginning to its result."""

    def __init__(self, run: Run, lock: RunLock, check: Callable[[], None], terminal: Terminal) -> None:
        """check: called during steps and evaluations; what it raises (`Interrupted`) is raised again once the run is saved."""
        self.run, self.config, self.directory = run, run.config, run.directory
        self.lock, self.check, self.terminal = lock, check, terminal
        self.device = run.inputs.device
        memory = MemoryBudget(self.device, self.say)
        self.images = run_evaluation_set(run, memory, limit=self.config.dataset.curve_images)
        self.batches = training_batches(run, memory)
        everything = evaluation_images(run.dataset.sizes, run.test_domain, holdout=self.config.holdout)
        self.on_subset = len(self.images.images) < everything
        self.record = Record()
        self.start = {"start": run.inputs.start} if run.inputs.start else {}

    def say(self, line: str) -> None:
        self.terminal.say(f"{self.run.test_domain}: {line}")

    def warn(self, line: str) -> None:
        self.terminal.warn(f"{self.run.test_domain}: {line}")

    def complete(self, started: Callable[[Path], None]) -> dict[str, Any]:
        """Train to the end; returns the result. started(directory) is called once its files exist."""
        with closing(self.batches):
            self.open(started)
            return self.finish(self.train())

    def open(self, started: Callable[[Path], None]) -> None:
        """Set up the network and all other state, as at the beginning or at the last checkpoint."""
        run, config = self.run, self.config
        other_settings = {name: value for name, value in flat_settings(config).items() if name in NOT_IDENTITY}
        outside = left_out(run.test_domain, run.dataset.sizes)
        several = {"left_out": list(outside)} if len(outside) > 1 else {}
        saved = self.directory.start(run.identity, other_settings | self.start | several)
        if saved is not None:
            self.record.load_state_dict(saved["record"])
            self.directory.write_metrics(self.record.rows)
        started(self.directory.path)
        classes, precision = len(run.dataset.classes), run.inputs.precision
        self.model = build_classifier(config, run.inputs.weights, classes, precision).to(self.device)
        self.noise = dropout_noise(self.model, self.batches.batch(0)[0]) if saved is None else saved["dropout_noise"]
        self.collapses = CollapseWatch(self.model, self.noise)
        if saved is None and (warning := noise_warning(self.model, self.noise)):
            self.warn(warning)
        self.trajectory = Trajectory(self.model, config)
        training = self.trajectory, self.batches
        compile_network(config.compile, self.model, self.images, self.say, training, self.check)
        self.environments = [environment_now(self.device, config.deterministic, self.model.compiled)]
        self.trajectory.clock = Clock()  # which counts no compiling
        if saved is not None:
            self.resume(saved)
        drop_stale(self.directory, self.record)
        self.first_step, self.saved_at = self.trajectory.step, time.monotonic()

    def resume(self, saved: dict[str, Any]) -> None:
        self.trajectory.load_state_dict(saved["trajectory"])
        self.collapses.load_state_dict(saved["collapses"])
        self.say(f"resuming at step {self.trajectory.step} of {self.config.optim.steps} (saved {saved['when']})")
        [here] = self.environments
        if here not in saved["environments"]:
            self.warn(
                "begun with another device or other software (earlier_environments in result.json): its numbers may differ in"
                " the last digits from those of an uninterrupted run"
            )
        self.environments += [other for other in saved["environments"] if other != here]

    def save(self) -> None:
        with self.trajectory.clock.aside():
            self.directory.write_checkpoint(
                {
                    "trajectory": self.trajectory.state_dict(),
                    "record": self.record.state_dict(),
                    "collapses": self.collapses.state_dict(),
                    "dropout_noise": self.noise,
                    "environments": self.environments,
                    "when": now(),
                }
            )
        self.saved_at = time.monotonic()

    def on_step(self, step: int) -> None:
        """Save if it is time to, and before the final evaluation on all images, which takes a while."""
        self.lock.check()
        due = time.monotonic() - self.saved_at >= self.config.checkpoint_every
        if step > self.first_step and (due or (self.on_subset and step == self.config.optim.steps)):
            self.save()

    def train(self) -> Evaluation:
        """Train to the last step; returns its evaluation."""
        config, steps = self.config, self.config.optim.steps
        kept = kept_while_training(config.keep) if self.on_subset else config.keep
        run_id = self.directory.path.name
        with self.terminal.training(self.run.test_domain, steps, self.first_step, run_id) as progress:

            def on_step(step: int) -> None:
                progress.stepped(step, is_evaluated(step, steps, config.eval_every))
                self.on_step(step)

            try:
                for evaluation in train(self.trajectory, self.batches, self.images, on_step=on_step, check=self.check):
                    self.record.add(evaluation)
                    self.directory.write_metrics(self.record.rows)
                    save_kept(self.directory, kept, evaluation, self.record, steps, self.images)
                    results = results_line(evaluation, config.method.name, self.batches.images_per_step)
                    progress.evaluated(evaluation.step, results, evaluation.seconds)
                    if news := self.collapses.news(evaluation.step, evaluation.health):
                        self.warn(news)
            except Interrupted:
                self.save()
                raise
        return evaluation

    def selected(self) -> list[dict[str, Any]]:
        """The rows of the result: each method's selected steps, evaluated on all images."""
        rows = self.record.selected_rows()
        if not self.on_subset:
            return rows
        everything = run_evaluation_set(self.run, MemoryBudget(self.device, self.say))

        def logits(weights: Path) -> Tensor:
            self.model.load_state_dict(load_file(weights))
            return predict([self.model], everything, self.check)[0].logits

        with self.terminal.counting(f"{self.run.test_domain}: evaluating in full") as counted:
            rows = evaluate_in_full(rows, self.directory, self.config.keep, everything, logits, counted)
        if part := [row for row in rows if row["evaluated_on"] == SUBSET and row["method"] in WITH_WEIGHTS]:
            self.warn(
                f"{len(part)} results are of a subset of the images: their weights were replaced before the interruption"
            )
        return rows

    def finish(self, last: Evaluation) -> dict[str, Any]:
        """Write and return the result. Raises `LockLost` if another process has taken over the directory."""
        about = {name: method.about() for name, method in self.trajectory.methods.items()}
        rows = [row | about[row["method"]] for row in self.selected()]
        if not self.lock.holds():
            raise LockLost("not renewed")
        result = self.result(rows, last)
        self.directory.finish(result)
        for name, its in about.items():
            if its.get("converged") is False:
                self.warn(
                    f"{name} did not converge: its result is the average of steps {its['first_step']} to {its['last_step']};"
                    " train longer, or evaluate more often (eval_every)"
                )
        # Only now: weights to be evaluated in full are needed until there is a result.
        drop_stale(self.directory, self.record, self.config.keep)
        if missing := missing_files(self.directory.path, self.config.keep):
            self.warn(f"lacks {', '.join(missing)}: selected before the interruption, and not kept then")
        return result

    def result(self, rows: list[dict[str, Any]], last: Evaluation) -> dict[str, Any]:
        """The content of `result.json`."""
        images = self.config.optim.steps * self.batches.images_per_step
        return {
            "run_id": self.directory.path.name,
            "study": self.config.study.name,
            "settings": self.run.identity,
            **self.start,
            "domains": list(self.run.dataset.sizes),
            "classes": list(self.run.dataset.classes),
            "results": rows,
            "batch_norm_statistics": "frozen" if self.model.frozen_batch_norm else "trained; averaged like the weights",
            "health": {
                "dropout_noise": finite_or_none(self.noise),
                "feature_sq_norm": finite_or_none(last.health.feature_sq_norm),
                "collapse": self.collapses.lasting,
            },
            "images_per_second": round(images / last.train_seconds, 1),
            "seconds": round(last.seconds, 1),
            **self.environments[0],
            "threads": torch.get_num_threads(),
            "earlier_environments": self.environments[1:],
            "finished": now(),
        }
