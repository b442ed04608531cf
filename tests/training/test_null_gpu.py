"""The host's side of the CUDA path on a GPU that computes nothing: no wait, no allocation, no copy more than these in a step."""

import json
from pathlib import Path

import null_gpu
import pytest

reason = null_gpu.missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(reason is not None, reason=f"no null GPU: {reason}")]

RESNET50, VIT = "resnet50 64", "vit_b_16 32"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return null_gpu.build(tmp_path_factory.mktemp("null_gpu"))


@pytest.mark.parametrize(
    ("network", "what", "kernels", "products", "copies", "convolutions", "graphs"),
    [
        (RESNET50, "", 816, 5, 63, 158, 0),
        (RESNET50, "mixout", 1030, 5, 63, 158, 0),
        (RESNET50, "swad", 817, 5, 63, 158, 0),
        (RESNET50, "compile", 277, 5, 9, 158, 0),
        (RESNET50, "compile mixout", 277, 5, 9, 158, 0),
        ("resnet18 64", "graphs", 35, 5, 9, 0, 2),
        ("resnet18 64", "graphs mixout", 35, 5, 9, 0, 2),
        (VIT, "", 1049, 149, 45, 2, 0),
        (VIT, "mixout", 1250, 149, 45, 2, 0),
        (VIT, "swad", 1054, 149, 45, 2, 0),
    ],
)
def test_what_a_step_asks_of_the_gpu(
    library: Path, network: str, what: str, kernels: int, products: int, copies: int, convolutions: int, graphs: int
) -> None:
    """bf16, batch norm frozen, the weight average taken every step; of a recorded graph its launch alone. Kernels with a tenth's
    room for other versions of torch; copies, which are the code's own, with none."""
    done = null_gpu.python(library, str(null_gpu.HERE / "count_steps.py"), *network.split(), *what.split())
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert not any(counts[name] for name in ("waits", "allocations", "pinned", "compiled", "graph_breaks"))
    assert counts["copies"] <= copies
    assert (counts["convolutions"], counts["graphs"]) == (convolutions, graphs)
    assert counts["products"] == pytest.approx(products, rel=0.1)
    assert counts["kernels"] == pytest.approx(kernels, rel=0.1)


@pytest.mark.parametrize(
    ("file", "names", "passed"),
    [
        ("null_gpu/every_command.py", "test", 10),
        ("training/test_gpu.py", "nothing_between or deterministic or memory", 8),
    ],
)
def test_commands_and_tests_run_to_their_end(library: Path, file: str, names: str, passed: int) -> None:
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(null_gpu.HERE.parent / file), "-k", names]
    done = null_gpu.python(library, *command)
    assert done.returncode == 0, done.stdout
    assert f"{passed} passed" in done.stdout
