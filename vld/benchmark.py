"""What comes on top of training costs: the methods along a run, checkpoints, reading results back; as ratios."""

import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from vld.device import describe, set_up
from vld.errors import UserError
from vld.evaluation import evaluation_set, predict
from vld.inputs import check_inputs, initial_classifier
from vld.run import training_batches
from vld.runner import decoded
from vld.runs.atomic import write_json
from vld.runs.checkpoint import write_checkpoint
from vld.runs.identity import flat_settings, run_id
from vld.runs.results import load_results
from vld.seeds import DROPOUT, torch_generator
from vld.settings import ACCURACIES, METHODS, SELECTIONS, AveragingConfig, Config, EnsembleConfig, WandbConfig
from vld.terminal import Terminal
from vld.tracking.publisher import Publisher
from vld.training import Trajectory

WARM_UP_STEPS = 3
REPETITIONS = 3
"""Of what takes longer than a step: evaluations, checkpoints."""
FINISHED_RUNS = 3000
WANDB_STEPS = 10_000
"""Of the run whose copy is timed: the paper's."""


def run_benchmark(config: Config, terminal: Terminal) -> dict[str, Any]:
    """Train `optim.steps` steps, timing each part of each; show medians and write `<output_dir>/benchmark.json`.

    The parts are timed in the same run, one after the other in every step, so that the ratios hold on a noisy machine.
    """
    inputs = check_inputs(config)
    set_up(inputs.device, config.deterministic)
    dataset = decoded(config, inputs.files, {}, terminal)
    model = initial_classifier(config, inputs.weights, inputs.precision, len(dataset.classes)).to(inputs.device)
    test_domain = inputs.test_domains[0]
    batches = training_batches(config, dataset, test_domain, inputs.device)
    images = evaluation_set(dataset, test_domain, config.split_seed, inputs.device)
    trajectory = Trajectory(
        model, config.optim, eval_every=1, averaging=AveragingConfig(1, 1), ensemble=EnsembleConfig(1, 1)
    )
    optimizer, average, ensemble = trajectory.optimizer, trajectory.average, trajectory.ensemble
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
    both = [model, average.model]
    longer: dict[str, list[float]] = {"evaluation of ERM": [], "evaluation with the average": [], "checkpoint": []}
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir) as folder:  # on the disk that checkpoints go to
        checkpoint = Path(folder) / "checkpoint.pt"
        for _ in range(REPETITIONS):
            longer["evaluation of ERM"].append(seconds(lambda: predict([model], images)))
            longer["evaluation with the average"].append(seconds(lambda: predict(both, images)))
            longer["checkpoint"].append(
                seconds(lambda: write_checkpoint(checkpoint, {"trajectory": trajectory.state_dict()}))
            )
        size = checkpoint.stat().st_size
    with terminal.counting("reading results") as progress:
        reading = time_load_results(config, FINISHED_RUNS, progress)

    copying = time_wandb(config)

    medians = {name: statistics.median(values) for name, values in (parts | longer).items()}
    # A member of the ensemble at an evaluation step costs a sum; off those steps it costs an evaluation of ERM as well.
    of_a_run = WANDB_STEPS * medians["training step"]
    shares = {
        "weight average": medians["weight average"] / config.averaging.interval / medians["training step"],
        "ensemble sum": medians["ensemble sum"] / config.ensemble.every / medians["training step"],
        "checkpoint": medians["checkpoint"] / (medians["checkpoint"] + config.checkpoint_every),
    }
    shares_of_wandb = {name: value / of_a_run for name, value in copying.items()}
    report = {
        "device": describe(inputs.device),
        "precision": inputs.precision,
        "images_per_step": batches.images_per_step,
        "median_seconds": medians,
        "share_of_the_training_time": shares,
        "share_of_wandb": shares_of_wandb,
        "checkpoint_bytes": size,
        "seconds_to_read_finished_runs": reading,
        "seconds_for_wandb": copying,
    }
    terminal.say(f"medians of {config.optim.steps} steps of {batches.images_per_step} images on {report['device']}")
    terminal.say(f"training step    {1e3 * medians['training step']:9.2f} ms")
    for name, share in shares.items():
        terminal.say(f"{name:16s} {1e3 * medians[name]:9.2f} ms a time, {share:.3%} of the training time")
    ratio = medians["evaluation with the average"] / medians["evaluation of ERM"]
    terminal.say(
        f"an evaluation of ERM takes {medians['evaluation of ERM']:.2f} s, with the average {ratio:.2f} times that"
    )
    terminal.say(
        f"load_results reads {FINISHED_RUNS} finished runs in {reading['load_results']:.1f} s,"
        f" {reading['load_results'] / reading['json alone']:.1f} times what parsing their files takes"
    )
    terminal.say(
        f"W&B, of a run of {WANDB_STEPS:,} steps and {WANDB_STEPS // config.eval_every + 1} evaluations, offline:"
    )
    for name, value in copying.items():
        terminal.say(f"  {name:44s} {1e3 * value:9.1f} ms, {shares_of_wandb[name]:.4%} of the training time")
    path = output_dir / "benchmark.json"
    write_json(path, report)
    terminal.say(f"written to {path}")
    return report


def time_load_results(config: Config, runs: int, progress: Callable[[int, int], None]) -> dict[str, float]:
    """Seconds that `load_results` takes for so many finished runs, and those of reading and parsing their files."""
    rows = [
        {"method": method, "selection": selection, "step": 300} | dict.fromkeys(ACCURACIES, 0.8)
        for method in METHODS
        for selection in SELECTIONS
    ]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(runs):
            settings = flat_settings(config) | {"test_domain": "x", "seed": number}
            run_dir = Path(folder) / "runs" / config.dataset.name / "x" / run_id(settings)
            run_dir.mkdir(parents=True)
            result = {"run_id": run_dir.name, "settings": settings, "results": rows}
            (run_dir / "result.json").write_text(json.dumps(result, indent=1))
            progress(number + 1, runs)
        began = time.perf_counter()
        for path in Path(folder).glob("runs/*/*/*/result.json"):
            json.loads(path.read_text())
        parsed = time.perf_counter()
        read = len(load_results(folder))
        loaded = time.perf_counter()
    assert read == runs * len(rows)
    return {"load_results": loaded - parsed, "json alone": parsed - began}


def time_wandb(config: Config) -> dict[str, float]:
    """Seconds that the copy of one run takes: of the process that trains, at its end, and of the CPU in W&B's own process."""
    domain_acc = {f"d{number}": {"in": None, "out": 0.9} for number in range(4)}
    rows = [
        {"step": step, "method": method, "train_loss": 0.5, "lr": 1e-3, "feature_sq_norm": 1.0, "train_seconds": step}
        | dict.fromkeys(ACCURACIES, 0.8)
        | {"domain_acc": domain_acc}
        for step in range(0, WANDB_STEPS + 1, config.eval_every)
        for method in METHODS
    ]
    settings = flat_settings(config) | {"test_domain": "x"}
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "runs" / config.dataset.name / "x" / run_id(settings)
        run_dir.mkdir(parents=True)
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        selected = [
            {"method": method, "selection": selection, "step": 0} | dict.fromkeys(ACCURACIES, 0.8)
            for method in METHODS
            for selection in SELECTIONS
        ]
        result = {"run_id": run_dir.name, "settings": settings, "results": selected, "health": {"collapse": None}}
        write_json(run_dir / "result.json", result | {"images_per_second": 1.0, "seconds": 1.0, "device": "none"})
        (run_dir / "config.yaml").write_text(json.dumps({"identity": settings}))
        publisher = Publisher(WandbConfig(mode="offline"), folder, say=lambda _: None, warn=lambda _: None)
        cpu_before = cpu_of_children()
        began = time.perf_counter()
        publisher.follow(run_dir)
        publisher.publish(run_dir)
        asked = time.perf_counter()
        publisher.close()
        closed = time.perf_counter()
        if publisher.undelivered:
            raise UserError(f"wandb: {next(iter(publisher.undelivered.values()))}")
    return {
        "while it trains, in the training process": asked - began,
        "at the end, waiting": closed - asked,
        "CPU time of the process that delivers": cpu_of_children() - cpu_before,
    }


def cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
