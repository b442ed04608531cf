"""Shared fixtures: a small synthetic dataset folder, and the real data and weights where they are present."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from archive_server import ArchiveServer, Files, below, serving_archives, tree, zipped
from hypothesis import settings
from PIL import Image

if TYPE_CHECKING:
    from vld.study.planned import PlannedRun

# What was started in the background of a script ignores Ctrl-C, and so would the commands that tests send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["WANDB_MODE"] = "disabled"  # in the commands that tests run, too, unless they say otherwise
torch.set_num_threads(1)
settings.register_profile("vld", deadline=None)  # a busy machine is no failure
settings.load_profile("vld")

SHARED = Path(__file__).resolve().parents[2] / "shared"

# (height, width) of the images of a class, in turn: square and not, smaller and larger than the store's 256 pixels.
SIZES = ((24, 24), (17, 40), (50, 31), (33, 33), (8, 21))
LARGE = (300, 410)

WriteDataset = Callable[..., Path]


def _write_dataset(
    root: Path,
    *,
    domains: Sequence[str] = ("art", "photo", "sketch"),
    classes: Sequence[str] = ("cat", "dog"),
    per_class: int = 5,
    sizes: Sequence[tuple[int, int]] = SIZES,
    special: bool = True,
    seed: int = 0,
) -> Path:
    """Write <root>/<domain>/<class>/<nnn>.png. With `special`, each domain's first class begins with an image larger than
    the store, a greyscale and a palette one."""
    random = np.random.default_rng(seed)
    for domain in domains:
        for label, name in enumerate(classes):
            folder = root / domain / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                kind = ("large", "L", "P", "RGB")[min(index, 3)] if special and label == 0 else "RGB"
                height, width = LARGE if kind == "large" else sizes[index % len(sizes)]
                image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
                if kind in ("L", "P"):
                    image = image.convert(kind)
                image.save(folder / f"{index:03d}.png")
    return root


@pytest.fixture(scope="session")
def write_dataset() -> WriteDataset:
    """The factory: `write_dataset(root, domains=..., classes=..., per_class=..., sizes=..., special=..., seed=...)`."""
    return _write_dataset


@pytest.fixture
def server() -> Iterator[ArchiveServer]:
    with serving_archives() as server:
        yield server


@pytest.fixture
def image_files(tmp_path: Path, write_dataset: WriteDataset) -> Callable[..., Files]:
    """The files of `write_dataset`."""
    return lambda **options: tree(write_dataset(tmp_path / "made", **options))


@pytest.fixture
def archive(image_files: Callable[..., Files]) -> bytes:
    """Of PACS' layout, and of several megabytes: less comes in one piece."""
    return zipped(below("kfold", image_files(domains=("photo", "sketch"), sizes=((300, 410),))))


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains of two classes of five images each. Shared by all tests: read only."""
    return _write_dataset(tmp_path_factory.mktemp("synthetic") / "dataset")


@pytest.fixture
def own_dataset_dir(tmp_path: Path) -> Path:
    """The same dataset, to be changed by one test."""
    return _write_dataset(tmp_path / "dataset")


def _shared(relative: str) -> Path:
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    return path


@pytest.fixture(scope="session")
def pacs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real PACS, in a data_dir of the tests' own, where its image store goes."""
    link = tmp_path_factory.mktemp("data") / "PACS"
    link.symlink_to(_shared("data/PACS").resolve())
    return link


@pytest.fixture(scope="session")
def lite0_weights() -> Path:
    return _shared("weights/tf_efficientnet_lite0.pth")


@pytest.fixture(scope="session")
def mobilenet_weights() -> Path:
    return _shared("weights/mobilenet_v2.features.pth")


@pytest.fixture(scope="session")
def small_glyphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir whose glyphs have six images of two classes in each domain: evaluating them takes no time."""
    from vld.data import glyphs

    data_dir = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:  # a picture depends on its own name alone
        patch.setattr(glyphs, "CLASSES", ("A", "E"))
        patch.setattr(glyphs, "IMAGES_PER_CLASS", 6)
        glyphs.draw_glyphs(data_dir / "glyphs")
    return data_dir


@pytest.fixture(scope="session")
def figure2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list["PlannedRun"]]:
    """Figure 2's 288 runs on two datasets, with soups and ensembles, as run directories. Shared by all tests: read only."""
    from report_store import write_combinations, write_study

    output_dir = tmp_path_factory.mktemp("figure2")
    runs = write_study(output_dir, "figure2", "dataset=pacs,vlcs")
    write_combinations(output_dir, runs)
    return output_dir, runs
