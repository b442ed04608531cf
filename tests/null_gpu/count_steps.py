"""What the host asks of a GPU in a step of a network, as JSON: python count_steps.py ARCHITECTURE IMAGE_SIZE [WHAT...]

WHAT: compile, graphs, mixout, swad.
"""

import ctypes
import json
import os
import sys
import threading

import torch
from tiny import SEED, make_dataset, settings
from torch._dynamo.utils import counters

from null_gpu.mathematics import asked
from vld.config.settings import AveragingConfig, BackboneConfig, Config, EnsembleConfig, SwadConfig
from vld.data.batches import STEPS_AHEAD, TrainingBatches
from vld.data.split import split_indices
from vld.machine.device import MemoryBudget, set_up
from vld.model.classifier import build_classifier
from vld.training import compiled
from vld.training.evaluation import evaluation_set
from vld.training.loop import Trajectory, update

NAMES = ("kernels", "products", "copies", "waits", "allocations", "pinned", "graphs")
WARM_UP, STEPS = 12, 4


compiled.ANNOUNCED_SECONDS = threading.TIMEOUT_MAX  # what is said is why it failed


def main(architecture: str, image_size: int, *what: str) -> None:
    counts = (ctypes.c_long * len(NAMES)).in_dll(ctypes.CDLL(None), "null_gpu_counts")
    device = torch.device("cuda")
    set_up(device, deterministic=False)
    backbone = BackboneConfig(name=architecture, architecture=architecture, library="torchvision")
    config = Config(backbone=backbone, dropout=0.9, image_size=image_size)
    model = build_classifier(config, None, 3, "bf16")
    model.pretrained = True
    model.to(device).train()
    dataset = make_dataset()
    indices = [split_indices(20, number, 0)[0] for number in range(2)]
    STEPS_AHEAD["cuda"] = 0
    batches = TrainingBatches(dataset.domains[:2], indices, 1, image_size, device, SEED)
    batches.hold()
    config = settings(
        steps=99,
        averaging=AveragingConfig(1, 1),
        ensemble=EnsembleConfig(99, 99),
        swad=SwadConfig(enabled="swad" in what),
        mixout=0.9 if "mixout" in what else 0.0,
        mixout_kind="point" if architecture.startswith("vit") else "filter",
    )
    trajectory = Trajectory(model, config)
    how = "graphs" if "graphs" in what else "true" if "compile" in what else "false"
    images = evaluation_set(dataset, "c", 0, device, memory=MemoryBudget(device, str))
    compiled.compile_network(how, model, images, sys.exit, (trajectory, batches))
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            before, convolutions, programs = list(counts), asked["convolutions"], counters["stats"]["unique_graphs"]
            torch.cuda.set_sync_debug_mode("error")
        update(trajectory, *batches.batch(step), step)
        for method in trajectory.methods.values():
            method.after_step(step + 1)
    made = {name: (now - then) / STEPS for name, now, then in zip(NAMES, counts, before, strict=True)}
    made["convolutions"] = (asked["convolutions"] - convolutions) / STEPS
    made["compiled"] = counters["stats"]["unique_graphs"] - programs
    print(json.dumps(made | {"graph_breaks": sum(counters["graph_break"].values())}), flush=True)
    # autograd's thread may still have Python objects to free, and an interpreter at its end aborts a thread that asks for it.
    os._exit(0)


main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
