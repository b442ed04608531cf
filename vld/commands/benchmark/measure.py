"""The benchmark: every part is measured in one run, in turn, and compared as medians, since machines are shared and noisy."""

import resource
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vld.commands.benchmark.conventional import (
    PREFETCHED,
    ConventionalBatches,
    ConventionalEvaluation,
    pytorch_s_defaults,
)
from vld.commands.benchmark.costs import WANDB_STEPS, time_checkpoint, time_wandb
from vld.commands.benchmark.forecast import EXPERIMENTS, Forecast, forecast
from vld.commands.benchmark.sharing import images_per_second_beside
from vld.commands.benchmark.startup import seconds_to_first_step
from vld.config.names import METHODS
from vld.config.settings import AveragingConfig, Config, EnsembleConfig
from vld.machine.atomic import write_json
from vld.machine.device import MemoryBudget, describe, set_up
from vld.machine.terminal import Terminal
from vld.model.classifier import Classifier
from vld.runs.environment import software_versions
from vld.runs.identity import weights_fingerprint
from vld.runs.inputs import check_inputs, initial_classifier
from vld.runs.run import Run, run_evaluation_set, training_batches
from vld.runs.space import bytes_kept
from vld.study.runner import decoded
from vld.training import compiled as compilation
from vld.training.evaluation import IMAGES_AT_ONCE, EvaluationSet, predict
from vld.training.loop import Trajectory, update
from vld.training.methods import WEIGHT_AVERAGING

STEPS_AT_ONCE = {"cpu": 1, "cuda": 30}
"""Steps between two looks at the clock: a GPU is only busy when it need not be looked at."""
EVALUATED_CHUNKS = {"cpu": 4, "cuda": 40}
EVALUATION_ROUNDS = 3


def run_benchmark(config: Config, options: Sequence[str], terminal: Terminal) -> dict[str, Any]:
    """Measure over `optim.steps` steps; show and write `<output_dir>/benchmark.json`. options: the command's own."""
    inputs = check_inputs(config)
    device, test_domain = inputs.device, inputs.test_domains[0]
    set_up(device, config.deterministic)
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    dataset = decoded(config, inputs.files, {}, terminal)
    # Before this process takes the GPU's memory.
    terminal.say("starting train.py twice, for the time to the first step")
    own = [option for option in options if not option.startswith(("output_dir=", "optim.steps=", "eval_every="))]
    own += [f"test_domain={test_domain}", f"batch_size={config.batch_size}"]
    first_step = seconds_to_first_step(own)
    if device.type == "cpu":
        terminal.say("training beside busy processes, for what is left of it")
    beside = images_per_second_beside(own) if device.type == "cpu" else None
    run = Run(config, inputs, dataset, weights_fingerprint(inputs.weights), test_domain)
    memory = MemoryBudget(device, terminal.say)
    images, batches = run_evaluation_set(run, memory, config.dataset.curve_images), training_batches(run, memory)

    def trajectory(precision: str) -> Trajectory:
        model = initial_classifier(config, inputs.weights, precision, len(dataset.classes)).to(device)
        averaging, ensemble = AveragingConfig(1, 1), EnsembleConfig(1, 1)
        return Trajectory(model, config.optim, eval_every=1, averaging=averaging, ensemble=ensemble)

    ours, usual = trajectory(inputs.precision), trajectory("fp32")
    average = ours.methods[WEIGHT_AVERAGING]
    if compilation.is_wanted(config, device):
        compilation.compile_run(ours.model, batches, images, terminal.say)
    conventional = ConventionalBatches(
        inputs.files, test_domain, config.split_seed, config.batch_size, config.image_size, device
    )
    for domain in batches.domains:  # neither way is to wait for the disk
        domain.pixels.amax()
    conventional.read_files()
    resident = batches.batch(0)
    at_once = min(STEPS_AT_ONCE[device.type], config.optim.steps)
    rounds = max(1, config.optim.steps // at_once)

    def full(step: int) -> None:
        update(ours, *batches.batch(step), config.seed, step)
        average.after_step(step + 1)

    def usual_step(step: int) -> None:
        with pytorch_s_defaults():
            update(usual, *conventional.batch(), config.seed, step)

    parts: dict[str, Callable[[int], object]] = {
        "full step": full,
        "bare step": lambda step: update(ours, *resident, config.seed, step),
        "input": batches.batch,
        "weight average": lambda step: average.after_step(step + 1),
    }
    times: dict[str, list[float]] = {name: [] for name in (*parts, "conventional step")}
    with terminal.counting("timing") as progress:
        for number in range(-1, rounds):  # the first is not counted
            update(ours, *resident, config.seed, 0)  # nor is this: caches hold the conventional step's network
            for name, part in parts.items():
                first = max(0, number) * at_once
                seconds = timed(lambda f=first, p=part: [p(step) for step in range(f, f + at_once)], device)  # type: ignore[misc]
                if number >= 0:
                    times[name].append(seconds / at_once)
            # What its workers had ready by then does not count; then they are left to fill up again, out of the way.
            for _ in range(conventional.waiting):
                usual_step(0)
            seconds = timed(lambda: deque(map(usual_step, range(at_once)), maxlen=0), device)
            if number >= 0:
                times["conventional step"].append(seconds / at_once)
            time.sleep(0.02 * conventional.waiting * config.batch_size)
            progress(number + 2, rounds + 1)
    step_seconds = {name: statistics.median(values) for name, values in times.items()}

    assert average.model is not None
    both = [ours.model, average.model]
    usual_evaluation = ConventionalEvaluation(
        usual.model, inputs.files, test_domain, config.split_seed, config.image_size
    )
    rate, usual_rate = evaluation_rates(both, images, usual_evaluation, device)
    del usual_evaluation  # with its workers
    per_core = input_per_core(conventional, batches.batch, batches.images_per_step) if device.type == "cpu" else None

    checkpoint_seconds, checkpoint_bytes = time_checkpoint(ours, output_dir)
    copying = time_wandb(config)
    experiment = next((e for e in EXPERIMENTS if config.dataset.name in e.datasets), EXPERIMENTS[0])
    full_step, bare = step_seconds["full step"], step_seconds["bare step"]
    our_run = experiment.steps * full_step + experiment.evaluations * 2 * len(images.images) / rate
    usual_run = experiment.steps * step_seconds["conventional step"]
    usual_run += experiment.evaluations * len(METHODS) * len(images.images) / usual_rate
    in_training, per_step = WANDB_STEPS * full_step, batches.images_per_step
    forecasts = forecast(per_step / full_step, rate, partial(bytes_kept, config.keep, ours.model))
    report = {
        "device": describe(device),
        "precision": inputs.precision,
        "compiled": ours.model.compiled,
        "backbone": config.backbone.name,
        "image_size": config.image_size,
        "images_per_step": per_step,
        "steps": rounds * at_once,
        "images_in_gpu_memory": batches.resident and device.type == "cuda",
        "median_seconds": step_seconds,
        "images_per_second": {
            name: per_step / seconds for name, seconds in step_seconds.items() if name != "weight average"
        },
        "full_step_to_ceiling": bare / full_step,
        "conventional_step_to_full_step": step_seconds["conventional step"] / full_step,
        "evaluation_images_per_second": {"both networks in one pass": rate, "conventional": usual_rate},
        "paper_run_steps": experiment.steps,
        "paper_run_hours": {"ours": our_run / 3600, "conventional": usual_run / 3600, "ratio": usual_run / our_run},
        "input_images_per_second_and_core": per_core,
        "seconds_to_first_step": dict(zip(("cold", "warm"), first_step, strict=True)),
        "peak_memory_bytes": peak_memory(device),
        "share_of_the_training_time": {
            "weight average": step_seconds["weight average"] / config.averaging.interval / full_step,
            "checkpoint": checkpoint_seconds / (checkpoint_seconds + config.checkpoint_every),
        },
        "checkpoint": {"seconds": checkpoint_seconds, "bytes": checkpoint_bytes},
        "seconds_for_wandb": copying,
        "share_of_wandb": {name: value / in_training for name, value in copying.items()},
        "images_per_second_beside_busy_processes": beside,
        "forecast": [vars(entry) for entry in forecasts],
        "software": software_versions(),
    }
    show(report, forecasts, terminal)
    path = output_dir / "benchmark.json"
    write_json(path, report)
    terminal.say(f"written to {path}")
    return report


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
    chunks = EVALUATED_CHUNKS[device.type]
    evaluated = min(len(images.images), chunks * IMAGES_AT_ONCE[device.type])
    batches = max(1, evaluated // usual.batch_size)
    rates, usual_rates = [], []
    for number in range(-1, EVALUATION_ROUNDS):  # the first is not counted
        time.sleep(0.02 * PREFETCHED * usual.batch_size)  # until its workers rest, as in `run_benchmark`
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


def show(report: dict[str, Any], forecasts: Sequence[Forecast], terminal: Terminal) -> None:
    say, rates, seconds = terminal.say, report["images_per_second"], report["median_seconds"]
    compiled = "compiled" if report["compiled"] else "not compiled"
    say(
        f"{report['backbone']} at {report['image_size']} px, {report['images_per_step']} images a step, {report['precision']},"
        f" {compiled}, on {report['device']}; medians of {report['steps']} steps"
    )
    for name, rate in rates.items():
        say(f"  {name:18s} {1e3 * seconds[name]:9.1f} ms {rate:10,.1f} images/s")
    say(f"  the full step runs at {report['full_step_to_ceiling']:.1%} of the speed of the bare one")
    evaluation = report["evaluation_images_per_second"]
    say(f"evaluation, all methods in one pass: {evaluation['both networks in one pass']:,.1f} images/s;"
        f" conventional {evaluation['conventional']:,.1f}")  # fmt: skip
    hours = report["paper_run_hours"]
    say(f"a run of the paper, evaluations included: {hours['ours']:.2f} h; conventional {hours['conventional']:.2f} h,"
        f" {hours['ratio']:.1f} times as long")  # fmt: skip
    if per_core := report["input_images_per_second_and_core"]:
        say(
            f"input pipeline on one core: {per_core['ours']:.0f} images/s, {per_core['ratio']:.1f} times the conventional"
        )
    first = {name: "not known" if s is None else f"{s:.1f} s" for name, s in report["seconds_to_first_step"].items()}
    say(f"from the command to the first step: {first['cold']}, with everything compiled {first['warm']}")
    say(
        "peak memory: " + ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in report["peak_memory_bytes"].items())
    )
    for name, share in report["share_of_the_training_time"].items():
        say(f"{name}: {share:.3%} of the training time")
    for name, share in report["share_of_wandb"].items():
        say(f"W&B, {name}: {1e3 * report['seconds_for_wandb'][name]:.1f} ms a run, {share:.4%} of the training time")
    for waiting, rates in (report["images_per_second_beside_busy_processes"] or {}).items():
        shown = ", ".join(
            f"{beside}: {rate if isinstance(rate, str) else f'{rate:.0f}'}" for beside, rate in rates.items()
        )
        say(f"images/s beside so many busy processes, {waiting}: {shown}")
    say("at these speeds the paper's experiments, with its network and image size if those were measured, take")
    for entry in forecasts:
        say(f"  {entry.name}: {entry.runs} runs, {entry.hours:,.0f} hours, {entry.gigabytes:,.0f} GB of disk")
    say(f"  in all {sum(entry.hours for entry in forecasts) / 24:,.1f} days of this device")
