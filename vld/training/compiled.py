"""`torch.compile` for what a step spends its time in: the network and the augmentation."""

import copy
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from vld.config.errors import first_line
from vld.data.augment import augment_together
from vld.data.batches import TrainingBatches
from vld.machine.signals import heeded_at_once
from vld.model.classifier import Classifier, represent
from vld.training.evaluation import EvaluationSet, predict
from vld.training.loop import Trajectory, logits_in_training

ANNOUNCED_SECONDS = 10
"""What takes longer is announced, and its time said: a first compilation takes a minute or two, from the cache it is seconds."""


def is_wanted(how: str, device: torch.device) -> bool:
    """auto: on a GPU, unless the numbers have to be the same again (`set_up`)."""
    return how in ("true", "graphs") or (
        how == "auto" and device.type == "cuda" and not torch.are_deterministic_algorithms_enabled()
    )


def compile_network(
    how: str,
    model: Classifier,
    images: EvaluationSet,
    say: Callable[[str], None],
    training: tuple[Trajectory, TrainingBatches] | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Have `model` compute by a compiled program, after trying that on a copy; or as before where it fails.

    how: the setting `compile`; graphs: the network's kernels are recorded and launched as one CUDA graph, which spares the host.
    training: of a model that is to be trained; on a GPU the augmentation of the batches is compiled as well.
    check: called as soon as a signal comes, which the compiler's own processes get as well, and may end by; what it raises ends
    the compilation.
    """
    device = model.head.weight.device
    if not is_wanted(how, device):
        return
    # A choice: `set_up` keeps float32 what it says.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    # That a CPU machine has no CUDA is no news, nor that a signal ended the compiler's processes as well.
    for quiet in ("torch.utils.cpp_extension", "torch._inductor.compile_worker.subproc_pool"):
        logging.getLogger(quiet).setLevel(logging.ERROR)
    torch._dynamo.config.recompile_limit = 64  # a sweep in one process has many networks and sizes
    began = time.perf_counter()
    compute = _compiled(represent, how == "graphs")
    trajectory, batches = training or (None, None)
    augment = batches.augment if batches else augment_together
    news = "compiling, which takes a minute or two the first time; compile=false begins at once, with slower steps"
    announcement = threading.Timer(ANNOUNCED_SECONDS, say, [news])
    announcement.start()
    trial: Classifier | None = None
    try:
        with heeded_at_once(check):
            trial = copy.deepcopy(model)
            trial.compute = compute
            if trajectory and batches:
                if device.type != "cpu":
                    batches.augment = _compiled(augment_together)
                inputs, _ = batches.batch(0)
                trial.train()
                for step in {0, trajectory.config.warm_start}:
                    logits_in_training(trial, trajectory, inputs, step).sum().backward()  # type: ignore[no-untyped-call]
            predict([trial], images, at_most=1)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    except Exception as error:
        # Whatever a compiler and its tools may raise. The trial also takes memory, which the run may do without.
        trial = None
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if batches:
            batches.augment = augment
        reason = first_line(error)
        say(f"not compiled, which is slower and changes nothing else ({type(error).__name__}: {reason:.200})")
        return
    finally:
        announcement.cancel()
    model.compute = compute
    if (seconds := time.perf_counter() - began) > ANNOUNCED_SECONDS:
        say(f"compiled in {seconds:.0f} s; {os.environ['TORCHINDUCTOR_CACHE_DIR']} keeps it for the runs to come")


@cache
def _compiled(function: Callable[..., Any], graphs: bool = False) -> Callable[..., Any]:
    """Once in a process: networks of one architecture share the program."""
    return torch.compile(function, dynamic=False, mode="reduce-overhead" if graphs else None)
