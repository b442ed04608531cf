"""What the methods along a run cost, measured between the steps of real training, as shares of a training step."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from vld.data.images import decode_dataset
from vld.device import describe, set_up
from vld.evaluation import evaluation_set, predict
from vld.inputs import check_inputs, initial_classifier
from vld.methods import CheckpointEnsemble, WeightAverage
from vld.run import training_batches
from vld.runs.atomic import write_json
from vld.seeds import DROPOUT, torch_generator
from vld.settings import AveragingConfig, Config, EnsembleConfig
from vld.terminal import Terminal
from vld.training import make_optimizer

WARM_UP_STEPS = 3
EVALUATIONS = 3


def run_benchmark(config: Config, terminal: Terminal) -> dict[str, Any]:
    """Train `optim.steps` steps, timing each part of each; show medians and write `<output_dir>/benchmark.json`.

    The parts are timed in the same run, one after the other in every step, so that the ratios hold on a noisy machine.
    """
    inputs = check_inputs(config)
    set_up(inputs.device, config.deterministic)
    with terminal.counting(f"decoding {config.dataset.name}") as progress:
        dataset = decode_dataset(inputs.files, config.image_size, config.dataset.store_size, progress)
    model = initial_classifier(config, inputs.weights, inputs.precision, len(dataset.classes)).to(inputs.device)
    test_domain = inputs.test_domains[0]
    batches = training_batches(config, dataset, test_domain, inputs.device)
    images = evaluation_set(dataset, test_domain, config.split_seed, inputs.device)
    optimizer = make_optimizer(model, config.optim)
    average = WeightAverage(model, AveragingConfig(start=1, interval=1), steps=10**6, eval_every=1)
    ensemble = CheckpointEnsemble(EnsembleConfig(start=1, every=1), steps=10**6, eval_every=1)
    logits = predict([model], images)[0].logits

    def step(number: int) -> None:
        inputs_, labels = batches.batch(number)
        generator = torch_generator(config.seed, DROPOUT, number, inputs.device)
        loss = cross_entropy(model(inputs_, generator), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def seconds(part: Callable[[], object]) -> float:
        synchronize(inputs.device)
        began = time.perf_counter()
        part()
        synchronize(inputs.device)
        return time.perf_counter() - began

    parts: dict[str, list[float]] = {"training step": [], "weight average": [], "ensemble sum": []}
    with terminal.counting("timing") as progress:
        for number in range(WARM_UP_STEPS + config.optim.steps):
            times = (
                seconds(lambda n=number: step(n)),  # type: ignore[misc]
                seconds(lambda n=number: average.update(n + 1)),  # type: ignore[misc]
                seconds(lambda: ensemble.add(logits)),
            )
            if number >= WARM_UP_STEPS:
                for values, value in zip(parts.values(), times, strict=True):
                    values.append(value)
            progress(number + 1, WARM_UP_STEPS + config.optim.steps)

    assert average.model is not None
    evaluations: dict[str, list[float]] = {"evaluation of ERM": [], "evaluation with the average": []}
    for _ in range(EVALUATIONS):
        evaluations["evaluation of ERM"].append(seconds(lambda: predict([model], images)))
        evaluations["evaluation with the average"].append(seconds(lambda: predict([model, average.model], images)))  # type: ignore[list-item]

    medians = {name: statistics.median(values) for name, values in (parts | evaluations).items()}
    # A member of the ensemble at an evaluation step costs a sum; off those steps it costs an evaluation of ERM as well.
    shares = {
        "weight average": medians["weight average"] / config.averaging.interval / medians["training step"],
        "ensemble sum": medians["ensemble sum"] / config.ensemble.every / medians["training step"],
    }
    report = {
        "device": describe(inputs.device),
        "precision": inputs.precision,
        "images_per_step": batches.images_per_step,
        "median_seconds": medians,
        "share_of_a_step": shares,
    }
    terminal.say(f"medians of {config.optim.steps} steps of {batches.images_per_step} images on {report['device']}")
    terminal.say(f"training step    {1e3 * medians['training step']:9.2f} ms")
    for name, share in shares.items():
        terminal.say(f"{name:16s} {1e3 * medians[name]:9.2f} ms a time, {share:.3%} of the training time")
    ratio = medians["evaluation with the average"] / medians["evaluation of ERM"]
    terminal.say(
        f"an evaluation of ERM takes {medians['evaluation of ERM']:.2f} s, with the average {ratio:.2f} times that"
    )
    path = Path(config.output_dir) / "benchmark.json"
    write_json(path, report)
    terminal.say(f"written to {path}")
    return report


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
