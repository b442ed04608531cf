"""Figure 2's 576 runs on four datasets, with soups and ensembles, written as run directories."""

from pathlib import Path

import pytest
from report_store import write_combinations, write_study

from vld.study import Wanted


@pytest.fixture(scope="session")
def figure2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Wanted]]:
    """Shared by all tests: read only (reports go elsewhere)."""
    output_dir = tmp_path_factory.mktemp("figure2")
    runs = write_study(output_dir, "figure2")
    write_combinations(output_dir, runs)
    return output_dir, runs
