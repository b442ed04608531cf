"""Images of a memory map that is larger than memory, and not in it."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vld.data import prefetch
from vld.data.prefetch import DeviceCopier, copied

CPU = torch.device("cpu")
SHAPE = (2500, 64, 64, 3)
"""Of a store of 31 MB."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "0.uint8"
    with path.open("wb") as file:
        np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8).tofile(file)
        os.fsync(file.fileno())  # only then can its pages be dropped
    return path


def mapped(store: Path) -> Tensor:
    """None of it in memory."""
    with store.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return torch.from_numpy(np.memmap(store, np.uint8, "r", shape=SHAPE))


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_rows_of_a_map_are_copied_part_by_part(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "COPIED_AT_ONCE", 3)
    source, rows = mapped(store), torch.tensor([6, 0, 3, 1, 1, 2499, 7])
    assert torch.equal(copied(source, rows, CPU), source[rows])
    assert torch.equal(DeviceCopier(CPU).gather([source, source], [rows[:3], rows[3:]]), source[rows])


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_rows_are_read_from_disk_before_they_are_used(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Using them then waits for no page (a major fault), as it does where the kernel does not know what will come."""
    rows = torch.randperm(SHAPE[0], generator=torch.Generator().manual_seed(0))[:96]

    def major_faults() -> int:
        source, before = mapped(store), resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
        DeviceCopier(CPU).gather([source], [rows])
        return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt - before

    ahead = major_faults()
    monkeypatch.setattr(prefetch, "_madvise", lambda *_: 0)
    if not (page_by_page := major_faults()):
        pytest.skip("this disk's files are always in memory")
    assert ahead < page_by_page


# A process that may have 16 MB of its own besides what it has after its imports, and reads the whole store.
SMALL = """
import re, resource, sys
from pathlib import Path
import numpy as np, torch
from vld.data.views import EvaluationViews
views = torch.from_numpy(np.memmap(sys.argv[1], np.uint8, "r", shape=tuple(map(int, sys.argv[2:]))))
images = EvaluationViews([views], [torch.arange(len(views))], torch.device("cpu"))
sum(int(chunk.numpy().sum()) for chunk in images.chunks(64))  # takes what it takes once
own = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (own + 2**24, own + 2**24))
try:
    views.clone()
    print("in memory")
except RuntimeError:
    print(sum(int(chunk.numpy().sum()) for chunk in images.chunks(64)))
"""


@pytest.mark.slow
def test_a_store_larger_than_memory_is_read_to_its_end(store: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SMALL, str(store), *map(str, SHAPE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == np.fromfile(store, np.uint8).sum()
