"""`torch.compile` for what a step spends its time in: the network and the augmentation."""

import copy
import logging
import os
import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from vld.config.errors import first_line
from vld.config.settings import Config
from vld.data.augment import augment_together
from vld.data.batches import TrainingBatches
from vld.model.classifier import Classifier, represent
from vld.training.evaluation import EvaluationSet, predict

ANNOUNCED_SECONDS = 10
"""A compilation that takes longer has its time said; from the cache it takes a few seconds."""


def is_wanted(config: Config, device: torch.device) -> bool:
    """`compile=auto`: on a GPU, unless the numbers have to be the same again."""
    if config.compile == "auto":
        return device.type == "cuda" and not config.deterministic
    return config.compile in ("true", "graphs")


def compile_run(
    model: Classifier,
    batches: TrainingBatches,
    images: EvaluationSet,
    say: Callable[[str], None],
    *,
    graphs: bool = False,
) -> None:
    """Have `model` and `batches` compute by compiled programs, after trying those on a copy; or as before where they fail.

    graphs: the network's kernels are recorded and launched as one CUDA graph, which spares the host; on a CPU there is none.
    """
    # A choice: `set_up` keeps float32 what it says.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # no CUDA on a CPU machine is no news
    torch._dynamo.config.recompile_limit = 64  # a sweep in one process has many networks and sizes
    began = time.perf_counter()
    trial, augment_before = copy.deepcopy(model), batches.augment
    try:
        trial.compute = _compiled(represent, graphs)
        if batches.device.type != "cpu":
            batches.augment = _compiled(augment_together)
        inputs, _ = batches.batch(0)
        trial.train()(inputs, torch.Generator(batches.device)).sum().backward()
        predict([trial], images, at_most=1)
        if batches.device.type == "cuda":
            torch.cuda.synchronize(batches.device)
    except Exception as error:
        # Whatever a compiler and its tools may raise. The trial also takes memory, which the run may do without.
        del trial
        if batches.device.type == "cuda":
            torch.cuda.empty_cache()
        batches.augment = augment_before
        reason = first_line(error)
        say(f"not compiled, which is slower and changes nothing else ({type(error).__name__}: {reason:.200})")
        return
    model.compute = _compiled(represent, graphs)
    if (seconds := time.perf_counter() - began) > ANNOUNCED_SECONDS:
        say(f"compiled in {seconds:.0f} s; {os.environ['TORCHINDUCTOR_CACHE_DIR']} keeps it for the runs to come")


@cache
def _compiled(function: Callable[..., Any], graphs: bool = False) -> Callable[..., Any]:
    """Once in a process: networks of one architecture share the program."""
    return torch.compile(function, dynamic=False, mode="reduce-overhead" if graphs else None)
