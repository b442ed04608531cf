"""`torch.compile` for what a step spends its time in: the network and the augmentation."""

import copy
import functools
import gc
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vld.config.errors import first_line
from vld.data.augment import augment_together
from vld.data.batches import TrainingBatches
from vld.machine.signals import heeded_at_once
from vld.model.classifier import Classifier, represent
from vld.training.evaluation import EvaluationSet, predict
from vld.training.loop import Trajectory, logits_in_training

ANNOUNCED_SECONDS = 10
"""What takes longer is announced, and its time said: a first compilation takes a minute or two, from the cache it is seconds."""
TIMES = {"true": 1, "graphs": 2}
"""That a step is tried: of a graph, its program first, then its recording."""
KEPT = 0.05
"""Of a GPU's memory: recordings keep the weights that they are of, also of networks that are gone."""
recorded: list[int] = []
"""Bytes of such weights, of this process."""


def ways(how: str, device: torch.device) -> tuple[str, ...]:
    """To compile, by the setting `compile`: the next where one fails. auto: on a GPU, unless the numbers have to be the same
    again (`set_up`)."""
    if how == "auto":
        how = "graphs" if device.type == "cuda" and not torch.are_deterministic_algorithms_enabled() else "false"
    return {"graphs": ("graphs", "true"), "true": ("true",), "false": ()}[how]


def compile_network(
    how: str,
    model: Classifier,
    images: EvaluationSet,
    say: Callable[[str], None],
    training: tuple[Trajectory, TrainingBatches] | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Have `model` compute by a compiled program, after trying that on a copy; or as before where it fails.

    how: the setting `compile`; graphs: the kernels of a step are recorded and launched as CUDA graphs, since a host launches them
    one by one more slowly than a fast GPU computes them.
    training: of a model that is to be trained; on a GPU the augmentation of the batches is compiled as well.
    check: called as soon as a signal comes, which the compiler's own processes get as well, and may end by; what it raises ends
    the compilation.
    """
    device = model.head.weight.device
    if not (to_try := ways(how, device)):
        return
    if training is None:  # evaluation alone has no steps to record
        to_try = to_try[-1:]
    # A choice: `set_up` keeps float32 what it says.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    # That a CPU machine has no CUDA is no news, nor that a signal ended the compiler's processes as well.
    for quiet in ("torch.utils.cpp_extension", "torch._inductor.compile_worker.subproc_pool"):
        logging.getLogger(quiet).setLevel(logging.ERROR)
    # A sweep in one process has many networks and sizes.
    torch._dynamo.config.recompile_limit = 64
    torch._inductor.config.triton.cudagraph_unexpected_rerecord_limit = 1 << 30
    began = time.perf_counter()
    if device.type == "cuda" and "graphs" in to_try:
        make_room(model)
    news = "compiling, which takes a minute or two the first time; compile=false begins at once, with slower steps"
    announcement = threading.Timer(ANNOUNCED_SECONDS, say, [news])
    announcement.start()
    try:
        for way in to_try:
            failure = _failure(way, model, images, training, check)
            if failure is None:
                model.compute = program(way)
                if (seconds := time.perf_counter() - began) > ANNOUNCED_SECONDS:
                    folder = os.environ["TORCHINDUCTOR_CACHE_DIR"]
                    say(f"compiled in {seconds:.0f} s; {folder} keeps it for the runs to come")
                return
            if device.type == "cuda":
                drop_recordings()
            what = {"graphs": "not launched as CUDA graphs", "true": "not compiled"}[way]
            say(f"{what}, which is slower and changes nothing else ({failure:.200})")
    finally:
        announcement.cancel()


def _failure(
    way: str,
    model: Classifier,
    images: EvaluationSet,
    training: tuple[Trajectory, TrainingBatches] | None,
    check: Callable[[], None],
) -> str | None:
    """Why a copy of the model cannot do, compiled, what a run asks of it; None if it can, and then the augmentation is compiled.

    Whatever a compiler and its tools may raise is a reason. The trial also takes memory, which the run may do without.
    """
    device = model.head.weight.device
    try:
        with heeded_at_once(check):
            trial = copy.deepcopy(model)
            trial.compute = program(way)
            if training:
                trajectory, batches = training
                if device.type != "cpu":
                    batches.augment = _compiled(augment_together)
                inputs, _ = batches.batch(0)
                trial.train()
                for step in sorted({0, trajectory.config.warm_start}) * TIMES[way]:
                    trial.zero_grad()
                    logits_in_training(trial, trajectory, inputs, step).sum().backward()  # type: ignore[no-untyped-call]
            predict([trial], images, at_most=1)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    except Exception as error:
        if training:
            training[1].augment = augment_together
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def make_room(model: Classifier) -> None:
    """Before steps of a network are recorded: where recordings would keep too many weights, as in a sweep of many runs, all are
    dropped, and programs are loaded from the disk again. Kept may be its own weights, its trial's and a regulariser's."""
    size = 3 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    total = torch.cuda.get_device_properties(model.head.weight.device).total_memory
    if sum(recorded) + size > KEPT * total:
        drop_recordings()
    recorded.append(size)


def drop_recordings() -> None:
    """With the programs in this process, which keep them, and with the memory of the steps that they are of."""
    torch.compiler.reset()
    _compiled.cache_clear()
    recorded.clear()
    gc.collect()
    torch.cuda.empty_cache()


def program(way: str) -> Callable[..., Tensor]:
    """`represent`, compiled. graphs: recorded where there is a gradient. Evaluation has many images at once, so that a GPU has no
    need to wait for their launch, and many networks, which would be recorded one by one."""
    evaluating = _compiled(represent)
    return (
        functools.partial(_represent, _compiled(represent, graphs=True), evaluating) if way == "graphs" else evaluating
    )


def _represent(training: Callable[..., Tensor], evaluating: Callable[..., Tensor], *inputs: Any) -> Tensor:
    return (training if torch.is_grad_enabled() else evaluating)(*inputs)


@functools.cache
def _compiled(function: Callable[..., Any], graphs: bool = False) -> Callable[..., Any]:
    """Once in a process: networks of one architecture share the program."""
    return torch.compile(function, dynamic=False, mode="reduce-overhead" if graphs else None)
