"""What keeping record of runs costs: checkpoints, copies in W&B; and the memory that all takes."""

import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch

from vld.config.checked import accumulated
from vld.config.errors import UserError
from vld.config.names import ACCURACIES, SELECTIONS
from vld.config.options import flat_settings
from vld.config.settings import Config, WandbConfig
from vld.machine.atomic import write_json
from vld.runs.checkpoint import write_checkpoint
from vld.runs.identity import run_id
from vld.tracking.background import Publisher
from vld.training.loop import Trajectory

REPETITIONS = 3
WANDB_STEPS = 10_000
"""Of the run whose copy is timed: the paper's."""


def time_checkpoint(trajectory: Trajectory, output_dir: Path) -> dict[str, float]:
    """Seconds that training stands still for a checkpoint, on the disk that they go to, and its bytes."""
    times = []
    with tempfile.TemporaryDirectory(dir=output_dir) as folder:
        path = Path(folder) / "checkpoint.pt"
        for _ in range(REPETITIONS):
            began = time.perf_counter()
            write_checkpoint(path, {"trajectory": trajectory.state_dict()})
            times.append(time.perf_counter() - began)
        return {"seconds": statistics.median(times), "bytes": path.stat().st_size}


def time_wandb(config: Config) -> dict[str, float]:
    """Seconds that the copy of one run takes: of the process that trains, at its end, and of the CPU in W&B's own process."""
    domain_acc = {f"d{number}": {"in": None, "out": 0.9} for number in range(4)}
    rows = [
        {"step": step, "method": method, "train_loss": 0.5, "lr": 1e-3, "feature_sq_norm": 1.0, "train_seconds": step}
        | dict.fromkeys(ACCURACIES, 0.8)
        | {"domain_acc": domain_acc}
        for step in range(0, WANDB_STEPS + 1, config.eval_every)
        for method in accumulated(config)
    ]
    settings = flat_settings(config) | {"test_domain": "x"}
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "runs" / config.dataset.name / "x" / run_id(settings)
        run_dir.mkdir(parents=True)
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        selected = [
            {"method": method, "selection": selection, "step": 0} | dict.fromkeys(ACCURACIES, 0.8)
            for method in accumulated(config)
            for selection in SELECTIONS
        ]
        result = {"run_id": run_dir.name, "settings": settings, "results": selected, "health": {"collapse": None}}
        write_json(run_dir / "result.json", result | {"images_per_second": 1.0, "seconds": 1.0, "device": "none"})
        (run_dir / "config.yaml").write_text(json.dumps({"identity": settings}))
        publisher = Publisher(WandbConfig(mode="offline"), folder, say=lambda _: None, warn=lambda _: None)
        cpu_before = cpu_of_children()
        began = time.perf_counter()
        publisher.started(run_dir)
        publisher.ended(run_dir)
        asked = time.perf_counter()
        publisher.finish()
        closed = time.perf_counter()
        if publisher.not_uploaded:
            raise UserError(f"wandb: {next(iter(publisher.not_uploaded.values()))}")
    return {
        "while it trains, in the training process": asked - began,
        "at the end, waiting": closed - asked,
        "CPU time of the process that delivers": cpu_of_children() - cpu_before,
    }


def cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes. The host's counts the pages of memory maps that are in memory, too; on a GPU the usual networks are in it."""
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_reserved(device)
    return peak
