"""The benchmark: every part is measured in one run, in turn, and compared as medians, since machines are shared and noisy."""

import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vld.commands.benchmark.conventional import WORKERS as DOMAINBED_WORKERS
from vld.commands.benchmark.conventional import (
    ConventionalBatches,
    ConventionalEvaluation,
    Loop,
    chosen_files,
    domainbed_style,
)
from vld.commands.benchmark.costs import WANDB_STEPS, peak_memory, time_checkpoint, time_wandb
from vld.commands.benchmark.figures import Figures
from vld.commands.benchmark.forecast import EXPERIMENTS, forecast
from vld.commands.benchmark.on_gpu import device_and_host_seconds, kernels_of
from vld.commands.benchmark.outside import images_per_second_beside, seconds_to_first_step
from vld.commands.benchmark.show import show
from vld.config.checked import accumulated
from vld.config.errors import UserError
from vld.config.settings import AveragingConfig, Config, EnsembleConfig
from vld.machine.device import MemoryBudget, describe, set_up
from vld.machine.terminal import Terminal
from vld.model.classifier import Classifier, build_classifier
from vld.model.mixout import Mixout
from vld.runs.environment import software_versions
from vld.runs.inputs import check_inputs
from vld.runs.run import Run, run_evaluation_set, training_batches
from vld.runs.space import bytes_kept
from vld.study.runner import decoded
from vld.training.compiled import compile_network
from vld.training.evaluation import IMAGES_AT_ONCE, IN, OUT, EvaluationSet, predict
from vld.training.loop import Trajectory, update
from vld.training.methods import WEIGHT_AVERAGING

STEPS_AT_ONCE = {"cpu": 1, "cuda": 15}
"""Steps between two looks at the clock: a GPU is only busy when it need not be looked at."""
EVALUATED_CHUNKS = {"cpu": 4, "cuda": 40}
EVALUATION_ROUNDS = 3
STEPS_ONLY = False
"""For variants (`variant.py`): no conventional step beside ours, no other part, and Mixout only where the settings have it."""
OWN_PROGRAMS = True
"""What is compiled is compiled anew, so that it can be timed; a variant takes what others have compiled."""
ALGORITHMS_TRIED = True
"""By cuDNN; a variant takes the first that it proposes for a convolution."""
MIXOUT_STEP, MIXOUT = "step with Mixout", 0.9
"""A bare step in which Mixout draws a mask, at the rate `mixout` or, without it, at this one."""


def run_benchmark(config: Config, options: Sequence[str], terminal: Terminal) -> dict[str, Any]:
    """Measure over `optim.steps` steps; show and write `<output_dir>/benchmark.json`. options: the command's own.

    Every part is written when it has been measured. One that cannot run has the reason in its place.
    """
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    figures = Figures(output_dir / "benchmark.json", terminal.say)
    with tempfile.TemporaryDirectory() as folder:
        if OWN_PROGRAMS:
            # Nothing is compiled yet in this process; what it compiles, the processes that it starts find.
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        measured = Measured(config, figures, terminal)
        try:
            measured.steps()
            if not STEPS_ONLY:
                measured.evaluation()
                measured.forecast()
                if OWN_PROGRAMS:
                    measured.start(options)
                measured.bookkeeping(output_dir)
                measured.beside(options)
            measured.profile()
        finally:
            measured.close()
    show(figures.content, terminal)
    terminal.say(f"written to {figures.path}")
    return figures.content


class Measured:
    """A run, usual ones beside it, and what has been measured of them."""

    def __init__(self, config: Config, figures: Figures, terminal: Terminal) -> None:
        self.config, self.figures, self.terminal = config, figures, terminal
        self.inputs = check_inputs(config)
        self.device, self.test_domain = self.inputs.device, self.inputs.test_domains[0]
        set_up(self.device, config.deterministic)
        torch.backends.cudnn.benchmark &= ALGORITHMS_TRIED
        self.dataset = decoded(config, self.inputs.files, {}, terminal)
        run = Run(config, self.inputs, self.dataset, self.test_domain)
        memory = MemoryBudget(self.device, terminal.say)
        self.images = run_evaluation_set(run, memory, config.dataset.curve_images)
        self.batches, self.from_host = training_batches(run, memory), training_batches(run)
        self.ours = self.trajectory(self.inputs.precision)
        self.average = self.ours.methods[WEIGHT_AVERAGING]
        self.compiling = self.compile()
        self.from_host.augment = self.batches.augment
        for domain in self.batches.domains:  # no way is to wait for the disk
            domain.pixels.amax()
        self.usual = {} if STEPS_ONLY else self.usual_loops()

    def trajectory(self, precision: str) -> Trajectory:
        classes = len(self.dataset.classes)
        model = build_classifier(self.config, self.inputs.weights, classes, precision).to(self.device)
        config = replace(self.config, eval_every=1, warm_start=0, mixout=0.0)
        return Trajectory(model, replace(config, averaging=AveragingConfig(1, 1), ensemble=EnsembleConfig(1, 1)))

    def compile(self) -> float:
        """Seconds that it takes where nothing has been compiled before."""
        began = time.perf_counter()
        compile_network(self.config.compile, self.ours.model, self.images, self.terminal.say, (self.ours, self.batches))
        return time.perf_counter() - began if self.ours.model.compiled else 0.0

    def chosen_files(self, part: str) -> list[Any]:
        return chosen_files(self.inputs.files, self.test_domain, self.config, part)

    def usual_loops(self) -> dict[str, Loop]:
        """By the names of their steps. DomainBed's processes are too many for a machine without a GPU."""
        domains = self.chosen_files(IN)
        batches = partial(ConventionalBatches, domains, self.config.batch_size, self.config.image_size, self.device)
        for examples in domains:
            for path in examples.files:
                path.read_bytes()
        loops = {"conventional step": Loop(self.trajectory(self.inputs.precision), batches())}
        if self.device.type == "cuda":
            loops["DomainBed-style step"] = domainbed_style(self.trajectory("fp32"), batches(DOMAINBED_WORKERS))
        return loops

    def close(self) -> None:
        for loop in self.usual.values():
            loop.batches.close()
        for batches in (self.batches, self.from_host):
            batches.close()

    def parts(self) -> dict[str, Callable[[int], object]]:
        """A step, what it consists of, and others beside it."""
        on_device = self.batches.batch(0)

        def bare(step: int) -> None:
            update(self.ours, *on_device, step)

        def full(step: int) -> None:
            update(self.ours, *self.batches.batch(step), step)
            for method in self.ours.methods.values():
                method.after_step(step + 1)

        def from_host(step: int) -> None:
            update(self.ours, *self.from_host.batch(step), step)

        def with_mixout(step: int) -> None:
            self.ours.regulariser = mixout
            bare(step)
            self.ours.regulariser = None

        parts: dict[str, Callable[[int], object]] = {"full step": full, "bare step": bare}
        if self.config.mixout or not STEPS_ONLY:
            with suppress(UserError):  # a backbone that has nothing to mask
                settings = replace(self.config, mixout=self.config.mixout or MIXOUT)
                mixout = Mixout(self.ours.model.backbone, settings)
                parts[MIXOUT_STEP] = with_mixout
        if self.batches.resident and self.device.type == "cuda":
            parts["step from host memory"] = from_host
        parts["input"] = self.batches.batch
        parts["weight average"] = lambda step: self.average.after_step(step + 1)
        return parts

    def steps(self) -> None:
        """A step and its parts, in turn with the usual ones."""
        at_once = min(STEPS_AT_ONCE[self.device.type], self.config.optim.steps)
        rounds = max(1, self.config.optim.steps // at_once)
        parts = self.measured = self.parts()
        times: dict[str, list[float]] = {name: [] for name in (*parts, *self.usual)}
        order = deque(parts)

        def time_steps(name: str, part: Callable[[int], object], first: int) -> None:
            seconds = timed(lambda: [part(step) for step in range(first, first + at_once)], self.device)
            times[name].append(seconds / at_once)

        with self.terminal.counting("timing") as progress:
            for number in range(rounds + 1):
                parts["bare step"](0)  # not counted: caches hold another network
                for name in order:
                    time_steps(name, parts[name], max(0, number - 1) * at_once)
                order.rotate()  # each has each place in turn: a GPU's clock falls while it is busy
                for name, loop in self.usual.items():
                    # What its workers had ready by then does not count; then they fill up again, out of the way.
                    for _ in range(loop.batches.waiting):
                        loop.step(0)
                    time_steps(name, loop.step, 0)
                    loop.batches.wait_until_full()
                if number:  # the first is not counted
                    self.add_steps({name: its[1:] for name, its in times.items()}, number * at_once)
                progress(number + 1, rounds + 1)
        if self.device.type == "cuda":
            both = {**parts, "optimiser": lambda _: self.ours.optimizer.step()}
            self.figures.attempt("device_and_host_seconds", lambda: device_and_host_seconds(both))

    def profile(self) -> None:
        """The last part: a profiler may take the process with it."""
        if self.device.type == "cuda":
            self.figures.attempt("kernels_of_a_full_step", lambda: kernels_of(self.measured["full step"]))

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
            peak_memory_bytes=peak_memory(self.device),
            share_of_the_training_time={
                "weight average": seconds["weight average"] / config.averaging.interval / seconds["full step"]
            },
            software=software_versions(),
            mixout_step_to_bare_step=seconds[MIXOUT_STEP] / seconds["bare step"] if MIXOUT_STEP in seconds else None,
            **{f"{name.replace(' ', '_')}_to_full_step": seconds[name] / seconds["full step"] for name in self.usual},
        )

    def evaluation(self) -> None:
        assert self.average.model is not None
        conventional = self.usual["conventional step"].trajectory.model
        usual = ConventionalEvaluation(conventional, self.chosen_files(OUT), self.config.image_size)
        rate, usual_rate = evaluation_rates([self.ours.model, self.average.model], self.images, usual, self.device)
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
        """Seconds from the command to the first step; cold: and those that compiling anew took this process."""
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
            return
        conventional = self.usual["conventional step"].batches
        per_core = partial(input_per_core, conventional, self.batches.batch, self.batches.images_per_step)
        self.figures.attempt("input_images_per_second_and_core", per_core)
        conventional.close()
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
    for _ in range(1 + EVALUATION_ROUNDS):
        usual.wait_until_full()
        seconds = timed(lambda: predict(models, images, at_most=chunks), device)
        usual.evaluate(usual.waiting)  # what they had ready by then does not count
        usual_seconds = timed(lambda: usual.evaluate(batches), device)
        rates.append(len(models) * evaluated / seconds)
        usual_rates.append(batches * usual.batch_size / usual_seconds)
    return statistics.median(rates[1:]), statistics.median(usual_rates[1:])  # the first is not counted


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
