"""What a step asks of a GPU, counted on one that computes nothing: no wait, no allocation, no copy more than these."""

import json
from pathlib import Path

import null_gpu
import pytest

reason = null_gpu.missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(reason is not None, reason=f"no null GPU: {reason}")]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return null_gpu.build(tmp_path_factory.mktemp("null_gpu"))


@pytest.mark.parametrize(
    ("architecture", "image_size", "kernels", "products", "copies", "convolutions"),
    [("resnet50", 64, 816, 5, 63, 158), ("vit_b_16", 32, 1049, 149, 45, 2)],
)
def test_what_a_step_asks_of_the_gpu(
    library: Path,
    architecture: str,
    image_size: int,
    kernels: int,
    products: int,
    copies: int,
    convolutions: int,
) -> None:
    """Eager, bf16, batch norm frozen, the weight average taken every step. Kernels with a tenth's room for other versions of
    torch; copies, which are the code's own, with none."""
    done = null_gpu.python(library, str(null_gpu.HERE / "count_steps.py"), architecture, str(image_size))
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["waits"], counts["allocations"], counts["pinned"]) == (0, 0, 0)
    assert counts["copies"] <= copies
    assert counts["convolutions"] == convolutions
    assert counts["products"] == pytest.approx(products, rel=0.1)
    assert counts["kernels"] == pytest.approx(kernels, rel=0.1)
