"""The benchmark: every part is measured in one run, in turn, and compared as medians, since machines are shared and noisy."""

import os
import resource
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vld.commands.benchmark.conventional import (
    ConventionalBatches,
    ConventionalEvaluation,
    pytorch_s_defaults,
)
from vld.commands.benchmark.costs import WANDB_STEPS, time_checkpoint, time_wandb
from vld.commands.benchmark.figures import Figures
from vld.commands.benchmark.forecast import EXPERIMENTS, forecast
from vld.commands.benchmark.on_gpu import dearest_kernels, device_and_host_seconds
from vld.commands.benchmark.sharing import images_per_second_beside
from vld.commands.benchmark.show import show
from vld.commands.benchmark.startup import seconds_to_first_step
from vld.config.checked import accumulated
from vld.config.settings import AveragingConfig, Config, EnsembleConfig
from vld.machine.device import MemoryBudget, describe, set_up
from vld.machine.terminal import Terminal
from vld.model.classifier import Classifier, build_classifier
from vld.runs.environment import software_versions
from vld.runs.inputs import check_inputs
from vld.runs.run import Run, run_evaluation_set, training_batches
from vld.runs.space import bytes_kept
from vld.study.runner import decoded
from vld.training.compiled import compile_network
from vld.training.evaluation import IMAGES_AT_ONCE, EvaluationSet, predict
from vld.training.loop import Trajectory, update
from vld.training.methods import WEIGHT_AVERAGING

STEPS_AT_ONCE = {"cpu": 1, "cuda": 30}
"""Steps between two looks at the clock: a GPU is only busy when it need not be looked at."""
EVALUATED_CHUNKS = {"cpu": 4, "cuda": 40}
EVALUATION_ROUNDS = 3
MIXOUT_STEP = "step with Mixout"
"""A bare step in which Mixout draws a mask, with `mixout=0.8`, say."""


def run_benchmark(config: Config, options: Sequence[str], terminal: Terminal) -> dict[str, Any]:
    """Measure over `optim.steps` steps; show and write `<output_dir>/benchmark.json`. options: the command's own.

    Every part is written when it has been measured. One that cannot run has the reason in its place.
    """
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    figures = Figures(output_dir / "benchmark.json", terminal.say)
    with compiled_programs_of_one_s_own():
        measured = Measured(config, figures, terminal)
        try:
            measured.steps()
            measured.evaluation()
            measured.forecast()
            measured.start(options)
            measured.bookkeeping(output_dir)
            measured.beside(options)
            measured.profile()
        finally:
            measured.conventional.close()
            measured.batches.close()
    show(figures.content, terminal)
    terminal.say(f"written to {figures.path}")
    return figures.content


@contextmanager
def compiled_programs_of_one_s_own() -> Iterator[None]:
    """Nothing is compiled yet in this process; what it compiles, the processes that it starts find."""
    name, before = "TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


class Measured:
    """A run, a conventional one beside it, and what has been measured of both."""

    def __init__(self, config: Config, figures: Figures, terminal: Terminal) -> None:
        self.config, self.figures, self.terminal = config, figures, terminal
        self.inputs = check_inputs(config)
        self.device, self.test_domain = self.inputs.device, self.inputs.test_domains[0]
        set_up(self.device, config.deterministic)
        self.dataset = decoded(config, self.inputs.files, {}, terminal)
        run = Run(config, self.inputs, self.dataset, self.test_domain)
        memory = MemoryBudget(self.device, terminal.say)
        self.images = run_evaluation_set(run, memory, config.dataset.curve_images)
        self.batches = training_batches(run, memory)
        self.ours, self.usual = self.trajectory(self.inputs.precision), self.trajectory("fp32")
        self.average = self.ours.methods[WEIGHT_AVERAGING]
        self.compiling = self.compile()
        files, image_size = self.inputs.files, config.image_size
        self.conventional = ConventionalBatches(
            files, self.test_domain, config.split_seed, config.batch_size, image_size, self.device
        )
        for domain in self.batches.domains:  # neither way is to wait for the disk
            domain.pixels.amax()
        self.conventional.read_files()

    def trajectory(self, precision: str) -> Trajectory:
        classes = len(self.dataset.classes)
        return self.beginning(build_classifier(self.config, self.inputs.weights, classes, precision).to(self.device))

    def beginning(self, model: Classifier, mixout: float = 0.0) -> Trajectory:
        config = replace(self.config, eval_every=1, warm_start=0, mixout=mixout)
        return Trajectory(model, replace(config, averaging=AveragingConfig(1, 1), ensemble=EnsembleConfig(1, 1)))

    def compile(self) -> float:
        """Seconds that it takes where nothing has been compiled before."""
        began = time.perf_counter()
        compile_network(self.config.compile, self.ours.model, self.images, self.terminal.say, self.batches)
        return time.perf_counter() - began if self.ours.model.compiled else 0.0

    def full(self, step: int) -> None:
        update(self.ours, *self.batches.batch(step), step)
        self.average.after_step(step + 1)

    def usual_step(self, step: int) -> None:
        with pytorch_s_defaults():
            update(self.usual, *self.conventional.batch(), step)

    def steps(self) -> None:
        """A step and its parts, in turn with a conventional one."""
        resident = self.batches.batch(0)
        at_once = min(STEPS_AT_ONCE[self.device.type], self.config.optim.steps)
        rounds = max(1, self.config.optim.steps // at_once)
        parts: dict[str, Callable[[int], object]] = {
            "full step": self.full,
            "bare step": lambda step: update(self.ours, *resident, step),
            "input": self.batches.batch,
            "weight average": lambda step: self.average.after_step(step + 1),
        }
        if self.config.mixout:  # of the same network, which is compiled alike
            mixed = self.beginning(self.ours.model, self.config.mixout)
            parts[MIXOUT_STEP] = lambda step: update(mixed, *resident, step)
        times: dict[str, list[float]] = {name: [] for name in (*parts, "conventional step")}
        with self.terminal.counting("timing") as progress:
            for number in range(-1, rounds):  # the first is not counted
                parts["bare step"](0)  # nor is this: caches hold the conventional step's network
                for name, part in parts.items():
                    first = max(0, number) * at_once
                    seconds = timed(lambda f=first, p=part: [p(step) for step in range(f, f + at_once)], self.device)  # type: ignore[misc]
                    if number >= 0:
                        times[name].append(seconds / at_once)
                # What its workers had ready by then does not count; then they fill up again, out of the way.
                for _ in range(self.conventional.waiting):
                    self.usual_step(0)
                seconds = timed(lambda: deque(map(self.usual_step, range(at_once)), maxlen=0), self.device)
                if number >= 0:
                    times["conventional step"].append(seconds / at_once)
                    self.add_steps(times, (number + 1) * at_once)
                self.conventional.wait_until_full()
                progress(number + 2, rounds + 1)
        if self.device.type == "cuda":
            parts["optimiser"] = lambda _: self.ours.optimizer.step()
            self.figures.attempt("device_and_host_seconds", lambda: device_and_host_seconds(parts))

    def profile(self) -> None:
        """The last part: a profiler may take the process with it."""
        if self.device.type == "cuda":
            self.figures.attempt("dearest_kernels", lambda: dearest_kernels(self.full))

    def add_steps(self, times: dict[str, list[float]], steps: int) -> None:
        seconds = self.seconds = {name: statistics.median(values) for name, values in times.items()}
        per_step, config = self.batches.images_per_step, self.config
        self.figures.add(
            device=describe(self.device),
            precision=self.inputs.precision,
            compiled=self.ours.model.compiled,
            backbone=config.backbone.name,
            image_size=config.image_size,
            images_per_step=per_step,
            steps=steps,
            images_in_gpu_memory=self.batches.resident and self.device.type == "cuda",
            median_seconds=seconds,
            images_per_second={name: per_step / its for name, its in seconds.items() if name != "weight average"},
            full_step_to_ceiling=seconds["bare step"] / seconds["full step"],
            conventional_step_to_full_step=seconds["conventional step"] / seconds["full step"],
            peak_memory_bytes=peak_memory(self.device),
            share_of_the_training_time={
                "weight average": seconds["weight average"] / config.averaging.interval / seconds["full step"]
            },
            software=software_versions(),
        )
        if MIXOUT_STEP in seconds:
            self.figures.add(mixout_step_to_bare_step=seconds[MIXOUT_STEP] / seconds["bare step"])

    def evaluation(self) -> None:
        assert self.average.model is not None
        both, files, config = [self.ours.model, self.average.model], self.inputs.files, self.config
        usual = ConventionalEvaluation(self.usual.model, files, self.test_domain, config.split_seed, config.image_size)
        rate, usual_rate = evaluation_rates(both, self.images, usual, self.device)
        self.rates = {"both networks in one pass": rate, "conventional": usual_rate}
        self.figures.add(evaluation_images_per_second=self.rates, peak_memory_bytes=peak_memory(self.device))

    def forecast(self) -> None:
        """Of a run of the paper, and of all of them."""
        experiment = next((e for e in EXPERIMENTS if self.config.dataset.name in e.datasets), EXPERIMENTS[0])
        rate, usual_rate = self.rates.values()
        images, full_step = len(self.images.images), self.seconds["full step"]
        our_run = experiment.steps * full_step + experiment.evaluations * 2 * images / rate
        usual_run = experiment.steps * self.seconds["conventional step"]
        usual_run += experiment.evaluations * len(accumulated(self.config)) * images / usual_rate
        kept = partial(bytes_kept, self.config.keep, self.ours.model)
        self.figures.add(
            paper_run_steps=experiment.steps,
            paper_run_hours={"ours": our_run / 3600, "conventional": usual_run / 3600, "ratio": usual_run / our_run},
            forecast=[vars(entry) for entry in forecast(self.batches.images_per_step / full_step, rate, kept)],
        )

    def own(self, options: Sequence[str]) -> list[str]:
        """The options of a `vld-train` that is measured from outside."""
        own = [option for option in options if not option.startswith(("output_dir=", "optim.steps=", "eval_every="))]
        return [*own, f"test_domain={self.test_domain}", f"batch_size={self.config.batch_size}"]

    def start(self, options: Sequence[str]) -> None:
        """Seconds from the command to the first step; cold: and those that compiling took this process."""
        self.terminal.say("starting train.py, for the time to the first step")

        def measured() -> dict[str, float]:
            warm = seconds_to_first_step(self.own(options))
            return {"cold": warm + self.compiling, "warm": warm}

        self.figures.attempt("seconds_to_first_step", measured)

    def bookkeeping(self, output_dir: Path) -> None:
        """Checkpoints, and the copy in W&B, which is no part of every installation."""
        if measured := self.figures.attempt("checkpoint", lambda: time_checkpoint(self.ours, output_dir)):
            share = measured["seconds"] / (measured["seconds"] + self.config.checkpoint_every)
            shares = self.figures.content["share_of_the_training_time"] | {"checkpoint": share}
            self.figures.add(share_of_the_training_time=shares)
        if copying := self.figures.attempt("seconds_for_wandb", lambda: time_wandb(self.config)):
            in_training = WANDB_STEPS * self.seconds["full step"]
            self.figures.add(share_of_wandb={name: value / in_training for name, value in copying.items()})

    def beside(self, options: Sequence[str]) -> None:
        """Of a CPU: the input pipelines on one core, and training beside busy processes."""
        if self.device.type != "cpu":
            self.figures.add(input_images_per_second_and_core=None, images_per_second_beside_busy_processes=None)
            return
        images = self.batches.images_per_step
        per_core = partial(input_per_core, self.conventional, self.batches.batch, images)
        self.figures.attempt("input_images_per_second_and_core", per_core)
        self.conventional.close()
        self.terminal.say("training beside busy processes, for what is left of it")
        measured = partial(images_per_second_beside, self.own(options))
        self.figures.attempt("images_per_second_beside_busy_processes", measured)


def timed(work: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def evaluation_rates(
    models: Sequence[Classifier], images: EvaluationSet, usual: ConventionalEvaluation, device: torch.device
) -> tuple[float, float]:
    """Images/s and network, ours and the conventional, each in its steady state on as many images, in turn."""
    at_once = IMAGES_AT_ONCE[device.type]
    # Whole chunks, where there is one: what fills up the last takes its time, too.
    chunks = max(1, min(EVALUATED_CHUNKS[device.type], len(images.images) // at_once))
    evaluated = min(len(images.images), chunks * at_once)
    batches = max(1, evaluated // usual.batch_size)
    rates, usual_rates = [], []
    for number in range(-1, EVALUATION_ROUNDS):  # the first is not counted
        usual.wait_until_full()
        seconds = timed(lambda: predict(models, images, at_most=chunks), device)
        with pytorch_s_defaults():
            usual.evaluate(usual.waiting)  # what they had ready by then does not count
            usual_seconds = timed(lambda: usual.evaluate(batches), device)
        if number >= 0:
            rates.append(len(models) * evaluated / seconds)
            usual_rates.append(batches * usual.batch_size / usual_seconds)
    return statistics.median(rates), statistics.median(usual_rates)


def input_per_core(
    conventional: ConventionalBatches, batch: Callable[[int], object], images_per_step: int
) -> dict[str, float]:
    """Images/s of the input pipelines on one core, in turn."""
    threads, ours, usual = torch.get_num_threads(), [], []
    torch.set_num_threads(1)
    try:
        for number in range(5):
            usual.append(conventional.images_per_second_and_core(4 * images_per_step))
            began = time.perf_counter()
            for step in range(4):
                batch(4 * number + step)
            ours.append(4 * images_per_step / (time.perf_counter() - began))
    finally:
        torch.set_num_threads(threads)
    ratio = statistics.median(one / other for one, other in zip(ours, usual, strict=True))
    return {"ours": statistics.median(ours), "conventional": statistics.median(usual), "ratio": ratio}


def peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes. The host's counts the pages of memory maps that are in memory, too; on a GPU the conventional network is in it."""
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_reserved(device)
    return peak
