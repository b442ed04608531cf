"""What the host asks of a GPU in a step of a network: python count_steps.py ARCHITECTURE IMAGE_SIZE, as JSON."""

import ctypes
import json
import sys

import torch
from tiny import SEED, make_dataset, settings

from null_gpu.convolutions import asked
from vld.config.settings import AveragingConfig, BackboneConfig, Config, EnsembleConfig
from vld.data.batches import STEPS_AHEAD, TrainingBatches
from vld.data.split import split_indices
from vld.machine.device import set_up
from vld.model.classifier import build_classifier
from vld.training.loop import Trajectory, update
from vld.training.methods import WEIGHT_AVERAGING

NAMES = ("kernels", "products", "copies", "waits", "allocations", "pinned")
WARM_UP, STEPS = 12, 4


def main(architecture: str, image_size: int) -> None:
    counts = (ctypes.c_long * len(NAMES)).in_dll(ctypes.CDLL(None), "null_gpu_counts")
    device = torch.device("cuda")
    set_up(device, deterministic=False)
    torch.backends.cuda.enable_cudnn_sdp(False)  # attention by torch's own kernels: there is no cuDNN
    backbone = BackboneConfig(name=architecture, architecture=architecture, library="torchvision")
    config = Config(backbone=backbone, dropout=0.9, image_size=image_size)
    model = build_classifier(config, None, classes=3, autocast=True)
    model.pretrained = True
    model.to(device).train()
    domains = make_dataset().domains[:2]
    indices = [split_indices(20, number, 0)[0] for number in range(2)]
    STEPS_AHEAD["cuda"] = 0
    batches = TrainingBatches(domains, indices, 1, image_size, device, SEED)
    batches.hold()
    averaging, ensemble = AveragingConfig(1, 1), EnsembleConfig(99, 99)
    trajectory = Trajectory(model, settings(steps=99), eval_every=99, averaging=averaging, ensemble=ensemble)
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            before, convolutions = list(counts), asked["convolutions"]
            torch.cuda.set_sync_debug_mode("error")
        update(trajectory, *batches.batch(step), SEED, step)
        trajectory.methods[WEIGHT_AVERAGING].after_step(step + 1)
    made = {name: (now - then) / STEPS for name, now, then in zip(NAMES, counts, before, strict=True)}
    print(json.dumps(made | {"convolutions": (asked["convolutions"] - convolutions) / STEPS}))


main(sys.argv[1], int(sys.argv[2]))
